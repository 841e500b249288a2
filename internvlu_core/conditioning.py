"""What the MMDiT is conditioned on: hidden states of up to three branches.

Source: docs/model.md, "Hidden states and conditioning" and "Prompt and chat template".
"""

import copy
import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from .batching import BatchLimits, OnTokensOf, TextBatch, TextJob
from .checkpoints.config import Config
from .decoding import DecodingSession, OnTokens, PrefixCache, TextResult, TextSettings, continue_text, limit_to_context
from .errors import CheckpointError, InputError
from .models.rope import Grid
from .models.vlm import VLM
from .prompt import IMG, PAD, Prompt, PromptBuilder, Tokenizer, as_tensor
from .replay import can_replay
from .requests import DRAW_ONLY, DrawRequest, as_request

SEEN_TILES = 32  # tiles of the last pictures whose features are cached: 1 MB each in bfloat16
TAIL = 8  # at most so many new tokens are read one by one; for more, the whole text is read again

ToWrite = tuple[Prompt, list[Tensor], TextSettings]  # the arguments of Conditioner.write


@dataclass(frozen=True)
class Branch:
    """The conditioning of one branch.

    hidden: [T, C], the selected hidden states concatenated. image_mask: [T], which positions are ViT tokens.
    image_grids: the grids of these (frames, rows, columns), in order. references: normalised latents [1, z, h_i, w_i],
    one for each picture. reasoned: whether there was reasoning, for which a checkpoint has default scales of its own.

    For InternVLU.sample, several branches can be stacked: hidden [n, T, C], references [n, z, h_i, w_i].
    """

    hidden: Tensor
    image_mask: Tensor
    image_grids: list[Grid] = field(default_factory=list)
    references: list[Tensor] = field(default_factory=list)
    reasoned: bool = False


@dataclass(frozen=True)
class Context:
    """The three branches of a picture. Without pictures to edit, partial is the same object as unconditional."""

    full: Branch
    partial: Branch
    unconditional: Branch


