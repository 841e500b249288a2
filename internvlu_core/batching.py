"""Many texts in one decoding loop: each row of the batch ends for itself, and a waiting text takes its place.

A prompt is read alone, as for one text. Then each step reads one token of every row, so the weights are read once for
all. Source: iteration-level scheduling, Orca (Yu et al., OSDI 2022).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .decoding import DecodingSession, NotFinite, Text, TextSettings, continue_text, next_tokens, windows
from .errors import MAX_BYTES, MAX_SETTING, check_integer
from .models.language import RowCache, cache_bytes
from .models.vlm import VLM

OnTokensOf = Callable[[int, list[int]], None]  # (index of a text, its tokens so far); may raise to cancel all
Tokens = list[int]


@dataclass(frozen=True)
class BatchLimits:
    """How many texts are written at once: rows of them at most, with so many bytes of keys and values at most.

    A text counts with the longest that it may become. One that needs more than cache_bytes is written alone. Raises
    InputError naming the value that cannot be used.
    """

    rows: int = 16
    cache_bytes: int = 4 * 2**30  # of the released model in bfloat16: 37,000 tokens

    def __post_init__(self):
        check_integer("rows", self.rows, 1, MAX_SETTING)
        check_integer("cache_bytes", self.cache_bytes, 0, MAX_BYTES)


@dataclass(frozen=True)
class TextJob:
    """A text to write. tokens: of its prompt. embed(): the prompt's embeddings [1, tokens, C]."""

    tokens: int
    embed: Callable[[], Tensor]
    settings: TextSettings

    @property
    def capacity(self) -> int:
        """The tokens of the prompt and of the longest text, in whole windows."""
        return windows(self.tokens + self.settings.max_new_tokens)


@dataclass
class _Row:
    index: int
    text: Text
    capacity: int


class TextBatch:
    """Writes texts together. Each is what continue_text gives for it alone, but for the rounding of the batch.

    jobs: each entry makes a TextJob when there may be room for it, no earlier; None in place of one: none yet, ask
    again after the next token. An error of making, reading or writing one is that text's result. What the iterable
    itself or on_tokens raises ends all.
    """

    def __init__(
        self,
        vlm: VLM,
        stop_ids: tuple[int, ...],
        jobs: Iterable[Callable[[], TextJob] | None],
        limits: BatchLimits,
        on_tokens: OnTokensOf | None = None,
    ):
        self.vlm, self.stop_ids, self.limits = vlm, stop_ids, limits
        self.on_tokens = on_tokens or (lambda index, tokens: None)
        self.jobs = iter(jobs)
        self.count = 0  # jobs made so far
        self.waiting: tuple[int, TextJob] | None = None  # the next one, if there was no room for it
        self.rows: list[_Row] = []
        self.cache: RowCache | None = None

    def run(self) -> Iterator[tuple[int, Tokens | Exception]]:
        """(index of a job, its tokens or its error), in the order in which they end. In inference mode."""
        while True:
            ended = yield from self._fill()
            if self.rows:
                yield from self._step()
            elif ended:
                return

    def _fill(self) -> Iterator[tuple[int, Tokens | Exception]]:
        """Give free rows to waiting texts. Returns whether no text is left to begin."""
        while len(self.rows) < self.limits.rows:
            if not self.waiting:
                make = next(self.jobs, self)
                if make is self or make is None:
                    return make is self
                index, self.count = self.count, self.count + 1
                try:
                    self.waiting = index, make()
                except Exception as error:  # whatever is wrong with one text is not the others'
                    yield index, error
                    continue
            index, job = self.waiting
            if self.rows and not self._fits(job):
                return False
            self.waiting = None
            yield from self._begin(index, job) if job.settings.num_beams == 1 else self._search(index, job)
        return False

    def _fits(self, job: TextJob) -> bool:
        """Whether there is room beside the texts that are being written."""
        capacity = max(job.capacity, *(row.capacity for row in self.rows))
        return job.settings.num_beams == 1 and (len(self.rows) + 1) * capacity <= self._most_tokens(self.cache.dtype)

    def _most_tokens(self, dtype: torch.dtype) -> int:
        return self.limits.cache_bytes // cache_bytes(self.vlm.language_model.config, dtype)

    def _begin(self, index: int, job: TextJob) -> Iterator[tuple[int, Tokens | Exception]]:
        """Read a prompt into a row and choose its first token."""
        try:
            session = DecodingSession(self.vlm, job.embed(), 0)
        except Exception as error:
            yield index, error
            return
        self._make_room(job.capacity, session.cache)
        self.cache.put(len(self.rows), session.cache)
        self.rows.append(_Row(index, Text(self.stop_ids, job.settings), job.capacity))
        logits = session.first
        del session  # its cache
        yield from self._take(self.rows[-1:], next_tokens(logits, [self.rows[-1].text]))

    def _make_room(self, capacity: int, text):
        """A row more, of this capacity. Rows are added in powers of two, as far as the limits go."""
        keys = text.keys[0]
        if self.cache is None:
            self.cache = RowCache(self.vlm.language_model.config, dtype=keys.dtype, device=keys.device)
        rows, longest = self.cache.room
        wanted = len(self.rows) + 1
        if wanted <= rows and capacity <= longest:
            return
        capacity = max(capacity, *(row.capacity for row in self.rows), 0)
        most = min(self.limits.rows, self._most_tokens(keys.dtype) // capacity)
        self.cache.reserve(max(wanted, min(most, 2 * len(self.rows))), capacity)

    def _search(self, index: int, job: TextJob) -> Iterator[tuple[int, Tokens | Exception]]:
        """Write a text with beams, which are a batch of their own, while there are no other rows."""
        self.cache, stopped = None, []

        def report(tokens: Tokens):
            try:
                self.on_tokens(index, tokens)
            except BaseException as error:
                stopped.append(error)
                raise

        try:
            session = DecodingSession(self.vlm, job.embed(), job.settings.max_new_tokens)
            found = continue_text(session, self.stop_ids, job.settings, report)
        except Exception as error:
            if stopped:
                raise
            found = error
        yield index, found

    def _step(self) -> Iterator[tuple[int, Tokens | Exception]]:
        """Read the last token of every row and choose the next ones."""
        last = torch.tensor([[row.text.tokens[-1]] for row in self.rows], device=self.cache.device)
        language = self.vlm.language_model
        (hidden,) = language(self.vlm.embed_generated(last), (language.config.num_layers,), self.cache)
        chosen = next_tokens(language.logits(hidden[:, -1]), [row.text for row in self.rows])
        yield from self._take(list(self.rows), chosen)

    def _take(self, rows: list[_Row], tokens: list[int | None]) -> Iterator[tuple[int, Tokens | Exception]]:
        """Append a token to each of these rows. Yields those that end, after their rows are free."""
        ended = []
        for row, token in zip(rows, tokens, strict=True):
            if token is None:
                ended.append((row, NotFinite()))
                continue
            row.text.tokens.append(token)
            self.on_tokens(row.index, row.text.tokens)
            if row.text.ended:
                ended.append((row, row.text.tokens))
        for row, _ in ended:
            place = self.rows.index(row)
            self.cache.remove(place)
            self.rows[place] = self.rows[-1]
            self.rows.pop()
        yield from ((row.index, found) for row, found in ended)
