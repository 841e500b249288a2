"""What each weight format costs and saves: on the toy, which draws real pictures, and on the recorded checkpoint.

Every format in the core's list is measured, so that a new one joins by itself. All are compared with float32. All
but bf16 compute in float32, so that what differs is the weights. bf16 also rounds what it computes, and the timestep:
it has no 999, only 1000.
"""

import platform
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from internvlu_core import InternVLU, imaging
from internvlu_core.checkpoints.config import Config
from internvlu_core.checkpoints.convert import convert
from internvlu_core.checkpoints.load import build_on_meta
from internvlu_core.quantization import QUANTS, WEIGHT_FORMATS, FileFormat, Gguf, WeightFormat, network_formats
from internvlu_core.quantization.gguf import TYPES
from internvlu_core.sampling import flow_sigmas
from internvlu_train.evaluation.sampling import Order, Settings, batches
from internvlu_train.evaluation.toy import GENEVAL, TASKS, draw, unseen
from support.checkpoints import CHECKPOINT, copy_json
from support.scaled_checkpoints import SCALES, stored_shapes

from .harness import ROOT, Run, relative
from .memory import measure, released_config

TOY = ROOT / "demo" / "InternVL-U-toy"
PICTURES = 64
STAGE = "MMDiT, first step of a drawing"  # of the table of memory
ROWS = 128  # of the matrix that says how many bytes a format takes: a multiple of what any format pads to
PROMPT = "a blue circle and a green cross"


def machine() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} thread(s)"


def weight_formats() -> dict[str, WeightFormat]:
    """Every format that can be written."""
    return WEIGHT_FORMATS | {kind: Gguf(kind) for kind in TYPES}


def formats() -> dict[str, torch.dtype | WeightFormat]:
    """{name: what from_pretrained is given as dtype}, float32 first."""
    return {"float32": torch.float32, "bf16": torch.bfloat16} | weight_formats()


def quantisation(run: Run, options):
    """A line for each format; --quick for a look at whether it works."""
    settings = Settings((64, 64), 2 if options.quick else options.steps, batch=32)
    count, pictures = (1, 2) if options.quick else (options.count, PICTURES)
    exact, sizes, toy = None, released_sizes(), run.work / "toy-float32"
    convert(TOY, toy, "folder", dtype=torch.float32, force=True)
    for name, dtype in formats().items():
        print(f"{name} …", file=sys.stderr)
        found = on_toy(toy, dtype, settings, count, pictures, exact)
        exact = exact or found
        values = {key: value for key, value in found.items() if not key.startswith("_")}
        values["recorded"] = recorded_error(dtype)
        values["disk"] = sizes.get(name, 2 * sizes["bf16"])
        if not options.quick and name in ("bf16", *WEIGHT_FORMATS):  # fake tensors cannot unpack GGUF's blocks
            _, weights, record = measure(None if name == "bf16" else name)[STAGE]
            values["drawing"] = weights + record.working
        run.record(comparison="quantisation", stage=name, side="core", machine=machine(), count=count, **values)


