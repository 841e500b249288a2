"""The settings of training stages, one frozen dataclass per kind of stage, and the presets of LoRA training.

The presets of the toy model's stages are in toy/presets.py.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import ClassVar

from internvlu_core.errors import InputError

# Shares of the synthetic domains. Most scores of the toy model are about objects; words take longest to learn.
DOMAINS = (("objects", 5), ("text", 3), ("science", 1), ("spatial", 1), ("humour", 1), ("reasoning", 3))
HIDDEN_LAYERS = (
    ".attn.",
    "_mlp.",
    ".self_attn.",
    ".mlp.",
)  # parts of parameter names: attention and MLPs of both networks
# The least values of settings.
LEAST = dict.fromkeys(("samples", "steps", "batch", "accumulate", "save_every", "max_tokens", "rank"), 1)
LEAST |= dict.fromkeys(("warmup", "minutes", "learning_rate", "held_out", "evaluate_every", "drawings"), 0)


def _check_share(name: str, pair):
    if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
        raise InputError(f"{name} has {pair!r}; it must have pairs of a name and a share")
    if not isinstance(pair[1], int) or pair[1] < 1:
        raise InputError(f"{name} has the share {pair[1]!r}; shares are whole numbers of at least 1")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The settings that every stage has.

    trained: prefixes of the names of parameters that are trained; all others are frozen.

    Synthetic samples: tasks has pairs (task, share), domains pairs (domain, share), shares being whole numbers. A task
    takes its samples from the domains that have it, or from the one it names, as in "edit/objects". kinds: kinds of
    samples, taken in turn; "" for any. sides: picture sizes (width, height), taken in turn; sides_of: the domains that
    take all of them, where the others take the first; () for all domains. samples: how many are made; an epoch is one
    pass over them.

    Real data: data has pairs (source, share); then tasks is the ratio of tasks over all sources, of which "draw+reason"
    is one, and () means any task as it comes, and the settings of synthetic samples have no effect. area: least and
    largest sides of squares whose areas pictures are brought to. max_tokens: of a prompt with its pictures and words.
    skip_bad: leave out samples that cannot be used, and list them in bad.jsonl. cache_hidden: keep the conditionings of
    a frozen language model on disk, not latents alone. held_out: samples of each source, or of each of its tasks if
    `tasks` names them, that are not trained. evaluate_every: steps between evaluations: the loss on what is held out,
    and drawings of its first `drawings` prompts; 0: none. tracker: "" or "tensorboard".

    batch: samples per micro-batch. accumulate: micro-batches per process and step. muon: optimise the matrices of
    attention and MLPs with Muon, everything else with AdamW. warmup: steps. decay: the final fraction of the run, in
    which the learning rate falls to 0. clip: maximal norm of the gradient. ema: decay of the moving average of the
    weights; 0: no average is kept. sharded: divide weights, gradients, moments and averages among the processes
    (sharding.py). minutes: of training, after which the run ends if it has not taken all steps; 0 for no limit. The
    learning rate follows whichever of the two, steps or minutes, is nearer to its end.
    """

    trained: tuple[str, ...]
    tasks: tuple[tuple[str, int], ...]
    domains: tuple[tuple[str, int], ...] = DOMAINS
    kinds: tuple[str, ...] = ()
    sides: tuple[tuple[int, int], ...] = ((64, 64),)
    sides_of: tuple[str, ...] = ()
    samples: int = 24_000
    steps: int = 4000
    minutes: float = 0.0
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
    autocast: bool = True  # bfloat16 where torch considers it safe and it is fast; weights stay float32
    checkpointing: bool = False  # recompute activations in the backward pass instead of keeping them
    sharded: bool = False
    seed: int = 0
    save_every: int = 200  # steps
    data: tuple[tuple[str, int], ...] = ()
    area: tuple[int, int] = (512, 1024)
    max_tokens: int = 4096
    skip_bad: bool = False
    cache_hidden: bool = True
    held_out: int = 0
    evaluate_every: int = 0
    drawings: int = 4
    tracker: str = ""

    # The networks of which a stage of this kind can train parameters.
    NETWORKS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        for name in ("data", "tasks", "domains"):
            for pair in getattr(self, name):
                _check_share(name, pair)
        for name, least in LEAST.items():
            if getattr(self, name, least) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("decay", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1]:
            raise InputError(f"area is {list(self.area)}; it must be the least and the largest side of a square")

    def check_trained(self):
        """Raises InputError if nothing is trained, or something of which a stage of this kind learns nothing."""
        known = " and ".join(self.NETWORKS)
        if not self.trained:
            raise InputError(f"trained is empty; this stage trains parameters of {known}")
        if other := [prefix for prefix in self.trained if prefix.partition(".")[0] not in self.NETWORKS]:
            raise InputError(f"trained has {other[0]!r}; this stage trains parameters of {known}")

    def learns(self, network: str) -> bool:
        """Whether any parameter of a network is trained. network: "vae", "vlm" or "mmdit"."""
        return any(prefix.partition(".")[0] == network for prefix in self.trained)


@dataclass(frozen=True, kw_only=True)
class VAEStage(Stage):
    """Reconstruction of pictures. Loss: mse · MSE + l1 · ramp · L1 + kl · KL, each a mean over elements.

    The ramp grows from 0 to 1 over l1_ramp steps: with the full L1 term from the start, all pictures stay grey.
    negatives: the share of pictures whose colours are inverted. Otherwise rare backgrounds get latents far from all
    others, which the MMDiT cannot draw. noise: when the decoder is trained alone, noise is added to its input, with a
    standard deviation between 0 and this multiple of the latents' own, because the latents that the MMDiT draws are not
    exact either.
    """

    NETWORKS = ("vae",)

    mse: float = 10.0
    l1: float = 1.0
    l1_ramp: int = 500
    kl: float = 1e-5
    negatives: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TextStage(Stage):
    """Next-token loss on answers and reasoning; for samples without either, on the prompts."""

    NETWORKS = ("vlm",)


@dataclass(frozen=True, kw_only=True)
class PictureStage(Stage):
    """Velocity loss on pictures; if the language model is trained too, next-token loss on answers and reasoning.

    flow_weight, text_weight: weights of the two losses. shift: of the noise levels σ = sigmoid(normal). even: the share
    of pictures whose σ is uniform before the shift, as in the sampler's schedule; sigmoid(normal) hardly ever reaches
    the first levels of a schedule. drop_prompt: the share of pictures that is trained with the partial branch.
    drop_all: with the unconditional branch.
    """

    NETWORKS = ("vlm", "mmdit")

    text_weight: float = 1.0
    flow_weight: float = 20.0
    shift: float = 3.0
    even: float = 0.25
    drop_prompt: float = 0.05
    drop_all: float = 0.05


@dataclass(frozen=True, kw_only=True)
class LoraStage(PictureStage):
    """Velocity loss on a user's pictures, training adapters beside frozen layers (lora.add_adapters).

    pictures: the folder (folder.read_folder). trained: prefixes of the names of layers that get an adapter. layers:
    parts of names, of which a layer must have one. Without data, tasks has no effect; synthetic samples are not made.
    """

    tasks: tuple[tuple[str, int], ...] = ()
    pictures: str = ""
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
    """Apply changes "name=JSON". Raises InputError for an unknown name or a value of another type."""
    names = {field.name for field in fields(settings)}
    values = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in names:
            raise InputError(f"there is no setting {name!r}; there are {', '.join(sorted(names))}")
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
