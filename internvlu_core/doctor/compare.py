"""The core against recorded runs of the official pipeline, stage by stage.

Each stage gets the recorded input of that stage in float32, so that the stage that differs is the one that is broken.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import guidance, imaging
from ..decoding import TextSettings, generate_tokens
from ..errors import in_one_line
from ..pipeline import InternVLU
from .recording import BRANCHES, Recording, frequencies
from .smoke import ERRORS


@contextmanager
def recorded_frequencies(model: InternVLU, folder: Path):
    """Let the time embedding have the frequencies that it had where a folder was recorded.

    exp differs in the last bit between a CPU and a GPU, and between the CPUs of two makers. The arguments of the
    sinusoids reach 1e6, where this bit is a relative 2e-3 to 1e-2 of the recorded checkpoint's first velocity.
    """
    embedding, there = model.mmdit.time_text_embed, frequencies(folder)
    if there is not None:
        embedding.frequencies = there.to  # called with the device of the timestep
    try:
        yield
    finally:
        vars(embedding).pop("frequencies", None)


# The largest relative difference in float32: of one stage, and where errors of several steps or branches add up.
STAGE, RUN = 1e-4, 1e-3
LOOSE = 0.1  # of one stage in 16 bits, where the official code's own error is not known
# In 16 bits our error may exceed the official code's by this factor: both are rounding, which differs by chance.
CHANCE = 1.25
PICTURE = 1.0  # levels of 255, on average, of a picture drawn from its prompt in float32

INPUTS = "ViT pixels", "reference pixels"  # computed in float32 whatever the model's dtype is
RUNS = "guided velocity", "final latents"  # judged by RUN in float32, and not by LOOSE in 16 bits
STAGES = {  # stage: its tensors in a recording
    "ViT pixels": ("vit.pixel_values",),
    "ViT features": ("vit.features",),
    "reference pixels": ("reference.pixels.0",),
    "reference latents": ("reference.latents.0",),
    "hidden states": tuple(f"context.hidden.{i}" for i in range(3)),
    "first velocity": ("dit.step0.velocity",),
    "guided velocity": ("sampler.guided.0",),
    "final latents": ("latents.final",),
    "decoded pixels": ("vae.decoded",),
}


@dataclass(frozen=True)
class Difference:
    """How far a stage of one run is from the recorded one.

    error: relative; of "picture", levels of 255 on average; NaN where the stage failed. official: the official code's
    own error in the same 16-bit dtype, against its float32. apart: from the official code in that dtype. bound: of the
    error, None if there is none. note: more in words.
    """

    case: str
    stage: str
    dtype: str
    error: float
    official: float | None = None
    apart: float | None = None
    bound: float | None = None
    note: str = ""

    @property
    def wrong(self) -> bool:
        """Whether it is not finite, over the bound, or far from the official code in the same dtype.

        The last finds what rounding hides, such as that of the timestep.
        """
        if not math.isfinite(self.error) or (self.bound is not None and self.error > self.bound):
            return True
        return self.apart is not None and self.stage not in RUNS and not self.apart <= LOOSE


def relative(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64; infinite where the shapes differ."""
    if actual.shape != expected.shape:
        return math.inf
    actual, expected = actual.detach().cpu().double(), expected.double()
    return float((actual - expected).norm() / expected.norm())


def compare(model: InternVLU, run: Recording, other: Recording | None = None) -> list[Difference]:
    """Differences of one recorded run. other: the same run of the official code in the model's dtype, replayed."""
    dtype = str(model.dtype).removeprefix("torch.")
    found = []
    try:
        for stage, made in made_stages(model, run):
            error, theirs, apart = _worst(made, wanted(run, stage)), None, None
            if other is not None and stage not in INPUTS:
                theirs = _worst(wanted(other, stage), wanted(run, stage))
                apart = _worst(made, wanted(other, stage))
            found.append(Difference(run.name, stage, dtype, error, theirs, apart, _bound(stage, dtype)))
        if run.writes:
            found.append(_text(model, run, dtype))
    except ERRORS as error:
        found.append(Difference(run.name, "failed", dtype, math.nan, note=in_one_line(error)))
    return found


def wanted(run: Recording, stage: str) -> list[Tensor]:
    """The recorded tensors of a stage."""
    return [run[name] for name in STAGES[stage] if name in run.tensors]


