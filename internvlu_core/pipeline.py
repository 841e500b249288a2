"""InternVL-U from end to end: the one place that knows the whole story."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from . import guidance, imaging
from .checkpoints import load as weights
from .checkpoints.config import Config
from .checkpoints.files import open_source
from .conditioning import Branch, Conditioner, Context, TextResult
from .conversation import Turn, as_history, as_images, pictures_of
from .decoding import MAX_SEED, MAX_SETTING, TextSettings, limit_to_context
from .errors import InputError, check_integer, check_text
from .models.mmdit import MMDiT, Prepared, pack
from .models.vae import VAE
from .models.vlm import VLM
from .prompt import Tokenizer
from .quantization import find_format
from .sampling import dpmpp_2m, flow_sigmas, sigma_to_timestep

if TYPE_CHECKING:
    from .offload import Offload

MAX_SIDE = 16_384  # pixels; also the largest side that ComfyUI's nodes accept
MAX_IMAGES = 4096  # pictures a call; as ComfyUI's batches

OnToken = Callable[[int, str], None]  # (number of tokens so far, their text)
OnStep = Callable[[int, int, Tensor], None]  # (step from 0, steps, denoised latents [n, z, h, w])


@dataclass(frozen=True)
class GenerateResult:
    """images: 8-bit RGB pictures. latents: normalised latents [n, z, h, w] that they were decoded from, float32."""

    images: list[Image.Image]
    latents: Tensor


class InternVLU:
    """The model on one device. Calls do not change it: after an error or a cancelled call the next one is as good.

    It remembers the pictures it last saw. Who changes its weights does so by operations on the parameters themselves,
    or by others in their place; what is changed through their `.data` goes unnoticed.
    """

    def __init__(
        self, config: Config, tokenizer: Tokenizer, vlm: VLM, mmdit: MMDiT, vae: VAE, offload: "Offload | None" = None
    ):
        self.config, self.tokenizer = config, tokenizer
        self.vlm, self.mmdit, self.vae = vlm.eval(), mmdit.eval(), vae.eval()
        self.conditioner = Conditioner(vlm, tokenizer, config)
        self.offload = offload  # then the networks hold no weights until they are used
        parameter = next(mmdit.parameters())
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
        """Load a checkpoint: a folder in the released layout, or what the converter makes of it (see source.py).

        dtype: a floating-point dtype, or "auto" for the checkpoint's own where the device computes in it (a CPU of AVX2
        at most emulates bfloat16: there float32 is several times as fast, in twice the memory);
        torch.float8_e4m3fn keeps the matrices of the repeated layers in 8 bits, with a factor a row, and computes in
        what "auto" means. device_map="auto": weights that do not fit the device stay in main memory and are moved when
        they are used. max_memory: bytes of weights that may be on the device at once, or a text such as "5GB"; by
        default what is free, less 2 GiB to work in. Pictures of 1024 × 1024 want that.
        Raises CheckpointError if anything in it is missing, foreign, broken or contradictory.
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
        from .offload import Offload, memory_limit  # not before it is asked for: accelerate takes a second to import

        networks, states = weights.stage_networks(source, config, dtype=dtype, weight_format=weight_format)
        staged = dict(zip(("VLM", "MMDiT", "VAE"), zip(networks, states, strict=True), strict=True))
        return cls(config, tokenizer, *networks, Offload(staged, device, memory_limit(max_memory, device)))

    def _use(self, network: nn.Module):
        """Say that this network is needed now."""
        if self.offload:
            self.offload.use(network)

    def compile(self, **options) -> None:
        """Let torch.compile make the MMDiT's blocks faster, from the next picture on; options: its own, less dynamic.

        The first picture of each kind (drawn, or edited from so many) takes up to a minute more, other sizes and
        prompts do not. Worth it on a GPU; on a CPU it gains a few percent.
        """
        for block in self.mmdit.transformer_blocks:
            block.compile(dynamic=True, **options)

    # Text

    def answer(
        self,
        prompt: str,
        images: list[Image.Image] | None = None,
        *,
        system_prompt: str | None = None,
        max_new_tokens: int = 1024,
        num_beams: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        max_tiles: int = 1,
        on_token: OnToken | None = None,
        history: Iterable[Turn] | None = None,
    ) -> TextResult:
        """Answer a question, about images if any are given.

        images: PIL pictures; `<image>` in the prompt says where each belongs (missing ones go in front).
        temperature 0 is greedy. max_tiles: how many ViT tiles a picture may be cut into (documents, charts).
        on_token may raise to cancel. history: the turns before, whose pictures are seen again; to go on, append
        Turn(prompt, result.text, images) to it. max_tiles and system_prompt are those of the whole conversation.
        Raises InputError naming the value that cannot be used.
        """
        settings = TextSettings(max_new_tokens, num_beams, temperature, top_p, top_k, seed)
        check_integer("max_tiles", max_tiles, 1, MAX_SETTING)
        history = as_history(history)
        tiles = self._tiles(pictures_of(history) + as_images(images), min(max_tiles, self.config.processor.max_tiles))
        chat = self.conditioner.prompts.chat(
            check_text("prompt", prompt), [len(t) for t in tiles], _as_system(system_prompt), history
        )
        return self._continue(chat, tiles, settings, on_token)

    def reason(
        self,
        prompt: str,
        images: list[Image.Image] | None = None,
        *,
        system_prompt: str | None = None,
        max_new_tokens: int = 200,
        num_beams: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        on_token: OnToken | None = None,
    ) -> TextResult:
        """Think in words about the picture to draw; the result is generate's `reasoning`. Arguments as in answer."""
        settings = TextSettings(max_new_tokens, num_beams, temperature, top_p, top_k, seed)
        tiles = self._tiles(as_images(images))
        full = self.conditioner.prompts.full(check_text("prompt", prompt), len(tiles), _as_system(system_prompt))
        return self._continue(full, tiles, settings, on_token, keep=self.device)

    def _continue(self, prompt, tiles, settings: TextSettings, on_token: OnToken | None, keep=None) -> TextResult:
        settings = limit_to_context(settings, len(prompt), self.config.language.max_positions)
        decode = self.tokenizer.decode
        on_tokens = on_token and (lambda tokens: on_token(len(tokens), decode(tokens)))
        self._use(self.vlm)
        return self.conditioner.write(
            prompt, tiles, settings, device=self.device, dtype=self.dtype, on_tokens=on_tokens, keep=keep
        )

    # Pictures

    def encode(
        self,
        prompt: str,
        images: list[Image.Image] | None = None,
        *,
        system_prompt: str | None = None,
        reasoning: TextResult | str | None = None,
        whole_reasoning: bool = False,
        negative: str = "",
        partial_negative: str = "",
    ) -> Context:
        """Everything the MMDiT is conditioned on.

        reasoning: a TextResult, whose tokens are cut and padded as the official pipeline does, or used whole with
        whole_reasoning; or a string, always used whole. negative: what the picture should not be, in place of the
        blank prompt of the unconditional branch; partial_negative (experimental): the same for the branch that sees
        the images, without effect when there are none. Raises InputError naming the value that cannot be used.
        """
        prompt, images = check_text("prompt", prompt), as_images(images)
        reasoning = check_text("reasoning", reasoning) if isinstance(reasoning, str) else reasoning
        pixels = [imaging.reference_pixels(image, self.config.processor) for image in images]
        references = [self._encode_reference(p) for p in pixels]
        self._use(self.vlm)
        return self.conditioner.context(
            prompt,
            self.conditioner.image_features(self._tiles(images), self.device, self.dtype),
            references,
            device=self.device,
            system_prompt=_as_system(system_prompt),
            reasoning=reasoning,
            whole_reasoning=whole_reasoning,
            negative=check_text("negative", negative),
            partial_negative=check_text("partial_negative", partial_negative),
        )

    def generate(
        self,
        prompt: str,
        images: list[Image.Image] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        steps: int = 20,
        all_scale: float | None = None,
        partial_scale: float | None = None,
        seed: int = 0,
        num_images: int = 1,
        reasoning: TextResult | str | None = None,
        whole_reasoning: bool = False,
        system_prompt: str | None = None,
        negative: str = "",
        partial_negative: str = "",
        latents: Tensor | None = None,
        callback: OnStep | None = None,
    ) -> GenerateResult:
        """Draw a picture, or edit images.

        height, width: pixels, by default the checkpoint's for a drawing, and those of the first image, brought to the
        size at which the model reads it, for an edit. A size off the model's grid is drawn at the next lower one
        and resized. all_scale, partial_scale: guidance, by default the checkpoint's: the released one's
        are 4.5 and 2, after reasoning 3.5 and 1.5.
        negative, partial_negative: as in encode. seed: of the noise, drawn on the CPU as one tensor
        [num_images, z, h, w]; latents: that tensor itself. callback may raise to cancel. Raises InputError naming the
        value that cannot be used.
        """
        prompt, images = check_text("prompt", prompt), as_images(images)
        height, width = self._size(height, width, images)
        scales = self.config.mmdit.guidance(reasoning is not None, all_scale, partial_scale)
        sigmas = flow_sigmas(steps, self.config.mmdit.flow_shift)
        noise = self._noise(height, width, seed, num_images, latents)
        context = self.encode(
            prompt,
            images,
            system_prompt=system_prompt,
            reasoning=reasoning,
            whole_reasoning=whole_reasoning,
            negative=negative,
            partial_negative=partial_negative,
        )
        result = self.sample(context, noise, sigmas, *scales, callback)
        pictures = imaging.to_pictures(self.decode(result))
        if pictures[0].size != (width, height):
            pictures = [picture.resize((width, height), Image.Resampling.LANCZOS) for picture in pictures]
        return GenerateResult(pictures, result)

    def sample(
        self,
        context: Context,
        noise: Tensor,
        sigmas: Tensor,
        all_scale: float,
        partial_scale: float,
        callback: OnStep | None = None,
    ) -> Tensor:
        """Noise [n, z, h, w] → normalised latents, float32. Raises FloatingPointError if they are not finite."""
        self._use(self.mmdit)

        branches = context.full, context.partial, context.unconditional
        distinct = {id(branch): branch for branch in branches}  # without images two are one
        prepared = pack([self._prepare(branch, noise) for branch in distinct.values()])

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            timestep = float(sigma_to_timestep(sigma))  # σ is on the CPU: nothing in a step waits for the device
            velocities = dict(zip(distinct, self._velocities(prepared, x, timestep), strict=True))
            of_branches = (velocities[id(branch)] for branch in branches)
            return x - sigma * guidance.combine(*of_branches, all_scale, partial_scale, timestep)

        latents = dpmpp_2m(denoise, noise.to(self.device, torch.float32), sigmas, callback)
        if not latents.isfinite().all():
            raise FloatingPointError(
                f"the sampled latents are not finite in {self.dtype}; try smaller scales, bfloat16 or float32"
            )
        return latents

    def velocity(self, branch: Branch, x: Tensor, timestep: Tensor | float) -> Tensor:
        """The MMDiT's output [n, z, h, w] for one branch, float32, at one timestep of 0…1000."""
        return self._velocities(self._prepare(branch, x), x, float(timestep))[0]

    @torch.inference_mode()
    def _prepare(self, branch: Branch, latents: Tensor) -> Prepared:
        """A branch for steps with latents [n, z, h, w]."""
        self._use(self.mmdit)
        return self.mmdit.prepare(
            self.mmdit.grid(latents),
            self.mmdit.bound_context(branch.hidden[None]).to(self.device, self.dtype),
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
        """Normalised latents [n, z, h, w] → pixels [n, 3, 8h, 8w] in [-1, 1], float32, picture by picture."""
        self._use(self.vae)
        pixels = torch.cat([self.vae.decode(one[None].to(self.device, self.dtype)) for one in latents]).float()
        if not pixels.isfinite().all():
            raise FloatingPointError(f"the decoded pixels are not finite in {self.dtype}; try bfloat16 or float32")
        return pixels

    @torch.inference_mode()
    def _encode_reference(self, pixels: Tensor) -> Tensor:
        self._use(self.vae)
        return self.vae.encode(pixels.to(self.device, self.dtype))

    # Arguments

    def _tiles(self, images: list[Image.Image], max_tiles: int = 1) -> list[Tensor]:
        return [imaging.vit_tiles(image, self.config.processor, max_tiles) for image in images]

    def _size(self, height: int | None, width: int | None, images: list[Image.Image]) -> tuple[int, int]:
        default = self.config.mmdit.image_height, self.config.mmdit.image_width
        if images:
            first = imaging.to_rgb(images[0])
            default = imaging.reference_size(first.height, first.width, self.config.processor)
        height, width = (d if side is None else side for side, d in zip((height, width), default, strict=True))
        for name, side in (("height", height), ("width", width)):
            check_integer(name, side, self.config.size_factor, MAX_SIDE)
        return height, width

    def _noise(self, height: int, width: int, seed: int, num_images: int, latents: Tensor | None) -> Tensor:
        check_integer("num_images", num_images, 1, MAX_IMAGES)
        factor, scale = self.config.size_factor, self.config.vae.scale_factor
        h, w = (side // factor * factor // scale for side in (height, width))
        shape = (num_images, self.config.vae.latent_channels, h, w)
        if latents is not None:
            if not isinstance(latents, Tensor):
                raise InputError(f"latents must be a tensor, not {type(latents).__name__}")
            if latents.shape != shape:
                raise InputError(
                    f"latents are {list(latents.shape)}; {num_images} × {width}×{height} needs {list(shape)}"
                )
            if not latents.isfinite().all():
                raise InputError("latents contain values that are not finite (NaN or infinity)")
            return latents
        check_integer("seed", seed, 0, MAX_SEED)
        return torch.randn(shape, generator=torch.Generator().manual_seed(int(seed)))


def choose_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The stored dtype where the device computes in it well, else bfloat16 or float32."""
    if stored.itemsize == 1:  # fp8 is for storage
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


def _as_system(value) -> str | None:
    return None if value is None else check_text("system_prompt", value)
