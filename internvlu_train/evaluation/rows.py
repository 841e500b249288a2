"""What an evaluation asks of a checkpoint, as rows of `internvlu batch`: on any number of workers, and resumable."""

import base64
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvlu_core.batch import BatchOptions, ModelOptions, RayOptions, run_batch
from internvlu_core.batch.results import Result, read_shard, shards_in, write_whole
from internvlu_core.errors import InputError

CHUNK = 16  # rows that a worker takes at once: few, so that all workers end at about the same time


@dataclass(frozen=True)
class Asked:
    """A request. row: as `internvlu batch` reads it, without an id. keep: gets its result if it has no error."""

    row: dict[str, Any]
    keep: Callable[[Result], None]


@dataclass(frozen=True)
class Runner:
    """Does requests on a checkpoint.

    work: a folder for the rows and their results until all are there. It is removed then; what a run of this checkpoint
    has left in it, killed or with errors, is not done again. ray: None for this process. together: requests in one
    batch, at most. on_rows: as in run_batch.
    """

    model: ModelOptions
    work: Path
    ray: RayOptions | None = None
    together: int = 16
    on_rows: Callable[[int, int], None] | None = None

    def __call__(self, asked: Iterable[Asked]):
        """Do them all; equal rows are done once.

        Raises InputError as run_batch does, and, after the good results were kept, if any row has an error.
        """
        model = identity(self.model)
        rows: dict[str, str] = {}
        keeps: dict[str, list[Callable[[Result], None]]] = {}
        for one in asked:
            text = json.dumps(one.row, sort_keys=True)
            name = hashlib.sha256(f"{model}/{text}".encode()).hexdigest()
            rows[name] = text
            keeps.setdefault(name, []).append(one.keep)
        if not rows:
            return
        requests, out = self._prepare(rows), self.work / "results"
        options = BatchOptions(
            requests, out, self.model, self.ray, format="webdataset", together=self.together, chunk=CHUNK
        )
        run_batch(options, self.on_rows)
        failed = []
        for part in shards_in(out):
            wrong = []
            for result in read_shard(part):
                if result.id in keeps and result.error is not None:
                    wrong.append(result)
                for keep in keeps.get(result.id, ()) if result.error is None else ():
                    keep(result)
            if wrong:
                part.unlink()  # to be done again
            failed += wrong
        if failed:
            first = failed[0]
            raise InputError(f"{len(failed)} of {len(rows)} requests failed, such as {first.prompt!r}: {first.error}")
        shutil.rmtree(self.work)

    def _prepare(self, rows: dict[str, str]) -> Path:
        """The file of requests: that of a run that was ended, if it has all of these rows, or a new one."""
        requests = self.work / "requests.jsonl"
        if requests.exists():
            lines = requests.read_text(encoding="utf-8").splitlines()
            if rows.keys() <= {json.loads(line)["id"] for line in lines}:
                return requests
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        lines = [json.dumps({"id": name} | json.loads(text)) for name, text in rows.items()]
        write_whole(requests, "".join(f"{line}\n" for line in lines).encode())
        return requests


def identity(model: ModelOptions) -> str:
    """What the results of a request depend on beside it: the weights, and how they compute."""
    path = Path(model.checkpoint)
    files = [path] if path.is_file() else sorted(path.glob("*/*.safetensors"))
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{path.absolute()}/{model.dtype}/{model.attention}/{stamps}"


def data_uri(content: bytes) -> str:
    """A picture's file as a row has it."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
