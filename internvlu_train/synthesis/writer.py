"""Many samples into a folder, by one process or many: WebDataset shards, or pictures beside metadata.jsonl.

A chunk of neighbouring samples is one part: a shard, or a folder of pictures with its rows. A part appears whole or not
at all, and what is in it depends on the plan and its number alone, so that a run can be stopped and repeated at will
and any number of workers writes the same bytes. Engines, atomic files and the lock are those of internvlu_core.batch.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from internvlu_core.batch.engines import Done, RayOptions, Workers, run_local, run_ray
from internvlu_core.batch.requests_file import Chunk
from internvlu_core.batch.results import locked, tar_file, write_whole
from internvlu_core.batch.worker import describe, to_png
from internvlu_core.errors import MAX_SETTING, InputError, check_integer

from ..choices import Choices
from ..sample import Sample
from . import DOMAINS, LANGUAGES, VERSION, Resources, kinds, make

FORMATS = ("webdataset", "folder")
PLAN, METADATA, ROWS = "synthesis.json", "metadata.jsonl", ".rows"  # in OUT; ROWS: a folder, of --format folder
MAX_SEED, PER_SEED = 2**31 - 1, 2**32  # samples of two seeds are never the same
SIDES = range(64, 4097)
COMPRESSION = 1  # of PNG; 6 takes as long as making the sample and saves a tenth (512 x 512, domain text)
ROOT = Path(__file__).resolve().parents[1]

Rewrite = Callable[[Sample], Sample]
NONE = Resources()


@dataclass(frozen=True)
class Plan:
    """Which samples. All but count and shard decide what a sample is.

    sizes: (width, height) in pixels, of which each sample has one. task, kind, language: None for any. seed: another
    one gives other samples. evaluation: samples for evaluation in place of training. shard: samples of a part.
    rewriter: a name of what rewrites the words, or None. Raises InputError for what cannot be.
    """

    domain: str
    count: int
    sizes: tuple[tuple[int, int], ...] = ((1024, 1024),)
    task: str | None = None
    kind: str | None = None
    language: str | None = None
    seed: int = 0
    evaluation: bool = False
    shard: int = 256
    resources: Resources = NONE
    rewriter: str | None = None

    def __post_init__(self):
        check_integer("count", self.count, 1, PER_SEED)
        check_integer("seed", self.seed, 0, MAX_SEED)
        check_integer("shard", self.shard, 1, MAX_SETTING)
        if not self.sizes:
            raise InputError("there is no size; give at least one")
        for size in self.sizes:
            if any(side not in SIDES for side in size):
                wanted = f"each side must be from {SIDES[0]} to {SIDES[-1]} pixels"
                raise InputError(f"size is {size[0]}x{size[1]}; {wanted}")
        if self.domain not in DOMAINS:
            raise InputError(f"domain is {self.domain!r}; it must be one of {', '.join(DOMAINS)}")
        if self.language not in (None, *LANGUAGES):
            raise InputError(f"language is {self.language!r}; it must be one of {', '.join(LANGUAGES)}")
        if not self.tasks():
            there = "; ".join(f"{task}: {', '.join(found)}" for task, found in kinds(self.domain).items())
            raise InputError(
                f"no samples of {self.domain} with task {self.task} and kind {self.kind}; there are {there}"
            )

    def tasks(self) -> list[str]:
        """Those that samples can have."""
        found = kinds(self.domain)
        return [task for task in sorted(found) if self.task in (None, task) and self.kind in (None, *found[task])]

    def sample(self, index: int) -> Sample:
        """The sample with this number. Odd seeds are for evaluation, see Choices."""
        seed = 2 * (self.seed * PER_SEED + index) + self.evaluation
        choices = Choices(f"{self.domain}/which", seed, (0, 0))
        task, size = choices.pick(self.tasks()), choices.pick(self.sizes)
        return make(self.domain, task, seed, size, self.kind, self.language, self.resources)

    def chunks(self) -> list[Chunk]:
        """All parts. Their cuts do not depend on what is done."""
        return [
            Chunk(first, min(self.shard, self.count - first), 0, f"{self.domain}-{number:06d}")
            for number, first in enumerate(range(0, self.count, self.shard))
        ]

    def as_json(self) -> dict:
        """As it is written into OUT."""
        return json.loads(json.dumps(asdict(self), default=str)) | {"version": VERSION}


@dataclass(frozen=True)
class Output:
    """Where samples go. format: one of FORMATS. skip_bad: a sample that fails is listed, and the run goes on."""

    folder: Path
    format: str = "webdataset"
    skip_bad: bool = False

    def __post_init__(self):
        if self.format not in FORMATS:
            raise InputError(f"format is {self.format!r}; it must be one of {', '.join(FORMATS)}")

    def part(self, chunk: Chunk) -> Path:
        """The file that is there when a chunk is done."""
        if self.format == "webdataset":
            return self.folder / f"{chunk.name}.tar"
        return self.folder / ROWS / f"{chunk.name}.jsonl"

    def bad(self, chunk: Chunk) -> Path:
        """The list of a chunk's samples that failed; there is none if none failed."""
        return self.folder / f"{chunk.name}.bad.jsonl"

    def tries(self, chunk: Chunk) -> Path:
        """See Workers."""
        return self.folder / f".{chunk.name}.tries"

    def remove(self, chunk: Chunk):
        """Make a chunk one that is not done."""
        self.part(chunk).unlink(missing_ok=True)
        self.bad(chunk).unlink(missing_ok=True)

    def write(self, chunk: Chunk, samples: Iterator[tuple[int, Sample]]):
        """Write a part. samples: (number, sample). Raises InputError if the disk is full or does not take it."""
        try:
            if self.format == "webdataset":
                content = tar_file(member for number, sample in samples for member in members(number, sample))
            else:
                (self.folder / ROWS).mkdir(exist_ok=True)
                (self.folder / chunk.name).mkdir(exist_ok=True)
                content = b"".join(lines([self._write_pictures(chunk, *one) for one in samples]))
            write_whole(self.part(chunk), content)
        except OSError as error:
            raise InputError(f"cannot write {self.part(chunk)}: {error}") from error

    def _write_pictures(self, chunk: Chunk, number: int, sample: Sample) -> dict:
        """Write a sample's pictures. Returns its row."""
        inputs, target = [], {}
        for name, content in pictures(number, sample):
            path = f"{chunk.name}/{name}"
            write_whole(self.folder / path, content)
            if ".input" in name:
                inputs.append(path)
            else:
                target = {"file_name": path}
        return target | row(sample) | ({"images": inputs} if inputs else {})


