"""What one worker does: the rows of a chunk → a part of the output, on one loaded model."""

import io
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image

from ..conversation import read_turns
from ..errors import CheckpointError, InputError, check_text
from ..pipeline import InternVLU
from ..requests import ANSWER_ONLY, DrawRequest, TextRequest
from .pictures import read_pictures
from .requests_file import KNOWN, SETTINGS, Chunk, Row, integral, read_rows
from .results import Output, Result

Settings = dict[str, Any]

TEXT, DRAW = (frozenset(f.name for f in fields(kind)) - {"prompt", "images"} for kind in (TextRequest, DrawRequest))
REASON = TEXT - ANSWER_ONLY
# The settings that each task has. With "reason+", reasoning and drawing share system_prompt and seed.
TASKS = {"answer": TEXT, "reason": REASON, "generate": DRAW, "edit": DRAW}
TASKS |= {f"reason+{task}": REASON | DRAW - {"reasoning"} for task in ("generate", "edit")}
INTEGERS = {f.name for kind in (TextRequest, DrawRequest) for f in fields(kind) if int in (f.type, *get_args(f.type))}
OWN_ERRORS = CheckpointError, InputError, FloatingPointError  # their message says all
# After these a process cannot compute on its GPU any more, so that every further row would fail.
FATAL = tuple(kind for name in ("AcceleratorError",) if (kind := getattr(torch, name, None)))


@dataclass(frozen=True)
class ModelOptions:
    """How a worker loads its model, see InternVLU.from_pretrained. device: None for a GPU if there is one."""

    checkpoint: str
    device: str | None = None
    dtype: torch.dtype | str = "auto"
    max_memory: str | None = None
    attention: str = "auto"

    def load(self) -> InternVLU:
        """The model."""
        memory = {}
        if self.max_memory:
            memory = {"device_map": "auto", "max_memory": None if self.max_memory == "auto" else self.max_memory}
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return InternVLU.from_pretrained(self.checkpoint, device, self.dtype, attention=self.attention, **memory)


@dataclass(frozen=True)
class Work:
    """What every worker of a run knows. together: requests in one batch, at most."""

    requests: Path
    output: Output
    allow_urls: bool = False
    together: int = 16


@dataclass
class Job:
    """A row on its way. settings: of its task."""

    row: Row
    result: Result
    settings: Settings = field(default_factory=dict)
    began: float | None = None
    drawn_from: Any = None  # the TextResult of "reason+"
    ended: bool = False  # this stage of it

    def fail(self, error: Exception):
        """Make this the row's error."""
        self.result.error = describe(error)

    def begin(self):
        """Count its seconds from now, if it has not begun."""
        self.began = self.began or time.perf_counter()

    def end(self):
        """Take its seconds."""
        self.result.seconds = time.perf_counter() - (self.began or time.perf_counter())


