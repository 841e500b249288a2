"""What answer_many, reason_many and generate_many share: outcomes, their order, and groups of pictures."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

HELD = 1024  # results that wait for an earlier one, at most; then no request is begun


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of one request of many: a result, or the error that it alone had.

    index: its place among the requests, from 0. request: as it was given.
    """

    index: int
    request: Any
    result: Result | None = None
    error: Exception | None = None

    def unwrap(self) -> Result:
        """The result. Raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return self.result


class Order:
    """Passes outcomes on as they come, or, if ordered, each after those of all requests before it."""

    def __init__(self, ordered: bool):
        self.ordered, self.next = ordered, 0
        self.held: dict[int, Outcome] = {}

    @property
    def full(self) -> bool:
        """Whether so many wait that no request should be begun."""
        return len(self.held) >= HELD

    def give(self, outcome: Outcome) -> Iterator[Outcome]:
        """The outcomes whose turn has come with this one."""
        if not self.ordered:
            yield outcome
            return
        self.held[outcome.index] = outcome
        while self.next in self.held:
            yield self.held.pop(self.next)
            self.next += 1


@dataclass(eq=False)
class Entry:
    """A request in a Pool. given: as it came. key: see Pool. drawing: what it has become; error: or what it had."""

    index: int
    given: Any
    key: Hashable = None
    request: Any = None
    drawing: Any = None
    error: Exception | None = None


class Pool:
    """Requests in groups of one key, which can be drawn together.

    read(given) → (request, key); its errors are the request's. ahead: how many requests are taken from the iterable, at
    most, before the first of them is drawn; fewer if a group is complete.
    """

    def __init__(self, requests: Iterable, read: Callable[[Any], tuple[Any, Hashable]], ahead: int):
        self.requests, self.read, self.ahead = enumerate(requests), read, ahead
        self.waiting: list[Entry] = []

    def group(self, most: Callable[[Hashable], int]) -> list[Entry]:
        """The oldest waiting entry and others of its key, or it alone if it has an error; [] at the end.

        most(key): the largest group. Entries wait until they are removed.
        """
        if not self.waiting and not self._take():
            return []
        first = self.waiting[0]
        if first.error:
            return [first]
        while len(same := [e for e in self.waiting if not e.error and e.key == first.key]) < most(first.key):
            if len(self.waiting) >= self.ahead or not self._take():
                break
        return same[: most(first.key)]

    def _take(self) -> bool:
        """Take the next request. Returns whether there was one."""
        for index, given in self.requests:
            entry = Entry(index, given)
            try:
                entry.request, entry.key = self.read(given)
            except Exception as error:  # whatever is wrong with one request is not the others'
                entry.error = error
            self.waiting.append(entry)
            return True
        return False
