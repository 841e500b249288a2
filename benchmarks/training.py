"""Memory of training the released sizes: by arithmetic for any number of GPUs, and measured on this one.

    python -m benchmarks.training                      the table, without a GPU
    python -m benchmarks.training --measure            a few steps of each stage on this GPU, with random weights
    python -m benchmarks.training --measure stage3     of one; with torchrun in front also the sharded way

Weights, gradients, moments and averages are counted from the shapes. Activations and what a step needs beside them are
those of the program itself, run on torch's fake tensors: shapes and dtypes without values.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from internvlu_core.checkpoints.config import Config  # noqa: E402
from internvlu_core.checkpoints.files import COMPONENTS  # noqa: E402
from internvlu_core.checkpoints.load import build_on_meta  # noqa: E402
from internvlu_core.models.mmdit import MMDiT  # noqa: E402
from internvlu_core.models.vlm import VLM  # noqa: E402
from internvlu_core.prompt import Tokenizer  # noqa: E402
from internvlu_train import sharding  # noqa: E402
from internvlu_train.attention import masked_attention  # noqa: E402
from internvlu_train.feed import Feed  # noqa: E402
from internvlu_train.loop import Trainer, checkpoint_activations, freeze  # noqa: E402
from internvlu_train.sample import Sample  # noqa: E402
from internvlu_train.settings import LORA, LoraStage, PictureStage, Stage  # noqa: E402
from internvlu_train.storage import Networks  # noqa: E402
from support.checkpoints import copy_json  # noqa: E402
from support.live_tensors import LiveTensors  # noqa: E402
from support.scaled_checkpoints import SCALES  # noqa: E402

GB = 1e9
GPUS = 1, 8, 64
CONTEXT = 320  # tokens of a prompt with a picture: 256 of the picture
ROW = 600  # tokens of a row of the next-token loss
COMMON = {"tasks": (), "batch": 1, "checkpointing": True, "warmup": 0, "drop_prompt": 0.0, "drop_all": 0.0}
STAGES: dict[str, Stage] = {
    "lora": replace(LORA["gpu"], accumulate=2, **COMMON),
    "stage1": PictureStage(trained=("mmdit.",), accumulate=2, **COMMON),
    "stage3": PictureStage(trained=("vlm.", "mmdit."), accumulate=4, **COMMON),
}


# Arithmetic


@dataclass(frozen=True)
class Bytes:
    """What a process holds. state: weights, gradients, two moments, averages. whole: weights that are gathered, or not
    divided at all. activations: of a micro-batch, at their peak.
    """

    state: dict[str, int]
    whole: int
    activations: int

    @property
    def total(self) -> int:
        return sum(self.state.values()) + self.whole + self.activations


def need(stage: Stage, processes: int, side: int) -> Bytes:
    """Bytes of a process for a picture of this side, with an input picture of the same size."""
    networks = meta_networks()
    trained = freeze(networks, stage.trained)
    lora = isinstance(stage, LoraStage)
    count = sum(p.numel() for p in trained.values())
    frozen = sum(p.numel() for p in networks.parameters()) - count
    vae = sum(p.numel() for p in networks.vae.parameters())
    whole = 2 * (frozen - vae) + 4 * vae
    if lora:
        layers = [
            m for name, m in networks.named_modules() if isinstance(m, nn.Linear) and name.startswith(stage.trained)
        ]
        layers = [m for name, m in networks.named_modules() if m in layers and any(p in name for p in stage.layers)]
        whole += 2 * count
        count = sum(stage.rank * (m.in_features + m.out_features) for m in layers)
    elif processes > 1:  # what is in no block, and two blocks on their way, in bfloat16
        inside = [sum(p.numel() for p in block.parameters() if p.requires_grad) for block in sharding.blocks(networks)]
        outside = count - sum(inside)
        whole += 2 * outside + 4 * outside + 2 * 2 * max(inside) + 4 * max(inside)  # and their gradients
        count = -(-count // processes)
    state = {name: 4 * count for name in ("weights", "gradients")} | {"moments": 8 * count}
    return Bytes(state | {"average": 4 * count if stage.ema else 0}, whole, activations(stage, side))


class Counted(torch.autograd.Function):
    """Attention as its fused kernels keep it: queries, keys, values and the output; no scores."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, _):
        q, k, v, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def counted_attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False, mask: Tensor | None = None) -> Tensor:
    return Counted.apply(q, k, v)