class Worker:
    """Makes the samples of chunks. rewrite: see rewrite.py. Calling it returns (samples, samples that failed)."""

    def __init__(self, plan: Plan, output: Output, load_rewrite: Callable[[], Rewrite] | None = None):
        self.plan, self.output = plan, output
        self.rewrite = load_rewrite() if load_rewrite else None

    def __call__(self, chunk: Chunk) -> Done:
        if self.output.part(chunk).exists():  # a task that ran twice
            return chunk.count, 0
        failed: list[dict] = []
        self.output.write(chunk, self._samples(chunk, failed))
        return chunk.count, len(failed)

    def _samples(self, chunk: Chunk, failed: list[dict]) -> Iterator[tuple[int, Sample]]:
        for number in range(chunk.first, chunk.first + chunk.count):
            try:
                sample = self.plan.sample(number)
                yield number, self.rewrite(sample) if self.rewrite else sample
            except InputError:  # of the run, such as a library that is missing
                raise
            except Exception as error:
                if not self.output.skip_bad:
                    raise InputError(f"sample {number} failed: {describe(error)}; --skip-bad leaves it out") from error
                failed.append({"sample": number, "error": describe(error)})
        if failed:  # before the part, so that no part with a gap is without its list
            write_whole(self.output.bad(chunk), b"".join(lines(failed)))


@dataclass(frozen=True)
class Summary:
    """samples: of the plan. before: done by earlier runs. failed: of this run. bad: lists of samples that failed."""

    samples: int
    before: int
    failed: int
    bad: tuple[Path, ...]


