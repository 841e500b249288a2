"""The vision-language model: InternViT and Qwen3, joined by a projector (`vlm/` of a checkpoint).

Source: docs/model.md, "Vision encoder" and "Language model"; official code, commit 018a59c,
`internvlu/vlm/modeling_internvlu_chat.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.config import Config
from .float16 import scale_for_norm
from .language import Qwen3
from .operations import Operations
from .vision import InternViT

# The order of the rows of special_token_embedding.
SPECIAL_TOKENS = (
    "</box>",
    "<box>",
    "<IMG_CONTEXT>",
    "</img>",
    "<img>",
    "</quad>",
    "<quad>",
    "</ref>",
    "<ref>",
    "<img_uncond>",
)


class VLM(nn.Module):
    """Token ids and pictures → embeddings for its language model.

    Arguments as in InternViT. compute_dtype: the dtype of embeddings, and so of all that follows; None: that of the
    table. A host that stores weights in another dtype sets it.
    """

    def __init__(self, config: Config, operations=Operations, attention=F.scaled_dot_product_attention, **factory):
        super().__init__()
        vision, language = config.vision, config.language
        self.vision_model = InternViT(vision, operations, attention, **factory)
        self.mlp1 = nn.Sequential(
            operations.LayerNorm(vision.token_size, **factory),
            operations.Linear(vision.token_size, language.hidden_size, **factory),
            nn.GELU(),
            operations.Linear(language.hidden_size, language.hidden_size, **factory),
        )
        self.language_model = Qwen3(language, operations, attention, **factory)
        self.special_token_embedding = operations.Embedding(len(SPECIAL_TOKENS), language.hidden_size, **factory)
        self.compute_dtype: torch.dtype | None = None

    def image_features(self, pixels: Tensor) -> Tensor:
        """Normalised tiles [N, 3, S, S] → tokens for the language model [N, T, hidden]."""
        return self.mlp1(scale_for_norm(self.vision_model(pixels), pixels.dtype))

    def embed(
        self, ids: Tensor, special_ids: Tensor, image_mask: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """Embeddings [B, T, hidden] of a prompt, in which special tokens have a table of their own.

        ids [B, T]. special_ids [10]: ids of SPECIAL_TOKENS. Positions that image_mask [T] marks take the rows of
        features [sum of mask, hidden] in order.
        """
        x = self.embed_generated(ids)
        hits = ids[..., None] == special_ids  # [B, T, 10]
        special = self.special_token_embedding(hits.int().argmax(-1)).to(x.dtype)
        x = torch.where(hits.any(-1, keepdim=True), special, x)
        if features is not None:
            x[:, image_mask] = features.to(x.dtype)
        return x

    def embed_generated(self, ids: Tensor) -> Tensor:
        """Embeddings [B, T, hidden] of generated tokens [B, T]: special tokens too have those of the main table."""
        return self.language_model.model["embed_tokens"](ids).to(dtype=self.compute_dtype)
