"""Who does the chunks: this process, actors of Ray Data, or threads that each speak to a server.

Every engine is a generator of (rows, rows with an error), one pair for each chunk, in any order.
"""

import logging
import os
import queue
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..errors import MAX_SETTING, InputError, check_integer, check_number, need
from .requests_file import Chunk

Done = tuple[int, int]
DoChunk = Callable[[Chunk], Done]

MOST_TASKS = 10_000  # of Ray; above, a task is several chunks
ATTEMPTS = 5  # at a chunk during which workers die
CONNECT_SECONDS = 10  # to the cluster


@dataclass(frozen=True)
class RayOptions:
    """workers: actors, each with a model. address: of a cluster to join; None starts one on this machine.

    gpus, cpus: of each worker, as Ray counts them; None: one GPU if the device is one; the CPUs shared out, or, beside
    a GPU, one.
    """

    workers: int
    address: str | None = None
    gpus: float | None = None
    cpus: int | None = None

    @classmethod
    def chosen(
        cls, workers: int | None, address: str | None, gpus: float | None = None, cpus: int | None = None
    ) -> "RayOptions | None":
        """From a command's options, each of which may be None. None for this process: no workers and no address.

        Raises InputError for numbers with which Ray would fail later.
        """
        count = workers if workers is not None else int(address is not None)
        check_integer("workers", count, 0, MAX_SETTING)
        if cpus is not None:
            check_integer("cpus per worker", cpus, 1, MAX_SETTING)
        if gpus is not None:
            check_number("gpus per worker", gpus, lambda value: 0 <= value < MAX_SETTING, "0 or more")
        return cls(count, address, gpus, cpus) if count else None


@dataclass(frozen=True)
class Workers:
    """The workers of a run. All of it can be pickled.

    make(): a worker, in the process that it is for. tries(chunk): a file beside the chunk's part that the next run
    removes. device: of the workers; None for a GPU if there is one. packages: folders of packages that workers on
    other machines need beside this one. hint: what a user can do about a chunk during which workers die.
    """

    make: Callable[[], DoChunk]
    tries: Callable[[Chunk], Path]
    device: str | None = None
    packages: tuple[str, ...] = ()
    hint: str = ""


def run_local(workers: Workers, chunks: list[Chunk]) -> Iterator[Done]:
    """In this process."""
    worker = workers.make()
    for chunk in chunks:
        yield worker(chunk)


class RayWorker:
    """A worker as Ray Data calls it: with a batch of one chunk."""

    def __init__(self, workers: Workers, threads: int):
        torch.set_num_threads(threads)
        self.worker, self.tries, self.hint = workers.make(), workers.tries, workers.hint

    def __call__(self, batch: dict) -> dict:
        columns = (map(kind, batch[name]) for name, kind in Chunk.__annotations__.items())
        chunks = [Chunk(*values) for values in zip(*columns, strict=True)]
        done = [self._do(chunk) for chunk in chunks]
        return {"rows": [rows for rows, _ in done], "errors": [errors for _, errors in done]}

    def _do(self, chunk: Chunk) -> Done:
        """Ray gives the chunk of a worker that has died to another, for ever; a file of so many bytes counts them."""
        tries = self.tries(chunk)
        with tries.open("ab") as file:
            file.write(b".")
        if tries.stat().st_size > ATTEMPTS:
            last = chunk.first + chunk.count - 1
            raise InputError(f"{ATTEMPTS} workers have died during rows {chunk.first} to {last}" + self.hint)
        done = self.worker(chunk)
        tries.unlink(missing_ok=True)
        return done


def run_ray(workers: Workers, chunks: list[Chunk], options: RayOptions) -> Iterator[Done]:
    """On actors of Ray Data. Ray starts a worker that has died anew and gives its chunk to another.

    Raises InputError if there are too few CPUs or GPUs, and, with the cause, if the workers cannot be made (such as a
    model that cannot be loaded) or die again and again.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send statistics of use to Ray's makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # standard error is for progress
    ray, data = need("ray"), need("ray.data")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    gpu = workers.device.startswith("cuda") if workers.device else torch.cuda.is_available()
    count = min(options.workers, len(chunks))
    cpus = options.cpus or (1 if gpu or options.address else max(1, (os.cpu_count() or 1) // count))
    _start(ray, options.address, count * cpus, workers.packages)
    try:
        if workers.device is None and options.address:
            gpu = ray.cluster_resources().get("GPU", 0) > 0
        gpus = options.gpus if options.gpus is not None else float(gpu)
        for kind, wanted in {"GPU": count * gpus, "CPU": count * cpus}.items():
            if (there := ray.cluster_resources().get(kind, 0)) < wanted:  # Ray would wait for them without a word
                raise InputError(f"{count} workers need {wanted:g} {kind}s; Ray has {there:g}")
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        tasks = min(len(chunks), MOST_TASKS)
        dataset = data.from_items([asdict(chunk) for chunk in chunks], override_num_blocks=tasks).map_batches(
            RayWorker,
            fn_constructor_args=(workers, cpus),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=count),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        for row in dataset.iter_rows():
            yield row["rows"], row["errors"]
    except ray.exceptions.RayError as error:
        raise InputError(f"the workers cannot go on: {_cause(error)}") from error
    finally:
        ray.shutdown()


def _start(ray, address: str | None, cpus: int, packages: tuple[str, ...]):
    """Join the cluster at an address, or start Ray on this machine, where so many CPUs are for workers.

    Raises InputError if that fails; for a wrong address at once, where Ray would try for a quarter of an hour.
    """
    if place := re.fullmatch(r"([^/]+):(\d+)", address or ""):
        try:
            socket.create_connection((place[1], int(place[2])), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:  # the latter for a port above 65535
            raise InputError(f"no Ray cluster answers at {address}: {error}") from error
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address:
            # The workers run this very code, whatever is installed on their machines.
            modules = [str(Path(__file__).resolve().parents[1]), *packages]
            ray.init(address, runtime_env={"py_modules": modules}, **quiet)
        else:
            # Two more than the workers need, for Ray's own tasks that read the list of chunks.
            ray.init("local", num_cpus=cpus + 2, include_dashboard=False, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"Ray cannot be started: {error}") from error


def _cause(error: BaseException) -> str:
    """The line that says what happened: the last one of what is often many pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class Lost(Exception):
    """A worker of run_threads can do no more chunks; the one that it had is to be done by another."""


def run_threads(workers: list[DoChunk], chunks: list[Chunk]) -> Iterator[Done]:
    """Each worker in a thread, which takes the next chunk when it is free. Raises InputError if all are lost."""
    waiting: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
    for chunk in chunks:
        waiting.put(chunk)
    reports: queue.SimpleQueue[Done | Exception] = queue.SimpleQueue()
    stop = threading.Event()

    def serve(worker: DoChunk):
        while not stop.is_set():
            try:
                chunk = waiting.get(timeout=0.2)  # another may give one back
            except queue.Empty:
                continue
            try:
                reports.put(worker(chunk))
            except Exception as error:
                waiting.put(chunk)
                reports.put(error)
                return

    threads = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        left, alive, lost = len(chunks), len(threads), []
        while left:
            report = reports.get()
            if not isinstance(report, Exception):
                left -= 1
                yield report
                continue
            if not isinstance(report, Lost):
                raise report
            alive -= 1
            lost.append(str(report))
            if not alive:
                raise InputError(f"no server is left: {'; '.join(lost)}; run it again to do the other rows")
    finally:
        stop.set()