def _worst(made: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative difference; NaN if there is one."""
    return max(map(relative, made, expected), key=_size)


def _size(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _bound(stage: str, dtype: str) -> float | None:
    if dtype == "float32" or stage in INPUTS:
        return RUN if stage in RUNS else STAGE
    # A timestep of 16 bits is another one: in random networks the velocity changes more than that.
    return None if stage in RUNS or stage == "first velocity" else LOOSE


@torch.inference_mode()
def made_stages(model: InternVLU, run: Recording) -> Iterator[tuple[str, list[Tensor]]]:
    """(stage, its tensors as the core computes them from the recorded inputs), for each stage that the run has."""
    if run.images:
        yield from _seen(model, run)
    if run.draws:
        yield from _drawn(model, run)


def _seen(model: InternVLU, run: Recording):
    tiles = torch.cat([imaging.vit_tiles(image, model.config.processor) for image in run.images])
    if "vit.pixel_values" in run.tensors:
        yield "ViT pixels", [tiles]
        tiles = run["vit.pixel_values"]
    yield "ViT features", [model.vlm.image_features(tiles.to(model.device, model.dtype))]
    if run.draws:
        yield "reference pixels", [imaging.reference_pixels(run.images[0], model.config.processor)]
        pixels = run["reference.pixels.0"].to(model.device, model.dtype)
        yield "reference latents", [model.vae.encode(pixels)]


def _drawn(model: InternVLU, run: Recording):
    context = model.conditioner.context(
        run.prompt,
        [features.to(model.device, model.dtype) for features in run.features],
        run.references,
        device=model.device,
        system_prompt=run.system,
        reasoning=run.reasoning,
    )
    yield "hidden states", [getattr(context, branch).hidden for branch in BRANCHES]

    x, timestep = run["dit.step0.input"], float(run["dit.step0.timestep"][0])
    velocities = [model.velocity(run.branch(model, index), x[index : index + 1], timestep) for index in range(3)]
    yield "first velocity", [torch.cat(velocities)]
    yield "guided velocity", [guidance.combine(*velocities, *run.scales(model), timestep)]
    yield "final latents", [model.sample(run.context(model), x[:1], run.sigmas(model), *run.scales(model))]
    yield "decoded pixels", [model.decode(run["latents.final"])]


def _text(model: InternVLU, run: Recording, dtype: str) -> Difference:
    """The share of tokens from the first other one on. In 16 bits two tokens can be equally likely."""
    features = [features.to(model.device, model.dtype) for features in run.features]
    embeddings = model.conditioner.embed(run.text_prompt(model), features, model.device)
    settings = TextSettings(run.settings["max_new_tokens"], run.settings.get("num_beams", 1))
    made = tuple(generate_tokens(model.vlm, embeddings, model.tokenizer.stop_ids, settings))
    same = next((i for i, pair in enumerate(zip(made, run.tokens, strict=False)) if pair[0] != pair[1]), len(made))
    note = "equal" if made == run.tokens else f"first other token: {same + 1} of {len(run.tokens)}"
    error = 0.0 if made == run.tokens else 1 - same / len(run.tokens)
    return Difference(run.name, "tokens", dtype, error, bound=0.0 if dtype == "float32" else None, note=note)


def summarise(differences: list[Difference]) -> list[Difference]:
    """The worst difference of each stage and dtype, over all runs.

    Where the official code's errors are known, the root mean square of ours may exceed that of theirs by CHANCE.
    """
    groups: dict[tuple[str, str], list[Difference]] = {}
    for difference in differences:
        groups.setdefault((difference.stage, difference.dtype), []).append(difference)
    return [_summary(group) for group in groups.values()]


def _summary(group: list[Difference]) -> Difference:
    worst = max(group, key=lambda difference: _size(difference.error))
    if any(difference.official is None for difference in group):
        return worst
    ours, official = (
        math.sqrt(sum(error * error for error in errors) / len(group))
        for errors in ([d.error for d in group], [d.official for d in group])
    )
    apart = max((d.apart for d in group), key=_size)
    return Difference(f"all {len(group)}", worst.stage, worst.dtype, ours, official, apart, CHANCE * official)


# Pictures


def draw(model: InternVLU, run: Recording) -> tuple[Image.Image | None, Difference]:
    """The picture of a recorded run, from its prompt and its recorded reasoning; and how far it is from theirs."""
    settings = {name: run.settings[name] for name in ("height", "width", "steps", "seed")}
    settings |= {"all_scale": run.settings.get("all_cfg"), "partial_scale": run.settings.get("part_cfg")}
    dtype = str(model.dtype).removeprefix("torch.")
    try:
        made = model.generate(run.prompt, run.images, system_prompt=run.system, reasoning=run.reasoning, **settings)
    except ERRORS as error:
        return None, Difference(run.name, "picture", dtype, math.nan, note=in_one_line(error))
    levels = np.abs(np.asarray(made.images[0], dtype=float) - run["images"][0].numpy())
    error, bound = float(levels.mean()), PICTURE if dtype == "float32" else None
    note = f"levels of 255, at most {levels.max():.0f}"
    return made.images[0], Difference(run.name, "picture", dtype, error, bound=bound, note=note)


def side_by_side(rows: list[list[Image.Image]]) -> Image.Image | None:
    """Rows of pictures as one: the official one, ours in float32, ours in bfloat16; and 8 times the difference of the
    first two. None if all of ours are missing.
    """
    rows = [[*row, _amplified(row[0], row[1])] for row in rows if len(row) > 1]
    if not rows:
        return None
    width = max(sum(picture.width for picture in row) for row in rows)
    sheet = Image.new("RGB", (width, sum(row[0].height for row in rows)), "white")
    top = 0
    for row in rows:
        left = 0
        for picture in row:
            sheet.paste(picture, (left, top))
            left += picture.width
        top += row[0].height
    return sheet


def _amplified(a: Image.Image, b: Image.Image) -> Image.Image:
    levels = np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)) * 8
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))
