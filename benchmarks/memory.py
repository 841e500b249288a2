"""What the released sizes need of a device, computed: weights by their shapes, working memory by counting the bytes of
tensors that are alive at once while narrow networks make a small picture, times how much larger the real thing is.
"""

import tempfile
import weakref
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from internvlu_core import Branch, Context, InternVLU
from internvlu_core.checkpoints.config import Config
from internvlu_core.checkpoints.files import COMPONENTS
from internvlu_core.checkpoints.load import build_on_meta
from internvlu_core.quantization import FORMATS, quantise_network
from internvlu_core.sampling import flow_sigmas
from scripts.random_checkpoint import SCALES, TEMPLATE, write_json

SIDE, CONTEXT = 1024, 512  # of the picture, in pixels; tokens of each branch
SMALLER = 4  # the side of what is drawn here; tokens and pixels are the square of it fewer
DTYPE = torch.bfloat16


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors made under it: alive now, and at most."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.tensors = Counter()  # of each storage

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.track(tensor, inputs)
        return result

    def track(self, tensor: Tensor, inputs: set[int]):
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key not in self.tensors:
            if key in inputs:  # a view of what was there before
                return
            self.live += nbytes
            self.peak = max(self.peak, self.live)
        self.tensors[key] += 1
        weakref.finalize(tensor, self.release, key, nbytes)

    def release(self, key: int, nbytes: int):
        self.tensors[key] -= 1
        if not self.tensors[key]:
            del self.tensors[key]
            self.live -= nbytes


def live_peak(run) -> int:
    with LiveBytes() as live, torch.inference_mode():
        run()
    return live.peak


def read_config(scale: str) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder, "checkpoint"), SCALES[scale])
        return Config.read(Path(folder, "checkpoint"))


def weights(config: Config, eight_bits: bool) -> dict[str, int]:
    """{network: bytes of its weights}"""
    found = {}
    for name, component in zip(("VLM", "MMDiT", "VAE"), COMPONENTS, strict=True):
        network = build_on_meta(config, component).to(DTYPE)
        state = network.state_dict()
        if eight_bits:
            quantise_network(network, state, FORMATS["fp8"])
        found[name] = sum(tensor.nbytes for tensor in state.values())
    return found


def working_memory(wide: Config) -> dict[str, int]:
    """{what runs: bytes beside its weights}. All but a few tables grows with width and tokens; attention is fused."""
    model = InternVLU.from_pretrained(TEMPLATE, dtype=DTYPE)
    narrow, side, context = model.config, SIDE // SMALLER // 8, CONTEXT // SMALLER**2
    latents = torch.zeros(1, narrow.vae.latent_channels, side, side)

    scales = narrow.mmdit.guidance(reasoned=False)

    def branch(*references: Tensor) -> Branch:
        states = torch.zeros(context, narrow.mmdit.context_size, dtype=DTYPE)
        return Branch(states, torch.zeros(context, dtype=torch.bool), [], list(references))

    def step(full: Branch, partial: Branch, unconditional: Branch) -> int:
        return live_peak(lambda: model.sample(Context(full, partial, unconditional), latents, flow_sigmas(1), *scales))

    blank, layers = branch(), narrow.language.num_layers
    embeddings = torch.zeros(1, context, narrow.language.hidden_size, dtype=DTYPE)
    read = live_peak(lambda: model.vlm.language_model(embeddings, (layers, layers - 1)))
    decode = live_peak(lambda: model.decode(latents))
    size = SMALLER**2 * wide.mmdit.hidden_size / narrow.mmdit.hidden_size
    return {
        # Of a layer the MLP is the widest.
        "VLM": int(read * SMALLER**2 * wide.language.mlp_size / narrow.language.mlp_size),
        "MMDiT": int(step(branch(), blank, blank) * size),
        "MMDiT, edit": int(step(branch(latents), branch(latents), blank) * size),
        "VAE": int(decode * SMALLER**2 * wide.vae.base_channels / narrow.vae.base_channels),
    }


def table() -> list[dict]:
    """A row for each network: bytes of weights in 16 and in 8 bits, and beside them."""
    wide = read_config("released")
    working = working_memory(wide)
    sixteen, eight = (weights(wide, eight_bits) for eight_bits in (False, True))
    rows = []
    for name, nbytes in working.items():
        network = name.partition(",")[0]
        rows.append({"stage": name, "bf16": sixteen[network], "fp8": eight[network], "working": nbytes})
    return rows
