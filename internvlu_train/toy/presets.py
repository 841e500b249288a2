"""The sizes of the toy model, and the settings of its training stages.

Presets: "cpu" is sized for hours on a CPU, "gpu" for minutes on one data-centre GPU. PRESETS has the chains of stages
from nothing, WIDER those from a checkpoint that lacks pictures and sizes.
"""

from dataclasses import dataclass, replace

from ..settings import DOMAINS, PictureStage, TextStage, VAEStage


@dataclass(frozen=True)
class Sizes:
    """The sizes of a small checkpoint of the released architecture. Widths are in channels, sides in pixels."""

    picture: int = 64  # side of a drawing by default
    vae_base: int = 8
    vae_blocks: int = 2
    tile: int = 112  # the ViT's picture; 112 pixels are 16 tokens
    vit_width: int = 128
    vit_layers: int = 3
    llm_width: int = 128
    llm_layers: int = 4
    mmdit_layers: int = 6
    mmdit_heads: int = 4  # with head_dim channels each
    head_dim: int = 32
    rope_axes: tuple[int, int, int] = (8, 12, 12)
    patch: int = 1  # latent pixels per side of an MMDiT token; with the released 2, 64 × 64 pixels are only 16 tokens
    vocabulary: int = 1536  # at most
    flow_shift: float = 3.0
    min_side: int = 32  # reference pictures have at least the area of a square with this side …
    max_side: int = 128  # … and at most the area, and the longest side, of this one


OBJECTS = (("objects", 1),)
PICTURES = (("draw", 3), ("edit", 2), ("reason", 1))
LANGUAGE = (("ask", 3), ("caption", 2), ("reason", 1), ("draw", 1), ("edit", 1))
DRAW_EDIT = (("draw", 4), ("edit", 1))
# Generation : editing : understanding = 1 : 1 : 2. A third of the generation has reasoning.
UNIFIED = (("draw", 2), ("reason", 1), ("edit", 3), ("ask", 4), ("caption", 2))
# For a VAE whose reconstructions are no longer all grey. Only single objects have backgrounds other than white; with a
# smaller share of them, small ones on grey stay blurred.
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

# What is drawn in the end: 36 drawings, 3 edits, 2 with reasoning. The kinds stand in the order of the domains.
LAST = {
    "trained": ("mmdit.",),
    "tasks": (("draw", 36), ("edit/objects", 3), ("reason", 2)),
    "steps": 20_000,
    "learning_rate": 2e-3,
    "muon": True,
    "warmup": 100,
    "decay": 0.9,
}
# Diagrams, stacks of blocks and memes, as in run 30 (demo/README.md). Most were right in 0.1 to 0.6 when they were 9 of
# 32 drawings, and in 0.8 to 1.0 when they were 23 of 36.
FIGURES = LAST | {
    "domains": (("objects", 10), ("text", 3), ("science", 12), ("spatial", 6), ("humour", 5), ("reasoning", 1)),
    "kinds": (
        *("position", "two", "counting", "single", "attribution", "two", "single", "counting", "position"),
        *("attribution", "word", "word", "word", "clock", "balance", "right triangle", "clock", "bars", "balance"),
        *("right triangle", "clock", "number line", "balance", "right triangle", "clock"),
        *("stacks", "stacks", "front", "stacks", "stacks", "", "", "", "", "", ""),
        *("move", "replace", "", "", ""),
    ),
    "sides": (*((64, 64),) * 3, (96, 48), *((64, 64),) * 3, (48, 96), *((64, 64),) * 3, (80, 80)),
}
# Objects at other sizes, as in run 32: what is learnt at one size helps little at another. Everything else is drawn at
# one size, in shares that keep it.
OTHER_SIDES = LAST | {
    "domains": (("objects", 22), ("text", 4), ("science", 5), ("spatial", 3), ("humour", 2), ("reasoning", 1)),
    "kinds": (
        *("position", "two", "counting", "single", "attribution", "two", "counting", "single"),
        *("position", "attribution", "two", "counting", "position", "two", "counting"),
        *("single", "attribution", "two", "counting", "single", "position", "attribution"),
        *("word", "word", "word", "word"),
        *("right triangle", "right triangle", "balance", "", "", "stacks", "stacks", "front", "", ""),
        *("move", "replace", "", "", ""),
    ),
    "sides": (
        *((64, 64), (96, 48), (48, 96), (80, 80), (96, 48), (48, 96)),
        *((80, 80), (64, 64), (96, 48), (48, 96), (80, 80), (80, 80)),
    ),
    "sides_of": ("objects",),
}

