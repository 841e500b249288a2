"""The VLM type: vision-language model, tokenizer and processor settings, under ComfyUI's memory management."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention_for_device
from PIL import Image

from ...internvlu_core import imaging
from ...internvlu_core.batching import BatchLimits
from ...internvlu_core.checkpoints.config import Config
from ...internvlu_core.conditioning import Branch, Conditioner, Context, TextResult, ToWrite, fingerprint
from ...internvlu_core.decoding import TextSettings, limit_to_context
from ...internvlu_core.grounding import answer_text
from ...internvlu_core.models.language import cache_bytes
from ...internvlu_core.models.vlm import VLM
from ...internvlu_core.prompt import Prompt, Tokenizer
from ...internvlu_core.replay import can_replay
from .dtypes import as_floats, assign, choose_dtypes
from .patcher import Patcher
from .quantised import Formats
from .stream import TextStream, TextStreams


def attention(q, k, v, is_causal=False, attn_mask=None):
    """ComfyUI's attention for text encoders, for q, k, v [B, heads, T, head_dim]. attn_mask [B, 1, 1, T′]: is added."""
    mask = attn_mask
    if is_causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -torch.finfo(q.dtype).max)
    function = optimized_attention_for_device(q.device, mask=mask is not None, small_input=True)
    return function(q, k, v, q.shape[1], mask=mask, skip_reshape=True, skip_output_reshape=True)


WRITTEN = 32  # results at temperature 0 that are kept


def weights_of(patcher: comfy.model_patcher.ModelPatcher) -> Hashable | None:
    """Which weights a network has while this patcher's patches are on it, for the core's Conditioner."""
    # ComfyUI gives weights that are patched otherwise another uuid, but does not for what these do.
    unclear = patcher.object_patches or patcher.hook_patches or patcher.forced_hooks
    return None if unclear else patcher.patches_uuid