@cache
def activations(stage: Stage, side: int) -> int:
    """Bytes at the peak of the forward and backward passes of a micro-batch, of its tensors without the gradients."""
    config = released_config()
    with FakeTensorMode(), ExitStack() as stack:
        vlm, mmdit = VLM(config, attention=counted_attention), MMDiT(config.mmdit, attention=counted_attention)
        shell = nn.Module()
        shell.vlm, shell.mmdit = vlm, mmdit
        shell.requires_grad_(False)
        if stage.checkpointing:
            checkpoint_activations(shell)
        for parameter in shell.parameters():  # the gradients of weights are counted with the state
            parameter.data = parameter.data.bfloat16()
        live = LiveTensors()
        stack.enter_context(live)
        stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        peaks = []
        if stage.learns("vlm"):
            x = torch.zeros(stage.batch, ROW, config.language.hidden_size, requires_grad=True)
            features = vlm.image_features(torch.zeros(stage.batch, 3, 448, 448, requires_grad=True))
            (hidden,) = vlm.language_model(x + features.sum(), (config.language.num_layers,))
            logits = vlm.language_model.logits(hidden).float()
            nn.functional.cross_entropy(
                logits.flatten(0, 1), torch.zeros(logits.shape[:2], dtype=int).flatten()
            ).backward()
            peaks.append(live.peak)
            del x, features, hidden, logits
        context = torch.zeros(stage.batch, CONTEXT, config.language.hidden_size, requires_grad=True)
        if stage.learns("vlm"):
            context = torch.cat(vlm.language_model(context, config.mmdit.select_layers), dim=-1)
        else:
            context = torch.cat([context, context], dim=-1)
        latents = torch.zeros(stage.batch, config.vae.latent_channels, side // 8, side // 8)
        mask = torch.zeros(CONTEXT, dtype=torch.bool)
        velocity = flow(mmdit, latents, context, mask)
        nn.functional.mse_loss(velocity.float(), latents).backward()
    return max([*peaks, live.peak])


def flow(mmdit, latents, context, mask):
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily():
        real = torch.zeros(len(mask), dtype=torch.bool)
    mmdit.rope = lambda grids, image_mask, image_grids, device: tuple(
        torch.zeros(n, mmdit.config.head_dim // 2, 2) for n in (sum(f * h * w for f, h, w in grids), len(image_mask))
    )
    return mmdit(latents, torch.zeros(len(latents)), context, real, [], [latents])


# The networks


def released_config() -> Config:
    with tempfile.TemporaryDirectory() as folder:
        copy_json(Path(folder, "released"), SCALES["released"])
        return Config.read(Path(folder, "released"))


def build(config: Config, component: str, attention, device) -> nn.Module:
    options = {} if component == "vae" else {"attention": attention}
    return build_on_meta(config, component, **options).to_empty(device=device)


def meta_networks() -> nn.Module:
    config, networks = released_config(), nn.Module()
    networks.vlm, networks.mmdit, networks.vae = (build_on_meta(config, component) for component in COMPONENTS)
    return networks


def random_networks(device: torch.device, scale: str) -> Networks:
    """Random weights of a scale's sizes, in float32 on the device."""
    with tempfile.TemporaryDirectory() as folder:
        copy_json(Path(folder, "released"), SCALES[scale])
        config, tokenizer = Config.read(Path(folder, "released")), Tokenizer(Path(folder, "released", "processor"))
    built = [build(config, component, masked_attention, device) for component in COMPONENTS]
    for network in built:
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.data.fill_(float("norm" in name and name.endswith("weight")))
    networks = Networks.__new__(Networks)
    networks.assemble(config, tokenizer, *built)
    return networks


# Measurements


def samples(stage: Stage, side: int) -> list[Sample]:
    """A sample of each task that the stage learns from."""
    picture = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    words = "a red boat on a lake at dawn, two birds above it, and a sign that says hello " * 4
    made = [Sample("draw", "", words, (), picture, ""), Sample("edit", "", "make it night", (picture,), picture, "")]
    if stage.learns("vlm"):
        made += [
            Sample("reason", "", "a boat", (), picture, words),
            Sample("ask", "", "what?", (picture,), None, words),
        ]
    return made


def measure(name: str, stage: Stage, side: int, steps: int, divide: bool, scale: str = "released"):
    """Print seconds of a step, and the peak memory of the GPU."""
    gc.collect()  # the networks of the measurement before: wrapped layers refer to themselves
    accelerator = Accelerator()
    device = accelerator.device
    trainer = (Divided if divide else Trainer)(stage, random_networks(device, scale), accelerator)
    trainer.feed = Feed(trainer.networks, stage, device, None, samples(stage, side))
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(steps):
        started = time.perf_counter()
        entry = trainer._take_step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    if device.type != "cuda":
        print(f"{name}: {seconds:.2f} s a step, loss {float(entry['loss']):.3f}")
        return
    peak = torch.cuda.max_memory_allocated() / GB
    way = "sharded" if trainer.sharded else "whole"
    print(
        f"{name}, {side} × {side}, {way}, {accelerator.num_processes} GPU, {torch.cuda.get_device_name()}: "
        f"{seconds:.2f} s a step of {stage.accumulate} micro-batches, loss {float(entry['loss']):.3f}, "
        f"peak {peak:.1f} GB",
        flush=True,
    )


class Divided(Trainer):
    """The sharded way with a single process, which gathers from itself."""

    def _is_sharded(self) -> bool:
        if not torch.distributed.is_initialized():
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
            torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", rank=0, world_size=1)
        return True


def table(side: int):
    print(f"{side} × {side}, an edit of one picture, a micro-batch of 1; GB of a process")
    print("| stage | GPUs | weights | gradients | moments | average | gathered or whole | activations | together |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, stage in STAGES.items():
        for processes in GPUS:
            found = need(stage, processes, side)
            values = [*found.state.values(), found.whole, found.activations, found.total]
            print(f"| {name} | {processes} | {' | '.join(f'{value / GB:.1f}' for value in values)} |", flush=True)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--measure", nargs="?", const="all", choices=["all", *STAGES])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--scale", default="released", help="of --measure: see scripts/random_checkpoint.py")
    options = parser.parse_args(arguments)
    if not options.measure:
        return table(options.side)
    for name in STAGES if options.measure == "all" else [options.measure]:
        stage = STAGES[name]
        if name == "stage3" and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            stage = replace(stage, ema=0.0)  # with an average it does not fit one GPU of 80 GB
        measure(name, stage, options.side, options.steps, False, options.scale)
    if options.measure in ("all", "stage1"):
        measure("stage1", STAGES["stage1"], options.side, options.steps, True, options.scale)


if __name__ == "__main__":
    main()
