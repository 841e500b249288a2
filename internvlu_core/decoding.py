"""Text generation: greedy, sampling and beam search over a KV cache, with Hugging Face `generate`'s scoring."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import InputError, check_integer, check_number
from .models.language import FixedStep, KVCache
from .models.vlm import VLM

MAX_SEED = 2**64 - 1
MAX_SETTING = 2**31 - 1  # "as many as you like"

WINDOW = 256  # a captured step reads the cache in multiples of this, to be captured anew where a text outgrows one

OnTokens = Callable[[list[int]], None]  # gets all tokens generated so far; may raise to cancel


@dataclass(frozen=True)
class TextSettings:
    """How the next token is chosen. temperature 0 is greedy; top_k 0 and top_p 1 are off; beams are never sampled."""

    max_new_tokens: int
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None  # None: another one each time

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


def within(settings: TextSettings, prompt_tokens: int, max_positions: int) -> TextSettings:
    """Settings that stop at the last position: behind it there is nothing to write, and a cache need not be longer."""
    room = max(1, max_positions - prompt_tokens)
    return replace(settings, max_new_tokens=min(settings.max_new_tokens, room))


@dataclass(frozen=True, eq=False)
class Transcript:
    """What a language model has read of one text, so that another one that starts the same need not be read from there.

    inputs: embeddings [T, C]. hidden: [T, S·C], the states at the selected layers side by side. cache: of T tokens.
    """

    inputs: Tensor
    hidden: Tensor
    cache: KVCache

    def in_common(self, inputs: Tensor) -> int:
        """How many of the first inputs [T, C] are the same: the network is causal, so all that follows from them is."""
        length = min(len(inputs), len(self.inputs))
        same = (self.inputs[:length] == inputs[:length].to(self.inputs.device)).all(dim=1)
        return int(same.int().cumprod(0).sum())

    def to(self, device) -> "Transcript":
        """A copy, no larger than it must be."""
        cache = self.cache.copy(self.cache.length, self.cache.length, device)
        return Transcript(self.inputs.to(device), self.hidden.to(device), cache)


class Steps:
    """A language model that reads a text step by step: a prompt [1, T, C], then tokens, each time giving what is next.

    Logits are [batch, vocabulary]. select: indices of hidden states (see Qwen3) to keep for the transcript.
    """

    def __init__(self, vlm: VLM, prompt: Tensor, max_new_tokens: int, select: tuple[int, ...] = ()):
        self.vlm, self.language, self.device = vlm, vlm.language_model, prompt.device
        self.select = select
        config = self.language.config
        capacity = _windows(prompt.shape[1] + max_new_tokens)
        self.cache = KVCache(config, 1, capacity, dtype=prompt.dtype, device=prompt.device)
        self.captures = self.device.type == "cuda" and self.language.capturable and self._all_here()
        self.captured: CapturedStep | None = None
        self.inputs: list[Tensor] = []
        self.hidden: list[Tensor] = []
        self.first = self._keep(*self._read(prompt, self.cache))

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens [batch], one for each row of the cache."""
        tokens = tokens.to(self.device)
        if not self.captures:
            return self._keep(*self._step(tokens, self.cache))
        window = _windows(self.cache.length + 1)
        if self.captured is None or self.captured.shape != (len(tokens), window):
            self.captured = None  # its memory first
            self.captured = CapturedStep(self._step, tokens, self.cache, window)
        logits, x, states = self.captured(tokens)
        if self.select:
            x, states = x.clone(), states.clone()
        return self._keep(logits, x, states)

    def transcript(self) -> Transcript:
        """Of a text that never was more than one row."""
        return Transcript(torch.cat(self.inputs, dim=1)[0], torch.cat(self.hidden, dim=1)[0], self.cache)

    def _all_here(self) -> bool:
        return all(parameter.device == self.device for parameter in self.language.parameters())

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


