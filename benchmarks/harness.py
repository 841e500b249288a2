"""Worker processes, and how they are compared: first their results, then their times, in turns."""

import datetime
import json
import os
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from internvlu_core.doctor import compare
from internvlu_core.doctor.measure import least_time
from internvlu_core.doctor.recording import sample_picture

ROOT = Path(__file__).resolve().parents[1]
WORKERS = ROOT / "benchmarks" / "workers"
# The largest relative difference at which two sides count as the same computation.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.03}
PICTURE_TOLERANCE = {"float32": 1.0, "bfloat16": 16.0, "float16": 8.0}  # levels of 255, on average


class BenchmarkError(RuntimeError):
    """A worker failed, or two sides do not compute the same thing."""


class Worker:
    """A persistent process that answers one request at a time (workers/wire.py). It is idle between requests."""

    def __init__(self, name: str, command: list, log: Path):
        self.name, self.log = name, log
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "scripts" / "comfy_shim")])}
        with log.open("w") as errors:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
            self.process = subprocess.Popen(list(map(str, command)), env=env, **pipes)

    def call(self, op: str, **arguments) -> dict:
        """The reply. Raises BenchmarkError with the worker's traceback."""
        try:
            print(json.dumps({"op": op, **arguments}), file=self.process.stdin, flush=True)
            reply = json.loads(self.process.stdout.readline())
        except (OSError, ValueError) as error:
            raise BenchmarkError(f"{self.name} has ended; its error output is in {self.log}") from error
        if "error" in reply:
            raise BenchmarkError(f"{self.name}, {op}:\n{reply['error']}")
        return reply

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


@dataclass
class Side:
    """One side of a comparison: a loaded worker, and its own names of operations."""

    name: str
    worker: Worker
    renamed: dict[str, str] = field(default_factory=dict)
    about: dict = field(default_factory=dict)  # versions, weights

    def call(self, op: str, **arguments) -> dict:
        return self.worker.call(self.renamed.get(op, op), **arguments)