@torch.inference_mode()
def on_toy(toy: Path, dtype, settings: Settings, count: int, pictures: int, exact: dict | None) -> dict:
    """Scores of the toy in a format; keys with an underscore are for the comparison of the next ones with this one."""
    model = InternVLU.from_pretrained(toy, dtype=dtype)
    kinds = [unseen("objects", "draw", -(-pictures // len(GENEVAL)), settings, kind) for kind in GENEVAL]
    samples = [sample for of_kind in kinds for sample in of_kind][:pictures]
    found = {"_velocity": first_velocity(model, PROMPT), "_pictures": np.stack(draw(model, samples, settings))}
    exact = exact or (found | {"_model": model})
    reference = exact["_model"]
    return found | {
        "_model": reference,
        "velocity": relative(found["_velocity"], exact["_velocity"]),
        "psnr": psnr(found["_pictures"], exact["_pictures"]),
        "distance": distance(reference, found["_pictures"], exact["_pictures"]),
        "geneval": TASKS["geneval"](model, count, settings)["score"],
        "questions": TASKS["ask"](model, count, settings)["score"],
        "step": seconds_a_step(model, samples, settings),
    }


def first_velocity(model: InternVLU, prompt: str, images=()) -> Tensor:
    """Of the full branch, from the model's own conditioning."""
    config = model.config
    noise = model.noise(config.mmdit.image_height, config.mmdit.image_width, 0)
    return model.velocity(model.encode(prompt, list(images)).full, noise, torch.tensor([999.0]))


def recorded_error(dtype) -> float:
    """The relative error of the first velocity on the recorded checkpoint, whose weights are random."""
    exact, found = (
        first_velocity(InternVLU.from_pretrained(CHECKPOINT, dtype=kind), "a boat") for kind in (torch.float32, dtype)
    )
    return relative(found, exact)


def psnr(pictures: np.ndarray, exact: np.ndarray) -> float | None:
    """Of all pictures together, in decibels; None if they are equal."""
    error = float(np.mean((pictures.astype(np.float64) - exact) ** 2))
    return 10 * float(np.log10(255**2 / error)) if error else None


def distance(model: InternVLU, pictures: np.ndarray, exact: np.ndarray) -> float:
    """1 − cosine of the features that the toy's own ViT, in float32, has of each place of two pictures: their mean.

    As LPIPS it compares what a network sees, but LPIPS's network was trained on photographs, which these are not.
    """

    def features(batch):
        tiles = [imaging.vit_tiles(Image.fromarray(picture), model.config.processor, 1) for picture in batch]
        return torch.cat([model.vlm.image_features(tile.to(model.dtype)) for tile in tiles])

    return float(1 - F.cosine_similarity(features(pictures), features(exact), dim=-1).mean())


def seconds_a_step(model: InternVLU, samples, settings: Settings) -> float:
    """Of one picture, the fastest of three."""
    (_, contexts), *_ = batches(model, [Order(samples[0].prompt)], 1)
    noise = model.noise(settings.size[1], settings.size[0], 0)
    scales, times = settings.scales(model.config.mmdit, reasoned=False), []
    for _ in range(4):
        start = time.perf_counter()
        model.sample(contexts[0], noise, flow_sigmas(1), *scales)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def released_sizes() -> dict[str, int]:
    """{name: bytes of the three networks of the released sizes on disk}, computed, all else in bfloat16."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "released")
        copy_json(folder, SCALES["released"])
        config, every = Config.read(folder), stored_shapes(folder)
    sizes = {"bf16": sum(2 * torch.Size(shape).numel() for _, shapes in every for shape in shapes.values())}
    for name, weight_format in weight_formats().items():
        sizes[name] = sizes["bf16"]
        for names, shapes in every:
            network = build_on_meta(config, names.folder)
            for path, of_layer in network_formats(network, weight_format).items():
                shape = shapes[names.file_name(f"{path}.weight")]
                sizes[name] += round(bytes_a_row(of_layer, shape[1]) * shape[0]) - 2 * shape[0] * shape[1]
    return sizes


_KNOWN: dict[tuple[WeightFormat, int], float] = {}


def bytes_a_row(weight_format: WeightFormat, columns: int) -> float:
    """What a format stores for a row of a matrix."""
    key = weight_format, columns
    if key not in _KNOWN:
        of_layer = weight_format.for_layer("layers.0.x.weight", torch.empty(ROWS, columns))
        stored = of_layer.quantise(torch.randn(ROWS, columns))
        _KNOWN[key] = sum(tensor.nbytes for tensor in stored.values()) / ROWS
    return _KNOWN[key]


# Which matrices stay in 16 bits: groups of them by their names in the networks, each rounded alone.
GROUPS = {
    "matrices of the MMDiT's blocks": r"transformer_blocks\..*",
    "matrices of the ViT's and the language model's layers": r".*\blayers\..*",
    "head": r".*lm_head\.weight",
    "embedding of tokens": r".*embed_tokens\.weight",
    "time embedding": r"time_text_embed\..*",
    "first and last layers of the MMDiT": r"(img_in|txt_in|proj_out|norm_out)\..*",
    "projectors": r"(mlp1|decoder_projector)\..*",
}


@torch.no_grad()  # inference mode would hide from the model that its weights change
def sixteen(run: Run, options):
    """The error of the first velocity and of the head's logits when one group of matrices is in fewer bits."""
    toy = run.work / "toy-float32"
    convert(TOY, toy, "folder", dtype=torch.float32, force=True)
    model = InternVLU.from_pretrained(toy)
    exact = outputs(model)
    released = released_shapes()
    for group, pattern in GROUPS.items():
        saved = sum(torch.Size(shape).numel() for name, shape in released.items() if is_in(pattern, name, shape))
        for name, weight_format in QUANTS.items():
            kept = round_group(model, pattern, weight_format)
            found = outputs(model)
            for parameter, before in kept:
                parameter.copy_(before)
            errors = {key: relative(found[key], exact[key]) for key in exact}
            run.record(comparison="sixteen", stage=group, side=name, machine=machine(), values=saved, **errors)


def is_in(pattern: str, name: str, shape) -> bool:
    sides = [side for side in shape if side > 1]
    return len(shape) == 2 and len(sides) == 2 and bool(re.fullmatch(pattern, name))


def round_group(model: InternVLU, pattern: str, weight_format: FileFormat) -> list[tuple[Tensor, Tensor]]:
    """Round the matrices of a group in place: (parameter, what it was) of each."""
    kept = []
    for network in (model.mmdit, model.vlm):
        for name, parameter in network.named_parameters():
            if is_in(pattern, name, parameter.shape):
                kept.append((parameter, parameter.clone()))
                stored = weight_format.quantise(parameter)
                parameter.copy_(weight_format.of_shape(parameter.shape).dequantise(stored, torch.float32))
    return kept


def outputs(model: InternVLU) -> dict[str, Tensor]:
    """The first velocity of an edit, the language model's states that condition it, and the logits after them."""
    sample = unseen("objects", "edit", 1, Settings((64, 64)))[0]
    images = [Image.fromarray(image) for image in sample.images]
    hidden = model.encode(sample.prompt, images).full.hidden
    logits = model.vlm.language_model.logits(hidden[-1:, : model.config.language.hidden_size])
    return {"velocity": first_velocity(model, sample.prompt, images), "hidden": hidden, "logits": logits}


def released_shapes() -> dict[str, torch.Size]:
    """{name in its network: shape} of the released parameters."""
    config = released_config()
    networks = (build_on_meta(config, component) for component in ("generation_decoder", "vlm"))
    return {name: tensor.shape for network in networks for name, tensor in network.named_parameters()}
