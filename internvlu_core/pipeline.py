"""InternVL-U from end to end: load a checkpoint, answer, reason, draw and edit.

docs/model.md describes the model stage by stage. Official code, commit 018a59c: `internvlu/pipeline_internvlu.py`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from . import guidance, imaging, sampling
from .checkpoints import load as weights
from .checkpoints.config import Config
from .checkpoints.files import open_source
from .conditioning import Branch, Conditioner, Context, TextResult
from .conversation import pictures_of
from .errors import InputError, check_integer
from .grounding import answer_text
from .models.mmdit import MMDiT, Prepared, pack
from .models.vae import VAE
from .models.vlm import VLM
from .prompt import Prompt, Tokenizer
from .quantization import find_format
from .requests import ANSWER_ONLY, DRAW_ONLY, REASON_TOKENS, DrawRequest, TextRequest, as_request
from .sampling import OnStep

if TYPE_CHECKING:
    from .offload import Offload

OnToken = Callable[[int, str], None]  # (number of tokens so far, their text)

MAX_SIDE = 16_384  # pixels; also the largest side that ComfyUI's nodes accept


@dataclass(frozen=True)
class GenerateResult:
    """Pictures as generate draws them.

    images: 8-bit RGB. latents: the normalised latents [n, z, h, w] that they were decoded from, float32.
    """

    images: list[Image.Image]
    latents: Tensor


class InternVLU:
    """The model on one device.

    Calls do not change it: after an error or a cancelled call, the next call works as before. It caches the image
    features of the last pictures. Changes of the weights are noticed, in place or by assignment, except for changes
    through a parameter's `.data`.

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
        dtype: torch.dtype | str = "auto",
        *,
        device_map: str | None = None,
        max_memory: int | str | None = None,
    ) -> "InternVLU":
        """Load a checkpoint: a folder in the released layout, or files that the converter has made of one.

        dtype: a floating-point dtype; "auto" for the checkpoint's own where the device computes in it; or a weight
        format (torch.float8_e4m3fn), which stores the matrices of the repeated layers in 8 bits and computes in what
        "auto" means. On a CPU without bfloat16 instructions, float32 is several times as fast, in twice the memory.
        device_map="auto": weights that do not fit on the device stay in main memory and are moved when they are used.
        max_memory: bytes of weights on the device at once, or a text such as "5GB"; by default the free memory less
        2 GiB, which pictures of 1024 × 1024 need beside the weights.

        Raises CheckpointError if anything in the checkpoint is missing, unknown, damaged or contradictory, InputError
        for an argument that cannot be used.
        """
        source = open_source(path)
        config = Config.read(source)
        device = _device(device)
        if device_map not in (None, "auto"):
            raise InputError(f"device_map is {device_map!r}; it must be 'auto' or None")
        if max_memory is not None and device_map is None:
            raise InputError("max_memory has no effect without device_map='auto'")
        weight_format = find_format(dtype)
        if dtype == "auto" or weight_format:
            dtype = choose_dtype(weights.stored_dtype(source, weights.MMDIT_NAMES), device)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
            raise InputError(f"dtype is {dtype!r}; it must be 'auto' or a torch dtype such as torch.bfloat16")
        with source.tokenizer_folder() as folder:
            tokenizer = Tokenizer(folder)
        if not device_map:
            networks = weights.load_networks(source, config, dtype=dtype, device=device, weight_format=weight_format)
            return cls(config, tokenizer, *networks)
        from .offload import Offload, memory_limit  # imports accelerate, which takes a second

        networks, states = weights.stage_networks(source, config, dtype=dtype, weight_format=weight_format)
        staged = dict(zip(("VLM", "MMDiT", "VAE"), zip(networks, states, strict=True), strict=True))
        return cls(config, tokenizer, *networks, Offload(staged, device, memory_limit(max_memory, device)))

    def compile(self, *, text: bool = False, **options) -> None:
        """Compile the MMDiT's blocks with torch.compile, which takes effect with the next picture.

        options: those of torch.compile, except dynamic. The first picture of each kind (drawn, or edited from so many
        pictures) takes up to a minute longer; other sizes and prompts do not. Worth it on a GPU; on a CPU it gains a
        few percent.

        text (experimental): also compile the step that decodes a token, with mode="reduce-overhead" unless options
        name a mode or a backend. Each 256 tokens of text are compiled anew. It was not run on a GPU yet.
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
        tiles = self._tiles([*pictures_of(request.history), *request.images], request.max_tiles)
        chat = self.conditioner.prompts.chat(
            request.prompt, [len(t) for t in tiles], request.system_prompt, request.history
        )
        return self._write(chat, tiles, request, on_token, partial(answer_text, self.tokenizer))

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
        tiles = self._tiles(request.images)
        full = self.conditioner.prompts.full(request.prompt, len(tiles), request.system_prompt)
        return self._write(full, tiles, request, on_token, self.tokenizer.decode, keep=self.device)

    def _write(
        self, prompt: Prompt, tiles: list[Tensor], request: TextRequest, on_token: OnToken | None, decode, keep=None
    ) -> TextResult:
        """Continue a prompt. decode: token ids → text. keep: as in Conditioner.write."""
        self._use(self.vlm)
        result = self.conditioner.write(
            prompt,
            tiles,
            request.settings,
            device=self.device,
            dtype=self.dtype,
            on_tokens=on_token and (lambda token_ids: on_token(len(token_ids), decode(token_ids))),
            keep=keep,
        )
        return replace(result, text=decode(result.token_ids))

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
        height, width = self._size(request)
        scales = self.config.mmdit.guidance(request.reasoning is not None, request.all_scale, request.partial_scale)
        sigmas = sampling.flow_sigmas(request.steps, self.config.mmdit.flow_shift)
        noise = self.noise(height, width, request.seed, request.num_images) if latents is None else latents
        self._check_noise(noise, height, width, request.num_images)
        result = self.sample(self.encode(request), noise, sigmas, *scales, callback)
        pictures = imaging.to_pictures(self.decode(result))
        if pictures[0].size != (width, height):
            pictures = [picture.resize((width, height), Image.Resampling.LANCZOS) for picture in pictures]
        return GenerateResult(pictures, result)

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
    ) -> Tensor:
        """Noise [n, z, h, w] → normalised latents, float32.

        context: of one prompt, or of n prompts whose branches have a batch axis (hidden [n, T, C], references
        [n, z, h_i, w_i]). sigmas: see sampling.flow_sigmas. callback: as in generate. Raises FloatingPointError if the
        result is not finite.
        """
        branches = guidance.distinct(context.full, context.partial, context.unconditional)
        prepared = pack([self._prepare(branch, noise) for branch in branches])

        def velocities(x: Tensor, timestep: float) -> list[Tensor]:
            return self._velocities(prepared, x, timestep)

        return sampling.sample(velocities, noise.to(self.device), sigmas, (all_scale, partial_scale), callback)

    def velocity(self, branch: Branch, x: Tensor, timestep: Tensor | float) -> Tensor:
        """The MMDiT's output [n, z, h, w] for one branch, float32, at one timestep of 0…1000."""
        return self._velocities(self._prepare(branch, x), x, float(timestep))[0]

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
    def _velocities(self, prepared: Prepared, x: Tensor, timestep: float) -> list[Tensor]:
        times = torch.full((len(x),), timestep, device=self.device)
        return [v.float() for v in self.mmdit.velocities(x.to(self.device, self.dtype), times, prepared)]

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


def _device(device: str | torch.device) -> torch.device:
    try:
        usable = torch.device(device)
        torch.empty(0, device=usable)
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]  # torch goes on for pages
        raise InputError(f"device {str(device)!r} cannot be used here: {reason}") from error
    if usable.type == "meta":
        raise InputError("device 'meta' cannot be used: it holds no values")
    return usable
