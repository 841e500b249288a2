"""A checkpoint's JSON files as frozen dataclasses.

Every hyper-parameter of every network comes from here; nothing is guessed from tensor shapes. Values that the
implementation cannot honour (another activation, a sliding window, …) are refused at load time rather than ignored.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CheckpointError, check_number
from .files import Source, open_source

# The chat template of the released checkpoint. The model was trained with its texts, which are in prompt.py.
CHAT_TEMPLATE = "qwen2_5-chat-v3"

# The sampler that sampling.py implements, by the keys of `scheduler/scheduler_config.json`. Its flow_shift has no
# effect: the official pipeline takes the one in `generation_decoder/config.json`.
SAMPLER = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "num_train_timesteps": 1000,
}

# Bounds that no real checkpoint reaches: a file that asks for a billion layers is an error, not a load without end.
MAX_LAYERS, MAX_INTEGER, MAX_NUMBER = 1024, 2**24, 1e30

# The released checkpoint's default guidance, (all_scale, partial_scale): without and with reasoning. What is used for a
# checkpoint, MMDiTConfig.guidance decides.
SCALES, SCALES_REASONED = (4.5, 2.0), (3.5, 1.5)
MAX_SCALE = 1e6  # the useful ones are below 20

LEAST_AREA, MOST_AREA = 1 / 4, 8  # of pictures, relative to the checkpoint's own size; see Config.is_far


class Section:
    """A JSON object and the file it is from, so that every error names the file. Its methods raise CheckpointError."""

    def __init__(self, values, where: str):
        if not isinstance(values, dict):
            raise CheckpointError(f"{where}: expected a JSON object, found {type(values).__name__}")
        self.values, self.where = values, where

    @classmethod
    def read(cls, source: Source, name: str) -> "Section":
        """The object in a JSON file of a checkpoint. name: such as "vlm/config.json"."""
        text = source.text(name)
        try:
            return cls(json.loads(text), name)
        except (ValueError, RecursionError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{source.path}: {name} is not readable JSON: {error}") from error

    def section(self, key: str) -> "Section":
        """The object under a key."""
        return Section(self._required(key), f"{self.where}: {key}")

    def get(self, key: str, default):
        """The value of a key; the default if it is absent or null."""
        value = self.values.get(key)
        return default if value is None else value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self.get(key, default)
        return value if isinstance(value, bool) else self._refuse(key, value, "true or false")

    def integer(self, key: str, default: int | None = None, most: int = MAX_INTEGER) -> int:
        """An integer from 1 to `most`. default=None: the key is required."""
        value = self._required(key) if default is None else self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            self._refuse(key, value, f"an integer from 1 to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive, finite number. default=None: the key is required."""
        value = self._required(key) if default is None else self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MAX_NUMBER:
            self._refuse(key, value, "a positive number")
        return float(value)

    def numbers(self, key: str, count: int | None = None, default=None) -> tuple:
        """A list of numbers, `count` of them if that is given. default=None: the key is required."""
        value = self._required(key) if default is None else self.get(key, default)
        if not isinstance(value, list | tuple) or not all(
            isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < MAX_NUMBER for v in value
        ):
            self._refuse(key, value, "a list of numbers")
        if count is not None and len(value) != count:
            self._refuse(key, value, f"{count} numbers")
        return tuple(value)

    def positive_numbers(self, key: str, count: int) -> tuple:
        """A list of `count` positive numbers."""
        values = self.numbers(key, count)
        return values if min(values) > 0 else self._refuse(key, list(values), "positive numbers")

    def expect(self, key: str, *supported, default) -> object:
        """The value of `key`, which must be one of `supported`; absent or null counts as `default`."""
        value = self.get(key, default)
        return value if value in supported else self._refuse(key, value, " or ".join(map(repr, supported)))

    def _required(self, key: str):
        if self.values.get(key) is None:
            raise CheckpointError(f"{self.where}: key {key!r} is missing")
        return self.values[key]

    def _refuse(self, key: str, value, wanted: str):
        raise CheckpointError(f"{self.where}: {key} is {value!r}; supported is {wanted}")


