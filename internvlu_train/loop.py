"""One run of a stage, from the first step or the last saved one to its checkpoint."""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import MISSING, fields, replace
from datetime import timedelta
from functools import partial
from itertools import chain, islice
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from internvlu_core.errors import InputError
from internvlu_core.models.operations import bfloat16_is_fast

from . import objectives
from .data import Batch, to_pixels
from .datasets.feed import DataFeed, first_prompts
from .datasets.prepare import all_places, fingerprint
from .feed import Feed
from .lora import add_adapters, write_lora
from .muon import Muon
from .plot import write_plot
from .progress import check_tracker, drawings, write_sheet
from .settings import HIDDEN_LAYERS, LoraStage, Stage, as_json
from .sharding import average_gradients, blocks, is_saved, load, local, moments, recover, save, shard, touch, whole
from .storage import Networks, gathered, replaced, write_checkpoint

EMA_WARMUP = 10  # steps, after which the decay of the moving average is no longer reduced by much
LOG_EVERY = 50  # steps after which losses are read from a GPU, which has to have computed them by then
SETTINGS = "settings.json"  # of a run
# Settings that may change while a run goes on: no step depends on them. Without skip_bad a bad sample ends the run.
FREE = {"skip_bad", "save_every", "evaluate_every", "drawings", "tracker"}
STATISTICS_PICTURES = 1024  # pictures from which the mean and standard deviation of latents are computed


class Trainer:
    """The networks of a stage and what trains them: optimizers and the moving average. It takes the steps.

    trained, ema: the weights that are trained, and their moving averages, by name. step: how many were taken. together:
    micro-batches of a step; accumulate: this process's share of them.
    """

    feed: Feed

    def __init__(self, stage: Stage, networks: Networks, accelerator: Accelerator):
        """Raises InputError for settings that cannot be used together, or with these networks."""
        self.stage, self.networks, self.accelerator = stage, networks, accelerator
        self.device, self.main = accelerator.device, accelerator.is_main_process
        self.autocast = stage.autocast and bfloat16_is_fast(self.device)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for each shape, of which there are many
        check_sharding(stage)
        stage.check_trained()
        lora = isinstance(stage, LoraStage)
        self.trained = add_adapters(networks, stage) if lora else freeze(networks, stage.trained)
        if self.autocast and self.device.type == "cuda":
            halve_frozen(networks)
        if stage.checkpointing:
            checkpoint_activations(networks)
        self.sharded = self._is_sharded()
        if self.sharded:
            shard(networks, self.device, torch.bfloat16 if self.autocast else None)
            self.trained = {name: p for name, p in networks.named_parameters() if p.requires_grad}
        # Without an average nothing is kept beside the weights.
        self.ema = {name: p.detach().clone() for name, p in self.trained.items()} if stage.ema else self.trained
        self.optimizers = make_optimizers(stage, self.trained)
        self.step, self.seconds = 0, 0.0  # taken, and spent on them
        self.together = stage.accumulate * accelerator.num_processes
        self.accumulate = stage.accumulate

    def _is_sharded(self) -> bool:
        return self.stage.sharded and self.accelerator.num_processes > 1

    @contextmanager
    def averaged(self):
        """A context in which the networks have the averaged weights."""
        if self.stage.ema:
            exchange(self.trained, self.ema)
        try:
            yield
        finally:
            if self.stage.ema:
                exchange(self.trained, self.ema)

    def _take_step(self) -> dict:
        """Returns the step's entry in the log. Its losses and norm are tensors, so that nothing waits for a device."""
        started, stage = time.perf_counter(), self.stage
        rate = learning_rate(stage, self.step, self.seconds)
        for group in chain.from_iterable(optimizer.param_groups for optimizer in self.optimizers):
            group["lr"] = rate
        parts = self._accumulate()
        if self.accelerator.num_processes > 1 and not self.sharded:
            average_gradients([parameter.grad for parameter in self.trained.values()], self.accelerator)
        norm = whole(nn.utils.clip_grad_norm_(self.trained.values(), stage.clip))
        entry = {"step": self.step + 1, **parts, "lr": rate, "norm": norm}
        if self.device.type == "cpu":  # before the weights become NaN; elsewhere before they are saved
            require_finite(entry)
        for optimizer in self.optimizers:
            optimizer.step()
        self._average()
        self.step += 1
        return entry | {"seconds": round(time.perf_counter() - started, 4)}

    def _accumulate(self) -> dict[str, Tensor]:
        """Compute the gradients of this process's micro-batches. Returns the losses, averaged over all processes.

        The micro-batches of a step are numbered consecutively, and processes take them in turn, so that a batch does
        not depend on which process computes it.
        """
        for parameter in self.trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)  # for a parameter that no batch uses, too
        torch._foreach_zero_([local(parameter.grad) for parameter in self.trained.values()])
        processes = self.accelerator.num_processes
        first = self.step * self.together + self.accelerator.process_index
        sums: dict[str, list] = {"loss": []}
        for number in range(first, first + self.together, processes):
            batch = self.feed.batch(number, processes, *([processes] if self.sharded else []))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                losses = self._losses(batch)
            (losses.total * (batch.weight / self.accumulate)).backward()
            for name, value in {"loss": losses.total, **losses.parts}.items():
                sums.setdefault(name, []).append((value.detach().float() * batch.weight, batch.weight))
        return self._gathered(sums)

    def _losses(self, batch: Batch) -> objectives.Losses:
        if not self.sharded:
            return objectives.losses(self.networks, batch, self.stage, self.step)
        # As a tuple: FSDP looks for tensors in what forward returns, and not into dataclasses.
        total, parts = self.networks(_shared_losses, batch, self.stage, self.step)
        return objectives.Losses(total, parts)

    def _gathered(self, sums: dict[str, list]) -> dict[str, Tensor]:
        """Mean losses over all processes, weighted by batch size; only those that occurred in this step."""
        if self.accelerator.num_processes == 1:
            return {name: sum(v for v, _ in values) / sum(w for _, w in values) for name, values in sums.items()}
        names = ("loss", "text", "flow", "mse", "l1", "kl")
        totals = torch.tensor([[sum(float(v[i]) for v in sums.get(name, [])) for i in (0, 1)] for name in names])
        totals = self.accelerator.reduce(totals.to(self.device), "sum")
        return {name: value / weight for name, (value, weight) in zip(names, totals, strict=True) if weight}

    @torch.no_grad()
    def _average(self):
        """Update the exponential moving average of the weights."""
        if not self.stage.ema:
            return
        decay = min(self.stage.ema, (1 + self.step) / (EMA_WARMUP + self.step))
        averages, weights = ([local(tensor) for tensor in each.values()] for each in (self.ema, self.trained))
        torch._foreach_lerp_(averages, weights, 1 - decay)


