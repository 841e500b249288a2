"""A GPU of some size that is not there, as ComfyUI sees it, and the released sizes' MODEL, VLM and VAE to put on it.

ComfyUI decides what to load, how much of it, and what to unload, by its own accounting of what is alive on a
FakeDevice. Needs ComfyUI in this process (inprocess.py).
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor

from .fake_device import FakeDevice
from .inprocess import PACK, load_pack
from .tensors import noise

NODES_FP8 = "fp8_e4m3fn"  # the loaders' own 8 bits, made from a file in 16 bits
SMALL = 2**20  # values


def pack() -> SimpleNamespace:
    """The pack's modules in this process, by name."""
    load_pack()
    names = {"config": "internvlu_core.checkpoints.config", "weights": "internvlu_core.checkpoints.load"}
    names |= {"files": "internvlu_core.checkpoints.files", "decoding": "internvlu_core.decoding"}
    names |= {"prompt": "internvlu_core.prompt", "quantization": "internvlu_core.quantization"}
    names |= {name: f"nodes.comfy.{name}" for name in ("load", "guider", "model", "vae", "vlm")}
    names |= {name: f"nodes.{name}" for name in ("encode", "sampling")}
    return SimpleNamespace(**{key: importlib.import_module(f"{PACK}.{name}") for key, name in names.items()})


@contextmanager
def fake_card(total: int = 80 * 2**30, enforced: bool = False) -> Iterator[FakeDevice]:
    """ComfyUI works on a fake GPU, as on an RTX 30. total, enforced: as in FakeDevice."""
    import comfy.ldm.modules.attention as attention
    import comfy.model_management as management

    gpu = FakeDevice(total=total, enforced=enforced)
    about = SimpleNamespace(major=8, minor=6, name="fake", total_memory=total, multi_processor_count=84)
    live = ("active_bytes.all.current", "reserved_bytes.all.current")
    replaced = [
        (torch.cuda, "get_device_properties", lambda device=None: about),
        (torch.cuda, "memory_stats", lambda device=None: dict.fromkeys(live, gpu.live)),
        (management, "cpu_state", management.CPUState.GPU),
        (management, "vram_state", management.VRAMState.NORMAL_VRAM),
        (management, "get_torch_device", lambda: gpu.device),
        (management, "pytorch_attention_enabled", lambda: True),
        (management, "pytorch_attention_flash_attention", lambda: True),
        (management, "current_loaded_models", []),
        (attention, "optimized_attention", attention.attention_pytorch),
    ]
    patches = [mock.patch.object(*each) for each in replaced]
    for patch in patches:
        patch.start()
    try:
        with gpu, torch.inference_mode():  # as ComfyUI runs its nodes
            yield gpu
            management.unload_all_models()
    finally:
        for patch in reversed(patches):
            patch.stop()


def hollow_parts(host: SimpleNamespace, folder: Path, name: str) -> SimpleNamespace:
    """What the loader's outputs are, of weights without values, which take a moment and next to no memory.

    folder: has the JSON files. name: "bf16", "fp16", NODES_FP8, a name in WEIGHT_FORMATS or a GGUF type.
    """
    config = host.config.Config.read(folder)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, NODES_FP8: torch.float8_e4m3fn}.get(name)
    mmdit, vlm, vae = (_state(host, config, component, name) for component in ("generation_decoder", "vlm", "vae"))
    tokenizer = host.prompt.Tokenizer(folder / "processor")
    return SimpleNamespace(
        model=host.model.build_model(config, mmdit[0], dtype, mmdit[1]),
        vlm=host.vlm.ComfyVLM(config, tokenizer, vlm[0], dtype, vlm[1]),
        vae=host.vae.ComfyVAE(config, vae[0]),
    )


def _state(host, config, component: str, name: str) -> tuple[dict, dict]:
    """(state dict, formats of its layers in fewer bits), as the core reads them from a file."""
    kinds, network = host.quantization, host.weights.build_on_meta(config, component).to(torch.bfloat16)
    state, formats = {key: _hollow(tensor) for key, tensor in network.state_dict().items()}, {}
    if name in ("bf16", "fp16"):
        return state, formats
    own = name == NODES_FP8
    weight_format = kinds.WEIGHT_FORMATS["fp8"] if own else kinds.WEIGHT_FORMATS.get(name) or kinds.Gguf(name)
    for path, of_layer in kinds.network_formats(network, weight_format).items():
        stored = of_layer.quantise(torch.empty(state.pop(f"{path}.weight").shape, device="meta"))
        stored = {key: _hollow(tensor) for key, tensor in stored.items()}
        if of_layer.name == "mxfp8":  # a row whose blocks have different scales: else it is Float8Linear's form
            stored["weight_scale"].view(-1)[1] = 1
        if own:  # a weight that is float8 already is not rounded again, which would take minutes
            state[f"{path}.weight"] = stored["weight"]
        elif isinstance(of_layer, kinds.Gguf):
            state[f"{path}.weight"] = kinds.QuantisedWeight(of_layer, stored)
        else:
            state |= {f"{path}.{key}": tensor for key, tensor in stored.items()}
            formats[path] = of_layer
    return state, formats


def _hollow(tensor: Tensor) -> Tensor:
    """In main memory, of which an operating system gives nothing to large tensors that nobody reads."""
    make = torch.zeros if tensor.numel() < SMALL else torch.empty
    return make(tensor.shape, dtype=tensor.dtype)


def sample(host, parts, conditionings, size: tuple[int, int], batch: int = 1, steps: int = 2, callback=None):
    """Latents by InternVLUSampler's guider. size: height and width in pixels."""
    guider = host.guider.DualGuider(parts.model)
    guider.set_conds(*conditionings, 4.5, 2.0)
    sampler = host.sampling.InternVLUSamplerSelect.execute().result[0]
    latents = torch.zeros(batch, 16, 1, size[0] // 8, size[1] // 8)
    sigmas = host.sampling.InternVLUScheduler.execute(steps=steps, shift=3.0, denoise=1.0).result[0]
    return guider.sample(noise(*latents.shape), latents, sampler, sigmas, callback=callback, disable_pbar=True, seed=0)
