"""Time and memory of each stage, beside the least time that the machine could take for it.

FLOPs are counted by torch while the stage runs a first time, which is not timed. Bytes are those of the weights that
the stage reads.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .. import imaging
from ..decoding import DecodingSession
from ..models.operations import Linear
from ..pipeline import InternVLU
from ..sampling import flow_sigmas
from .measure import least_time, measured, synchronise
from .recording import sample_picture

PROMPT = "a photo of a red boat on a lake at dawn, with mountains behind it and a few clouds in the sky"
aten = torch.ops.aten
# torch counts neither the fused attention of the CPU nor oneDNN's product for one row.
ON_CPU = {aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, **kwargs: sdpa_flop_count(q, k, v)}
if Linear.by_rows is not None:
    ON_CPU[Linear.by_rows] = lambda x, weight, *args, **kwargs: 2 * math.prod(x) * weight[0]


@dataclass
class Timing:
    """One stage. seconds: of one call (a step, a token). peak: bytes at most, None where the system does not say.

    flops: counted by torch. weights: bytes of them. floor: the least seconds, None if it was not computed.
    """

    stage: str
    seconds: float
    peak: int | None
    flops: int = 0
    weights: int = 0
    floor: float | None = None

    @property
    def times_floor(self) -> float | None:
        """How many times the floor it took."""
        return self.seconds / self.floor if self.floor else None


def nbytes(*networks: nn.Module) -> int:
    """Bytes of the weights of networks; of shared ones once."""
    unique = {p.data_ptr(): p.nbytes for network in networks for p in network.parameters()}
    return sum(unique.values())


def time_stages(model: InternVLU, speed: dict, side: int, tokens: int) -> list[Timing]:
    """The stages after loading. speed: of measure.machine_speed. side: of pictures in pixels. tokens: decoded ones."""
    clock = Clock(model, speed)
    picture = sample_picture(side)
    tiles = imaging.vit_tiles(picture, model.config.processor).to(model.device, model.dtype)
    pixels = imaging.reference_pixels(picture, model.config.processor).to(model.device, model.dtype)
    latents = model.noise(*(side // model.config.size_factor * model.config.size_factor,) * 2, seed=0)
    vlm, vae = model.vlm, model.vae
    vit = nbytes(vlm.vision_model, vlm.mlp1)
    found = [clock.time("ViT, one picture", lambda: vlm.image_features(tiles), vit), *_text(model, clock, tokens)]
    for name, images in (("drawing", []), ("edit", [picture])):
        context = model.encode(PROMPT, images)
        branches = 2 + (context.partial is not context.unconditional)
        found.append(_step(model, clock, context, latents, f"sampling step, {name}, {branches} branches"))
    found.append(clock.time("VAE, encoding", lambda: vae.encode(pixels), nbytes(vae.encoder)))
    found.append(clock.time("VAE, decoding", lambda: model.decode(latents), nbytes(vae.decoder)))
    return found


class Clock:
    """Times stages of one model against one machine_speed."""

    def __init__(self, model: InternVLU, speed: dict):
        self.device, self.speed = str(model.device), speed

    @torch.inference_mode()
    def time(self, stage: str, function: Callable, weights: int) -> Timing:
        """A stage that is one call. weights: bytes of the weights that it reads."""
        flops = self.count(function)
        _, cost = measured(function, self.device)
        return self.timing(stage, cost["seconds"], cost["peak"], flops, weights)

    def timing(self, stage: str, seconds: float, peak: int | None, flops: int, weights: int) -> Timing:
        """A stage that was timed elsewhere, with its floor."""
        return Timing(stage, seconds, peak, flops, weights, least_time(self.speed, flops, weights))

    def count(self, function: Callable) -> int:
        """The FLOPs of a call, by torch."""
        with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
            function()
        return counter.get_total_flops()


@torch.inference_mode()
def _text(model: InternVLU, clock: Clock, tokens: int) -> list[Timing]:
    """Reading a prompt, and a token after it: each is decoded, whatever it is."""
    prompt = model.conditioner.prompts.chat(" ".join([PROMPT] * 8), [], None)
    embeddings = model.conditioner.embed(prompt, [], model.device)
    weights = nbytes(model.vlm.language_model)

    def read():
        return DecodingSession(model.vlm, embeddings, tokens + 1)

    prefill = clock.time(f"reading a prompt of {len(prompt.ids)} tokens", read, weights)
    session = read()
    token = session.first.argmax(-1)
    flops = clock.count(lambda: session(token))

    def write():
        chosen = token
        for _ in range(tokens):
            chosen = session(chosen).argmax(-1)
        synchronise(clock.device)

    _, cost = measured(write, clock.device)
    return [prefill, clock.timing("a token of text", cost["seconds"] / tokens, cost["peak"], flops, weights)]


def _step(model: InternVLU, clock: Clock, context, latents, stage: str) -> Timing:
    """The second of two sampling steps: the first prepares what both need."""
    scales = model.config.mmdit.guidance(reasoned=False)
    times: list[float] = []

    def sample(steps: int):
        sigmas = flow_sigmas(steps, model.config.mmdit.flow_shift)
        times.clear()
        model.sample(context, latents, sigmas, *scales, lambda *step: _tick(times, clock.device))

    flops = clock.count(lambda: sample(2)) - clock.count(lambda: sample(1))
    _, cost = measured(lambda: sample(2), clock.device)
    return clock.timing(stage, times[1] - times[0], cost["peak"], flops, nbytes(model.mmdit))


def _tick(times: list[float], device: str):
    synchronise(device)
    times.append(time.perf_counter())
