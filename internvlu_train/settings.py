"""The settings of training stages, one frozen dataclass per kind of stage, and the presets of LoRA training.

The presets of the toy model's stages are in toy/presets.py.
"""

import json
from dataclasses import asdict, dataclass, fields, replace

from internvlu_core.errors import InputError

# Objects are what the toy GenEval, edits and questions are judged on; words take the longest to learn.
DOMAINS = (("objects", 5), ("text", 3), ("science", 1), ("spatial", 1), ("humour", 1), ("reasoning", 3))
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


# The presets of LoRA training: for a model as small as the toy on a CPU, and for the released sizes on a GPU.
LORA = {
    "cpu": LoraStage(
        trained=("mmdit.",), pictures="", steps=600, batch=8, learning_rate=2e-3, warmup=20, ema=0.98, save_every=100
    )
}
LORA["gpu"] = replace(
    LORA["cpu"], steps=2000, batch=1, accumulate=4, learning_rate=1e-4, warmup=100, ema=0.99, checkpointing=True
)


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
