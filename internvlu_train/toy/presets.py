"""The sizes of the toy model, and the settings of its training stages.

Presets: "cpu" is sized for hours on a CPU, "gpu" for minutes on one data-centre GPU.
"""

from dataclasses import dataclass, replace

from ..settings import DOMAINS, PictureStage, Stage, TextStage, VAEStage


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

CPU = {
    "vae": VAEStage(
        trained=("vae.",), tasks=PICTURES, steps=5000, batch=16, learning_rate=2e-3, samples=12_000, autocast=False
    ),
    # With this KL weight from the start, reconstructions stay grey. Without this stage, latents are more precise than
    # necessary, and those of a dark background three times as large as others.
    "vae-smooth": VAEStage(trained=("vae.",), **VAE_AGAIN, steps=2000, warmup=50, decay=0.8, kl=1e-3, negatives=0.25),
    "vae-decoder": VAEStage(
        trained=("vae.decoder.", "vae.post_quant_conv."), **VAE_AGAIN, steps=4000, negatives=0.1, noise=0.2
    ),
    "mllm": TextStage(trained=("vlm.",), tasks=LANGUAGE, samples=48_000, steps=6000),
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
    ),
    # Not in the report, whose MMDiT is larger and sees more data. Single objects alone are learnt many times faster.
    "stage0": PictureStage(
        trained=("mmdit.",),
        tasks=(("draw", 1),),
        domains=OBJECTS,
        kinds=("single", "single", "single", "colours"),
        samples=12_000,
        steps=1200,
        learning_rate=3e-3,
    ),
    # Hours on a CPU suffice for objects only; the other preset adds diagrams, words and stacks of blocks.
    "stage1": PictureStage(
        trained=("mmdit.",), tasks=DRAW_EDIT, domains=OBJECTS, samples=48_000, steps=20_000, learning_rate=3e-3
    ),
    # Not in the report: first the shapes of letters, almost alone, …
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
}
PRESETS = {"cpu": CPU, "gpu": GPU}
SIZES = {"cpu": Sizes(), "gpu": Sizes(vae_base=12, llm_width=160, mmdit_heads=6)}
