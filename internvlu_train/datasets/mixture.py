"""Which samples a micro-batch has. It follows from the settings and the number of the micro-batch alone.

So the ratios hold, and no sample is taken twice in an epoch, for any number of processes, and after a run was killed.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from internvlu_core.errors import InputError

from ..data import Item, choose_branch, grouped
from ..settings import Stage


@dataclass(frozen=True)
class Facts:
    """Of a sample, what the plan of batches needs.

    text: tokens of its row of the next-token loss, 0 without one. tiles: whether that row has pictures. picture:
    (height, width) of the target. references: of the input pictures. branches: for each branch that conditions the
    picture, tokens and the runs (first, count) of ViT tokens.
    """

    source: int
    task: str
    text: int
    tiles: bool
    picture: tuple[int, int] | None
    references: tuple[tuple[int, int], ...]
    branches: dict[str, tuple[int, tuple[tuple[int, int], ...]]]

    def key(self, branch: str) -> tuple:
        """What the samples of a batch have in common."""
        runs = self.branches[branch][1] if branch else ()
        return (self.text > 0, self.picture, self.references if runs else (), runs)

    def length(self, branch: str) -> int:
        return self.branches[branch][0] if branch else self.text


@dataclass
class Group:
    """The samples of some tasks in one source. share: of all samples that are trained. indices: of its samples."""

    name: str
    share: float
    indices: list[int]
    held_out: list[int]
    taken: int = 0


def make_groups(facts: list[Facts], stage: Stage) -> list[Group]:
    """Raises InputError for a ratio that cannot be held: of a task or a source that has no samples."""
    wanted = stage.tasks or (("+".join(sorted({each.task for each in facts})), 1),)
    groups = []
    for name, share in wanted:
        tasks = name.split("+")
        by_source: dict[int, list[int]] = {}
        for index, each in enumerate(facts):
            if each.task in tasks:
                by_source.setdefault(each.source, []).append(index)
        if not by_source:
            raise InputError(f"tasks gives {name!r} the share {share}, but no sample of the data has this task")
        total = sum(stage.data[source][1] for source in by_source)
        for source, indices in sorted(by_source.items()):
            path, part = stage.data[source]
            groups.append(_group(f"{name} of {path}", share * part / total, indices, stage))
    used = {facts[index].source for group in groups for index in (*group.indices, *group.held_out)}
    if unused := [path for source, (path, _) in enumerate(stage.data) if source not in used]:
        raise InputError(
            f"{unused[0]} has no sample of {', '.join(name for name, _ in wanted)}: its share cannot be held"
        )
    whole = sum(group.share for group in groups)
    for group in groups:
        group.share /= whole
    return groups


def _group(name: str, share: float, indices: list[int], stage: Stage) -> Group:
    if stage.held_out >= len(indices):
        raise InputError(f"held_out is {stage.held_out}, but there are only {len(indices)} samples of {name}")
    indices = list(indices)
    random.Random(f"{stage.seed}/held out/{name}").shuffle(indices)
    return Group(name, share, indices[stage.held_out :], sorted(indices[: stage.held_out]))


def sequence(groups: list[Group], facts: list[Facts], stage: Stage) -> Iterator[list[Item]]:
    """The items of all micro-batches. Each is of the group that is furthest behind its share."""
    streams = [_stream(group, facts, stage) for group in groups]
    total = 0
    while True:
        number = max(range(len(groups)), key=lambda n: groups[n].share * (total + 1) - groups[n].taken)
        items = next(streams[number])
        groups[number].taken += len(items)
        total += len(items)
        yield items


def _stream(group: Group, facts: list[Facts], stage: Stage) -> Iterator[list[Item]]:
    epoch = 0
    while True:
        rng = random.Random(f"{stage.seed}/{group.name}/{epoch}")
        items = [Item(index, choose_branch(facts[index], stage, rng)) for index in group.indices]
        yield from batches(items, facts, stage, rng)
        epoch += 1


def batches(items: list[Item], facts: list[Facts], stage: Stage, rng: random.Random) -> list[list[Item]]:
    return grouped(
        items,
        stage,
        rng,
        lambda item: facts[item.index].key(item.branch),
        lambda item: facts[item.index].length(item.branch),
    )
