"""Which samples a stage is trained on: tasks, domains, kinds and sizes in the shares that its settings say."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator

from internvlu_core.errors import InputError

from ...sample import Sample
from ...settings import Stage
from . import DOMAINS, TASKS, make

WORTH_WORKERS = 5000  # samples from which on several processes are started to make them
MAX_WORKERS = 16
SEEDS_PER_RUN = 10**9  # sample seeds of one setting of Stage.seed


def samples(stage: Stage) -> Iterator[Sample]:
    """The samples of a stage. Each cycle has the exact shares of tasks, and of domains and sizes within a task."""
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    if stage.samples < WORTH_WORKERS or workers == 1:
        yield from map(make_ordered, orders(stage))
        return
    # Spawned, because a forked process inherits locks that threads of its parent hold.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(make_ordered, orders(stage), chunksize=256)


def make_ordered(order: tuple) -> Sample:
    """The sample of one of `orders`. Raises InputError if there is none."""
    try:
        return make(*order)
    except ValueError as error:
        raise InputError(str(error)) from error


def orders(stage: Stage) -> Iterator[tuple]:
    """The arguments of world.make for each sample. Raises InputError for unknown domains and tasks."""
    named = {"domains": [domain for domain, _ in stage.domains], "sides_of": stage.sides_of}
    for setting, those in named.items():
        if unknown := [domain for domain in those if domain not in DOMAINS]:
            raise InputError(f"{setting} has {unknown[0]!r}; there are {', '.join(DOMAINS)}")
    cycle = [task for task, share in stage.tasks for _ in range(share)]
    shares = [domain for domain, share in stage.domains for _ in range(share)]
    domains = {task: _domains(task, shares) for task in cycle}
    if lacking := sorted(task for task, found in domains.items() if not found):
        raise InputError(f"no domain has samples of {', '.join(map(repr, lacking))}")
    seen = Counter()
    for index in range(stage.samples):
        name = cycle[index % len(cycle)]
        task = name.partition("/")[0]
        turn = seen[name]
        seen[name] += 1
        domain = domains[name][turn % len(domains[name])]
        sides = stage.sides if not stage.sides_of or domain in stage.sides_of else stage.sides[:1]
        size = sides[turn // len(domains[name]) % len(sides)]
        kind = stage.kinds[index % len(stage.kinds)] if stage.kinds else ""
        yield domain, task, 2 * (stage.seed * SEEDS_PER_RUN + index), size, kind or None  # even seeds are for training


def _domains(name: str, shares: list[str]) -> list[str]:
    """The domains from which a task takes samples in turn: those that have it, or the one it names ("edit/objects")."""
    task, _, only = name.partition("/")
    return [domain for domain in shares if task in TASKS[domain] and only in ("", domain)]
