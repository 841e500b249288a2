"""What the MMDiT is conditioned on: hidden states of up to three branches (model.md sections 3 to 6)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .config import Config
from .decoding import OnTokens, TextSettings, generate_tokens
from .errors import CheckpointError, InputError
from .positions import Grid
from .prompt import IMG, PAD, Prompt, PromptBuilder, Tokenizer, as_tensor
from .vlm import VLM


@dataclass(frozen=True)
class TextResult:
    """Generated text. token_ids holds every generated token, the stop token included if one was reached."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Branch:
    """Conditioning of one branch.

    hidden: [T, C], select layers concatenated. image_mask: [T], which positions are ViT tokens. image_grids: their
    grids (frames, rows, columns) in order. references: normalised latents [1, z, h_i, w_i], one per image.
    """

    hidden: Tensor
    image_mask: Tensor
    image_grids: list[Grid] = field(default_factory=list)
    references: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Context:
    """The three branches of a picture. Without images, partial is the very object unconditional."""

    full: Branch
    partial: Branch
    unconditional: Branch


class Reader:
    """A VLM with its tokenizer: turns prompts and seen pictures into embeddings and conditioning."""

    def __init__(self, vlm: VLM, tokenizer: Tokenizer, config: Config):
        self.vlm, self.tokenizer, self.config = vlm, tokenizer, config
        if tokenizer.size > config.language.vocab_size:
            raise CheckpointError(
                f"the tokenizer has ids up to {tokenizer.size - 1}, but llm_config.vocab_size is "
                f"{config.language.vocab_size}: they are of different checkpoints"
            )
        tokens_per_tile = config.tile_grid[1] * config.tile_grid[2]
        self.prompts = PromptBuilder(tokenizer, tokens_per_tile, config.language.max_positions)

    @torch.inference_mode()
    def see(self, tiles: list[Tensor], device, dtype) -> list[Tensor]:
        """Pictures as normalised tiles [n_i, 3, S, S] → their tokens [n_i · T, hidden]."""
        return [self.vlm.see(image.to(device, dtype)).flatten(0, 1) for image in tiles]

    @torch.inference_mode()
    def embed(self, prompt: Prompt, features: list[Tensor], device) -> Tensor:
        """Embeddings [1, T, hidden] of a prompt."""
        return self._embed(prompt.ids, prompt.image_mask, features, device)

    def _embed(self, ids, image_mask, features: list[Tensor], device) -> Tensor:
        return self.vlm.embed(
            as_tensor(ids, device),
            self.tokenizer.special_ids.to(device),
            torch.tensor(image_mask, device=device),
            torch.cat(features) if features else None,
        )

    def write(
        self,
        prompt: Prompt,
        tiles: list[Tensor],
        settings: TextSettings,
        *,
        device,
        dtype,
        on_tokens: OnTokens | None = None,
    ) -> TextResult:
        """Continue a prompt in words. tiles: as in see, one entry per image of the prompt."""
        embeddings = self.embed(prompt, self.see(tiles, device, dtype), device)
        tokens = generate_tokens(self.vlm, embeddings, self.tokenizer.stop_ids, settings, on_tokens)
        return TextResult(self.tokenizer.decode(tokens), tuple(tokens))

    @torch.inference_mode()
    def read(self, prompt: Prompt, features: list[Tensor], references: list[Tensor], device) -> Branch:
        """One branch. features: one entry per image of the prompt; references: any."""
        return self._branch(prompt, prompt.ids, 0, features, references, device)

    @torch.inference_mode()
    def context(
        self,
        prompt: str,
        features: list[Tensor],
        references: list[Tensor],
        *,
        device,
        system_prompt: str | None = None,
        reasoning: TextResult | str | None = None,
        whole_reasoning: bool = False,
        negative: str = "",
        partial_negative: str = "",
    ) -> Context:
        """All branches of a picture. features and references hold one entry per image; see InternVLU.encode."""
        n = len(features)
        full = self.prompts.full(prompt, n, system_prompt)
        blank = self.prompts.unconditional(n, system_prompt, negative)
        partial = self.prompts.partial(n, system_prompt, partial_negative) if n else blank

        words, pads = self._reasoned(full, max(len(partial), len(blank)), reasoning, whole_reasoning)
        unconditional = self.read(blank, [], [], device)
        return Context(
            full=self._branch(full, words, pads, features, references, device),
            partial=self.read(partial, features, references, device) if n else unconditional,
            unconditional=unconditional,
        )

    def _reasoned(self, full: Prompt, longest_blank: int, reasoning, whole: bool) -> tuple[tuple[int, ...], int]:
        """The tokens of the full prompt and its reasoning, and how many pads go in front of them."""
        if reasoning is None:
            return full.ids, 0
        if isinstance(reasoning, str):
            return (*full.ids, *self.tokenizer.encode(reasoning)), 0
        if not isinstance(reasoning, TextResult):
            raise InputError(f"reasoning must be a TextResult or a string, not {type(reasoning).__name__}")
        tokens = reasoning.token_ids
        if not tokens:
            return full.ids, 0
        stop = next((i for i, token in enumerate(tokens) if token in self.tokenizer.stop_ids), None)
        if whole:
            return (*full.ids, *tokens[:stop]), 0
        # The official pipeline drops the last token before the stop too, and lets the pads that once aligned its
        # batch of three prompts be read as text (model.md section 5). Both look like slips, but the official pictures
        # are made with them.
        end = len(tokens) - 1 if stop is None else stop
        return (*full.ids, *tokens)[: len(full) + end - 1], max(0, longest_blank - len(full))

    def _branch(self, prompt: Prompt, ids, pads: int, features, references, device) -> Branch:
        """Read ids, which continue (or, by a token, cut) the prompt, with `<img>` behind and pads in front of them."""
        ids = [self.tokenizer.id(PAD)] * pads + [*ids, self.tokenizer.id(IMG)]
        if len(ids) > self.prompts.max_tokens:
            raise InputError(
                f"prompt and reasoning are {len(ids)} tokens long; this checkpoint reads at most "
                f"{self.prompts.max_tokens}"
            )
        image_mask = [False] * pads + list(prompt.image_mask)
        image_mask = image_mask[: len(ids)] + [False] * (len(ids) - len(image_mask))
        states = self.vlm.language_model(
            self._embed(ids, image_mask, features, device), self.config.mmdit.select_layers
        )
        hidden = torch.cat(states, dim=-1)[0]
        if not hidden.isfinite().all():
            raise FloatingPointError(f"the language model's hidden states are not finite in {hidden.dtype}")

        start, longest = pads + prompt.start, self.config.mmdit.max_context
        kept = slice(start, None if longest is None else start + longest)
        mask = torch.tensor(image_mask)[kept]
        tokens_per_image = self.prompts.tokens_per_tile
        if mask.sum() % tokens_per_image:
            raise InputError(f"the images do not fit into the {longest} tokens of context that this checkpoint reads")
        grids = [self.config.tile_grid] * int(mask.sum() // tokens_per_image)
        return Branch(hidden[kept], mask, grids, references)
