"""What `internvlu batch` costs beside a plain loop: rows per second with no worker, one and two, on one thread each."""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from internvlu_core.batch import BatchOptions, ModelOptions, RayOptions, run_batch

PROMPT = "What do you know about the history of the lighthouse on the rock off the coast?"
ROW_SECONDS = 1.0  # what a row is to take
WORKERS = (0, 1, 2)


@dataclass
class Clock:
    """When rows are done. Only the middle of a run counts: before it models are loaded, after it workers run idle."""

    times: list[tuple[int, float]] = field(default_factory=list)

    def __call__(self, done: int, total: int):
        self.times.append((done, time.perf_counter()))

    def seconds_per_row(self) -> float:
        """Of the middle."""
        total = self.times[-1][0]
        middle = [(done, at) for done, at in self.times if total / 3 <= done <= total * 5 / 6]
        (first, begin), (last, end) = middle[0], middle[-1]
        return (end - begin) / (last - first)


def measure(checkpoint: str, work: Path, options) -> Iterator[dict]:
    """{stage, per_row: seconds, overhead: share of the loop's time, tokens: of a row} of the loop and of each run.

    Requests are done one by one and each in a part of its own, so that all that a row can cost is in it.
    """
    torch.set_num_threads(1)
    source = ModelOptions(checkpoint, options.device, getattr(torch, options.dtype))
    model = source.load()

    def answer(tokens: int) -> float:
        begin = time.perf_counter()
        model.answer(PROMPT, max_new_tokens=tokens, seed=0)
        return time.perf_counter() - begin

    answer(8)
    first, per_token = answer(1), answer(33)
    tokens = max(1, round(1 + (ROW_SECONDS - first) * 32 / max(per_token - first, 1e-9)))
    loop = Clock()
    for row in range(options.rows + 1):
        loop(row, options.rows)
        answer(tokens)
    seconds = {"plain loop": loop.seconds_per_row()}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        requests = Path(folder) / "requests.jsonl"
        request = {"task": "answer", "prompt": PROMPT, "max_new_tokens": tokens}
        requests.write_text((json.dumps(request) + "\n") * options.rows)
        for workers in WORKERS:
            clock, ray = Clock(), RayOptions(workers, cpus=1) if workers else None
            out = Path(folder) / str(workers)
            run_batch(BatchOptions(requests, out, source, ray, together=1, chunk=1), clock)
            seconds[f"{workers} workers"] = clock.seconds_per_row()
    alone = seconds["plain loop"]
    for stage, found in seconds.items():
        ideal = alone / 2 if stage == "2 workers" else alone
        yield {"stage": stage, "per_row": found, "overhead": found / ideal - 1, "tokens": tokens}
