"""Many requests from a file, by one process, by many, or by ComfyUI servers: `internvlu batch`. See docs/batch.md."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..checkpoints.config import Config
from ..checkpoints.files import open_source
from ..errors import MAX_SETTING, InputError, check_integer, need
from .comfyui import ComfyWorker, Workflow
from .engines import Done, RayOptions, Workers, run_local, run_ray, run_threads
from .requests_file import Chunk, is_parquet, scan
from .results import SUFFIXES, Output
from .worker import ModelOptions, Work, Worker

__all__ = ["BatchOptions", "ModelOptions", "RayOptions", "Summary", "run_batch"]

OnRows = Callable[[int, int], None]  # (rows done, of so many)


@dataclass(frozen=True)
class BatchOptions:
    """A batch run. requests, out: the file and the folder. One of model and comfyui says who does the rows.

    ray: None for this process. format, picture_files: see Output. together: requests in one batch, at most. chunk: rows
    of a part. allow_urls: pictures may be downloaded. comfyui: addresses of servers; workflow: the file that they run,
    in the API format. Raises InputError for options that cannot be used.
    """

    requests: Path
    out: Path
    model: ModelOptions | None = None
    ray: RayOptions | None = None
    format: str = "parquet"
    picture_files: bool = False
    together: int = 16
    chunk: int = 64
    allow_urls: bool = False
    comfyui: tuple[str, ...] = ()
    workflow: Path | None = None

    def __post_init__(self):
        check_integer("together", self.together, 1, MAX_SETTING)
        check_integer("chunk", self.chunk, 1, MAX_SETTING)
        if self.format not in SUFFIXES:
            raise InputError(f"format is {self.format!r}; it must be one of {', '.join(SUFFIXES)}")
        if bool(self.comfyui) == bool(self.model):
            raise InputError("give a checkpoint or ComfyUI servers, and not both")
        if bool(self.comfyui) != bool(self.workflow):
            raise InputError("servers and a workflow belong together")


@dataclass(frozen=True)
class Summary:
    """What a run has done. rows: of the requests. before: done by earlier runs. errors: of this run."""

    rows: int
    before: int
    errors: int


def run_batch(options: BatchOptions, on_rows: OnRows | None = None) -> Summary:
    """Do all requests that are not done yet.

    on_rows is called with the rows that are done, first before any is begun. Raises InputError or CheckpointError if
    the run cannot begin or go on; what is wrong with one row is that row's error.
    """
    if options.format == "parquet" or is_parquet(options.requests):
        need("pyarrow")  # before the long work
    workflow = options.workflow and Workflow.read(options.workflow)
    if options.model:
        Config.read(open_source(options.model.checkpoint))
    found = scan(options.requests)
    places = workflow.places(found.columns) if workflow else {}
    carried = {name: kind for name, kind in found.carried.items() if name not in places}
    output = Output(options.out.absolute(), options.format, options.picture_files, carried)
    work = Work(options.requests.absolute(), output, options.allow_urls, options.together)
    with output.locked():
        done = output.done(found.ids)
        count, errors = len(done), 0
        report = on_rows or (lambda rows, total: None)
        report(count, len(found.ids))
        for rows, failed in _run(options, work, found.chunks(done, options.chunk), workflow, places):
            count, errors = count + rows, errors + failed
            report(count, len(found.ids))
    return Summary(len(found.ids), len(done), errors)


def _run(options: BatchOptions, work: Work, chunks: list[Chunk], workflow: Workflow | None, places) -> Iterator[Done]:
    if not chunks:
        return iter(())
    if workflow:
        workers = [ComfyWorker(work, url, workflow, places) for url in options.comfyui]
        for worker in workers:
            worker.server.check()
        return run_threads(workers, chunks)
    hint = "; with --chunk 1 you see at which row"
    model = Workers(partial(Worker, work, options.model.load), work.output.tries, options.model.device, hint=hint)
    return run_ray(model, chunks, options.ray) if options.ray else run_local(model, chunks)
