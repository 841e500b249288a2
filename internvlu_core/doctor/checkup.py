"""The doctor's checks in their order: files, official code, tasks, speed, comparison, report."""

import gc
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from PIL import Image

from ..checkpoints import hub
from ..errors import CheckpointError, InputError, in_one_line
from ..models.operations import bfloat16_is_fast
from ..pipeline import InternVLU, usable_device
from . import compare, official, recording
from .files import check_files
from .measure import machine, machine_speed, measured
from .recording import BFLOAT16, Recording, read_cases
from .report import Report
from .smoke import ERRORS, run_tasks
from .speed import Timing, nbytes, time_stages

PACKAGES = "transformers", "tokenizers", "safetensors", "accelerate", "diffusers", "numpy", "pillow"


@dataclass(frozen=True)
class Checkup:
    """What is to be checked. dtype: as in InternVLU.from_pretrained. out: the folder of the report and its pictures.

    official: a checkout of the official code, or a folder of recorded runs. official_python: of the former's
    environment. ask_hub: whether the hub is asked for the hashes of the released files. side: of the pictures in
    pixels, None for the checkpoint's. steps, tokens: of a picture and of a text.
    """

    checkpoint: Path
    out: Path
    device: str = "cpu"
    dtype: torch.dtype | str = "auto"
    official: Path | None = None
    official_python: str | None = None
    ask_hub: bool = False
    side: int | None = None
    steps: int = 20
    tokens: int = 32


def examine(checkup: Checkup) -> Report:
    """Do all checks and write the report. Raises InputError if a check cannot begin."""
    usable_device(checkup.device)
    recorded = checkup.official is not None and not official.is_official(checkup.official)
    if not checkup.checkpoint.exists():
        raise InputError(f"checkpoint {str(checkup.checkpoint)!r} does not exist")
    try:
        checkup.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {checkup.out}: {error}") from error
    _say("files")
    report = Report(about(checkup), check_files(checkup.checkpoint, _released(checkup)))
    try:
        runs = checkup.official if recorded else None
        side = checkup.side
        model = _load(checkup, report)
        if model is not None:
            side = side or model.config.mmdit.image_height
            _try_model(model, checkup, report, side)
            del model  # the comparison loads it in other dtypes
            _free(checkup.device)
            if checkup.official is not None:
                _compare(checkup, report, runs or _record(checkup, report, side))
    finally:
        report.write(checkup.out)
    return report


def _released(checkup: Checkup) -> list[hub.RemoteFile] | None:
    """The released files, if the hub is to be asked. Raises InputError if it does not answer."""
    try:
        return hub.list_files(checkup.checkpoint) if checkup.ask_hub else None
    except hub.DownloadError as error:  # which says how to download
        reason = in_one_line(error.__cause__ or error)
        raise InputError(f"the hub cannot be asked ({reason}); the other checks need no --ask-hub") from error


def about(checkup: Checkup) -> dict[str, str]:
    """The machine, the versions and the call."""
    found = {"machine": machine(), "system": platform.platform(), "Python": platform.python_version()}
    found |= {"torch": f"{torch.__version__}, CUDA {torch.version.cuda}", "device": checkup.device}
    device = torch.device(checkup.device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found["GPU"] = f"{torch.cuda.get_device_name(device)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        found["GPU"] += f", compute capability {'.'.join(map(str, torch.cuda.get_device_capability(device)))}"
    found["packages"] = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return found | {"checkpoint": checkup.checkpoint.resolve().name, "dtype": str(checkup.dtype).removeprefix("torch.")}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _load(checkup: Checkup, report: Report) -> InternVLU | None:
    """The model, or None after a note of what is wrong."""
    _say("loading")
    try:
        model, cost = measured(
            lambda: InternVLU.from_pretrained(checkup.checkpoint, checkup.device, checkup.dtype), checkup.device
        )
    except (CheckpointError, RuntimeError) as error:
        if str(error) not in report.files.problems:
            report.failures.append(f"loading: {in_one_line(error)}")
        return None
    weights = nbytes(model.vlm, model.mmdit, model.vae)
    report.about["dtype"] = str(model.dtype).removeprefix("torch.")
    report.timings.append(Timing("loading", cost["seconds"], cost["peak"], weights=weights))
    return model


def _try_model(model: InternVLU, checkup: Checkup, report: Report, side: int):
    """Tasks and speed."""
    _say("tasks")
    report.outcomes = run_tasks(model, checkup.out, side, checkup.steps, checkup.tokens)
    _say("speed")
    try:
        emulated = model.dtype is torch.bfloat16 and not bfloat16_is_fast(model.device)
        report.speed = machine_speed(checkup.device, torch.float32 if emulated else model.dtype)
        report.timings += time_stages(model, report.speed, side, checkup.tokens)
    except ERRORS as error:
        report.failures.append(f"speed: {in_one_line(error)}")


def _record(checkup: Checkup, report: Report, side: int) -> Path | None:
    """A folder of new recordings, or None after a note of why there is none."""
    _say("official code")
    folder = checkup.out / "official"
    recording.write_cases(folder, side, checkup.steps, checkup.tokens)
    try:
        official.record(checkup.official, checkup.checkpoint, folder, checkup.device, checkup.official_python)
    except official.OfficialError as error:
        report.failures.append(f"official code: {error}")
        return None
    return folder


def _compare(checkup: Checkup, report: Report, runs: Path | None):
    """Every stage of every recorded run, in float32 and in bfloat16; and the pictures side by side."""
    if runs is None:
        return
    strips: dict[str, list[Image.Image]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        _say(f"comparison in {name}")
        try:
            with full_float32():
                model = InternVLU.from_pretrained(checkup.checkpoint, checkup.device, dtype)
                with compare.recorded_frequencies(model, runs):
                    for case in read_cases(runs):
                        _compare_run(model, runs, case, report, strips)
                del model
        except ERRORS as error:
            report.failures.append(f"comparison in {name}: {in_one_line(error)}")
        _free(checkup.device)
    sheet = compare.side_by_side(list(strips.values()))
    if sheet is not None:
        sheet.save(checkup.out / "comparison.png")


def _compare_run(model: InternVLU, runs: Path, case: dict, report: Report, strips: dict[str, list[Image.Image]]):
    """One recorded run in the model's dtype. strips: {run: the official picture, and ours so far}."""
    run = Recording(runs, case)
    replayed = model.dtype is torch.bfloat16 and (runs / BFLOAT16).is_dir()
    report.differences += compare.compare(model, run, Recording(runs, case, BFLOAT16) if replayed else None)
    if run.draws:
        picture, difference = compare.draw(model, run)
        report.differences.append(difference)
        strip = strips.setdefault(run.name, [Image.fromarray(run["images"][0].numpy())])
        strip += [picture] if picture else []


def _free(device: str):
    """Give memory of tensors that are gone back to the device, for whoever needs it next."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


class full_float32:
    """While it is entered, float32 is computed in float32 on a GPU too, not in TF32."""

    def __enter__(self):
        self.before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    def __exit__(self, *error):
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = self.before


def _say(stage: str):
    print(f"doctor: {stage} …", file=sys.stderr, flush=True)
