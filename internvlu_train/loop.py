"""One stage from its first step, or from where it was killed, to its checkpoint."""

import hashlib
import json
import math
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from internvlu_core.errors import InputError

from . import objectives
from .data import to_pixels
from .feed import Feed
from .lora import adapt, write_lora
from .plot import write_plot
from .settings import HIDDEN_LAYERS, LoraStage, Stage, as_json
from .storage import Networks, replaced, write_checkpoint

EMA_WARMUP = 10  # steps; the average follows fast while there is little to average
STATISTICS_PICTURES = 1024  # pictures from which the latents' mean and deviation are taken


class Run:
    """A stage in a folder: settings.json, state.pt, log.jsonl, loss.png and, in the end, checkpoint/.

    A LoraStage's has lora.safetensors in place of the last.
    """

    def __init__(self, stage: Stage, base: Path, folder: Path, dtype: torch.dtype = torch.float32):
        """base: the checkpoint that the stage starts from; dtype: in which its result is written.

        Raises InputError if the folder holds a run with other settings, or the base is not in the released layout, in
        which the result is written.
        """
        self.stage, self.base, self.folder, self.dtype = stage, base, folder, dtype
        # The others wait while the main process makes the cache: on GPUs for 10 minutes only, if nothing else is said.
        self.accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])
        self.device = self.accelerator.device
        self.autocast = stage.autocast and computes_bfloat16(self.device)
        self.main = self.accelerator.is_main_process
        self._claim()
        self.networks = Networks(base, self.device)
        lora = isinstance(stage, LoraStage)
        if not lora and not (base / "vlm" / "config.json").is_file():
            raise InputError(f"{base} is not in the released layout: make a folder of it (convert … --to folder)")
        self.trained = adapt(self.networks, stage) if lora else freeze(self.networks, stage.trained)
        if stage.checkpointing:
            recompute(self.networks)
        self.ema = {name: parameter.detach().clone() for name, parameter in self.trained.items()}
        self.optimizers = make_optimizers(stage, self.trained)
        self.step = 0
        self._resume()
        self.feed = self._make_feed()

    def train(self):
        if self.main:
            self._cut_log()
        bar = tqdm(total=self.stage.steps, initial=self.step, disable=not self.main)
        log = (self.folder / "log.jsonl").open("a", encoding="utf-8") if self.main else None
        while self.step < self.stage.steps:
            entry = self._take_step()
            if self.main:
                log.write(json.dumps(entry) + "\n")
                log.flush()
            bar.update()
            bar.set_postfix(loss=f"{entry['loss']:.4f}")
            if self.step % self.stage.save_every == 0 or self.step == self.stage.steps:
                self._save()
        bar.close()
        if self.main:
            log.close()
            self.write()
        self.accelerator.wait_for_everyone()

    def write(self):
        """The checkpoint, or the adapters' file, with averaged weights, and the plot of the losses so far.

        Raises InputError if there are no steps yet.
        """
        if not self.step:
            raise InputError(f"{self.folder} has no saved step yet: the first is saved after {self.stage.save_every}")
        write_plot(self.folder / "log.jsonl", self.folder / "loss.png")
        if isinstance(self.stage, LoraStage):
            write_lora(self.folder / "lora.safetensors", self.ema, self.stage.alpha, self.dtype)
            return
        learnt = {name: parameter.detach().clone() for name, parameter in self.trained.items()}
        assign(self.trained, self.ema)
        # Another decoder must not move the latents of MMDiTs that were trained before it.
        if any(name.startswith("vae.encoder.") for name in learnt):
            self.networks.config = replace(self.networks.config, vae=self._with_statistics())
        write_checkpoint(self.folder / "checkpoint", self.base, self.networks, self.stage.trained, self.dtype)
        assign(self.trained, learnt)

    # A step

    def _take_step(self) -> dict:
        started, stage = time.perf_counter(), self.stage
        rate = learning_rate(stage, self.step)
        for group in chain.from_iterable(optimizer.param_groups for optimizer in self.optimizers):
            group["lr"] = rate
        parts = self._accumulate()
        gradients = [parameter.grad for parameter in self.trained.values()]
        if self.accelerator.num_processes > 1:
            for gradient in gradients:
                gradient.copy_(self.accelerator.reduce(gradient, "mean"))
        norm = float(nn.utils.clip_grad_norm_(self.trained.values(), stage.clip))
        if not math.isfinite(parts["loss"] + norm):  # before it spoils the weights, and with them what is saved
            raise FloatingPointError(f"step {self.step + 1} has the loss {parts['loss']} and a gradient of {norm}")
        for optimizer in self.optimizers:
            optimizer.step()
        self._average()
        self.step += 1
        seconds = time.perf_counter() - started
        return {"step": self.step, **parts, "lr": rate, "norm": norm, "seconds": round(seconds, 4)}

    def _accumulate(self) -> dict[str, float]:
        """Gradients of this process's micro-batches; the step's losses, averaged over all processes.

        The micro-batches of a step are numbered through, and processes take them in turn: their number and the batches
        do not depend on who computes them.
        """
        for parameter in self.trained.values():
            parameter.grad = torch.zeros_like(parameter)  # all of them: what a batch does not use has a gradient of 0
        processes, accumulate = self.accelerator.num_processes, self.stage.accumulate
        first = self.step * accumulate * processes + self.accelerator.process_index
        sums: dict[str, list] = {"loss": []}
        for number in range(first, first + accumulate * processes, processes):
            batch = self.feed.batch(number, processes)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                losses = objectives.losses(self.networks, batch, self.stage, self.step)
            (losses.total * (batch.weight / accumulate)).backward()
            for name, value in {"loss": losses.total, **losses.parts}.items():
                sums.setdefault(name, []).append((float(value.detach()) * batch.weight, batch.weight))
        return self._gathered(sums)

    def _gathered(self, sums: dict[str, list]) -> dict[str, float]:
        """Means weighted by size, of what occurred in the step on any process."""
        names = ("loss", "text", "flow", "mse", "l1", "kl")
        totals = torch.tensor([[sum(v[i] for v in sums.get(name, [])) for i in (0, 1)] for name in names])
        totals = self.accelerator.reduce(totals.to(self.device), "sum").tolist()
        return {name: value / weight for name, (value, weight) in zip(names, totals, strict=True) if weight}

    @torch.no_grad()
    def _average(self):
        decay = min(self.stage.ema, (1 + self.step) / (EMA_WARMUP + self.step))
        torch._foreach_lerp_(list(self.ema.values()), list(self.trained.values()), 1 - decay)

    # Files

    def _claim(self):
        file = self.folder / "settings.json"
        files = [self.base] if self.base.is_file() else self.base.glob("*/*.safetensors")
        settings = json.loads(as_json(self.stage)) | {"base": digest(files)}
        if isinstance(self.stage, LoraStage):
            settings["pictures"] = digest(Path(self.stage.pictures).glob("*"))
        # One that failed before it made anything claims nothing.
        begun = file.exists() and any((self.folder / name).exists() for name in ("cache.pt", "state.pt"))
        found = json.loads(file.read_text(encoding="utf-8")) if begun else settings
        if other := sorted(key for key in settings.keys() | found.keys() if settings.get(key) != found.get(key)):
            raise InputError(
                f"{self.folder} holds a run of other settings ({', '.join(other)}): remove it or go elsewhere"
            )
        self.accelerator.wait_for_everyone()
        if self.main:
            with replaced(file) as new:
                new.write_text(json.dumps(settings, indent=2), encoding="utf-8")
        self.accelerator.wait_for_everyone()

    def _make_feed(self) -> Feed:
        """The main process makes the cache; the others then read it."""
        with self.accelerator.main_process_first():
            return Feed(self.networks, self.stage, self.device, self.folder / "cache.pt")

    def _save(self):
        if not self.main:
            return
        state = {
            "step": self.step,
            "model": {name: parameter.detach() for name, parameter in self.trained.items()},
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with replaced(self.folder / "state.pt") as new:
            torch.save(state, new)

    def _resume(self):
        file = self.folder / "state.pt"
        if file.exists():
            state = torch.load(file, map_location=self.device, weights_only=True)
            self.step = state["step"]
            assign(self.trained, state["model"])
            assign(self.ema, state["ema"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def _cut_log(self):
        """Forget the steps after the saved one, which are taken again, and a line that was cut off."""
        file = self.folder / "log.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        with replaced(file) as new:
            new.write_text("".join(line + "\n" for line in lines[: self.step]), encoding="utf-8")

    @torch.no_grad()
    def _with_statistics(self):
        """The VAE's config with its latents' mean and deviation, by which normalised ones are about standard normal."""
        vae, latents = self.networks.vae, []
        for one in self.feed.exercises[:STATISTICS_PICTURES]:
            latents.append(vae.encode_raw(to_pixels([one.picture]).to(self.device))[0].flatten(1))
        latents = torch.cat(latents, dim=1)  # [z, pixels]
        mean, deviation = latents.mean(1).tolist(), latents.std(1).clamp(min=1e-3).tolist()
        return replace(vae.config, latents_mean=tuple(mean), latents_std=tuple(deviation))


def digest(files: Iterable[Path]) -> str:
    """A checksum of weights or pictures: a run's cache and state are of no use with others."""
    total = hashlib.sha256()
    for file in sorted(file for file in files if file.is_file()):
        with file.open("rb") as stream:
            while block := stream.read(2**24):
                total.update(block)
    return total.hexdigest()


def make_optimizers(stage: Stage, trained: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
    """AdamW for all that is trained; or Muon for matrices between hidden states, AdamW for the rest.

    Muon takes the learning rate and decay of AdamW, as its updates are scaled to the usual size of AdamW's
    (arXiv 2502.16982). Raises InputError if this torch has none: it is there from 2.9 on.
    """
    hidden, decayed, plain = [], [], []
    for name, parameter in trained.items():
        if stage.muon and parameter.ndim == 2 and any(part in name for part in HIDDEN_LAYERS):
            hidden.append(parameter)
        else:
            (decayed if sum(side > 1 for side in parameter.shape) > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": stage.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=stage.betas)
    if not hidden:
        return [adamw]
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"Muon needs torch 2.9 or later, this is {torch.__version__}: set muon=false for AdamW")
    return [adamw, torch.optim.Muon(hidden, weight_decay=stage.weight_decay, adjust_lr_fn="match_rms_adamw")]


def freeze(networks: Networks, trained: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """The parameters whose names begin with one of `trained`, by name; all others get no gradient.

    Raises InputError for a prefix that no parameter has.
    """
    parameters = dict(networks.named_parameters())
    for prefix in trained:
        if not any(name.startswith(prefix) for name in parameters):
            raise InputError(f"trained has {prefix!r}, with which no parameter's name begins")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name.startswith(trained))
    return {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}


def recompute(networks: Networks):
    """Keep a block's input only, and compute its inside again in the backward pass (arXiv 1604.06174)."""
    vlm = networks.vlm
    layers = vlm.vision_model.encoder["layers"], vlm.language_model.model["layers"]
    for block in chain(*layers, networks.mmdit.transformer_blocks):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def learning_rate(stage: Stage, step: int) -> float:
    """Of the step from 0: warm-up, a plateau, linear decay."""
    warm = (step + 1) / stage.warmup if stage.warmup else 1.0
    left = (stage.steps - step) / (stage.decay * stage.steps) if stage.decay else 1.0
    return stage.learning_rate * min(1.0, warm, left)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether it is worth it. A CPU whose widest vectors are AVX2's emulates it, at a fourth of float32's speed."""
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX2"


@torch.no_grad()
def assign(targets: dict[str, Tensor], values: dict[str, Tensor]):
    for name, target in targets.items():
        target.copy_(values[name])