def stays_on_device(patcher: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether all weights are on a CUDA device, and ComfyUI will not move them while a text is written."""
    dynamic = getattr(patcher, "is_dynamic", bool)()  # not in ComfyUI 0.3.75
    return not dynamic and not patcher.model.model_lowvram and can_replay(patcher.model)


class ComfyVLM:
    """What the loader puts on the VLM socket."""

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        state_dict: dict,
        dtype: torch.dtype | None,
        formats: Formats = MappingProxyType({}),
    ):
        """dtype, formats: as in build_model."""
        self.config, self.tokenizer = config, tokenizer
        self.load_device = comfy.model_management.text_encoder_device()
        offload_device = comfy.model_management.text_encoder_offload_device()
        formats = as_floats(state_dict, formats, dtype)
        weight_dtype, cast_dtype = choose_dtypes(state_dict, dtype, self.load_device, formats)
        self.dtype = cast_dtype or weight_dtype
        operations = comfy.ops.pick_operations(weight_dtype, self.dtype)
        network = VLM(config, operations, attention, dtype=weight_dtype, device="meta")
        network.compute_dtype = self.dtype
        more = {"formats": formats, "load_device": self.load_device, "exact": True}
        assign(network, state_dict, weight_dtype, offload_device, self.dtype, **more)
        self.patcher = Patcher(network, load_device=self.load_device, offload_device=offload_device)
        self.conditioner = Conditioner(network, tokenizer, config, partial(weights_of, self.patcher))
        self.conditioner.can_replay = partial(stays_on_device, self.patcher)
        self.written: OrderedDict[tuple, TextResult] = OrderedDict()

    def get_ram_usage(self) -> int:
        """Bytes; ComfyUI's cache asks."""
        return self.patcher.model_size()

    def load(self, tokens: int):
        """Bring the weights to the device, with room for working on this many tokens."""
        language = self.config.language
        per_token = 4 * language.mlp_size + 2 * language.num_layers * language.num_kv_heads * language.head_dim
        needed = tokens * per_token * self.dtype.itemsize
        comfy.model_management.load_models_gpu([self.patcher], memory_required=needed)

    def with_patcher(self, patcher: comfy.model_patcher.ModelPatcher) -> "ComfyVLM":
        """The same network under other patches (LoRA)."""
        other = copy.copy(self)
        other.patcher = patcher
        other.conditioner = self.conditioner.with_weights(partial(weights_of, patcher))
        return other

    def encode_text(self, text: str, images: list[Image.Image]) -> Branch:
        """The full branch of a prompt, its pictures as ViT tokens only; of an empty one, the unconditional branch."""
        self.load(tokens=1024)
        features = self.conditioner.image_features(self.see(images), self.load_device, self.dtype)
        prompts = self.conditioner.prompts
        blank = not text.strip() and not images
        prompt = prompts.unconditional(0, None) if blank else prompts.full(text, len(images), None)
        return self.conditioner.read(prompt, features, [], self.load_device)

    def context(self, prompt: str, images: list[Image.Image], references: list[torch.Tensor], **settings) -> Context:
        """The branches of a picture to draw. references: raw latents, one for each image. settings: the core's."""
        self.load(tokens=1024)
        features = self.conditioner.image_features(self.see(images), self.load_device, self.dtype)
        return self.conditioner.context(prompt, features, references, device=self.load_device, **settings)

    def see(self, images: list[Image.Image], max_tiles: int = 1) -> list[torch.Tensor]:
        """Normalised tiles of each picture."""
        return [imaging.vit_tiles(image, self.config.processor, max_tiles) for image in images]

    def decode(self, tokens) -> str:
        """The text of an answer, with the markers of boxes that InternVL-U Boxes reads."""
        return answer_text(self.tokenizer, tokens)

    def as_generated(self, text: str, max_new_tokens: int) -> TextResult:
        """A text as the result of generating it, so that it gives the same picture as a generated one.

        One that has just so many tokens as the model may generate was cut off there, before the token that ends a text.
        """
        tokens = tuple(self.tokenizer.encode(text))
        return TextResult(text, tokens if len(tokens) == max_new_tokens else (*tokens, self.tokenizer.stop_ids[0]))

    def generate(
        self,
        prompt: Prompt,
        tiles: list[torch.Tensor],
        settings: TextSettings,
        stream: Callable[[int, Callable[[], str]], None] | None = None,
        keep: bool = False,
    ) -> TextResult:
        """Continue a prompt, under a progress bar. ComfyUI's cancel raises out of it.

        stream is called after each token, with the number of tokens and a function that gives their text. keep: let the
        result have a prefix cache, for Encode; it waits where weights wait, as ComfyUI's cache may hold it for long.
        """
        settings = limit_to_context(settings, len(prompt), self.config.language.max_positions)
        self.load(settings.num_beams * (len(prompt) + settings.max_new_tokens))
        bar = comfy.utils.ProgressBar(settings.max_new_tokens)

        def on_tokens(tokens: list[int]):
            comfy.model_management.throw_exception_if_processing_interrupted()  # newer bars look only now and then
            bar.update_absolute(len(tokens))
            if stream:
                stream(len(tokens), lambda: self.decode(tokens))

        return self.conditioner.write(
            prompt,
            tiles,
            settings,
            device=self.load_device,
            dtype=self.dtype,
            on_tokens=on_tokens,
            keep=self.patcher.offload_device if keep else None,
        )

    def write(
        self, prompt: Prompt, tiles: list[torch.Tensor], settings: TextSettings, stream: TextStream, keep: bool = False
    ) -> TextResult:
        """As generate, but at temperature 0 the same text is not generated twice.

        ComfyUI runs a node again whenever one of its inputs has changed, even a seed that has no effect.
        """
        key = self._key(prompt, tiles, settings)
        if key in self.written:
            result = self.written[key]
            stream(len(result.token_ids), lambda: self.decode(result.token_ids))
            return result
        result = self.generate(prompt, tiles, settings, stream, keep)
        self._remember(key, result)
        return result

    def write_many(
        self,
        jobs: Sequence[tuple[Callable[[], ToWrite], int]],
        streams: Sequence[TextStream],
        ended: Callable[[int], None],
    ) -> list[TextResult]:
        """As write for several items, in one decoding loop, under one progress bar. The results have no prefix cache.

        jobs: of each item a function that gives the arguments of Conditioner.write, called when there is room for it,
        and its max_new_tokens. streams: of each item. ended(item) is called when it is written. The first error ends
        all.
        """
        most = [tokens for _, tokens in jobs]
        results: dict[int, TextResult] = {}
        items: list[int] = []  # those that are generated, in the order in which they begin
        keys: list[tuple | None] = []
        done, bar = [0] * len(jobs), comfy.utils.ProgressBar(sum(most))

        def advance(item: int, tokens: int):
            comfy.model_management.throw_exception_if_processing_interrupted()
            done[item] = tokens
            bar.update_absolute(sum(done))

        def finish(item: int, result: TextResult):
            results[item] = result
            ended(item)
            advance(item, most[item])

        def makers() -> Iterator[Callable[[], ToWrite]]:
            for item, (make, _) in enumerate(jobs):
                to_write = make()
                key = self._key(*to_write)
                if key in self.written:
                    token_ids = self.written[key].token_ids
                    streams[item](len(token_ids), partial(self.decode, token_ids))
                    finish(item, self.written[key])
                    continue
                items.append(item)
                keys.append(key)
                yield lambda to_write=to_write: to_write

        def on_tokens(index: int, token_ids: list[int]):
            advance(items[index], len(token_ids))
            streams[items[index]](len(token_ids), lambda: self.decode(token_ids))

        where = {"device": self.load_device, "dtype": self.dtype}
        limits = self._limits(most)
        for index, found in self.conditioner.write_many(makers(), **where, limits=limits, on_tokens=on_tokens):
            if isinstance(found, Exception):
                raise found
            self._remember(keys[index], found)
            finish(items[index], found)
        return [results[item] for item in range(len(jobs))]

    def _limits(self, most: list[int]) -> BatchLimits:
        """How many texts of at most so many tokens are written at once; brings the weights to the device."""
        memory = comfy.model_management.get_total_memory(self.load_device) // 4
        limits = BatchLimits(cache_bytes=int(min(BatchLimits.cache_bytes, memory)))
        tokens = min(limits.rows, len(most)) * (max(most) + 1024)
        self.load(min(tokens, limits.cache_bytes // cache_bytes(self.config.language, self.dtype)))
        return limits

    def _key(self, prompt: Prompt, tiles: list[torch.Tensor], settings: TextSettings) -> tuple | None:
        """What a text at temperature 0 depends on; None for others, and where the weights are not known."""
        weights = self.conditioner.weights()
        if settings.temperature or weights is None:
            return None
        return prompt.ids, prompt.image_mask, tuple(map(fingerprint, tiles)), replace(settings, seed=None), weights

    def _remember(self, key: tuple | None, result: TextResult):
        if key is None:
            return
        self.written[key] = replace(result, prefix_cache=None)  # which is large, and ComfyUI could not free it
        while len(self.written) > WRITTEN:
            self.written.popitem(last=False)


def write_each(
    jobs: Sequence[tuple[ComfyVLM, Callable[[], ToWrite], int]], shown: TextStreams, keep: bool = False
) -> list[TextResult]:
    """Write the texts of a node's items, those of one VLM together. jobs: (vlm, as in write_many …) of each item.

    keep: as in ComfyVLM.generate, for a single item; the caches of many could fill the memory.
    """
    if len(jobs) == 1:
        ((vlm, make, _),) = jobs
        return [vlm.write(*make(), shown.streams[0], keep)]
    results: dict[int, TextResult] = {}
    for vlm in dict.fromkeys(vlm for vlm, _, _ in jobs):
        own = [index for index, job in enumerate(jobs) if job[0] is vlm]
        written = vlm.write_many(
            [jobs[index][1:] for index in own],
            [shown.streams[index] for index in own],
            lambda item, own=own: shown.finish(own[item]),
        )
        results |= zip(own, written, strict=True)
    return [results[index] for index in range(len(jobs))]