# "minutes" are of 720 for all stages together, for two processes on two cores (__main__, --minutes); they end a stage
# whose steps take longer there.
CPU = {
    "vae": VAEStage(
        trained=("vae.",),
        tasks=PICTURES,
        steps=5000,
        minutes=45.0,
        batch=16,
        learning_rate=2e-3,
        samples=12_000,
        autocast=False,
    ),
    # With this KL weight from the start, reconstructions stay grey. Without this stage, latents are more precise than
    # necessary, and those of a dark background three times as large as others.
    "vae-smooth": VAEStage(
        trained=("vae.",), **VAE_AGAIN, steps=2000, minutes=16.0, warmup=50, decay=0.8, kl=1e-3, negatives=0.25
    ),
    "vae-decoder": VAEStage(
        trained=("vae.decoder.", "vae.post_quant_conv."),
        **VAE_AGAIN,
        steps=4000,
        minutes=20.0,
        negatives=0.1,
        noise=0.2,
    ),
    "mllm": TextStage(trained=("vlm.",), tasks=LANGUAGE, samples=48_000, steps=6000, minutes=45.0),
    # Not in the report. In the full mixture, the model was still guessing after 10,000 steps which object has a colour
    # or shape, and which of two is left of the other.
    "search": TextStage(
        trained=("vlm.",),
        tasks=(("ask", 15), ("reason", 2)),
        domains=(("objects", 10), ("text", 1), ("science", 1), ("spatial", 1), ("humour", 1), ("reasoning", 1)),
        kinds=("relation", "where", "describe", "relation", "colour", "shape", *[""] * 11),
        samples=96_000,
        warmup=50,
        steps=4000,
        minutes=30.0,
    ),
    # Not in the report, whose MMDiT is larger and sees more data. Single objects alone are learnt many times faster.
    "stage0": PictureStage(
        trained=("mmdit.",),
        tasks=(("draw", 1),),
        domains=OBJECTS,
        kinds=("single", "single", "single", "colours"),
        samples=12_000,
        steps=1200,
        minutes=8.0,
        learning_rate=3e-3,
    ),
    # Hours on a CPU suffice for objects only; the other preset adds diagrams, words and stacks of blocks.
    "stage1": PictureStage(
        trained=("mmdit.",),
        tasks=DRAW_EDIT,
        domains=OBJECTS,
        samples=48_000,
        steps=20_000,
        minutes=90.0,
        learning_rate=3e-3,
    ),
    # Not in the report: first the shapes of letters, almost alone, …
    "words": PictureStage(
        trained=("mmdit.",),
        tasks=(("draw", 1),),
        domains=(("text", 3), ("objects", 1)),
        kinds=("word", "word", "word", ""),
        samples=20_000,
        steps=2400,
        minutes=25.0,
        learning_rate=2e-3,
        decay=0.8,
    ),
    # … then binding, which is learnt last: which letter belongs to which place, which shape to which of two objects.
    # Before, both objects often get one shape. After 500 steps the loss was 0.309 with Muon, 0.319 with AdamW.
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
        minutes=100.0,
        learning_rate=3e-3,
        muon=True,
        warmup=50,
        decay=0.85,
    ),
    # Then what takes longest: two objects without a relation in the prompt, and the outlines of single objects. Words,
    # and two objects with a relation, are learnt by now.
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
        minutes=90.0,
        learning_rate=2e-3,
        muon=True,
        warmup=50,
        decay=0.97,
    ),
    "stage2": PictureStage(
        trained=("mmdit.",),
        tasks=DRAW_EDIT,
        domains=OBJECTS,
        sides=MANY_SIDES,
        steps=4000,
        minutes=45.0,
        learning_rate=8e-4,
    ),
    # Then diagrams, stacks of blocks and memes, beside all that is known: after stage 2, which has objects alone.
    "wide": PictureStage(**FIGURES, minutes=100.0, samples=98_400, seed=30),
    "sizes": PictureStage(**OTHER_SIDES, minutes=90.0, samples=114_800, batch=24, accumulate=2, seed=31),
    # From few samples, at a low rate: what was learnt is to be kept.
    "stage3": PictureStage(
        trained=("vlm.", "mmdit."),
        tasks=UNIFIED,
        sides=MANY_SIDES,
        samples=40_000,
        steps=6000,
        minutes=16.0,
        learning_rate=1e-4,
        accumulate=2,
    ),
}


