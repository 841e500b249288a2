"""Text generation: greedy, sampling and beam search over a KV cache, with Hugging Face `generate`'s scoring."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import InputError, check_integer, check_number
from .language import KVCache
from .vlm import VLM

MAX_SEED = 2**64 - 1
MAX_SETTING = 2**31 - 1  # "as many as you like"

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


@torch.inference_mode()
def generate_tokens(
    vlm: VLM, prompt: Tensor, stop_ids: tuple[int, ...], settings: TextSettings, on_tokens: OnTokens | None = None
) -> list[int]:
    """Continue prompt embeddings [1, T, C]. Returns the new tokens, the stop token included if one was reached."""
    language = vlm.language_model
    capacity = prompt.shape[1] + settings.max_new_tokens
    cache = KVCache(language.config, 1, capacity, dtype=prompt.dtype, device=prompt.device)

    def step(x: Tensor) -> Tensor:
        """Embeddings of the tokens to read [B, T, C] → logits of the next one [B, vocabulary]."""
        (hidden,) = language(x, (language.config.num_layers,), cache)
        logits = language.logits(hidden[:, -1])
        if not logits.isfinite().all():
            raise FloatingPointError(f"the language model's logits are not finite in {prompt.dtype}")
        return logits

    def embed(tokens: Tensor) -> Tensor:
        return vlm.embed_generated(tokens.to(prompt.device)[:, None])

    if settings.num_beams > 1:
        return _beam_search(step, embed, cache, prompt, stop_ids, settings, on_tokens)
    return _one_sequence(step, embed, prompt, stop_ids, settings, on_tokens)


def _one_sequence(step, embed, prompt, stop_ids, settings, on_tokens) -> list[int]:
    generator = torch.Generator()  # its own and on the CPU: the same on every device, and no global state is touched
    generator.seed() if settings.seed is None else generator.manual_seed(int(settings.seed))
    tokens, x = [], prompt
    while len(tokens) < settings.max_new_tokens:
        token = choose(step(x)[0].cpu(), settings, generator)
        tokens.append(token)
        if on_tokens:
            on_tokens(tokens)
        if token in stop_ids:
            break
        x = embed(torch.tensor([token]))
    return tokens


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


def _beam_search(step, embed, cache, prompt, stop_ids, settings, on_tokens) -> list[int]:
    """Beam search with length penalty 1 and no early stopping, as `generate` scores it.

    A score is a sum of log probabilities over its length. Each step the best (1 + stop tokens) × beams continuations
    are looked at, enough that beams always remain; one that stops is kept if it is among the first num_beams.
    """
    num_beams = settings.num_beams
    stops = torch.tensor(stop_ids)
    beams = torch.empty(1, 0, dtype=torch.long)  # running tokens [beams, length]
    scores = torch.zeros(1)
    finished: list[tuple[float, list[int]]] = []
    x = prompt
    for length in range(1, settings.max_new_tokens + 1):
        log_probs = step(x).log_softmax(-1).cpu() + scores[:, None]
        vocabulary = log_probs.shape[1]
        keep = min(max(2, 1 + len(stop_ids)) * num_beams, log_probs.numel())
        top_scores, top = log_probs.flatten().topk(keep)
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
        cache.select(origins[running].to(prompt.device))
        x = embed(beams[:, -1])
    return finished[0][1]