class Conditioner:
    """The stage between prompts and the MMDiT: a VLM with its tokenizer makes image features, text and conditioning.

    weights(): identifies the current weights of the VLM by a value that no other weights have, or None if that is not
    known. What the same weights have computed is not computed again: features of a picture, and the text so far (see
    PrefixCache). Raises CheckpointError if the tokenizer has more ids than the language model.
    """

    def __init__(
        self, vlm: VLM, tokenizer: Tokenizer, config: Config, weights: Callable[[], Hashable | None] | None = None
    ):
        self.vlm, self.tokenizer, self.config = vlm, tokenizer, config
        self.weights = weights or _Weights(vlm)
        self.compile_options: dict | None = None  # of torch.compile, for the step that decodes one token
        self.can_replay = partial(can_replay, vlm)  # asked before each text; whoever moves weights has another answer
        self.seen: OrderedDict[tuple, Tensor] = OrderedDict()
        if tokenizer.size > config.language.vocab_size:
            raise CheckpointError(
                f"the tokenizer has ids up to {tokenizer.size - 1}, but llm_config.vocab_size is "
                f"{config.language.vocab_size}: they are of different checkpoints"
            )
        tokens_per_tile = config.tile_grid[1] * config.tile_grid[2]
        self._most_tokens = SEEN_TILES * tokens_per_tile
        self.prompts = PromptBuilder(tokenizer, tokens_per_tile, config.language.max_positions)

    def with_weights(self, weights: Callable[[], Hashable | None]) -> "Conditioner":
        """A copy with another function `weights`; both share the cached image features."""
        other = copy.copy(self)
        other.weights = weights
        return other

    @torch.inference_mode()
    def image_features(self, tiles: list[Tensor], device, dtype) -> list[Tensor]:
        """Normalised tiles [n_i, 3, S, S] of each picture → its tokens for the language model [n_i · T, hidden]."""
        weights = self.weights()
        return [self._image_features(image, device, dtype, weights) for image in tiles]

    def _image_features(self, tiles: Tensor, device, dtype, weights) -> Tensor:
        if weights is None:
            return self.vlm.image_features(tiles.to(device, dtype)).flatten(0, 1)
        key = *fingerprint(tiles), torch.device(device), dtype, weights
        tokens = self.seen.pop(key, None)
        if tokens is None:
            tokens = self.vlm.image_features(tiles.to(device, dtype)).flatten(0, 1)
        self.seen[key] = tokens
        while len(self.seen) > 1 and sum(map(len, list(self.seen.values()))) > self._most_tokens:
            self.seen.popitem(last=False)
        return tokens

    @torch.inference_mode()
    def embed(self, prompt: Prompt, features: list[Tensor], device) -> Tensor:
        """Embeddings [1, T, hidden] of a prompt. features: of image_features, one entry for each of its pictures."""
        return self._embed(prompt.ids, prompt.image_mask, features, device)

    def _embed(self, ids, image_mask, features: list[Tensor], device) -> Tensor:
        return self.vlm.embed(
            as_tensor(ids, device),
            self.tokenizer.special_ids.to(device),
            torch.tensor(image_mask, device=device),
            torch.cat(features) if features else None,
        )

    @torch.inference_mode()
    def write(
        self,
        prompt: Prompt,
        tiles: list[Tensor],
        settings: TextSettings,
        *,
        device,
        dtype,
        on_tokens: OnTokens | None = None,
        keep: torch.device | None = None,
    ) -> TextResult:
        """Generate the text that continues a prompt, at most as long as the context allows.

        tiles: as in image_features, one entry for each picture of the prompt. on_tokens: gets the token ids so far and
        may raise to cancel. keep: the device for the result's prefix cache; None: no cache. Beam search leaves none.
        Raises FloatingPointError if logits are not finite.
        """
        settings = limit_to_context(settings, len(prompt), self.config.language.max_positions)
        keep = None if settings.num_beams > 1 else keep
        embeddings = self.embed(prompt, self.image_features(tiles, device, dtype), device)
        select = () if keep is None else self.config.mmdit.select_layers
        how = self.compile_options, self.can_replay()
        session = DecodingSession(self.vlm, embeddings, settings.max_new_tokens, select, *how)
        token_ids = continue_text(session, self.tokenizer.stop_ids, settings, on_tokens)
        weights = self.weights()
        kept = None if keep is None or weights is None else session.prefix_cache().to(keep, weights)
        return TextResult(self.tokenizer.decode(token_ids), tuple(token_ids), kept)

    @torch.inference_mode()
    def write_many(
        self,
        makers: Iterable[Callable[[], ToWrite] | None],
        *,
        device,
        dtype,
        limits: BatchLimits,
        on_tokens: OnTokensOf | None = None,
    ) -> Iterator[tuple[int, TextResult | Exception]]:
        """As write for many prompts, in one decoding loop: (index, result or error) in the order in which they end.

        makers: each gives a prompt, its tiles and its settings when its turn has come; see TextBatch, also for errors
        and None. on_tokens: gets the index and the token ids so far, and may raise to cancel. Results have no prefix
        cache, since those of a long list would not fit into memory.
        """

        def job(make: Callable[[], ToWrite]) -> TextJob:
            prompt, tiles, settings = make()
            settings = limit_to_context(settings, len(prompt), self.config.language.max_positions)
            return TextJob(
                len(prompt), lambda: self.embed(prompt, self.image_features(tiles, device, dtype), device), settings
            )

        jobs = (make and partial(job, make) for make in makers)
        for index, found in TextBatch(self.vlm, self.tokenizer.stop_ids, jobs, limits, on_tokens).run():
            failed = isinstance(found, Exception)
            yield index, found if failed else TextResult(self.tokenizer.decode(found), tuple(found))

    @torch.inference_mode()
    def read(self, prompt: Prompt, features: list[Tensor], references: list[Tensor], device) -> Branch:
        """The conditioning of one prompt. features: one entry for each of its pictures. references: any number."""
        return self._branch(prompt, prompt.ids, 0, features, references, device)

    @torch.inference_mode()
    def context(
        self, prompt: str | DrawRequest, features: list[Tensor], references: list[Tensor], *, device, **settings
    ) -> Context:
        """All branches of a picture.

        prompt: a DrawRequest, or its prompt with its other settings. features: of image_features, one entry for each
        picture. references: normalised latents [1, z, h_i, w_i], one for each picture. Raises InputError if the prompt
        is too long, FloatingPointError if hidden states are not finite.
        """
        request = as_request(DrawRequest, prompt, None, settings, without=DRAW_ONLY)
        n, system, reasoning = len(features), request.system_prompt, request.reasoning
        full = self.prompts.full(request.prompt, n, system)
        blank = self.prompts.unconditional(n, system, request.negative)
        partial = self.prompts.partial(n, system, request.partial_negative) if n else blank

        token_ids, pads = self.reasoned(full, max(len(partial), len(blank)), reasoning, request.whole_reasoning)
        unconditional = self.read(blank, [], [], device)
        read = self._branch(
            full, token_ids, pads, features, references, device, getattr(reasoning, "prefix_cache", None)
        )
        return Context(
            full=replace(read, reasoned=reasoning is not None),
            partial=self.read(partial, features, references, device) if n else unconditional,
            unconditional=unconditional,
        )

    def reasoned(self, full: Prompt, longest_blank: int, reasoning, whole: bool) -> tuple[tuple[int, ...], int]:
        """The token ids of the full prompt with its reasoning, and the number of padding tokens in front of them.

        longest_blank: tokens of the longer one of the other two prompts. whole: use reasoning whole.
        """
        if reasoning is None:
            return full.ids, 0
        if isinstance(reasoning, str):
            return (*full.ids, *self.tokenizer.encode(reasoning)), 0
        tokens = reasoning.token_ids
        if not tokens:
            return full.ids, 0
        stop = next((i for i, token in enumerate(tokens) if token in self.tokenizer.stop_ids), None)
        if whole:
            return (*full.ids, *tokens[:stop]), 0
        # The official pipeline drops the last token before the stop too, and lets the pads that once aligned its
        # batch of three prompts be read as text (docs/model.md, "Hidden states and conditioning"). Both look like
        # slips, but the official pictures are made with them.
        end = len(tokens) - 1 if stop is None else stop
        return (*full.ids, *tokens)[: len(full) + end - 1], max(0, longest_blank - len(full))

    def _branch(self, prompt: Prompt, ids, pads: int, features, references, device, prefix=None) -> Branch:
        """Read padding, ids and `<img>`. ids: the prompt, continued or cut short by a token. prefix: see _hidden."""
        ids = [self.tokenizer.id(PAD)] * pads + [*ids, self.tokenizer.id(IMG)]
        if len(ids) > self.prompts.max_tokens:
            raise InputError(
                f"prompt and reasoning are {len(ids)} tokens long; this checkpoint reads at most "
                f"{self.prompts.max_tokens}"
            )
        image_mask = [False] * pads + list(prompt.image_mask)
        image_mask = image_mask[: len(ids)] + [False] * (len(ids) - len(image_mask))
        hidden = self._hidden(self._embed(ids, image_mask, features, device), prefix)
        if not hidden.isfinite().all():
            raise FloatingPointError(f"the language model's hidden states are not finite in {hidden.dtype}")

        start, longest = pads + prompt.start, self.config.mmdit.max_context
        kept = slice(start, None if longest is None else start + longest)
        mask = torch.tensor(image_mask, device="cpu")[kept]
        tokens_per_image = self.prompts.tokens_per_tile
        if mask.sum() % tokens_per_image:
            raise InputError(f"the images do not fit into the {longest} tokens of context that this checkpoint reads")
        grids = [self.config.tile_grid] * int(mask.sum() // tokens_per_image)
        return Branch(hidden[kept], mask, grids, references)

    def _hidden(self, x: Tensor, prefix: PrefixCache | None) -> Tensor:
        """Embeddings [1, T, C] → selected hidden states [T, S·C]. prefix: of a text that may begin in the same way."""
        select = self.config.mmdit.select_layers
        known, length = 0, x.shape[1]
        if prefix is not None and prefix.weights == self.weights():
            known = min(prefix.common_prefix(x[0]), length - 1)
        # After reasoning only a few tokens at the end are new. Anything else that differs, such as generated special
        # tokens, padding, another prompt or other pictures, shows in the embeddings.
        if known < length - TAIL:
            return torch.cat(self.vlm.language_model(x, select), dim=-1)[0]
        cache = prefix.keys.copy(known, length, x.device)
        tail = [self.vlm.language_model(token, select, cache) for token in x[:, known:].split(1, dim=1)]
        return torch.cat([prefix.hidden[:known].to(x.device), *(torch.cat(s, dim=-1)[0] for s in tail)])


def fingerprint(tiles: Tensor) -> tuple[bytes, torch.Size]:
    """A value that is equal for equal tiles, and for no others."""
    return hashlib.sha256(tiles.contiguous().view(torch.uint8).cpu().numpy()).digest(), tiles.shape


class _Weights:
    """Identifies the weights of a network: an object that is another one after every change.

    Changes through `.data` are not noticed, nor those in place of tensors made in inference mode: torch counts neither.
    """

    def __init__(self, network: torch.nn.Module):
        self.network = network
        self.seen: list[weakref.ref] = []
        self.stamps: list[tuple[int, int]] = []
        self.identity = object()

    def __call__(self) -> Hashable:
        parameters = list(self.network.parameters())
        stamps = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
        # An address alone says little: the weights that take the place of others may get theirs.
        if stamps != self.stamps or any(seen() is not p for seen, p in zip(self.seen, parameters, strict=True)):
            self.seen, self.stamps = [weakref.ref(p) for p in parameters], stamps
            self.identity = object()
        return self.identity