def _windows(tokens: int) -> int:
    return -(-tokens // WINDOW) * WINDOW


class CapturedStep:
    """A step as a CUDA graph: its hundreds of kernels, each faster done than launched, are launched at once."""

    def __init__(self, step: Callable, tokens: Tensor, cache: KVCache, window: int):
        self.shape = len(tokens), window
        self.cache, self.tokens = cache, tokens.clone()
        self.step = FixedStep(cache, window)
        stream = torch.cuda.Stream(tokens.device)
        stream.wait_stream(torch.cuda.current_stream(tokens.device))
        with torch.cuda.stream(stream):  # libraries set themselves up at first use, which must not be captured
            for _ in range(2):
                step(self.tokens, self.step)
        torch.cuda.current_stream(tokens.device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # Only this thread's calls must be such as can be captured; others may go on.
        with torch.cuda.device(tokens.device), torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.outputs = step(self.tokens, self.step)

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What step returns, in tensors that the next call overwrites."""
        self.tokens.copy_(tokens)
        self.step.position.fill_(self.cache.length)
        self.graph.replay()
        self.cache.advance(1)
        return self.outputs


@torch.inference_mode()
def generate_tokens(
    vlm: VLM, prompt: Tensor, stop_ids: tuple[int, ...], settings: TextSettings, on_tokens: OnTokens | None = None
) -> list[int]:
    """Continue prompt embeddings [1, T, C]. Returns the new tokens, the stop token included if one was reached."""
    return continue_text(Steps(vlm, prompt, settings.max_new_tokens), stop_ids, settings, on_tokens)


def continue_text(steps: Steps, stop_ids: tuple[int, ...], settings: TextSettings, on_tokens: OnTokens | None = None):
    """As generate_tokens, in inference mode, behind what steps has read."""
    if settings.num_beams > 1:
        return _beam_search(steps, stop_ids, settings, on_tokens)
    return _one_sequence(steps, stop_ids, settings, on_tokens)


def _one_sequence(steps: Steps, stop_ids, settings, on_tokens) -> list[int]:
    generator = torch.Generator()  # its own and on the CPU: the same on every device, and no global state is touched
    generator.seed() if settings.seed is None else generator.manual_seed(int(settings.seed))
    tokens, logits = [], steps.first[0]
    while True:
        tokens.append(_next(logits, settings, generator))
        if on_tokens:
            on_tokens(tokens)
        if tokens[-1] in stop_ids or len(tokens) == settings.max_new_tokens:
            return tokens
        logits = steps(torch.tensor(tokens[-1:]))[0]


def _next(logits: Tensor, settings: TextSettings, generator: torch.Generator) -> int:
    """choose, with one wait for the device. Raises FloatingPointError."""
    if settings.temperature == 0:
        # In float32, which has every token's number: Apple's devices have no float64.
        token, greatest = torch.stack([logits.argmax().float(), logits.amax()]).tolist()
        _check_finite(greatest)
        return int(token)
    logits = logits.cpu()
    _check_finite(float(logits.amax()))
    return choose(logits, settings, generator)


def _check_finite(greatest: float):
    """greatest: of logits. NaN is the greatest of all, and a −∞ among finite ones is just never chosen."""
    if not math.isfinite(greatest):
        raise FloatingPointError("the language model's logits are not finite; try bfloat16 or float32")


def choose(logits: Tensor, settings: TextSettings, generator: torch.Generator) -> int:
    """One token from logits [vocabulary]: the greatest, or sampled after temperature, top-k, top-p (in that order)."""
    if settings.temperature == 0:
        return int(logits.argmax())
    # In float64 and from 0 down, so that the least of temperatures gives the greatest logit and no infinity.
    logits = (logits.double() - logits.max()) / settings.temperature
    if settings.top_k:
        logits = logits.masked_fill(logits < logits.topk(min(settings.top_k, len(logits))).values[-1], -math.inf)
    if settings.top_p < 1:
        # Drop the least probable tokens as long as their sum stays within 1 − top_p (arXiv 1904.09751).
        ascending, order = logits.sort()
        drop = ascending.softmax(-1).cumsum(-1) <= 1 - settings.top_p
        drop[-1] = False
        logits = logits.masked_fill(drop.scatter(0, order, drop), -math.inf)
    return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))


def _beam_search(steps: Steps, stop_ids, settings, on_tokens) -> list[int]:
    """Beam search with length penalty 1 and no early stopping, as `generate` scores it.

    A score is a sum of log probabilities over its length. Each step the best (1 + stop tokens) × beams continuations
    are looked at, enough that beams always remain; one that stops is kept if it is among the first num_beams.
    """
    num_beams = settings.num_beams
    stops = torch.tensor(stop_ids)
    beams = torch.empty(1, 0, dtype=torch.long)  # running tokens [beams, length]
    scores = torch.zeros(1)
    finished: list[tuple[float, list[int]]] = []
    logits = steps.first
    for length in range(1, settings.max_new_tokens + 1):
        log_probs = logits.log_softmax(-1) + scores[:, None].to(logits.device)
        vocabulary = log_probs.shape[1]
        keep = min(max(2, 1 + len(stop_ids)) * num_beams, log_probs.numel())
        top_scores, top = (t.cpu() for t in log_probs.flatten().topk(keep))
        _check_finite(float(top_scores[0]))
        origins, tokens = top // vocabulary, top % vocabulary
        sequences = torch.cat([beams[origins], tokens[:, None]], dim=1)
        stopped = torch.isin(tokens, stops) if length < settings.max_new_tokens else torch.ones(keep, dtype=torch.bool)

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
        steps.cache.select(origins[running].to(steps.device))
        logits = steps(beams[:, -1])
    return finished[0][1]
