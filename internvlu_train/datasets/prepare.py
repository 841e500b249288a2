"""Reads every sample once before training: checks it, and keeps on disk what frozen networks compute from it.

A chunk of samples is a .safetensors file of latents and conditionings, and a .json file, written last, of facts and of
samples that cannot be used. The processes take the chunks in turn; what a killed run has made is not made again.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from internvlu_core.errors import InputError
from internvlu_core.imaging import reference_size

from .. import objectives
from ..data import Example, TokenRow, is_of_use, make_example, make_token_batch, to_pixels
from ..sample import Sample
from ..settings import PictureStage, Stage, TextStage
from ..storage import Networks, replaced
from .mixture import Facts
from .sizes import bucket, fitted, limited
from .sources import Place, Row, find_places, read_picture, read_row

CHUNK = 64  # samples
OPEN_FILES = 64
SKIP = "(--skip-bad leaves such samples out, and lists them)"
NOTHING = np.zeros((0, 0, 3), dtype=np.uint8)  # in place of a picture that nobody looks at


class Reader:
    """A place of a sample → its row, tokens and pictures, as a stage needs them."""

    def __init__(self, networks: Networks, stage: Stage):
        self.networks, self.stage, self.conditioner = networks, stage, networks.conditioner
        least, largest = stage.area
        self.square = (largest, largest) if least == largest else None  # one size, for all pictures
        own = networks.config.processor
        unused = self.square or isinstance(stage, TextStage)  # which draws nothing
        self.sizes = own if unused else limited(own, stage.area)

    def example(self, place: Place, pictures: bool) -> tuple[Row, Example]:
        """Raises InputError for a row that cannot be used. pictures: read them too."""
        row = read_row(place)
        images = tuple(self.read(at, place) if pictures else NOTHING for at in row.images)
        picture = NOTHING if row.picture is not None else None
        sample = Sample(row.task, row.domain, row.prompt, images, picture, row.words)
        try:
            example = make_example(sample, self.conditioner, self.stage)
        except InputError as error:
            raise InputError(f"{place.name}: {error}") from error
        rows = [*([example.text] if example.text else []), *example.branches.values()]
        if (longest := max((len(each.ids) for each in rows), default=0)) > self.stage.max_tokens:
            raise InputError(f"{place.name} is {longest} tokens long; max_tokens is {self.stage.max_tokens}")
        if pictures and example.picture is not None:
            example = replace(example, picture=self.target(row, place, images))
        return row, example

    def read(self, at, place: Place) -> np.ndarray:
        return np.array(read_picture(at, place))

    def target(self, row: Row, place: Place, images: tuple[np.ndarray, ...]) -> np.ndarray:
        """The target at the size that it is trained at: an edit's is that of its first input, as at inference."""
        picture = read_picture(row.picture, place)
        try:
            reference_size(picture.height, picture.width, self.sizes)  # refuses what is too small, or a thin strip
            if images and not self.square:
                size = reference_size(*images[0].shape[:2], self.sizes)
                return np.array(picture.resize(size[::-1], Image.Resampling.BICUBIC))
            return np.array(fitted(picture, self.square or bucket(picture.height, picture.width, self.sizes)))
        except InputError as error:
            raise InputError(f"{place.name}: {error}") from error

    def reference(self, image: np.ndarray) -> Tensor:
        """The pixels [1, 3, H, W] that the VAE encodes of an input picture."""
        picture = Image.fromarray(image)
        if self.square:
            return to_pixels([np.array(fitted(picture, self.square))])
        height, width = reference_size(picture.height, picture.width, self.sizes)
        return to_pixels([np.array(picture.resize((width, height), Image.Resampling.BICUBIC))])