class Worker:
    """Does chunks one after the other. load(): makes the model, once. Calling it returns (rows, rows with an error)."""

    def __init__(self, work: Work, load: Callable[[], InternVLU]):
        self.work, self.model = work, load()

    def __call__(self, chunk: Chunk) -> tuple[int, int]:
        return do_chunk(self.work, chunk, self.results)

    def results(self, rows: list[Row]) -> list[Result]:
        """The results of these rows. Each depends on its row alone; whatever is wrong with a row is its error."""
        jobs = [read_job(row) for row in rows]
        reason = self._of(jobs, "reason", "reason+generate", "reason+edit")
        self._stage(self._of(jobs, "answer"), self.model.answer_many, "rows", self._to_answer, self._keep_answer)
        self._stage(reason, self.model.reason_many, "rows", self._to_reason, self._keep_reasoning)
        draw = self._of(jobs, "generate", "edit", "reason+generate", "reason+edit")
        self._stage(draw, self.model.generate_many, "pictures", self._to_draw, self._keep_pictures)
        for job in jobs:
            if job.result.error is not None:
                job.result.text = job.result.reasoning = None
                job.result.images = []
        return [job.result for job in jobs]

    @staticmethod
    def _of(jobs: list[Job], *tasks: str) -> list[Job]:
        return [job for job in jobs if job.result.error is None and job.result.task in tasks]

    def _stage(self, jobs: list[Job], method: Callable, limit: str, request: Callable, keep: Callable):
        """Give jobs to answer_many, reason_many or generate_many. limit: its argument for how many at once.

        request(job): its settings. keep(job, result).
        """
        for job in jobs:
            job.ended = False
        try:
            self._together(jobs, method, {limit: self.work.together}, request, keep)
        except FATAL:
            raise
        except Exception:  # of all that were together, such as memory that does not suffice
            for job in [job for job in jobs if not job.ended]:
                try:
                    self._together([job], method, {limit: 1}, request, keep)
                except FATAL:
                    raise
                except Exception as error:
                    job.fail(error)
        for job in jobs:
            job.end()

    def _together(self, jobs: list[Job], method: Callable, limits: Settings, request: Callable, keep: Callable):
        sent: list[Job] = []

        def requests() -> Iterator[Settings]:
            """Read when there is room for one, so that few pictures are in memory."""
            for job in jobs:
                job.begin()
                try:
                    settings = request(job)
                except Exception as error:  # of this row alone
                    job.fail(error)
                    job.ended = True
                    continue
                sent.append(job)
                yield settings

        for outcome in method(requests(), **limits):
            job = sent[outcome.index]
            if isinstance(outcome.error, FATAL):
                raise outcome.error
            if outcome.error is None:
                keep(job, outcome.result)
            else:
                job.fail(outcome.error)
            job.ended = True
            job.end()

    def _request(self, job: Job, names: frozenset[str]) -> Settings:
        """The settings of these names, with the prompt and the pictures."""
        values = job.row.values
        pictures = read_pictures(values.get("images"), self.work.requests.parent, self.work.allow_urls)
        chosen = {name: value for name, value in job.settings.items() if name in names}
        return {"prompt": values.get("prompt"), "images": pictures, "seed": 0} | chosen

    def _to_answer(self, job: Job) -> Settings:
        request = self._request(job, TEXT)
        if "history" in request:  # its pictures are those of its first turn, as on the command line
            given = request["history"]
            turns = given if isinstance(given, str) else json.dumps(given)
            request["history"] = read_turns(turns, request["images"])
            request["images"] = [] if request["history"] else request["images"]
        return request

    def _to_reason(self, job: Job) -> Settings:
        return self._request(job, REASON)

    def _to_draw(self, job: Job) -> Settings:
        request = self._request(job, DRAW)
        if job.result.task.endswith("edit") and not request["images"]:
            raise InputError("there is no image to edit")
        return request | ({"reasoning": job.drawn_from} if job.drawn_from else {})

    @staticmethod
    def _keep_answer(job: Job, result):
        job.result.text = result.text

    @staticmethod
    def _keep_reasoning(job: Job, result):
        job.result.reasoning, job.drawn_from = result.text, result

    @staticmethod
    def _keep_pictures(job: Job, result):
        job.result.images = [to_png(picture) for picture in result.images]
        job.result.reasoning = job.result.reasoning or job.settings.get("reasoning")


def do_chunk(work: Work, chunk: Chunk, results: Callable[[list[Row]], list[Result]]) -> tuple[int, int]:
    """Write the part of a chunk, unless it is there: a task that ran twice, or whose end was not heard of.

    Returns (rows, rows with an error).
    """
    if work.output.part(chunk).exists():
        return chunk.count, 0
    found = results(read_rows(work.requests, chunk))
    work.output.write(chunk, found)
    return len(found), sum(result.error is not None for result in found)


def read_job(row: Row) -> Job:
    """A row, checked as far as it can be without the model; its error is in the job's result."""
    carried = {name: value for name, value in row.values.items() if name not in KNOWN}
    task, prompt = (value if isinstance(value := row.values.get(name), str) else None for name in ("task", "prompt"))
    job = Job(row, Result(row.index, row.id, task, prompt, carried, error=row.error))
    if row.error is None:
        try:
            job.settings = _settings(row.values)
        except (InputError, OverflowError) as error:
            job.fail(error)
    return job


def _settings(values: Settings) -> Settings:
    task = values.get("task")
    if not isinstance(task, str) or task not in TASKS:
        raise InputError(f"the task is {task!r}; it must be one of {', '.join(TASKS)}")
    check_text("prompt", values.get("prompt"))
    settings = {name: value for name, value in values.items() if name in SETTINGS}
    settings = {name: integral(value) if name in INTEGERS else value for name, value in settings.items()}
    for name, sides in (("n", ("num_images",)), ("size", ("width", "height"))):
        if name in values:
            if taken := [side for side in sides if side in settings]:
                raise InputError(f"give {name} or {taken[0]}, not both")
            found = read_size(values[name]) if name == "size" else (integral(values[name]),)
            settings |= dict(zip(sides, found, strict=True))
    if unknown := sorted(settings.keys() - TASKS[task]):
        raise InputError(f"the task {task} has no setting {unknown[0]}")
    return settings


def read_size(size) -> tuple[int, int]:
    """(width, height) of a text such as "512x256". Raises InputError for anything else."""
    found = re.fullmatch(r"\s*(\d{1,9})\s*[x×]\s*(\d{1,9})\s*", size) if isinstance(size, str) else None
    if not found:
        raise InputError(f'the size is {size!r}; it must be a text such as "512x256", the width first')
    return int(found[1]), int(found[2])


def to_png(picture: Image.Image, level: int = 6) -> bytes:
    """A picture as a PNG file. level: of its compression, from 0 to 9; the lower, the faster."""
    target = io.BytesIO()
    picture.save(target, "PNG", compress_level=level)
    return target.getvalue()


def describe(error: Exception) -> str:
    """An error as the message of a row."""
    return str(error) if isinstance(error, OWN_ERRORS) else f"{type(error).__name__}: {error}"
