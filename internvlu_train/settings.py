"""Frozen settings: the sizes of a fresh checkpoint, and one config per stage.

Presets: "cpu" is sized for hours on a CPU, "gpu" for minutes on one data-centre GPU.
"""

import json
from dataclasses import asdict, dataclass, fields, replace

from internvlu_core.errors import InputError


@dataclass(frozen=True)
class Sizes:
    """A checkpoint of the released shape, made small. Widths are channels, sides pixels."""

    picture: int = 64  # side of a drawing by default
    vae_base: int = 8
    vae_blocks: int = 2
    tile: int = 112  # the ViT's picture; 112 pixels are 16 tokens
    vit_width: int = 128
    vit_layers: int = 3
    llm_width: int = 128
    llm_layers: int = 4
    mmdit_layers: int = 6
    mmdit_heads: int = 4  # of 32 channels
    head_dim: int = 32
    rope_axes: tuple[int, int, int] = (8, 12, 12)
    patch: int = 1  # latent pixels along the side of an MMDiT token. The released 2 makes 64 × 64 pixels 16 tokens
    vocabulary: int = 1536  # at most
    flow_shift: float = 3.0
    min_side: int = 32  # reference pictures have at least this side's square as area …
    max_side: int = 128  # … at most this side's, and no longer side