@dataclass(frozen=True)
class VisionConfig:
    """InternViT, and how its output is folded into tokens: `vision_config` of `vlm/config.json`."""

    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    patch_size: int
    image_size: int  # pixels a side, for which the position table was trained
    norm_type: str
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    select_layer: int
    fold: int  # pixel shuffle: fold × fold patches become one token

    @classmethod
    def read(cls, vlm: Section) -> "VisionConfig":
        """From `vlm/config.json`. Raises CheckpointError."""
        vision = vlm.section("vision_config")
        vision.expect("hidden_act", "gelu", default="gelu")
        vlm.expect("ps_version", "v2", default="v2")
        vlm.expect("anyres_image_size", False, default=False)
        fold = 1 / vlm.number("downsample_ratio", 0.5)
        if fold != round(fold):
            raise CheckpointError(f"{vlm.where}: downsample_ratio is {1 / fold}; supported are 1, 1/2, 1/3, …")
        num_layers = vision.integer("num_hidden_layers", most=MAX_LAYERS)
        hidden_size, num_heads = vision.integer("hidden_size"), vision.integer("num_attention_heads")
        if hidden_size % num_heads:
            raise CheckpointError(
                f"{vision.where}: hidden_size {hidden_size} does not divide into num_attention_heads {num_heads}"
            )
        return cls(
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_size=vision.integer("intermediate_size"),
            patch_size=vision.integer("patch_size"),
            image_size=vision.integer("image_size"),
            norm_type=vision.expect("norm_type", "layer_norm", "rms_norm", default="layer_norm"),
            norm_eps=vision.number("layer_norm_eps", 1e-6),
            qkv_bias=vision.flag("qkv_bias", False),
            qk_norm=vision.flag("qk_normalization", False),
            select_layer=_layer_index(vlm, "select_layer", vlm.get("select_layer", -1), num_layers),
            fold=round(fold),
        )

    @property
    def token_size(self) -> int:
        """Channels of one image token after folding."""
        return self.hidden_size * self.fold**2


