"""InternVL-U from end to end: load a checkpoint, answer, reason, draw and edit.

docs/model.md describes the model stage by stage. Official code, commit 018a59c: `internvlu/pipeline_internvlu.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from . import guidance, imaging, sampling
from .batching import BatchLimits
from .checkpoints import load as weights
from .checkpoints.config import Config
from .checkpoints.files import open_source
from .conditioning import Branch, Conditioner, Context, TextResult, ToWrite
from .conversation import pictures_of
from .errors import MAX_BYTES, MAX_SETTING, InputError, check_integer
from .grounding import answer_text
from .many import Entry, Order, Outcome, Pool
from .models.attention import Attention, find_attention
from .models.mmdit import MMDiT, Prepared, pack, working_bytes
from .models.vae import VAE
from .models.vlm import VLM
from .prompt import Tokenizer
from .quantization import WEIGHT_FORMATS, WeightFormat, find_format
from .requests import ANSWER_ONLY, DRAW_ONLY, REASON_TOKENS, DrawRequest, TextRequest, as_request, from_settings
from .sampling import OnStep

if TYPE_CHECKING:
    from .offload import Offload

OnToken = Callable[[int, str], None]  # (number of tokens so far, their text)
OnTokenOf = Callable[[int, int, str], None]  # the same, after the index of the request
OnStepOf = Callable[[int, int, int, Tensor], None]  # OnStep, after the index of the request

MAX_SIDE = 16_384  # pixels; also the largest side that ComfyUI's nodes accept


@dataclass(frozen=True)
class GenerateResult:
    """Pictures as generate draws them.

    images: 8-bit RGB. latents: the normalised latents [n, z, h, w] that they were decoded from, float32.
    """

    images: list[Image.Image]
    latents: Tensor


@dataclass(frozen=True)
class Drawing:
    """A picture that is ready to be sampled. size: (height, width) in pixels. scales: (all_scale, partial_scale)."""

    request: DrawRequest
    size: tuple[int, int]
    scales: tuple[float, float]
    noise: Tensor
    context: Context


class InternVLU:
    """The model on one device.

    Calls do not change it: after an error or a cancelled call, the next call works as before. It caches the image
    features of the last pictures. Changes of the weights are noticed, in place or by assignment, except for changes
    through a parameter's `.data`, or in place of a model that was loaded under torch.inference_mode().

    config, tokenizer: of the checkpoint. device, dtype: where and in which dtype it computes. conditioner: the stage
    between prompts and the MMDiT.
    """

    def __init__(
        self, config: Config, tokenizer: Tokenizer, vlm: VLM, mmdit: MMDiT, vae: VAE, offload: "Offload | None" = None
    ):
        """offload: moves the networks' weights to the device when they are used; None: they are there."""
        self.config, self.tokenizer = config, tokenizer
        self.vlm, self.mmdit, self.vae = vlm.eval(), mmdit.eval(), vae.eval()
        self.conditioner = Conditioner(vlm, tokenizer, config)
        self.offload = offload
        parameter = next(p for p in mmdit.parameters() if p.is_floating_point())  # packed ones are bytes
        self.device, self.dtype = offload.device if offload else parameter.device, parameter.dtype

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str | WeightFormat = "auto",
        *,
        device_map: str | None = None,
        max_memory: int | str | None = None,
        attention: str | Attention = "auto",
    ) -> "InternVLU":
        """Load a checkpoint: a folder in the released layout, or files that the converter has made of one.

        dtype: a floating-point dtype; "auto" for the checkpoint's own where the device computes in it; or a weight
        format (quantization.WEIGHT_FORMATS, by name, or torch.float8_e4m3fn), which stores large matrices in fewer bits
        and computes in what "auto" means.
        device_map="auto": weights that do not fit on the device stay in main memory and are moved when they are used.
        max_memory: bytes of weights on the device at once, or a text such as "5GB"; by default the free memory less
        2 GiB, which 1024 × 1024 needs beside the weights: four drawings at once, or an edit of two pictures.
        attention: how the MMDiT computes its attention: "torch", which "auto" is too; "sage" or "flash" by the package
        sageattention or flash-attn; "varlen" by torch's attention for sequences of different lengths; or a function
        of q, k, v [B, heads, T, head_dim]. The three need a GPU and float16 or bfloat16; "sage" is not exact.

        Raises CheckpointError if anything in the checkpoint is missing, unknown, damaged or contradictory, InputError
        for an argument that cannot be used.
        """
        source = open_source(path)
        config = Config.read(source)
        device = usable_device(device)
        if device_map not in (None, "auto"):
            raise InputError(f"device_map is {device_map!r}; it must be 'auto' or None")
        if max_memory is not None and device_map is None:
            raise InputError("max_memory has no effect without device_map='auto'")
        weight_format = find_format(dtype)
        if dtype == "auto" or weight_format:
            dtype = choose_dtype(weights.stored_dtype(source, weights.MMDIT_NAMES), device)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
            known = ", ".join(map(repr, WEIGHT_FORMATS))
            raise InputError(f"dtype is {dtype!r}; it must be 'auto', a torch dtype such as torch.bfloat16, or {known}")
        with source.tokenizer_folder() as folder:
            tokenizer = Tokenizer(folder)
        attention = find_attention(attention, device, dtype, config.mmdit.head_dim)
        asked = {"dtype": dtype, "device": device, "weight_format": weight_format}
        if not device_map:
            networks = weights.load_networks(source, config, **asked)
            networks.mmdit.use_attention(attention)
            return cls(config, tokenizer, *networks)
        from .offload import Offload, memory_limit  # imports accelerate, which takes a second

        limit = memory_limit(max_memory, device)  # before quantising, whose memory torch may keep for later
        networks, states = weights.stage_networks(source, config, **asked)
        networks.mmdit.use_attention(attention)
        staged = dict(zip(("VLM", "MMDiT", "VAE"), zip(networks, states, strict=True), strict=True))
        return cls(config, tokenizer, *networks, Offload(staged, device, limit))

    def compile(self, *, text: bool = False, **options) -> None:
        """Compile the MMDiT's blocks with torch.compile, which takes effect with the next picture.

        options: those of torch.compile, except dynamic. The first picture of each kind (drawn, or edited from so many
        pictures) takes up to a minute longer; other sizes and prompts do not. Worth it on a GPU (docs/speed.md); on a
        CPU it gains a few percent.

        text (experimental): also compile the step that decodes a token, with mode="reduce-overhead" unless options
        name a mode or a backend. Each 256 tokens of text are compiled anew, which took minutes on a GPU; without it the
        step is a CUDA graph by itself.
        """
        for block in self.mmdit.transformer_blocks:
            block.compile(dynamic=True, **options)
        if text:
            default = {} if options.keys() & {"mode", "backend", "options"} else {"mode": "reduce-overhead"}
            self.conditioner.compile_options = default | options

    # Text

    def answer(
        self,
        prompt: str | TextRequest,
        images: Iterable[Image.Image] | Image.Image | None = None,
        *,
        on_token: OnToken | None = None,
        **settings,
    ) -> TextResult:
        """Answer a question, about pictures if any are given.

        prompt, images, settings: those of TextRequest, or a TextRequest alone. on_token(tokens so far, their text) is
        called after each token and may raise to cancel. To continue a conversation, append
        Turn(prompt, result.text, images) to its history; max_tiles and system_prompt hold for all of its turns.

        The text keeps the markers of boxes, for grounding.parse_boxes. Raises InputError naming the value that cannot
        be used, TypeError for an unknown setting, FloatingPointError if logits are not finite.
        """
        request = as_request(TextRequest, prompt, images, settings)
        return self._write(self._to_answer(request), on_token, partial(answer_text, self.tokenizer))

    def answer_many(
        self,
        requests: Iterable[TextRequest | Mapping],
        *,
        rows: int = BatchLimits.rows,
        cache_bytes: int = BatchLimits.cache_bytes,
        ordered: bool = False,
        on_token: OnTokenOf | None = None,
    ) -> Iterator[Outcome[TextResult]]:
        """Answer many questions in one decoding loop, and yield each outcome when it is there.

        requests: TextRequests, or mappings of their settings; they may differ in everything. One is taken from the
        iterable when there is room for it. rows, cache_bytes: how many are written at once, see BatchLimits. ordered:
        yield in the order of the requests. on_token(index, tokens so far, their text) may raise to cancel all.

        In float32 the tokens are those of answer for each request. In 16 bits they can differ where two tokens are
        nearly equally likely, since a batch rounds differently. Whatever is wrong with one request is its outcome's
        error; nothing is raised for it. Beam searches run one by one. Raises InputError for bad limits.
        """
        limits = BatchLimits(rows, cache_bytes)
        decode = partial(answer_text, self.tokenizer)
        return self._write_many(
            requests,
            lambda given: self._to_answer(from_settings(TextRequest, given)),
            decode,
            limits,
            ordered,
            on_token,
        )

    def _to_answer(self, request: TextRequest) -> ToWrite:
        tiles = self._tiles([*pictures_of(request.history), *request.images], request.max_tiles)
        chat = self.conditioner.prompts.chat(
            request.prompt, [len(t) for t in tiles], request.system_prompt, request.history
        )
        return chat, tiles, request.settings

    def reason(
        self,
        prompt: str | TextRequest,
        images: Iterable[Image.Image] | Image.Image | None = None,
        *,
        on_token: OnToken | None = None,
        **settings,
    ) -> TextResult:
        """Write the reasoning about a picture to draw; the result is the `reasoning` of generate.

        Arguments and errors as in answer, without max_tiles and history; max_new_tokens is 200 by default.
        """
        if not isinstance(prompt, TextRequest):
            settings = {"max_new_tokens": REASON_TOKENS, **settings}
        request = as_request(TextRequest, prompt, images, settings, without=ANSWER_ONLY)
        return self._write(self._to_reason(request), on_token, self.tokenizer.decode, keep=self.device)

    def reason_many(
        self,
        requests: Iterable[TextRequest | Mapping],
        *,
        rows: int = BatchLimits.rows,
        cache_bytes: int = BatchLimits.cache_bytes,
        ordered: bool = False,
        on_token: OnTokenOf | None = None,
    ) -> Iterator[Outcome[TextResult]]:
        """Write many reasonings in one decoding loop, as answer_many does answers.

        The results have no prefix cache, since those of a long list would not fit into memory.
        """

        def to_reason(given: TextRequest | Mapping) -> ToWrite:
            if isinstance(given, Mapping):
                given = {"max_new_tokens": REASON_TOKENS, **given}
            return self._to_reason(from_settings(TextRequest, given, without=ANSWER_ONLY))

        limits = BatchLimits(rows, cache_bytes)
        return self._write_many(requests, to_reason, self.tokenizer.decode, limits, ordered, on_token)

    def _to_reason(self, request: TextRequest) -> ToWrite:
        tiles = self._tiles(request.images)
        return (
            self.conditioner.prompts.full(request.prompt, len(tiles), request.system_prompt),
            tiles,
            request.settings,
        )

    def _write(self, to_write: ToWrite, on_token: OnToken | None, decode, keep=None) -> TextResult:
        """Continue a prompt. decode: token ids → text. keep: as in Conditioner.write."""

        def told(token_ids: list[int]):
            on_token(len(token_ids), decode(token_ids))
            self._use(self.vlm)  # the caller may have used another network

        self._use(self.vlm)
        result = self.conditioner.write(
            *to_write,
            device=self.device,
            dtype=self.dtype,
            on_tokens=on_token and told,
            keep=keep,
        )
        return replace(result, text=decode(result.token_ids))

    def _write_many(
        self, requests: Iterable, to_write, decode, limits: BatchLimits, ordered: bool, on_token: OnTokenOf | None
    ) -> Iterator[Outcome[TextResult]]:
        """to_write: request → arguments of Conditioner.write. decode: token ids → text."""
        given, order = {}, Order(ordered)

        def makers() -> Iterator[Callable[[], ToWrite] | None]:
            for index, request in enumerate(requests):
                while order.full:
                    yield None
                given[index] = request
                self._use(self.vlm)  # the iterable may have used another network
                yield partial(to_write, request)
            self._use(self.vlm)

        def told(index: int, token_ids: list[int]):
            on_token(index, len(token_ids), decode(token_ids))
            self._use(self.vlm)  # the caller may have used another network

        written = self.conditioner.write_many(
            makers(),
            device=self.device,
            dtype=self.dtype,
            limits=limits,
            on_tokens=on_token and told,
        )
        while True:
            self._use(self.vlm)  # the caller may have used another network since the last outcome
            index, found = next(written, (None, None))
            if index is None:
                return
            failed = isinstance(found, Exception)
            result = None if failed else replace(found, text=decode(found.token_ids))
            yield from order.give(Outcome(index, given.pop(index), result, found if failed else None))

    # Pictures

    def encode(
        self,
        prompt: str | DrawRequest,
        images: Iterable[Image.Image] | Image.Image | None = None,
        **settings,
    ) -> Context:
        """Everything that conditions the MMDiT.

        prompt, images, settings: those of DrawRequest that concern its conditioning (system_prompt, reasoning,
        whole_reasoning, negative, partial_negative), or a DrawRequest alone. Raises InputError naming the value that
        cannot be used, TypeError for an unknown setting, FloatingPointError if hidden states are not finite.
        """
        request = as_request(DrawRequest, prompt, images, settings, without=DRAW_ONLY)
        pixels = [imaging.reference_pixels(image, self.config.processor) for image in request.images]
        references = [self._encode_reference(p) for p in pixels]
        self._use(self.vlm)
        features = self.conditioner.image_features(self._tiles(request.images), self.device, self.dtype)
        return self.conditioner.context(request, features, references, device=self.device)

    def generate(
        self,
        prompt: str | DrawRequest,
        images: Iterable[Image.Image] | Image.Image | None = None,
        *,
        latents: Tensor | None = None,
        callback: OnStep | None = None,
        **settings,
    ) -> GenerateResult:
        """Draw a picture, or edit pictures.

        prompt, images, settings: those of DrawRequest, or a DrawRequest alone. latents: the noise itself
        [num_images, z, h, w], in place of a seed. callback(step, steps, denoised latents) is called after each step
        and may raise to cancel. Raises InputError naming the value that cannot be used, TypeError for an unknown
        setting, FloatingPointError if a result is not finite.
        """
        if latents is not None and settings:
            settings["seed"] = 0  # has no effect, so need not be valid
        request = as_request(DrawRequest, prompt, images, settings)
        drawing = self._drawing(request, latents)
        sigmas = self._sigmas(request)
        latents = self.sample(drawing.context, drawing.noise, sigmas, *drawing.scales, callback, request.guided)
        return self._finish(drawing, latents)

    def generate_many(
        self,
        requests: Iterable[DrawRequest | Mapping],
        *,
        pictures: int = 16,
        memory: int = 2 * 2**30,
        ordered: bool = False,
        callback: OnStepOf | None = None,
    ) -> Iterator[Outcome[GenerateResult]]:
        """Draw or edit many pictures, those of one size together, and yield each outcome when it is there.

        requests: DrawRequests, or mappings of their settings. Those of equal size, steps, guided steps and num_images
        are drawn together, whatever else differs; at most 2 · pictures requests are taken from the iterable ahead.
        pictures: how many are drawn together, at most. memory: bytes that they may need at once beside the weights; one
        request is always drawn. ordered: yield in the order of the requests. callback(index, step, steps, denoised
        latents [n, z, h, w]) is called for each request after each step and may raise to cancel all.

        In float32 the pictures are those of generate for each request, within one level of 255. Whatever is wrong with
        one request is its outcome's error; nothing is raised for it. Raises InputError for bad limits.
        """
        check_integer("pictures", pictures, 1, MAX_SETTING)
        check_integer("memory", memory, 0, MAX_BYTES)
        return self._draw_many(Pool(requests, self._read_drawing, 2 * pictures), pictures, memory, ordered, callback)

    def _draw_many(
        self, pool: Pool, pictures: int, memory: int, ordered: bool, callback: OnStepOf | None
    ) -> Iterator[Outcome[GenerateResult]]:
        order = Order(ordered)
        while group := pool.group(lambda key: max(1, pictures // key[0][0])):
            together = self._make_drawings(group, memory)
            sampled = self._sample_what_fits([entry for entry in together if not entry.error], callback)
            pool.waiting = [entry for entry in pool.waiting if entry not in together]
            for entry in together:
                result = None
                try:
                    result = None if entry.error else self._finish(entry.drawing, sampled[entry.index])
                except (FloatingPointError, torch.cuda.OutOfMemoryError) as error:
                    entry.error = error
                yield from order.give(Outcome(entry.index, entry.given, result, entry.error))

    def _read_drawing(self, given: DrawRequest | Mapping) -> tuple[DrawRequest, tuple]:
        """The request, and what must be equal of those that are drawn together."""
        request = from_settings(DrawRequest, given)
        shape = self._latent_shape(*self._size(request), request.num_images)
        return request, (shape, request.steps, request.guided)

    def _make_drawings(self, group: list[Entry], memory: int) -> list[Entry]:
        """The first of these entries, made ready or with an error: as many as need no more than these bytes at once."""
        together, needed = [], 0
        for entry in group:
            if not entry.drawing and not entry.error:
                try:
                    entry.drawing = self._drawing(entry.request)
                except Exception as error:  # whatever is wrong with one request is not the others'
                    entry.error = error
            if entry.error:
                together.append(entry)
                continue
            needed += self._working_bytes(entry.drawing)
            if needed > memory and any(not other.error for other in together):
                break
            together.append(entry)
        return together

    def _working_bytes(self, drawing: Drawing) -> int:
        """Bytes that a step of this picture needs beside the weights."""
        context, patch = drawing.context, self.config.mmdit.patch_size
        tokens = 0
        for branch in guidance.distinct(context.full, context.partial, context.unconditional):
            latents = sum(latent.shape[-2:].numel() for latent in (drawing.noise, *branch.references))
            tokens += len(drawing.noise) * (latents // patch**2 + branch.hidden.shape[-2])
        return working_bytes(self.config.mmdit, tokens, self.dtype)

    def _sample_what_fits(self, entries: list[Entry], callback: OnStepOf | None) -> dict[int, Tensor]:
        """As _sample_entries, in halves where memory runs out; an entry that does not fit alone gets the error."""
        try:
            return self._sample_entries(entries, callback)
        except torch.cuda.OutOfMemoryError as error:
            if len(entries) == 1:
                entries[0].error = error
                return {}
        half = len(entries) // 2  # here the error holds no memory any more
        return self._sample_what_fits(entries[:half], callback) | self._sample_what_fits(entries[half:], callback)

    def _sample_entries(self, entries: list[Entry], callback: OnStepOf | None) -> dict[int, Tensor]:
        """{index: latents} of entries of one key."""
        if not entries:
            return {}

        def report(step: int, steps: int, denoised: Tensor):
            for entry, latents in zip(entries, denoised, strict=True):
                callback(entry.index, step, steps, latents)

        drawings = [entry.drawing for entry in entries]
        sampled = self._sample(
            [drawing.context for drawing in drawings],
            [drawing.noise for drawing in drawings],
            self._sigmas(drawings[0].request),
            [drawing.scales for drawing in drawings],
            callback and report,
            drawings[0].request.guided,
        )
        return {entry.index: latents for entry, latents in zip(entries, sampled, strict=True)}

    def _drawing(self, request: DrawRequest, latents: Tensor | None = None) -> Drawing:
        """The request, checked and made ready. latents: as in generate."""
        height, width = self._size(request)
        scales = self.config.mmdit.guidance(request.reasoning is not None, request.all_scale, request.partial_scale)
        noise = self.noise(height, width, request.seed, request.num_images) if latents is None else latents
        self._check_noise(noise, height, width, request.num_images)
        return Drawing(request, (height, width), scales, noise, self.encode(request))

    def _sigmas(self, request: DrawRequest) -> Tensor:
        return sampling.flow_sigmas(request.steps, self.config.mmdit.flow_shift)

    def _finish(self, drawing: Drawing, latents: Tensor) -> GenerateResult:
        """The pictures of sampled latents. Raises FloatingPointError if they are not finite."""
        height, width = drawing.size
        pictures = imaging.to_pictures(self.decode(sampling.check_sampled(latents)))
        if pictures[0].size != (width, height):
            pictures = [picture.resize((width, height), Image.Resampling.LANCZOS) for picture in pictures]
        return GenerateResult(pictures, latents)

    def noise(self, height: int, width: int, seed: int, num_images: int = 1) -> Tensor:
        """The noise [num_images, z, h, w] that generate starts from for this seed and size in pixels, float32."""
        return sampling.initial_noise(self._latent_shape(height, width, num_images), seed)

    def sample(
        self,
        context: Context,
        noise: Tensor,
        sigmas: Tensor,
        all_scale: float,
        partial_scale: float,
        callback: OnStep | None = None,
        guided: tuple[float, float] = (0.0, 1.0),
    ) -> Tensor:
        """Noise [n, z, h, w] → normalised latents, float32.

        context: of one prompt, or of n prompts whose branches have a batch axis (hidden [n, T, C], references
        [n, z, h_i, w_i]). sigmas: see sampling.flow_sigmas. callback: as in generate. guided: guidance_start and
        guidance_end of DrawRequest. Raises FloatingPointError if the result is not finite.
        """
        report = callback and (lambda step, steps, denoised: callback(step, steps, denoised[0]))
        sampled = self._sample([context], [noise], sigmas, [(all_scale, partial_scale)], report, guided)
        return sampling.check_sampled(sampled[0])

    def _sample(
        self,
        contexts: Sequence[Context],
        noises: Sequence[Tensor],
        sigmas: Tensor,
        scales: Sequence[tuple[float, float]],
        callback: OnStep | None,
        guided: tuple[float, float],
    ) -> Tensor:
        """As sample for N requests of one size, all branches in one forward → [N, n, z, h, w], not checked.

        callback: as in sampling.sample. guided: as in sample, for all requests.
        """
        branches = [guidance.distinct(c.full, c.partial, c.unconditional) for c in contexts]
        prepared = [[self._prepare(branch, noises[0]) for branch in found] for found in branches]
        levels = tuple(sampling.sigma_at(fraction, self.config.mmdit.flow_shift) for fraction in guided)

        @cache
        def packed(guided: bool) -> tuple[Prepared, list[int]]:
            """All branches, or the full ones, as one, and how many there are of each request."""
            used = [found if guided else found[:1] for found in prepared]
            return pack([branch for found in used for branch in found]), [len(found) for found in used]

        def velocities(latents: Sequence[Tensor], timestep: float, guided: bool) -> list[Sequence[Tensor]]:
            together, counts = packed(guided)
            if len(latents) > 1:
                latents = [x for x, count in zip(latents, counts, strict=True) for _ in range(count)]
            each = iter(self._velocities(together, latents, timestep))
            return [list(islice(each, count)) for count in counts]

        noises = [noise.to(self.device) for noise in noises]
        return sampling.sample(velocities, noises, sigmas, scales, callback, levels)

    def velocity(self, branch: Branch, x: Tensor, timestep: Tensor | float) -> Tensor:
        """The MMDiT's output [n, z, h, w] for one branch, float32, at one timestep of 0…1000."""
        return self._velocities(self._prepare(branch, x), [x], float(timestep))[0]

    @torch.inference_mode()
    def _prepare(self, branch: Branch, latents: Tensor) -> Prepared:
        """What stays the same in all steps for latents [n, z, h, w] of this branch."""
        self._use(self.mmdit)
        hidden = branch.hidden if branch.hidden.ndim == 3 else branch.hidden[None]
        return self.mmdit.prepare(
            self.mmdit.grid(latents),
            self.mmdit.bound_context(hidden).to(self.device, self.dtype),
            branch.image_mask,
            branch.image_grids,
            [reference.to(self.device, self.dtype) for reference in branch.references],
        )

    @torch.inference_mode()
    def _velocities(self, prepared: Prepared, latents: Sequence[Tensor], timestep: float) -> list[Tensor]:
        """latents: for all branches, or one for each."""
        self._use(self.mmdit)  # a callback may have used another network
        latents = [x.to(self.device, self.dtype) for x in latents]
        times = torch.full((len(latents[0]),), timestep, dtype=torch.float32, device=self.device)
        return [v.float() for v in self.mmdit.velocities(latents, times, prepared)]

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [n, z, h, w] → pixels [n, 3, 8h, 8w] in [-1, 1], float32, one picture at a time.

        Raises FloatingPointError if they are not finite.
        """
        self._use(self.vae)
        pixels = torch.cat([self.vae.decode(one[None].to(self.device, self.dtype)) for one in latents]).float()
        if not pixels.isfinite().all():
            raise FloatingPointError(f"the decoded pixels are not finite in {self.dtype}; try bfloat16 or float32")
        return pixels

    @torch.inference_mode()
    def _encode_reference(self, pixels: Tensor) -> Tensor:
        self._use(self.vae)
        return self.vae.encode(pixels.to(self.device, self.dtype))

    def _use(self, network: nn.Module):
        """Say that this network is needed now."""
        if self.offload:
            self.offload.use(network)

    # Arguments

    def _tiles(self, images: Iterable[Image.Image], max_tiles: int = 1) -> list[Tensor]:
        return [imaging.vit_tiles(image, self.config.processor, max_tiles) for image in images]

    def _size(self, request: DrawRequest) -> tuple[int, int]:
        """(height, width) of the result in pixels."""
        default = self.config.mmdit.image_height, self.config.mmdit.image_width
        if request.images:
            first = imaging.to_rgb(request.images[0])
            default = imaging.reference_size(first.height, first.width, self.config.processor)
        given = request.height, request.width
        height, width = (d if side is None else side for side, d in zip(given, default, strict=True))
        for name, side in (("height", height), ("width", width)):
            check_integer(name, side, self.config.size_factor, MAX_SIDE)
        return height, width

    def _latent_shape(self, height: int, width: int, num_images: int) -> tuple[int, int, int, int]:
        factor, scale = self.config.size_factor, self.config.vae.scale_factor
        h, w = (side // factor * factor // scale for side in (height, width))
        return num_images, self.config.vae.latent_channels, h, w

    def _check_noise(self, latents: Tensor, height: int, width: int, num_images: int):
        shape = self._latent_shape(height, width, num_images)
        if not isinstance(latents, Tensor):
            raise InputError(f"latents must be a tensor, not {type(latents).__name__}")
        if latents.shape != shape:
            raise InputError(f"latents are {list(latents.shape)}; {num_images} × {width}×{height} needs {list(shape)}")
        if not latents.isfinite().all():
            raise InputError("latents contain values that are not finite (NaN or infinity)")


def choose_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The stored dtype where the device computes in it well, otherwise bfloat16 or float32."""
    if stored.itemsize == 1:  # 8-bit floats are for storage
        stored = torch.bfloat16
    if stored is torch.float64 or (stored is torch.float16 and device.type == "cpu"):
        return torch.float32
    if stored is torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        return torch.float32
    return stored


def usable_device(device: str | torch.device) -> torch.device:
    """The device of this name, after a first tensor on it. Raises InputError if there is none."""
    try:
        usable = torch.device(device)
        torch.empty(0, device=usable)
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]  # torch goes on for pages
        raise InputError(f"device {str(device)!r} cannot be used here: {reason}") from error
    if usable.type == "meta":
        raise InputError("device 'meta' cannot be used: it holds no values")
    return usable