class Run(Trainer):
    """A stage and its folder: settings.json, state.pt or state/, log.jsonl, loss.png, and at the end checkpoint/.

    The folder of a LoraStage has lora.safetensors instead of checkpoint/.
    """

    def __init__(self, stage: Stage, base: Path, folder: Path, dtype: torch.dtype = torch.float32, make_feed=None):
        """base: the checkpoint to start from. dtype: of the weights that are written. make_feed: a function of the
        networks, the stage and the device that returns the micro-batches; None for Feed, with a cache on the disk.

        Raises InputError if the folder has a run with other settings, or if the base is not in the released layout and
        the stage has to write one.
        """
        self.stage, self.base, self.folder, self.dtype = stage, base, folder, dtype
        check_tracker(stage.tracker)
        check_evaluation(stage)
        # The others wait while the main process makes the cache; the default timeout on GPUs is 10 minutes.
        self.accelerator = Accelerator(
            cpu=started_on_cpus(),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
            log_with=stage.tracker or None,
            project_dir=folder,
        )
        self.main = self.accelerator.is_main_process
        self._claim_folder()
        networks = Networks(base, self.accelerator.device)
        if not isinstance(stage, LoraStage) and not (base / "vlm" / "config.json").is_file():
            raise InputError(f"{base} is not in the released layout: convert it to a folder (convert … --to folder)")
        super().__init__(stage, networks, self.accelerator)
        self.unlogged: list[dict] = []  # entries of the log, with tensors on the device
        self._resume()
        self.accumulate = share_of(self.together, self.accelerator.num_processes)
        self.feed = self._make_feed(make_feed)

    def train(self):
        """Take all steps that are left, and write the result."""
        if self.main:
            self._cut_log()
        if self.stage.tracker:
            # What a killed run wrote after the step that this one goes on from is not shown.
            self.accelerator.init_trackers("tracker", init_kwargs={self.stage.tracker: {"purge_step": self.step + 1}})
        bar = tqdm(total=self.stage.steps, initial=self.step, disable=not self.main, mininterval=1)
        log = (self.folder / "log.jsonl").open("a", encoding="utf-8") if self.main else None
        every = 1 if self.device.type == "cpu" else LOG_EVERY
        began = time.perf_counter() - self.seconds
        while progress(self.stage, self.step, self.seconds) < 1:
            entry = self._take_step()
            self.seconds = self._same(time.perf_counter() - began)
            done = progress(self.stage, self.step, self.seconds) >= 1
            if self.stage.evaluate_every and (done or self.step % self.stage.evaluate_every == 0):
                entry |= self._evaluate()
            self.unlogged.append(entry)
            bar.update()
            save = done or self.step % self.stage.save_every == 0
            if save or self.step % every == 0:
                bar.set_postfix(loss=f"{self._log(log):.4f}")
            if save:
                self._save()
        bar.close()
        if self.main:
            log.close()
        self.write()
        if self.stage.tracker:
            self.accelerator.end_training()
        self.accelerator.wait_for_everyone()

    def _same(self, seconds: float) -> float:
        """The main process's number in all of them, which by their own clocks would end at different steps."""
        if not self.stage.minutes or self.accelerator.num_processes == 1:
            return seconds
        return float(broadcast(torch.tensor(seconds, dtype=torch.float64, device=self.device)))

    def _log(self, file) -> float:
        """Write the entries since the last call to the file, if there is one, and the tracker. Returns the last loss.

        Raises FloatingPointError if a loss or gradient is not finite.
        """
        for entry in self.unlogged:
            values = {name: float(value) for name, value in entry.items()} | {"step": entry["step"]}
            require_finite(values)
            if file:
                file.write(json.dumps(values) + "\n")
            if self.stage.tracker:
                shown = {name: value for name, value in values.items() if name != "step"}
                self.accelerator.log(shown, step=entry["step"])
        if file:
            file.flush()
        self.unlogged.clear()
        return values["loss"]

    def _evaluate(self) -> dict[str, Tensor]:
        """The losses on what is held out, by the averaged weights; writes drawings of it to drawings/STEP.jpg."""
        sums: dict[str, list] = {}
        with self.averaged(), torch.no_grad():
            for batch, counts in self.feed.held_out_batches(self.accelerator.num_processes if self.sharded else 1):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                    losses = self._losses(batch)
                for name, value in {"loss": losses.total, **losses.parts}.items():
                    sums.setdefault(name, []).append((value.float() * batch.weight * counts, batch.weight * counts))
            prompts = first_prompts(self.feed, self.stage.drawings)
            if prompts and (self.sharded or self.main):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                    made = self.networks(drawings, prompts)
                if self.main:
                    write_sheet(self.folder / "drawings" / f"{self.step:06d}.jpg", made)
        return {f"held out {name}": value for name, value in self._gathered(sums).items()}

    def write(self):
        """Write the checkpoint, or the adapters, with averaged weights, and the plot of the losses so far.

        Raises InputError if no step was saved yet.
        """
        check_saved(self.folder, self.stage)
        if self.main:
            write_plot(self.folder / "log.jsonl", self.folder / "loss.png")
        if isinstance(self.stage, LoraStage):
            if self.main:
                write_lora(self.folder / "lora.safetensors", self.ema, self.stage.alpha, self.dtype)
            return
        with self.averaged():
            # Training the decoder alone must not change the normalisation of latents, which MMDiTs were trained on.
            if any(name.startswith("vae.encoder.") for name in self.trained):
                vae = self.networks(self._with_statistics)
                self.networks.config = replace(self.networks.config, vae=vae)
            states = gathered(self.networks, self.stage.trained, self.dtype, self.main)
            if self.main:
                arguments = self.base, self.networks, self.stage.trained, self.dtype, states
                write_checkpoint(self.folder / "checkpoint", *arguments)

    # Files

    def _claim_folder(self):
        """Write the settings, unless the folder has a run with other ones."""
        if self.base.resolve() in (self.folder.resolve(), *self.folder.resolve().parents):
            raise InputError(f"{self.folder} is inside {self.base}, of which a copy is written to it: choose another")
        more = {}
        if self.stage.data:
            self.places = all_places(self.stage)
            more["files"] = fingerprint(self.places)
        settings = check_settings(self.folder, self.stage, self.base, **more)
        self.accelerator.wait_for_everyone()
        if self.main:
            with replaced(self.folder / SETTINGS) as new:
                new.write_text(json.dumps(settings, indent=2), encoding="utf-8")
        self.accelerator.wait_for_everyone()

    def _make_feed(self, make_feed):
        """For samples in memory the main process makes the cache first, and the others read it."""
        if make_feed is not None:
            return make_feed(self.networks, self.stage, self.device)
        if self.stage.data:
            return DataFeed(self.networks, self.stage, self.places, self.accelerator, self.folder)
        with self.accelerator.main_process_first():
            return Feed(self.networks, self.stage, self.device, self.folder / "cache.pt")

    def _save(self):
        numbers = {"step": self.step, "seconds": self.seconds, "together": self.together}
        if self.stage.sharded:
            tensors = {"model": {name: parameter.detach() for name, parameter in self.trained.items()}, "ema": self.ema}
            save(self.folder / "state", tensors | {"moments": moments(self.optimizers, self.trained)}, numbers)
        elif self.main:
            state = numbers | {
                "model": {name: parameter.detach() for name, parameter in self.trained.items()},
                "ema": self.ema,
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            }
            with replaced(self.folder / "state.pt") as new:
                torch.save(state, new)

    def _resume(self):
        file, folder = self.folder / "state.pt", self.folder / "state"
        if self.stage.sharded:
            recover(folder)
        if folder.exists():
            state = load(folder, self.trained, self.ema, self.optimizers)
        elif file.exists():
            # Each value is copied to its place from there; torch.load does not know cpu:0, the name of some devices.
            state = torch.load(file, map_location="cpu", weights_only=True)
            assign(self.trained, state["model"])
            assign(self.ema, state["ema"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        else:
            return
        self.step, self.seconds = state["step"], state.get("seconds", 0.0)
        self.together = state.get("together", self.together)

    def _cut_log(self):
        """Remove the lines of steps after the last saved one, which are repeated, and an incomplete line."""
        file = self.folder / "log.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        with replaced(file) as new:
            new.write_text("".join(line + "\n" for line in lines[: self.step]), encoding="utf-8")

    @torch.no_grad()
    def _with_statistics(self, networks: Networks):
        """The VAE's config with the mean and standard deviation of its latents."""
        vae, latents = networks.vae, []
        for picture in islice(self.feed.pictures(), STATISTICS_PICTURES):
            latents.append(vae.encode_raw(to_pixels([picture]).to(self.device))[0].flatten(1))
        latents = torch.cat(latents, dim=1)  # [z, pixels]
        mean, deviation = latents.mean(1).tolist(), latents.std(1).clamp(min=1e-3).tolist()
        return replace(vae.config, latents_mean=tuple(mean), latents_std=tuple(deviation))


def check_saved(folder: Path, stage: Stage):
    """Raises InputError if a run has saved no step yet, whose result could be written."""
    if not (folder / "state.pt").exists() and not is_saved(folder / "state"):
        raise InputError(f"{folder} has no saved step yet: the first is saved after {stage.save_every}")


def check_settings(folder: Path, stage: Stage, base: Path, **more) -> dict:
    """The settings of a run in this folder. Raises InputError if the folder has a run that began with other ones.

    base: the checkpoint that it starts from. more: checksums of its data.
    """
    files = [base] if base.is_file() else base.glob("*/*.safetensors")
    settings = json.loads(as_json(stage)) | {"base": digest(files)} | more
    if isinstance(stage, LoraStage) and stage.pictures:
        settings["pictures"] = digest(Path(stage.pictures).glob("*"))
    file = folder / SETTINGS
    # A run that failed before it made anything does not count.
    if not file.exists() or not any((folder / name).exists() for name in ("cache.pt", "state.pt", "state", "cache")):
        return settings
    found = json.loads(file.read_text(encoding="utf-8"))
    for field in fields(stage):  # a run that is older than a setting has its default
        if field.name not in found and field.default is not MISSING:
            found[field.name] = json.loads(json.dumps(field.default))
    names = (settings.keys() | found.keys()) - FREE
    if other := sorted(name for name in names if settings.get(name) != found.get(name)):
        raise InputError(
            f"{folder} has a run with other settings ({', '.join(other)}): remove it, or choose another folder"
        )
    return settings


def check_evaluation(stage: Stage):
    """Raises InputError for an evaluation without anything to evaluate."""
    if stage.evaluate_every and not (stage.data and stage.held_out):
        raise InputError("evaluate_every needs data and held_out: how many samples are not trained")


def started_on_cpus() -> bool:
    """Whether torchrun started several processes on a machine without GPUs.

    accelerate has to be told, or each of them would train alone, into the same folder.
    """
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return several and not (torch.cuda.is_available() or torch.xpu.is_available())


def check_sharding(stage: Stage):
    """Raises InputError for settings that cannot be used together with sharded."""
    if not stage.sharded:
        return
    if isinstance(stage, LoraStage):
        raise InputError("adapters are too small to be divided: set sharded=false; each process holds all of them")
    if stage.muon:
        raise InputError("Muon needs whole matrices, which sharded training divides: set muon=false for AdamW")


def share_of(together: int, processes: int) -> int:
    """A process's share of the micro-batches of a step, which stay as many as when the run began."""
    if together % processes:
        raise InputError(
            f"a step of this run has {together} micro-batches, which {processes} processes cannot share evenly: "
            f"start a number of processes that divides {together}"
        )
    return together // processes


def digest(files: Iterable[Path]) -> str:
    """A checksum of weights or pictures: with other ones, the cache and the state of a run are invalid."""
    total = hashlib.sha256()
    for file in sorted(file for file in files if file.is_file()):
        with file.open("rb") as stream:
            while block := stream.read(2**24):
                total.update(block)
    return total.hexdigest()


def make_optimizers(stage: Stage, trained: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
    """AdamW for everything; or Muon for the matrices between hidden states, and AdamW for the rest."""
    hidden, decayed, plain = [], [], []
    for name, parameter in trained.items():
        if stage.muon and parameter.ndim == 2 and any(part in name for part in HIDDEN_LAYERS):
            hidden.append(parameter)
        else:
            (decayed if sum(side > 1 for side in parameter.shape) > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": stage.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    device = next(iter(trained.values())).device
    adamw = torch.optim.AdamW(groups, betas=stage.betas, fused=True if device.type == "cuda" else None)
    if not hidden:
        return [adamw]
    dtype = torch.bfloat16 if bfloat16_is_fast(device) else torch.float32
    return [adamw, Muon(hidden, weight_decay=stage.weight_decay, dtype=dtype)]


def freeze(networks: Networks, trained: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Freeze all parameters except those whose names begin with one of `trained`, which are returned by name.

    Raises InputError for a prefix that no parameter has.
    """
    parameters = dict(networks.named_parameters())
    for prefix in trained:
        if not any(name.startswith(prefix) for name in parameters):
            raise InputError(f"trained has {prefix!r}, but no parameter's name begins with it")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name.startswith(trained))
    return {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}


def halve_frozen(networks: Networks):
    """Keep networks of which nothing is trained in bfloat16, but for the VAE, which computes in float32."""
    for network in (networks.vlm, networks.mmdit):
        if not any(parameter.requires_grad for parameter in network.parameters()):
            network.to(torch.bfloat16)


def checkpoint_activations(networks: Networks):
    """Keep only the input of each block, and recompute its activations in the backward pass (arXiv 1604.06174)."""
    for block in blocks(networks):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def progress(stage: Stage, step: int, seconds: float) -> float:
    """The fraction of a run that is over after so many steps and seconds."""
    return max(step / stage.steps, seconds / (60 * stage.minutes) if stage.minutes else 0.0)


def learning_rate(stage: Stage, step: int, seconds: float = 0.0) -> float:
    """The learning rate of a step, from 0: linear warm-up, constant, linear decay to 0."""
    warm = (step + 1) / stage.warmup if stage.warmup else 1.0
    left = (1 - progress(stage, step, seconds)) / stage.decay if stage.decay else 1.0
    return stage.learning_rate * min(1.0, warm, left)


def require_finite(entry: dict):
    """Raises FloatingPointError if the loss or the norm of the gradient of a step is not finite."""
    loss, norm = float(entry["loss"]), float(entry["norm"])
    if not math.isfinite(loss + norm):
        raise FloatingPointError(f"step {entry['step']} has the loss {loss} and a gradient of {norm}")


def _shared_losses(networks: Networks, *arguments) -> tuple[Tensor, dict[str, Tensor]]:
    losses = objectives.losses(networks, *arguments)
    return losses.total + touch(networks).to(losses.total.device), losses.parts


@torch.no_grad()
def exchange(some: dict[str, Tensor], others: dict[str, Tensor]):
    """Exchange the values of tensors of the same names, one by one, so that no third copy of all is made."""
    for name, tensor in some.items():
        one, other = local(tensor), local(others[name])
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)


@torch.no_grad()
def assign(targets: dict[str, Tensor], values: dict[str, Tensor]):
    """Copy values into the tensors of the same names."""
    for name, target in targets.items():
        target.copy_(values[name])