@dataclass(frozen=True)
class LanguageConfig:
    """The Qwen3 language model: `llm_config` of `vlm/config.json`."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    norm_eps: float
    rope_theta: float
    attention_bias: bool
    tied_head: bool
    max_positions: int

    @classmethod
    def read(cls, vlm: Section) -> "LanguageConfig":
        """From `vlm/config.json`. Raises CheckpointError."""
        llm = vlm.section("llm_config")
        llm.expect("architectures", ["Qwen3ForCausalLM"], default=["Qwen3ForCausalLM"])
        llm.expect("hidden_act", "silu", default="silu")
        llm.expect("use_sliding_window", False, default=False)
        llm.expect("rope_scaling", None, default=None)
        # transformers 5 writes rope_theta into the object rope_parameters.
        rope = Section(llm.get("rope_parameters", llm.values), llm.where)
        rope.expect("rope_type", "default", default="default")
        num_heads, hidden_size = llm.integer("num_attention_heads"), llm.integer("hidden_size")
        num_kv_heads = llm.integer("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise CheckpointError(f"{llm.where}: {num_heads} heads cannot share {num_kv_heads} key/value heads evenly")
        return cls(
            vocab_size=llm.integer("vocab_size"),
            hidden_size=hidden_size,
            num_layers=llm.integer("num_hidden_layers", most=MAX_LAYERS),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=_even(llm, "head_dim", llm.integer("head_dim", hidden_size // num_heads)),
            mlp_size=llm.integer("intermediate_size"),
            norm_eps=llm.number("rms_norm_eps", 1e-6),
            rope_theta=rope.number("rope_theta", 10_000.0),
            attention_bias=llm.flag("attention_bias", False),
            tied_head=llm.flag("tie_word_embeddings", False) or vlm.flag("tie_word_embeddings", False),
            max_positions=llm.integer("max_position_embeddings", 32_768),
        )


@dataclass(frozen=True)
class MMDiTConfig:
    """The generation decoder: `generation_decoder/config.json`."""

    num_layers: int
    num_heads: int
    head_dim: int
    patch_size: int
    in_channels: int  # of one patch: latent channels × patch²
    out_channels: int  # of one latent pixel
    context_size: int  # channels that arrive from the language model
    joint_size: int  # channels after the projector
    projector: str
    rope_axes: tuple[int, int, int]
    latent_scale: float  # position scales of the latent grids and of the ViT grids
    vit_scale: float
    select_layers: tuple[int, ...]
    max_context: int | None
    flow_shift: float
    image_height: int
    image_width: int
    scales: tuple[float, float] = SCALES  # default guidance: all_scale, partial_scale
    scales_reasoned: tuple[float, float] = SCALES_REASONED  # after reasoning

    @classmethod
    def read(cls, root: Section, language: LanguageConfig) -> "MMDiTConfig":
        """From `generation_decoder/config.json`. Raises CheckpointError."""
        decoder = root.section("decoder_config")
        head_dim, axes = _rope_axes(decoder)
        projector, context_size, joint_size = _context_sizes(root, decoder)
        select_layers = _context_layers(root, context_size, language)
        patch_size, in_channels, out_channels = _patch_sizes(decoder)
        return cls(
            num_layers=decoder.integer("num_layers", 60, most=MAX_LAYERS),
            num_heads=decoder.integer("num_attention_heads", 24),
            head_dim=head_dim,
            patch_size=patch_size,
            in_channels=in_channels,
            out_channels=out_channels,
            context_size=context_size,
            joint_size=joint_size,
            projector=projector,
            rope_axes=axes,
            # decoder_config repeats these keys; the official code overwrites them there with the outer ones.
            latent_scale=root.number("video_position_scale_factor", 1.0),
            vit_scale=root.number("vlm_cond_position_scale_factor", 1.0),
            select_layers=select_layers,
            max_context=root.integer("max_sequence_length") if root.flag("pad_to_fix_length", True) else None,
            flow_shift=root.number("flow_shift", 3.0),
            image_height=root.integer("gen_image_height", 512),
            image_width=root.integer("gen_image_width", 512),
            # These two keys are this project's own: the released checkpoint lacks them.
            scales=root.numbers("guidance_scales", 2, default=SCALES),
            scales_reasoned=root.numbers("guidance_scales_reasoned", 2, default=SCALES_REASONED),
        )

    @property
    def hidden_size(self) -> int:
        """Channels of both streams."""
        return self.num_heads * self.head_dim

    def guidance(
        self, reasoned: bool, all_scale: float | None = None, partial_scale: float | None = None
    ) -> tuple[float, float]:
        """The guidance scales to use, (all_scale, partial_scale): those that are given, else the checkpoint's defaults.

        reasoned: whether the prompt has a reasoning, for which the defaults are others. Raises InputError for values
        that cannot be scales.
        """
        own = self.scales_reasoned if reasoned else self.scales
        used = own[0] if all_scale is None else all_scale, own[1] if partial_scale is None else partial_scale
        for name, value in zip(("all_scale", "partial_scale"), used, strict=True):
            check_number(name, value, lambda v: abs(v) <= MAX_SCALE, f"a number from -{MAX_SCALE} to {MAX_SCALE}")
        return float(used[0]), float(used[1])


@dataclass(frozen=True)
class Preview:
    """A linear approximation of the VAE: (red, green, blue) in -1…1 = normalised latent pixel · factors + bias.

    The key `latent_preview` of `vae/config.json` is this project's own: scripts/fit_preview.py writes it for a VAE
    other than the released one.
    """

    factors: tuple[tuple[float, float, float], ...]  # one of each latent channel
    bias: tuple[float, float, float]

    @classmethod
    def read(cls, vae: Section, channels: int) -> "Preview":
        """From `vae/config.json`, for latents of so many channels. Raises CheckpointError."""
        section = vae.section("latent_preview")
        colours = (section.numbers(colour, channels) for colour in ("red", "green", "blue"))
        return cls(tuple(zip(*colours, strict=True)), section.numbers("bias", 3))


@dataclass(frozen=True)
class VAEConfig:
    """Qwen-Image VAE: `vae/config.json`."""

    base_channels: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    latent_channels: int
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    preview: "Preview | None" = None  # None: that of the released VAE, which ComfyUI has

    @classmethod
    def read(cls, root: Section) -> "VAEConfig":
        """From `vae/config.json`. Raises CheckpointError."""
        root.expect("attn_scales", [], default=[])
        latent_channels = root.integer("z_dim", RELEASED_VAE.latent_channels)
        multipliers = root.numbers("dim_mult", default=RELEASED_VAE.multipliers)
        if not 1 <= len(multipliers) <= 8 or any(m != int(m) or not 1 <= m <= MAX_LAYERS for m in multipliers):
            raise CheckpointError(f"{root.where}: dim_mult is {list(multipliers)}; supported are 1 to 8 integers")
        return cls(
            base_channels=root.integer("base_dim", RELEASED_VAE.base_channels),
            multipliers=tuple(map(int, multipliers)),
            num_res_blocks=root.integer("num_res_blocks", RELEASED_VAE.num_res_blocks, most=MAX_LAYERS),
            latent_channels=latent_channels,
            latents_mean=root.numbers("latents_mean", latent_channels),
            latents_std=root.positive_numbers("latents_std", latent_channels),
            preview=None if root.get("latent_preview", None) is None else Preview.read(root, latent_channels),
        )

    @property
    def scale_factor(self) -> int:
        """Pixels a side of one latent pixel."""
        return 2 ** (len(self.multipliers) - 1)


# The shape of the released VAE, whose layout is Wan 2.1's: what a config.json means that does not say otherwise. Its
# latent statistics are always in the file, and left out here.
RELEASED_VAE = VAEConfig(
    base_channels=96,
    multipliers=(1, 2, 4, 4),
    num_res_blocks=2,
    latent_channels=16,
    latents_mean=(0.0,) * 16,
    latents_std=(1.0,) * 16,
)


@dataclass(frozen=True)
class ProcessorConfig:
    """How pictures become tensors: `processor/processor_config.json`, and the keys of `vlm/config.json` on tiles."""

    tile_size: int
    vit_mean: tuple[float, float, float]
    vit_std: tuple[float, float, float]
    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    thumbnail_first: bool
    reference_factor: int  # pixels; the sides of a reference picture are multiples of it
    reference_min_pixels: int
    reference_max_pixels: int
    reference_max_side: int | None
    reference_mean: tuple[float, float, float]
    reference_std: tuple[float, float, float]

    @classmethod
    def read(cls, root: Section, vlm: Section) -> "ProcessorConfig":
        """From `processor/processor_config.json` and `vlm/config.json`. Raises CheckpointError."""
        vit = root.section("image_processor_kwargs")
        vit.expect("resample", 3, default=3)  # PIL's number for bicubic
        size = vit.section("size")
        if size.integer("height") != size.integer("width"):
            raise CheckpointError(f"{size.where} is {size.values}; supported are square tiles")
        root.expect(
            "image_gen_processor_class",
            "InternVLUDynamicResGenerationImageProcessor",
            default="InternVLUDynamicResGenerationImageProcessor",
        )
        reference = root.section("image_gen_processor_kwargs")
        reference.expect("resample", 3, default=3)
        vae_factor = reference.integer("vae_downsample_factor", 8)
        gen_ratio = reference.number("gen_down_sample_ratio", 0.5)
        if gen_ratio > 1:
            raise CheckpointError(f"{reference.where}: gen_down_sample_ratio is {gen_ratio}; supported is at most 1")
        limited = reference.get("max_length", None) is not None
        return cls(
            tile_size=size.integer("height"),
            vit_mean=vit.numbers("image_mean", 3),
            vit_std=vit.positive_numbers("image_std", 3),
            min_tiles=vlm.integer("min_dynamic_patch", 1),
            max_tiles=vlm.integer("max_dynamic_patch", 12),
            use_thumbnail=vlm.flag("use_thumbnail", False),
            thumbnail_first=vlm.expect("thumbnail_pos", "start", "end", default="end") == "start",
            reference_factor=vae_factor * int(1 / gen_ratio),
            reference_min_pixels=reference.integer("min_dynamic_patch", 4096) * vae_factor**2,
            reference_max_pixels=reference.integer("max_dynamic_patch", 16384) * vae_factor**2,
            reference_max_side=reference.integer("max_length") if limited else None,
            reference_mean=reference.numbers("image_mean", 3),
            reference_std=reference.positive_numbers("image_std", 3),
        )


@dataclass(frozen=True)
class Config:
    """All hyperparameters of a checkpoint."""

    vision: VisionConfig
    language: LanguageConfig
    mmdit: MMDiTConfig
    vae: VAEConfig
    processor: ProcessorConfig
    # {name: text} of all text files, for copies of the checkpoint.
    texts: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def read(cls, checkpoint: str | Path | Source) -> "Config":
        """Read the JSON files of a checkpoint in any of its formats.

        Raises CheckpointError, with the names of the file and the key, for a missing folder or file, broken JSON, a
        value that is not supported, and values that contradict each other.
        """
        source = open_source(checkpoint)
        vlm = Section.read(source, "vlm/config.json")
        vlm.expect("template", CHAT_TEMPLATE, default=CHAT_TEMPLATE)
        scheduler = Section.read(source, "scheduler/scheduler_config.json")
        for key, value in SAMPLER.items():
            scheduler.expect(key, value, default=value)
        language = LanguageConfig.read(vlm)
        config = cls(
            vision=VisionConfig.read(vlm),
            language=language,
            mmdit=MMDiTConfig.read(Section.read(source, "generation_decoder/config.json"), language),
            vae=VAEConfig.read(Section.read(source, "vae/config.json")),
            processor=ProcessorConfig.read(Section.read(source, "processor/processor_config.json"), vlm),
            texts={name: source.text(name) for name in source.text_names()},
        )
        config._check()
        return config

    def _check(self):
        side = self.processor.tile_size // self.vision.patch_size
        if not side or side % self.vision.fold:
            raise CheckpointError(
                f"a tile of {self.processor.tile_size} pixels has {side} patches a side, "
                f"which do not fold by {self.vision.fold}"
            )
        if self.vae.latent_channels != self.mmdit.out_channels:
            raise CheckpointError(
                f"the VAE has {self.vae.latent_channels} latent channels, the MMDiT {self.mmdit.out_channels}"
            )
        if self.processor.reference_factor % self.size_factor:
            raise CheckpointError(
                f"the processor scales references to multiples of {self.processor.reference_factor} pixels; "
                f"VAE and MMDiT need multiples of {self.size_factor}"
            )

    @property
    def tile_grid(self) -> tuple[int, int, int]:
        """(frames, rows, columns) of the tokens of one ViT tile."""
        side = self.processor.tile_size // self.vision.patch_size // self.vision.fold
        return (1, side, side)

    def is_far(self, height: int, width: int) -> bool:
        """Whether a picture of height × width pixels is far from the sizes that the checkpoint was trained on.

        The config of the released checkpoint says 512 × 512; it was trained at up to four times that area.
        """
        times = height * width / (self.mmdit.image_height * self.mmdit.image_width)
        return not LEAST_AREA <= times <= MOST_AREA

    @property
    def size_factor(self) -> int:
        """Generated pictures have sides that are multiples of this many pixels."""
        return self.vae.scale_factor * self.mmdit.patch_size


def _layer_index(section: Section, key: str, value, num_layers: int) -> int:
    """An index into the hidden states [input of layer 0, …, output of the last layer]: from 0, if it was negative."""
    if isinstance(value, bool) or not isinstance(value, int) or not -num_layers - 1 <= value <= num_layers:
        raise CheckpointError(f"{section.where}: {key} names layer {value!r} of a model with {num_layers} layers")
    return value % (num_layers + 1)


def _even(section: Section, key: str, value: int) -> int:
    if value % 2:
        raise CheckpointError(f"{section.where}: {key} is {value}; rotary positions need an even number")
    return value


def _rope_axes(decoder: Section) -> tuple[int, tuple[int, int, int]]:
    """Channels of a head of the MMDiT, and how many of them belong to each position axis."""
    axes = decoder.numbers("axes_dims_rope", 3, default=(16, 56, 56))
    head_dim = decoder.integer("attention_head_dim", 128)
    if sum(axes) != head_dim or any(axis % 2 or axis < 0 for axis in axes):
        raise CheckpointError(
            f"{decoder.where}: axes_dims_rope {list(axes)} must be even and sum to attention_head_dim {head_dim}"
        )
    return head_dim, axes


def _context_sizes(root: Section, decoder: Section) -> tuple[str, int, int]:
    """The projector of the MMDiT, and the channels of its context before and after it."""
    projector = root.expect("decoder_projector_type", "identity", "mlp2x_gelu", default="mlp2x_gelu")
    context_size = root.integer("input_hidden_size")
    joint_size = decoder.integer("joint_attention_dim")
    projected = context_size if projector == "identity" else root.integer("output_hidden_size")
    if projected != joint_size:
        raise CheckpointError(
            f"{root.where}: the {projector} projector gives {projected} channels, "
            f"decoder_config.joint_attention_dim is {joint_size}"
        )
    return projector, context_size, joint_size


def _context_layers(root: Section, context_size: int, language: LanguageConfig) -> tuple[int, ...]:
    """The hidden states of the language model that make the context, as indices from 0."""
    layers = root.numbers("vlm_select_layer", default=(-1,))
    select_layers = tuple(_layer_index(root, "vlm_select_layer", layer, language.num_layers) for layer in layers)
    if len(select_layers) * language.hidden_size != context_size:
        raise CheckpointError(
            f"{root.where}: input_hidden_size is {context_size}, but vlm_select_layer {list(layers)} takes "
            f"{len(layers)} hidden states of {language.hidden_size} channels"
        )
    return select_layers


def _patch_sizes(decoder: Section) -> tuple[int, int, int]:
    """The side of a patch in latent pixels, the channels of a patch, and those of a latent pixel."""
    patch_size = decoder.integer("patch_size", 2)
    in_channels = decoder.integer("in_channels", 64)
    out_channels = decoder.integer("out_channels", in_channels)
    if in_channels != out_channels * patch_size**2:
        raise CheckpointError(
            f"{decoder.where}: in_channels {in_channels} is not out_channels {out_channels} × patch_size² "
            f"{patch_size**2}"
        )
    return patch_size, in_channels, out_channels
