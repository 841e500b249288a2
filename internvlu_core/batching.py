"""Many texts in one decoding loop: each row of the batch ends for itself, and a waiting text takes its place.

Prompts that can begin at the same time are read in one forward. Then each step reads one token of every row, so the
weights are read once for all. Source: iteration-level scheduling, Orca (Yu et al., OSDI 2022).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from .decoding import DecodingSession, NotFinite, Text, TextSettings, continue_text, next_tokens, windows
from .errors import MAX_BYTES, MAX_SETTING, check_integer
from .models.language import PackedPrompts, RowCache, cache_bytes
from .models.vlm import VLM

OnTokensOf = Callable[[int, list[int]], None]  # (index of a text, its tokens so far); may raise to cancel all
Tokens = list[int]

READ_TOKENS = 2048  # of prompts in one forward, at most, unless one alone is longer: the memory of a forward is bounded


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


@dataclass
class _Prompt:
    """A prompt to read into a row. x: its embeddings [1, T, C]."""

    row: _Row
    x: Tensor


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
        self.dtype: torch.dtype | None = None  # of the embeddings; known once there is one

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
            prompts: list[_Prompt] = []
            rest = yield from self._gather(prompts)
            yield from self._begin(prompts)
            if rest is not None:
                return rest is self
        return False

    def _gather(self, prompts: list[_Prompt]) -> Iterator[tuple[int, Tokens | Exception]]:
        """Append the next prompts that can be read in one forward.

        Returns None if there may be more at once, self if no text is left, and otherwise False.
        """
        while len(self.rows) + len(prompts) < self.limits.rows:
            if not self.waiting:
                make = next(self.jobs, self)
                if make is self or make is None:
                    return self if make is self else False
                index, self.count = self.count, self.count + 1
                try:
                    self.waiting = index, make()
                except Exception as error:  # whatever is wrong with one text is not the others'
                    yield index, error
                    continue
            index, job = self.waiting
            if not self._fits(job, [*self.rows, *(prompt.row for prompt in prompts)]):
                return False
            if prompts and sum(prompt.x.shape[1] for prompt in prompts) + job.tokens > READ_TOKENS:
                return None
            self.waiting = None
            yield from self._search(index, job) if job.settings.num_beams > 1 else self._embed(index, job, prompts)
        return None

    def _fits(self, job: TextJob, others: list[_Row]) -> bool:
        """Whether there is room for this text beside others."""
        if not others:
            return True
        capacity = max(job.capacity, *(row.capacity for row in others))
        return job.settings.num_beams == 1 and (len(others) + 1) * capacity <= self._most_tokens(self.dtype)

    def _most_tokens(self, dtype: torch.dtype) -> int:
        return self.limits.cache_bytes // cache_bytes(self.vlm.language_model.config, dtype)

    def _embed(self, index: int, job: TextJob, prompts: list[_Prompt]) -> Iterator[tuple[int, Exception]]:
        try:
            x = job.embed()
        except Exception as error:
            yield index, error
            return
        self.dtype = x.dtype
        prompts.append(_Prompt(_Row(index, Text(self.stop_ids, job.settings), job.capacity), x))

    def _begin(self, prompts: list[_Prompt]) -> Iterator[tuple[int, Tokens | Exception]]:
        """Read prompts into rows, all in one forward, and choose the first token of each."""
        if not prompts:
            return
        rows = [prompt.row for prompt in prompts]
        self._make_room(rows, prompts[0].x)
        try:
            logits = self._read([prompt.x for prompt in prompts])
        except Exception as error:
            del self.cache.lengths[len(self.rows) :]
            if len(prompts) == 1:
                yield rows[0].index, error
            else:  # find out whose it is, or whether there is no memory for all at once
                for prompt in prompts:
                    yield from self._begin([prompt])
            return
        self.rows += rows
        yield from self._take(rows, next_tokens(logits, [row.text for row in rows]))

    def _make_room(self, rows: list[_Row], x: Tensor):
        """More rows, for these. Rows are added in powers of two, as far as the limits go."""
        if self.cache is None:
            self.cache = RowCache(self.vlm.language_model.config, dtype=x.dtype, device=x.device)
        wanted, capacity = len(self.rows) + len(rows), max(row.capacity for row in rows)
        room, longest = self.cache.room
        if wanted <= room and capacity <= longest:
            return
        capacity = max(capacity, *(row.capacity for row in self.rows), 0)
        most = min(self.limits.rows, self._most_tokens(x.dtype) // capacity)
        self.cache.reserve(max(wanted, min(most, 2 * len(self.rows))), capacity)

    def _read(self, prompts: list[Tensor]) -> Tensor:
        """Embeddings [1, tokens, C] of each prompt → logits [prompts, vocabulary] of its first token."""
        language, lengths = self.vlm.language_model, tuple(x.shape[1] for x in prompts)
        (hidden,) = language(torch.cat(prompts, 1), (language.config.num_layers,), PackedPrompts(self.cache, lengths))
        return language.logits(hidden[0, [end - 1 for end in accumulate(lengths)]])

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