@dataclass
class Run:
    """What all results of one run have in common, and where they are written."""

    work: Path
    results: Path
    device: str
    dtype: str
    scale: str
    command: str
    floor: dict = field(default_factory=dict)
    lines: list[dict] = field(default_factory=list)

    def file(self, name: str) -> str:
        return str(self.work / name)

    def record(self, **values) -> dict:
        """Write a result as a JSON line, to the file and to standard output."""
        values |= {"device": self.device, "dtype": self.dtype, "checkpoint": self.scale, "command": self.command}
        values |= {"date": datetime.date.today().isoformat()}
        if hasattr(os, "getloadavg"):  # of the last minute; above the number of threads, something else ran too
            values |= {"load": round(os.getloadavg()[0], 1)}
        self.lines.append(values)
        line = json.dumps(values)
        with self.results.open("a", encoding="utf-8") as out:
            print(line, file=out)
        print(line, flush=True)
        return values

    def tensor(self, name: str, value: torch.Tensor) -> str:
        save_file({"value": value.contiguous()}, self.file(name))
        return self.file(name)

    def picture(self, size: int) -> str:
        """The file of a picture with some structure."""
        sample_picture(size).save(self.file(f"picture{size}.png"))
        return self.file(f"picture{size}.png")


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖."""
    if actual.shape != expected.shape:
        raise BenchmarkError(f"shapes differ: {list(actual.shape)} and {list(expected.shape)}")
    return compare.relative(actual, expected)


def difference(actual: str, expected: str) -> float:
    """The largest relative difference of two tensor files, or the mean difference of two pictures in levels of 255."""
    if actual.endswith(".png"):
        a, b = (np.asarray(Image.open(file), dtype=np.float64) for file in (actual, expected))
        return float(np.abs(a - b).mean())
    a, b = load_file(actual), load_file(expected)
    if a.keys() != b.keys():
        raise BenchmarkError(f"{actual} holds {sorted(a)}, {expected} {sorted(b)}")
    return max(relative(a[name], b[name]) for name in a)


def check(stage: str, sides: list[Side], replies: list[dict], files: list[str], dtype: str) -> float:
    """How far the sides are from the first one. Raises BenchmarkError if that is more than rounding."""
    found = 0.0
    for side, reply, file in zip(sides[1:], replies[1:], files[1:], strict=True):
        if "tokens" in reply and "tokens" in replies[0] and stage.startswith("text"):
            same = [a == b for a, b in zip(reply["tokens"], replies[0]["tokens"], strict=True)]
            # In 16 bits two tokens can be equally likely, and texts part there for good; few do at their first one.
            first = same[: reply.get("texts", 1)]
            apart = not all(same) if dtype == "float32" else 2 * sum(first) <= len(first)
        else:
            found = max(found, distance := difference(file, files[0]))
            limit = PICTURE_TOLERANCE[dtype] if file.endswith(".png") else TOLERANCES[dtype]
            apart = not distance <= limit
        if apart:
            raise BenchmarkError(f"{stage}: {side.name} and {sides[0].name} differ (by {found:.2e}); not timed")
    return found


@dataclass(frozen=True)
class Case:
    """One measurement, the same on every side.

    op, arguments: what each worker is asked to do. repeats: timed rounds. flops, nbytes: what one call needs, for the
    floor. warm_up: whether a first round is not timed. suffix: of the files with the results.
    """

    comparison: str
    stage: str
    op: str
    arguments: dict
    repeats: int
    flops: int = 0
    nbytes: int = 0
    warm_up: bool = True
    suffix: str = ".safetensors"

    def call(self, side: Side, file: str) -> dict:
        out = {} if self.op in ("text", "continue_ids") or "ids" in self.arguments else {"out": file}
        return side.call(self.op, **self.arguments, **out)


def side_by_side(run: Run, sides: list[Side], case: Case, **more) -> list[dict]:
    """Call each side in turn, round by round, and record a line for each side, with more values if given.

    The results of the first round are compared. Raises BenchmarkError if they differ.
    """
    files = [run.file(f"{side.name.replace(' ', '_')}{case.suffix}") for side in sides]
    apart, rounds = None, []
    for _ in range(case.repeats + case.warm_up):
        rounds.append([case.call(side, file) for side, file in zip(sides, files, strict=True)])
        if apart is None:
            apart = check(case.stage, sides, rounds[0], files, run.dtype)
    timed = rounds[case.warm_up :]
    return [
        run.record(
            comparison=case.comparison,
            stage=case.stage,
            side=side.name,
            **more,
            **summary([s for replies in timed for s in as_list(replies[index]["seconds"])]),
            warm_up=int(case.warm_up),
            **peaks([replies[index] for replies in rounds]),
            **floor(run, case.flops, case.nbytes),
            apart=apart,
            **side.about,
        )
        for index, side in enumerate(sides)
    ]


def as_list(value) -> list[float]:
    return value if isinstance(value, list) else [value]


def summary(seconds: list[float]) -> dict:
    return {"seconds": statistics.median(seconds), "spread": [min(seconds), max(seconds)], "repeats": len(seconds)}


def peaks(replies: list[dict]) -> dict:
    """Peak bytes: of the device, or of the whole process on a CPU."""
    found = [reply["peak"] for reply in replies if reply.get("peak")]
    return {"peak": max(found)} if found else {}


def floor(run: Run, flops: int, nbytes: int) -> dict:
    """The least seconds that this many FLOPs and bytes take at the machine's own speed."""
    if not run.floor or not (flops or nbytes):
        return {}
    return {"flops": flops, "bytes": nbytes, "floor_seconds": least_time(run.floor, flops, nbytes)}


def fit(points: list[tuple[float, float]]) -> dict:
    """How cost y grows with x: y ∝ x^power, and y = a + b·x + c·x² with relative errors least and c ≥ 0."""
    x, y = (np.array(values, dtype=np.float64) for values in zip(*points, strict=True))
    positive = x > 0
    power = float(np.polyfit(np.log(x[positive]), np.log(y[positive]), 1)[0]) if positive.sum() > 1 else float("nan")
    degree = min(2, len(x) - 1)
    coefficients = np.polyfit(x, y, degree, w=1 / y)[::-1]
    if degree == 2 and coefficients[2] < 0:
        coefficients = np.append(np.polyfit(x, y, 1, w=1 / y)[::-1], 0.0)
    return {"power": power, "polynomial": [float(c) for c in coefficients]}