def write(
    plan: Plan,
    output: Output,
    ray: RayOptions | None = None,
    on_samples: Callable[[int, int], None] = lambda done, total: None,
    load_rewrite: Callable[[], Rewrite] | None = None,
    device: str | None = "cpu",
) -> Summary:
    """Write all samples that are not written yet.

    ray: None for this process. on_samples(done, of so many) is called first before any is made. load_rewrite, device:
    of the rewriter. Raises InputError if the run cannot begin or go on.
    """
    chunks = plan.chunks()
    with locked(output.folder, (".*.half", "*/.*.half", ".*.tries")):
        _begin(plan, output)
        left = [chunk for chunk in chunks if not output.part(chunk).exists()]
        before = plan.count - sum(chunk.count for chunk in left)
        done, failed = before, 0
        on_samples(done, plan.count)
        workers = Workers(partial(Worker, plan, output, load_rewrite), output.tries, device, (str(ROOT),))
        for count, bad in _run(workers, left, ray):
            done, failed = done + count, failed + bad
            on_samples(done, plan.count)
        if output.format == "folder":
            _join_rows(output, chunks)
    bad = tuple(path for chunk in chunks if (path := output.bad(chunk)).exists())
    return Summary(plan.count, before, failed, bad)


def _run(workers: Workers, chunks: list[Chunk], ray: RayOptions | None) -> Iterator[Done]:
    if not chunks:
        return iter(())
    return run_ray(workers, chunks, ray) if ray else run_local(workers, chunks)


def _begin(plan: Plan, output: Output):
    """Compare the plan with that of OUT's earlier runs. More samples may be added; the last shard is then made anew."""
    path, wanted = output.folder / PLAN, plan.as_json() | {"format": output.format}
    found = None
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        if next(output.folder.glob("*-??????.tar"), None) or (output.folder / METADATA).exists():
            raise InputError(f"{output.folder} has samples and no {PLAN} that says which: choose another folder")
        found = {}
    found = {"version": 1} | found if found else found  # the first one was not written
    for name in wanted.keys() - {"count"} if found else ():
        if found.get(name) != wanted[name]:
            raise InputError(f"{output.folder} was made with {name} {found.get(name)!r}, not {wanted[name]!r}")
    if found.get("count", 0) > plan.count:
        raise InputError(f"{output.folder} is for {found['count']} samples; the count can only grow")
    if 0 < found.get("count", 0) < plan.count and found["count"] % plan.shard:
        output.remove(plan.chunks()[found["count"] // plan.shard])
    try:
        write_whole(path, json.dumps(wanted, indent=1, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from error


def _join_rows(output: Output, chunks: list[Chunk]):
    """metadata.jsonl from the rows of all parts."""
    try:
        write_whole(output.folder / METADATA, b"".join(output.part(chunk).read_bytes() for chunk in chunks))
    except OSError as error:
        raise InputError(f"cannot write {output.folder / METADATA}: {error}") from error


def row(sample: Sample) -> dict:
    """A sample as JSON, without its pictures."""
    found = {"text": sample.prompt, "words": sample.words, "task": sample.task, "domain": sample.domain}
    return {name: value for name, value in found.items() if value} | {"truth": sample.truth}


def lines(rows: list[dict]) -> Iterator[bytes]:
    """Rows as JSONL."""
    return (json.dumps(one, ensure_ascii=False, default=_plain).encode() + b"\n" for one in rows)


def _plain(value):
    """Numbers and arrays of NumPy, as JSON has them."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")


def pictures(number: int, sample: Sample) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of a sample's pictures: the target, then the inputs in their order."""
    key = f"{number:09d}"
    if sample.picture is not None:
        yield f"{key}.png", to_png(Image.fromarray(sample.picture), COMPRESSION)
    for place, picture in enumerate(sample.images):
        yield f"{key}.input{place}.png", to_png(Image.fromarray(picture), COMPRESSION)


def members(number: int, sample: Sample) -> Iterator[tuple[str, bytes]]:
    """A sample as the members of a WebDataset shard."""
    yield f"{number:09d}.json", next(lines([row(sample)])).rstrip()
    yield from pictures(number, sample)
