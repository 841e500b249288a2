"""Text generation over a KV cache: greedy, sampling, and beam search with the scores of transformers' `generate`.

Source: docs/model.md, "Text generation".
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from .errors import MAX_SEED, MAX_SETTING, InputError, check_integer, check_number
from .models.language import FixedStep, KVCache, windows
from .models.vlm import VLM
from .replay import replayed

OnTokens = Callable[[list[int]], None]  # gets all tokens generated so far; may raise to cancel


@dataclass(frozen=True)
class TextSettings:
    """How the next token is chosen.

    max_new_tokens, num_beams: at least 1. temperature: 0 is greedy; beams are not sampled. top_p: over 0 and at most 1,
    which is off. top_k: 0 is off. seed: of the sampling; None: another one each time. Raises InputError naming the
    value that cannot be used.
    """

    max_new_tokens: int
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self):
        check_integer("max_new_tokens", self.max_new_tokens, 1, MAX_SETTING)
        check_integer("num_beams", self.num_beams, 1, MAX_SETTING)
        check_number("temperature", self.temperature, lambda t: 0 <= t < math.inf, "0 or a positive number")
        check_number("top_p", self.top_p, lambda p: 0 < p <= 1, "over 0 and at most 1")
        check_integer("top_k", self.top_k, 0, MAX_SETTING)
        if self.seed is not None:
            check_integer("seed", self.seed, 0, MAX_SEED)
        if self.num_beams > 1 and self.temperature > 0:
            raise InputError(f"num_beams is {self.num_beams} and temperature {self.temperature}: beams are not sampled")


def limit_to_context(settings: TextSettings, prompt_tokens: int, max_positions: int) -> TextSettings:
    """The settings with max_new_tokens lowered to what fits behind the prompt; at least 1.

    max_positions: the longest text that the checkpoint was trained for, in tokens.
    """
    room = max(1, max_positions - prompt_tokens)
    return replace(settings, max_new_tokens=min(settings.max_new_tokens, room))


@dataclass(frozen=True, eq=False)
class PrefixCache:
    """A text that the language model has read, kept so that a text with the same beginning need not be read again.

    inputs: embeddings [T, C]. hidden: the states at the S selected layers, concatenated [T, S·C]. keys: the KV cache of
    these T tokens. weights: identifies the weights that computed them (see Conditioner); None: not known.
    """

    inputs: Tensor
    hidden: Tensor
    keys: KVCache
    weights: Hashable | None = None

    def common_prefix(self, inputs: Tensor) -> int:
        """The number of leading embeddings of [T, C] that are equal to those here.

        Attention is causal, so everything computed from these alone is equal too.
        """
        length = min(len(inputs), len(self.inputs))
        same = (self.inputs[:length] == inputs[:length].to(self.inputs.device)).all(dim=1)
        return int(same.int().cumprod(0).sum())

    def to(self, device: torch.device, weights: Hashable) -> "PrefixCache":
        """A copy on a device, with no spare capacity, for these weights."""
        keys = self.keys.copy(self.keys.length, self.keys.length, device)
        return PrefixCache(self.inputs.to(device), self.hidden.to(device), keys, weights)


@dataclass(frozen=True)
class TextResult:
    """Generated text.

    text: without special tokens; an answer that has boxes keeps their markers (see grounding.py). token_ids: every
    generated token, the stop token included if one was reached. prefix_cache: what the model has read and written, if
    it was to be kept (0.1 MB a token in bfloat16); a picture drawn after this text then need not read it again.
    """

    text: str
    token_ids: tuple[int, ...]
    prefix_cache: PrefixCache | None = field(default=None, compare=False, repr=False)


class DecodingSession:
    """A language model that reads one text: a prompt, then token after token. Each time it gives the next logits.

    first: logits [1, vocabulary] after the prompt. select: indices of hidden states (see Qwen3.forward) to keep for
    prefix_cache. compile_options: arguments of torch.compile for the step; None: the step is not compiled. replay:
    whether the step may become a CUDA graph (see replay.py).
    """

    def __init__(
        self,
        vlm: VLM,
        prompt: Tensor,
        max_new_tokens: int,
        select: tuple[int, ...] = (),
        compile_options: dict | None = None,
        replay: bool = False,
    ):
        """prompt: embeddings [1, T, C]."""
        self.vlm, self.language, self.device = vlm, vlm.language_model, prompt.device
        self.select, self.replay = select, replay and compile_options is None
        capacity = windows(prompt.shape[1] + max_new_tokens)
        self.cache = KVCache(self.language.config, 1, capacity, dtype=prompt.dtype, device=prompt.device)
        self.compiled = None if compile_options is None else torch.compile(self._step, **compile_options)
        # Where libraries prepare a kernel for each new shape, which takes longer than a token, shapes stay the same.
        self.fixes_shapes = self.compiled is not None or prompt.is_cuda
        self.fixed: FixedStep | None = None
        self.inputs: list[Tensor] = []
        self.hidden: list[Tensor] = []
        self.first = self._keep(*self._read(prompt, self.cache))

    def __call__(self, tokens: Tensor) -> Tensor:
        """Read one token for each row of the cache [batch]. Returns logits [batch, vocabulary]."""
        tokens = tokens.to(self.device)
        if not self.fixes_shapes:
            return self._keep(*self._step(tokens, self.cache))
        window = windows(self.cache.length + 1)
        if self.fixed is None or self.fixed.window != window or len(tokens) != self.rows:
            self.fixed, self.rows = FixedStep(self.cache, window), len(tokens)
            step = partial(self.compiled or self._step, cache=self.fixed)
            self.fixed_step = replayed(step, tokens) if self.replay else step
        self.fixed.position.fill_(self.cache.length)
        # The next replay of a CUDA graph overwrites its outputs.
        outputs = (None if x is None else x.clone() for x in self.fixed_step(tokens))
        self.cache.advance(1)
        return self._keep(*outputs)

    def prefix_cache(self) -> PrefixCache:
        """What was read so far, of a text that never had more than one row."""
        return PrefixCache(torch.cat(self.inputs, dim=1)[0], torch.cat(self.hidden, dim=1)[0], self.cache)

    def _step(self, tokens: Tensor, cache: KVCache | FixedStep):
        return self._read(self.vlm.embed_generated(tokens[:, None]), cache)

    def _read(self, x: Tensor, cache: KVCache | FixedStep) -> tuple[Tensor, Tensor, Tensor | None]:
        last, *states = self.language(x, (self.language.config.num_layers, *self.select), cache)
        return self.language.logits(last[:, -1]), x, torch.cat(states, dim=-1) if states else None

    def _keep(self, logits: Tensor, x: Tensor, states: Tensor | None) -> Tensor:
        if states is not None:
            self.inputs.append(x)
            self.hidden.append(states)
        return logits


@torch.inference_mode()
def generate_tokens(
    vlm: VLM, prompt: Tensor, stop_ids: tuple[int, ...], settings: TextSettings, on_tokens: OnTokens | None = None
) -> list[int]:
    """The token ids that continue prompt embeddings [1, T, C], with the stop token if one is reached.

    on_tokens: gets the ids so far after each token and may raise to cancel. Raises FloatingPointError if logits are
    not finite.
    """
    return continue_text(DecodingSession(vlm, prompt, settings.max_new_tokens), stop_ids, settings, on_tokens)


def continue_text(
    session: DecodingSession, stop_ids: tuple[int, ...], settings: TextSettings, on_tokens: OnTokens | None = None
):
    """As generate_tokens, after what the session has read. The caller is in inference mode."""
    if settings.num_beams > 1:
        return _beam_search(session, stop_ids, settings, on_tokens)
    return _one_sequence(session, stop_ids, settings, on_tokens)


class Text:
    """A text while it is generated without beams: its tokens so far, and how the next one is chosen."""

    def __init__(self, stop_ids: tuple[int, ...], settings: TextSettings):
        self.stop_ids, self.settings = stop_ids, settings
        self.tokens: list[int] = []
        self.generator = torch.Generator()  # on the CPU, so equal on every device; no global random state is used
        self.generator.seed() if settings.seed is None else self.generator.manual_seed(int(settings.seed))

    @property
    def ended(self) -> bool:
        """Whether the last token is a stop token, or the last one allowed."""
        return self.tokens[-1] in self.stop_ids or len(self.tokens) == self.settings.max_new_tokens


def _one_sequence(session: DecodingSession, stop_ids, settings, on_tokens) -> list[int]:
    text, logits = Text(stop_ids, settings), session.first
    while True:
        (token,) = next_tokens(logits, [text])
        if token is None:
            raise NotFinite()
        text.tokens.append(token)
        if on_tokens:
            on_tokens(text.tokens)
        if text.ended:
            return text.tokens
        logits = session(torch.tensor(text.tokens[-1:], device="cpu"))


def next_tokens(logits: Tensor, texts: Sequence[Text]) -> list[int | None]:
    """The next token of each text from its row of logits [texts, vocabulary]; None where they are not finite."""
    # One transfer from the device for all rows: of the logits if a token is sampled, else of what is chosen.
    if any(text.settings.temperature for text in texts):
        logits = logits.cpu()
    # In float32, which has every token's number: Apple's devices have no float64.
    tokens, greatest = torch.stack([logits.argmax(-1).float(), logits.amax(-1)]).tolist()
    chosen = [int(token) if math.isfinite(most) else None for token, most in zip(tokens, greatest, strict=True)]
    sampled = [row for row, text in enumerate(texts) if text.settings.temperature and chosen[row] is not None]
    if sampled:
        some = [texts[row] for row in sampled]
        tokens = sample(logits[sampled], [text.settings for text in some], [text.generator for text in some])
        for row, token in zip(sampled, tokens, strict=True):
            chosen[row] = token
    return chosen


class NotFinite(FloatingPointError):
    """Logits of the language model are NaN or infinite."""

    def __init__(self):
        super().__init__("the language model's logits are not finite; try bfloat16 or float32")


def _check_finite(greatest: float):
    """greatest: the maximum of logits, which is NaN if one is. A single −∞ is no error: it is never chosen."""
    if not math.isfinite(greatest):
        raise NotFinite()


def sample(logits: Tensor, settings: Sequence[TextSettings], generators: Sequence[torch.Generator]) -> list[int]:
    """A token id for each row of logits [texts, vocabulary], drawn after its temperature, top_k and top_p.

    Each is the one that its row alone would give. All rows are computed at once, so that they share the threads.
    """

    def each(values: Iterable[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float64, device=logits.device)[:, None]

    # In float64 and with the maximum at 0, so that even the smallest temperature gives no infinity.
    logits = (logits.double() - logits.amax(-1, keepdim=True)) / each(one.temperature for one in settings)
    for row, one in zip(logits, settings, strict=True):
        if one.top_k:
            row.masked_fill_(row < row.topk(min(one.top_k, len(row))).values[-1], -math.inf)
    if nucleus := [row for row, one in enumerate(settings) if one.top_p < 1]:
        # Drop the least probable tokens while their sum is at most 1 − top_p (nucleus sampling, arXiv 1904.09751).
        ascending, order = logits[nucleus].sort()
        drop = ascending.softmax(-1).cumsum(-1) <= each(1 - settings[row].top_p for row in nucleus)
        drop[:, -1] = False
        logits[nucleus] = logits[nucleus].masked_fill(drop.scatter(1, order, drop), -math.inf)
    drawn = (torch.multinomial(p, 1, generator=g) for p, g in zip(logits.softmax(-1), generators, strict=True))
    return [int(token) for token in drawn]


def _beam_search(session: DecodingSession, stop_ids, settings, on_tokens) -> list[int]:
    """Beam search with length penalty 1 and without early stopping, as in transformers' `generate`.

    A finished text is scored by the mean of its log probabilities. Each step considers the best (1 + number of stop
    tokens) × num_beams continuations, so that enough running ones remain. One that stops counts as finished only if it
    is among the first num_beams.
    """
    num_beams = settings.num_beams
    stops = torch.tensor(stop_ids, device="cpu")
    beams = torch.empty(1, 0, dtype=torch.long, device="cpu")  # running tokens [beams, length]
    scores = torch.zeros(1, dtype=torch.float32, device="cpu")
    finished: list[tuple[float, list[int]]] = []
    logits = session.first
    for length in range(1, settings.max_new_tokens + 1):
        log_probs = logits.log_softmax(-1) + scores[:, None].to(logits.device)
        vocabulary = log_probs.shape[1]
        keep = min(max(2, 1 + len(stop_ids)) * num_beams, log_probs.numel())
        top_scores, top = (t.cpu() for t in log_probs.flatten().topk(keep))
        _check_finite(float(top_scores[0]))
        origins, tokens = top // vocabulary, top % vocabulary
        sequences = torch.cat([beams[origins], tokens[:, None]], dim=1)
        stopped = (
            torch.isin(tokens, stops) if length < settings.max_new_tokens else torch.ones_like(tokens, dtype=torch.bool)
        )

        for rank in range(min(num_beams, keep)):
            if stopped[rank]:
                finished.append((float(top_scores[rank]) / length, sequences[rank].tolist()))
        finished = sorted(finished, key=lambda item: item[0], reverse=True)[:num_beams]

        running = (~stopped).nonzero()[:num_beams, 0]
        if len(running):
            beams, scores = sequences[running], top_scores[running]
            if on_tokens:
                on_tokens(beams[0].tolist())
        worst_finished = finished[-1][0] if len(finished) == num_beams else -math.inf
        if not len(running) or float(scores[0]) / length <= worst_finished:
            break
        session.cache.select(origins[running].to(session.device))
        logits = session(beams[:, -1])
    return finished[0][1]
