"""The micro-batches of real data."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from ..company import Form, union
from ..data import FULL, Batch, Example, Item, TokenRow
from ..feed import Feed, to_device
from ..settings import Stage, VAEStage
from ..storage import Networks, replaced
from .mixture import batches, make_groups, sequence
from .prepare import Prepared, listed
from .sources import Place, read_picture, read_row

EVALUATION_SEED = 10**6


class DataFeed(Feed):
    """Micro-batches by their number, as in Feed, of the sources that a stage names."""

    def __init__(self, networks: Networks, stage: Stage, places: list[Place], accelerator: Accelerator, folder: Path):
        """places: of all samples. folder: of the run; the cache is in it. Raises InputError for data of no use."""
        self.networks, self.stage, self.device = networks, stage, accelerator.device
        self.accelerator = accelerator
        self.prepared = Prepared(networks, stage, places, folder / "cache", self.device)
        self.prepared.make(accelerator.process_index, accelerator.num_processes)
        accelerator.wait_for_everyone()
        self.prepared.load()
        if accelerator.is_main_process:
            self._say_what_is_not_used(folder / "bad.jsonl")
        self.groups = make_groups(self.prepared.facts, stage)
        self.examples = Examples(self.prepared)
        self._start()

    def _say_what_is_not_used(self, file: Path):
        bad, total = self.prepared.bad, len(self.prepared.all)
        if bad:
            with replaced(file) as new:
                new.write_text("".join(listed(bad)), encoding="utf-8")
            print(f"{len(bad)} of {total} samples are left out: {file} lists them", file=sys.stderr)
        if others := total - len(bad) - len(self.prepared.places):
            print(f"{others} of {total} samples have a task that this stage does not learn", file=sys.stderr)

    @property
    def cached(self) -> bool:
        return self.prepared.caches_hidden

    def _sequence(self):
        return sequence(self.groups, self.prepared.facts, self.stage)

    def _form(self, items: list[Item]) -> Form:
        facts, branch = [self.prepared.facts[item.index] for item in items], items[0].branch
        tiles = any(each.tiles for each in facts)
        return Form(facts[0].text > 0, tiles, bool(branch), bool(branch) and bool(facts[0].branches[branch][1]))

    def _latent(self, index: int) -> Tensor:
        return self.prepared.latent(index)

    def _references(self, index: int) -> list[Tensor]:
        return self.prepared.references(index)

    def _states(self, row: TokenRow, index: int) -> Tensor:
        return self.prepared.states(row, index)

    def held_out(self) -> list[list[Item]]:
        """The items of the micro-batches of what is held out."""
        facts = self.prepared.facts
        items = [
            Item(index, FULL if facts[index].branches else "") for group in self.groups for index in group.held_out
        ]
        return batches(items, facts, self.stage, random.Random(self.stage.seed))

    def held_out_batches(self, together: int) -> Iterator[tuple[Batch, bool]]:
        """This process's micro-batches of what is held out, with the same random numbers each time; and which count.

        All processes get equally many, the last of which may repeat another. together: as in batch.
        """
        plans, processes = self.held_out(), self.accelerator.num_processes
        for first in range(0, len(plans), processes):
            chosen = [min(number, len(plans) - 1) for number in range(first, first + processes)]
            form = union(self._form(plans[number]) for number in chosen) if together > 1 else Form()
            number = first + self.accelerator.process_index
            batch = self._collate(EVALUATION_SEED + number, plans[min(number, len(plans) - 1)], form)
            yield to_device(batch, self.device), number < len(plans)


class Examples:
    """The samples by their index, read when they are asked for."""

    def __init__(self, prepared: Prepared):
        self.prepared = prepared
        # With latents and conditionings on disk, nobody looks at a picture any more.
        self.pictures = not prepared.caches_hidden

    def __len__(self) -> int:
        return len(self.prepared.places)

    def __getitem__(self, index) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[n] for n in range(len(self))[index]]
        place = self.prepared.places[index]
        if isinstance(self.prepared.stage, VAEStage):
            return self.prepared.reader.example(place, True)[1]
        row, example = self.prepared.reader.example(place, False)
        if self.pictures and row.images:
            images = tuple(self.prepared.reader.read(at, place) for at in row.images)
            example = Example(example.text, example.branches, images, example.picture)
        return example


def first_prompts(feed: DataFeed, count: int) -> list[tuple[str, list, tuple[int, int]]]:
    """(prompt, input pictures, (height, width)) of the first held-out samples that have a picture."""
    found = []
    for group in feed.groups:
        for index in group.held_out:
            facts, place = feed.prepared.facts[index], feed.prepared.places[index]
            if facts.picture is not None and len(found) < count:
                row = read_row(place)
                images: list[Image.Image] = [read_picture(at, place) for at in row.images]
                found.append((row.prompt, images, facts.picture))
    return found