# Objects are what the toy GenEval, edits and questions are judged on; words take the longest to learn.
DOMAINS = (("objects", 5), ("text", 3), ("science", 1), ("spatial", 1), ("humour", 1), ("reasoning", 3))
OBJECTS = (("objects", 1),)
HIDDEN_LAYERS = (".attn.", "_mlp.", ".self_attn.", ".mlp.")  # parts of names: attention and MLPs of both networks


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What every stage has.

    trained: prefixes of the parameters that learn; all others are frozen. tasks: (task of a sample, its share), in
    whole numbers; domains: likewise, of those that have the task, unless it names one: "edit/objects"; kinds: of their
    truths, in turn ("" for any).
    sides: picture sizes (width, height), taken in turn.
    samples: how many are made; an epoch is one pass over them. batch: samples a micro-batch; accumulate: micro-batches
    per process and step. muon: attention's and MLPs' matrices learn by Muon, all else by AdamW (torch's Muon computes
    in bfloat16, which makes it 18 times as slow on a CPU that emulates it). warmup: steps; decay: the last fraction of
    all steps, in which the learning rate falls to 0.
    """

    trained: tuple[str, ...]
    tasks: tuple[tuple[str, int], ...]
    domains: tuple[tuple[str, int], ...] = DOMAINS
    kinds: tuple[str, ...] = ()
    sides: tuple[tuple[int, int], ...] = ((64, 64),)
    samples: int = 24_000
    steps: int = 4000
    batch: int = 48
    accumulate: int = 1
    learning_rate: float = 1.5e-3
    muon: bool = False
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup: int = 150
    decay: float = 0.45
    clip: float = 1.0
    ema: float = 0.998
    autocast: bool = True  # bfloat16 where torch thinks it safe and the device has it; weights stay float32
    checkpointing: bool = False  # recompute activations instead of keeping them
    seed: int = 0
    save_every: int = 200  # steps

    def __post_init__(self):
        for name in ("samples", "steps", "batch", "accumulate", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def learns(self, network: str) -> bool:
        """Whether any parameter of "vae", "vlm" or "mmdit" is trained."""
        return any(prefix.partition(".")[0] == network for prefix in self.trained)


@dataclass(frozen=True, kw_only=True)
class VAEStage(Stage):
    """Pixels → latents → pixels. Loss: mse · MSE + l1 · ramp · L1 + kl · KL, all means over elements.

    The L1 term grows from 0 to its weight over l1_ramp steps: from the start it would hold pictures at a grey.
    negatives: the share of pictures that is shown as negatives, since a background that is rare gets latents far from
    all others, which the MMDiT then cannot draw. noise: where the decoder is trained alone, its input gets noise of a
    deviation between 0 and this many of the latents': what the MMDiT draws is not exact either.
    """

    mse: float = 10.0
    l1: float = 1.0
    l1_ramp: int = 500
    kl: float = 1e-5
    negatives: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TextStage(Stage):
    """Next-token loss on answers and thoughts, and, for samples without either, on the prompts themselves."""


@dataclass(frozen=True, kw_only=True)
class PictureStage(Stage):
    """Velocity loss on pictures and, with a text_weight, next-token loss on answers and thoughts.

    flow_weight, text_weight: of the losses. shift: of the noise levels σ = sigmoid(normal). even: the share of pictures
    whose levels are those of the sampler instead, uniform before the shift: the normal hardly ever reaches the first
    ones. drop_prompt: the share of pictures that is trained with the branch `partial`; drop_all: with `unconditional`.
    """

    text_weight: float = 1.0
    flow_weight: float = 20.0
    shift: float = 3.0
    even: float = 0.25
    drop_prompt: float = 0.05
    drop_all: float = 0.05


@dataclass(frozen=True, kw_only=True)
class LoraStage(PictureStage):
    """Velocity loss on the user's pictures, by adapters beside frozen layers. See lora.adapt and folder.read_folder.

    trained: prefixes of the networks' layers. layers: parts of names, of which a layer must have one. pictures: the
    folder. tasks, domains, kinds, sides and samples are without meaning.
    """

    tasks: tuple[tuple[str, int], ...] = ()
    pictures: str
    layers: tuple[str, ...] = HIDDEN_LAYERS
    rank: int = 16
    alpha: float = 16.0


PICTURES = (("draw", 3), ("edit", 2), ("reason", 1))
LANGUAGE = (("ask", 3), ("caption", 2), ("reason", 1), ("draw", 1), ("edit", 1))
DRAW_EDIT = (("draw", 4), ("edit", 1))
# Generation : editing : understanding = 1 : 1 : 2; a third of the generation is preceded by thoughts.
UNIFIED = (("draw", 2), ("reason", 1), ("edit", 3), ("ask", 4), ("caption", 2))
# Of a VAE that has left the grey. Only single objects have a background other than white; where they are rarer, small
# ones on grey come out a blur.
VAE_AGAIN = {
    "tasks": (("draw", 1),),
    "domains": (("objects", 4), ("text", 1), ("science", 1), ("spatial", 1), ("humour", 1)),
    "kinds": ("single", "single", "single", "", "", "", "", ""),
    "samples": 12_000,
    "batch": 16,
    "learning_rate": 1e-3,
    "l1_ramp": 1,
    "autocast": False,
}
MANY_SIDES = ((64, 64), (80, 48), (48, 80), (96, 48), (48, 96), (64, 48), (48, 64), (80, 80))

CPU = {
    "vae": VAEStage(
        trained=("vae.",), tasks=PICTURES, steps=5000, batch=16, learning_rate=2e-3, samples=12_000, autocast=False
    ),
    # From the start this divergence would win: the VAE would stay at a grey. Left as they were, latents are needlessly
    # exact, and those of a dark background three times as large as others.
    "vae-smooth": VAEStage(trained=("vae.",), **VAE_AGAIN, steps=2000, warmup=50, decay=0.8, kl=1e-3, negatives=0.25),
    "vae-decoder": VAEStage(
        trained=("vae.decoder.", "vae.post_quant_conv."), **VAE_AGAIN, steps=4000, negatives=0.1, noise=0.2
    ),
    "mllm": TextStage(trained=("vlm.",), tasks=LANGUAGE, samples=48_000, steps=6000),
    # Not the report's. Among all else it was still a guess after 10,000 steps which object has a shape or colour, and
    # which of two is left of the other.
    "search": TextStage(
        trained=("vlm.",),
        tasks=(("ask", 15), ("reason", 2)),
        domains=(("objects", 10), ("text", 1), ("science", 1), ("spatial", 1), ("humour", 1), ("reasoning", 1)),
        kinds=("relation", "where", "describe", "relation", "colour", "shape", *[""] * 11),
        samples=96_000,
        warmup=50,
        steps=4000,
    ),
    # Not the report's, whose MMDiT is larger and sees more: one object in one place is learnt many times faster alone.
    "stage0": PictureStage(
        trained=("mmdit.",),
        tasks=(("draw", 1),),
        domains=OBJECTS,
        kinds=("single", "single", "single", "colours"),
        samples=12_000,
        steps=1200,
        learning_rate=3e-3,
    ),
    # Hours of a CPU do for objects only; diagrams, words and stacks of blocks are for the other preset.
    "stage1": PictureStage(
        trained=("mmdit.",), tasks=DRAW_EDIT, domains=OBJECTS, samples=48_000, steps=20_000, learning_rate=3e-3
    ),
    # Not the report's either: first what letters look like, nearly alone, …
    "words": PictureStage(
        trained=("mmdit.",),
        tasks=(("draw", 1),),
        domains=(("text", 3), ("objects", 1)),
        kinds=("word", "word", "word", ""),
        samples=20_000,
        steps=2400,
        learning_rate=2e-3,
        decay=0.8,
    ),
    # … then what is learnt last: which of three places gets which letter, which of two gets which shape. An MMDiT that
    # does not know yet gives one shape to both. After 500 steps by Muon the loss was 0.309, by AdamW 0.319.
    "binding": PictureStage(
        trained=("mmdit.",),
        tasks=(("draw", 23), ("edit/objects", 3), ("reason", 2)),
        domains=(("objects", 14), ("text", 9), ("reasoning", 1)),
        kinds=(
            *("position", "attribution", "two", "single", "counting") * 2,
            *("position", "attribution", "two", "single"),
            *("word",) * 9,
            *("move", "replace", "", "", ""),
        ),
        samples=112_000,
        steps=10_000,
        learning_rate=3e-3,
        muon=True,
        warmup=50,
        decay=0.85,
    ),
    # Words are there and so are two objects of which it is said which is where; two of which it is not are not, nor is
    # every outline of a single one, and those take longest.
    "pairs": PictureStage(
        trained=("mmdit.",),
        tasks=(("draw", 24), ("edit/objects", 3), ("reason", 2)),
        domains=(("objects", 21), ("text", 3), ("reasoning", 1)),
        kinds=(
            *("single", "two", "single", "counting", "attribution", "single", "two"),
            *("single", "counting", "single", "position", "attribution", "single", "two"),
            *("single", "counting", "single", "two", "attribution", "single", "counting"),
            *("word",) * 3,
            *("move", "replace", "", "", ""),
        ),
        samples=139_200,
        steps=9000,
        learning_rate=2e-3,
        muon=True,
        warmup=50,
        decay=0.97,
    ),
    "stage2": PictureStage(
        trained=("mmdit.",), tasks=DRAW_EDIT, domains=OBJECTS, sides=MANY_SIDES, steps=4000, learning_rate=8e-4
    ),
    "stage3": PictureStage(
        trained=("vlm.", "mmdit."),
        tasks=UNIFIED,
        domains=(("objects", 3), ("reasoning", 2)),
        sides=MANY_SIDES,
        steps=6000,
        learning_rate=1e-3,
        accumulate=2,
    ),
    "lora": LoraStage(
        trained=("mmdit.",), pictures="", steps=600, batch=8, learning_rate=2e-3, warmup=20, ema=0.98, save_every=100
    ),
}


def _on_gpu(stage: Stage, **changes) -> Stage:
    return replace(stage, samples=5 * stage.samples, batch=4 * stage.batch, save_every=1000, **changes)


GPU = {
    "vae": _on_gpu(CPU["vae"], steps=8000, autocast=True),
    "vae-smooth": _on_gpu(CPU["vae-smooth"], steps=3000, autocast=True),
    "vae-decoder": _on_gpu(CPU["vae-decoder"], steps=4000, autocast=True),
    "mllm": _on_gpu(CPU["mllm"], steps=8000),
    "search": _on_gpu(CPU["search"], steps=4000),
    "stage0": _on_gpu(CPU["stage0"], steps=2000),
    "stage1": _on_gpu(CPU["stage1"], domains=DOMAINS, steps=20_000),
    "words": _on_gpu(CPU["words"], steps=2400),
    "binding": _on_gpu(CPU["binding"], steps=8000),
    "pairs": _on_gpu(CPU["pairs"], steps=7000),
    "stage2": _on_gpu(CPU["stage2"], domains=DOMAINS, steps=8000),
    "stage3": _on_gpu(CPU["stage3"], domains=DOMAINS, steps=10_000),
    # For the released sizes.
    "lora": replace(
        CPU["lora"], steps=2000, batch=1, accumulate=4, learning_rate=1e-4, warmup=100, ema=0.99, checkpointing=True
    ),
}
PRESETS = {"cpu": CPU, "gpu": GPU}
SIZES = {"cpu": Sizes(), "gpu": Sizes(vae_base=12, llm_width=160, mmdit_heads=6)}


def changed(settings, changes: list[str]):
    """Settings with "name=JSON" texts applied. Raises InputError for an unknown name or a value of another type."""
    names = {field.name for field in fields(settings)}
    values = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in names:
            raise InputError(f"{name!r} is no setting; there are {', '.join(sorted(names))}")
        values[name] = _parsed(name, text, getattr(settings, name))
    return replace(settings, **values)


def _parsed(name: str, text: str, old):
    try:
        value = _frozen(json.loads(text))
    except ValueError as error:
        raise InputError(f"{name} is {text!r}, which is not JSON") from error
    good = (int, float) if isinstance(old, float) else type(old)
    if not isinstance(value, good) or isinstance(value, bool) != isinstance(old, bool):
        raise InputError(f"{name} is {text}; it must be like {json.dumps(old)}")
    return value


def _frozen(value):
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def as_json(settings) -> str:
    return json.dumps(asdict(settings), indent=2)