class Prepared:
    """All samples that can be used, in the order of the sources, and what is kept of them on disk."""

    def __init__(self, networks: Networks, stage: Stage, places: list[Place], folder: Path, device: torch.device):
        """places: of all samples. folder: of what is kept."""
        self.reader, self.stage, self.all = Reader(networks, stage), stage, places
        self.folder, self.device = folder, device
        self.caches_hidden = isinstance(stage, PictureStage) and stage.cache_hidden and not stage.learns("vlm")

    def make(self, process: int, processes: int):
        """Make this process's chunks that are not there yet. Raises InputError for a bad sample, if none is skipped."""
        mine = range(process, -(-len(self.all) // CHUNK), processes)
        for number in tqdm([n for n in mine if not self._file(n, "json").exists()], "data", leave=False):
            self._make_chunk(number)

    def load(self):
        """Read the facts of all chunks, when all processes have made theirs. Raises InputError if no sample is left."""
        self.places, self.facts, self.bad, self.numbers = [], [], [], []
        for chunk in range(-(-len(self.all) // CHUNK)):
            found = json.loads(self._file(chunk, "json").read_text(encoding="utf-8"))
            self.bad += found["bad"]
            for number, values in found["facts"]:
                values = _tuples(values)
                branches = {name: value for name, value in values.pop("branches").items()}
                self.places.append(self.all[number])
                self.facts.append(Facts(**values, branches=branches))
                self.numbers.append(number)
        if self.bad and not self.stage.skip_bad:  # a run that skipped them has listed them
            raise InputError(f"{self.bad[0]['problem']} {SKIP}")
        if not self.places:
            why = f"the first: {self.bad[0]['problem']}" if self.bad else "none has a task that this stage learns"
            raise InputError(f"none of {len(self.all)} samples can be used; {why}")

    def tensor(self, index: int, name: str) -> Tensor:
        """A tensor that is kept of a sample."""
        chunk = self.numbers[index] // CHUNK
        return _open(self._file(chunk, "safetensors")).get_tensor(name)

    def latent(self, index: int) -> Tensor:
        return self.tensor(index, f"{self.numbers[index]}/latent").float()

    def references(self, index: int) -> list[Tensor]:
        count = len(self.facts[index].references)
        return [self.tensor(index, f"{self.numbers[index]}/reference{n}").float() for n in range(count)]

    def states(self, row: TokenRow, index: int) -> Tensor:
        return self.tensor(index, _row_name(row, self.numbers[index]))

    # Making

    def _file(self, chunk: int, ending: str) -> Path:
        return self.folder / f"chunk-{chunk:06d}.{ending}"

    @torch.no_grad()
    def _make_chunk(self, chunk: int):
        facts, bad, tensors = [], [], {}
        for number in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.all))):
            place = self.all[number]
            try:
                if not self._is_wanted(place):
                    continue
                row, example = self.reader.example(place, True)
                found, kept = self._sample(number, place, row, example)
            except InputError as error:
                if not self.stage.skip_bad:
                    raise InputError(f"{error} {SKIP}") from error
                bad.append({"sample": place.name, "problem": str(error)})
                continue
            facts.append((number, asdict(found)))
            tensors |= kept
        with replaced(self._file(chunk, "safetensors")) as new:
            save_file(tensors, new)
        with replaced(self._file(chunk, "json")) as new:
            new.write_text(json.dumps({"facts": facts, "bad": bad}), encoding="utf-8")

    def _is_wanted(self, place: Place) -> bool:
        """Whether the ratio of tasks has this one; without a ratio, whether the stage learns anything from it.

        Other samples are passed over: they are not bad.
        """
        row = read_row(place)
        if not self.stage.tasks:
            return is_of_use(row, self.stage)
        return any(row.task in name.split("+") for name, _ in self.stage.tasks)

    def _sample(self, number: int, place: Place, row: Row, example: Example) -> tuple[Facts, dict[str, Tensor]]:
        kept, references = {}, []
        if example.branches:
            pixels = [to_pixels([example.picture]), *(self.reader.reference(image) for image in example.images)]
            names = ["latent", *(f"reference{n}" for n in range(len(example.images)))]
            for name, each in zip(names, pixels, strict=True):
                kept[f"{number}/{name}"] = self.reader.networks.vae.encode(each.to(self.device))[0].cpu().contiguous()
            references = [tuple(each.shape[-2:]) for each in pixels[1:]]
            if self.caches_hidden:
                kept |= self._hidden(number, example)
        text = example.text
        return (
            Facts(
                place.source,
                row.task,
                len(text.ids) if text else 0,
                bool(text) and any(text.image_mask),
                None if example.picture is None else tuple(example.picture.shape[:2]),
                tuple(references),
                {name: (len(each.ids), _runs(each)) for name, each in example.branches.items()},
            ),
            kept,
        )

    def _hidden(self, number: int, example: Example) -> dict[str, Tensor]:
        networks, kept = self.reader.networks, {}
        half = next(networks.vlm.parameters()).dtype == torch.bfloat16
        dtype = torch.bfloat16 if self.stage.autocast else torch.float32
        for row in {_row_name(row, number): row for row in example.branches.values()}.values():
            tokens = make_token_batch([row], [example.images], networks.conditioner)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                context = objectives.context_of(networks, _to(tokens, self.device))
            kept[_row_name(row, number)] = context.hidden[0].to("cpu", dtype).contiguous()
        return kept


def _to(tokens, device: torch.device):
    moved = {name: getattr(tokens, name) for name in ("ids", "image_mask", "tiles")}
    return replace(tokens, **{name: value if value is None else value.to(device) for name, value in moved.items()})


def _row_name(row: TokenRow, number: int) -> str:
    """Of its conditioning. Rows of one content and without pictures are kept once in a chunk."""
    ids = hashlib.sha256(np.array(row.ids, dtype=np.int64).tobytes()).hexdigest()[:24]
    return f"{number}/{ids}" if any(row.image_mask) else f"rows/{ids}"


def _runs(row: TokenRow) -> tuple[tuple[int, int], ...]:
    """(first, count) of each run of ViT tokens, in the conditioning."""
    runs, at = [], 0
    for on, those in groupby(row.image_mask[row.start :]):
        count = len(list(those))
        runs += [(at, count)] if on else []
        at += count
    return tuple(runs)


def _tuples(value):
    if isinstance(value, dict):
        return {key: _tuples(each) for key, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@lru_cache(OPEN_FILES)
def _open(file: Path):
    return safe_open(file, "pt")


def all_places(stage: Stage) -> list[Place]:
    """Where the samples of all sources are. Raises InputError for a source that is none, or is empty."""
    return [place for index, (path, _) in enumerate(stage.data) for place in find_places(index, path)]


def fingerprint(places: list[Place]) -> str:
    """A checksum of where the samples are: with others, the cache and the state of a run are invalid."""
    total = hashlib.sha256()
    for place in places:
        total.update(f"{place.name}/{place.offset}/{place.size}/{place.row}/{place.members}".encode())
    for file in dict.fromkeys(place.file for place in places):
        try:
            total.update(file.read_bytes() if file.suffix != ".tar" else str(file.stat().st_size).encode())
        except OSError:  # the rows that lie there say so
            total.update(b"unreadable")
    return total.hexdigest()


def listed(bad: list[dict]) -> Iterator[str]:
    for each in bad:
        yield json.dumps(each, ensure_ascii=False) + "\n"