# A step takes 50 ms on an H200, nearly all of it to start some 1,700 kernels, as it seems. Matrix products are in TF32,
# since autocast adds kernels. "minutes" are of 20 for all stages together (__main__, --minutes); steps are a bound that
# is not reached.
ON_GPU = {"steps": 200_000, "autocast": False, "save_every": 1000}
DRAWN = {**ON_GPU, "domains": DOMAINS, "batch": 256, "muon": True, "samples": 200_000}
GPU = {
    "vae": replace(CPU["vae"], **ON_GPU, minutes=2.2, batch=64, samples=40_000),
    "vae-smooth": replace(CPU["vae-smooth"], **ON_GPU, minutes=1.0, batch=64, samples=40_000),
    "vae-decoder": replace(CPU["vae-decoder"], **ON_GPU, minutes=1.3, batch=64, samples=40_000, sides=MANY_SIDES),
    "mllm": replace(CPU["mllm"], **ON_GPU, minutes=2.0, batch=192, samples=120_000),
    "search": replace(CPU["search"], **ON_GPU, minutes=2.0, batch=192, samples=120_000),
    "stage0": replace(CPU["stage0"], **ON_GPU, minutes=0.4, batch=256, muon=True, samples=40_000),
    "stage1": replace(CPU["stage1"], **DRAWN, minutes=2.1),
    "words": replace(CPU["words"], **ON_GPU, minutes=0.8, batch=256, muon=True, samples=60_000),
    "binding": replace(CPU["binding"], **ON_GPU, minutes=2.0, batch=256),
    "pairs": replace(CPU["pairs"], **ON_GPU, minutes=1.5, batch=256),
    "stage2": replace(CPU["stage2"], **DRAWN | {"batch": 512}, minutes=1.2),
    "wide": replace(CPU["wide"], **ON_GPU, minutes=1.6, batch=512, samples=240_000),
    "sizes": replace(CPU["sizes"], **ON_GPU, minutes=1.4, batch=512, accumulate=1, samples=240_000),
    "stage3": replace(CPU["stage3"], **ON_GPU, minutes=0.5, batch=128, accumulate=1),
}

# From a checkpoint that draws objects and words at one size. Its decoder blurred small things in other sizes.
WIDER_GPU = {
    "decoder": replace(
        CPU["vae-decoder"],
        **ON_GPU,
        minutes=0.7,
        batch=96,
        samples=40_000,
        sides=(*MANY_SIDES, (96, 48), (48, 96)),
        warmup=50,
        decay=0.8,
        seed=28,
    ),
    "wide": replace(GPU["wide"], minutes=1.7),
    "sizes": replace(GPU["sizes"], minutes=1.5),
}
WIDER = {
    "cpu": {
        "decoder": replace(WIDER_GPU["decoder"], minutes=10.0, steps=2000, batch=16, samples=12_000, save_every=200),
        "wide": CPU["wide"],
        "sizes": CPU["sizes"],
    },
    "gpu": WIDER_GPU,
}
PRESETS = {"cpu": CPU, "gpu": GPU}
SIZES = {"cpu": Sizes(), "gpu": Sizes()}
