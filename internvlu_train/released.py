"""The report's stages at the released sizes, on real data (arXiv 2603.09877).

Steps, ratios of tasks, sizes of pictures and the weights of the losses (next token : velocity = 1 : 20) are the
report's. Learning rates, batches and the moving average are ours: choose them for your data and GPUs with --set.
"""

from dataclasses import replace

from .settings import PictureStage, Stage, TextStage

DRAW_EDIT = (("draw+reason", 4), ("edit", 1))
UNIFIED = (("draw+reason", 1), ("edit", 1), ("ask+caption", 2))

_STAGE1 = PictureStage(
    trained=("mmdit.",),
    tasks=DRAW_EDIT,
    area=(512, 512),
    steps=250_000,
    batch=8,
    accumulate=4,
    learning_rate=1e-4,
    warmup=2000,
    decay=0.1,
    ema=0.9999,
    checkpointing=True,
    sharded=True,
    save_every=1000,
)

STAGES: dict[str, Stage] = {
    "stage1": _STAGE1,
    "stage2": replace(_STAGE1, area=(512, 1024), steps=60_000, batch=1, accumulate=16, learning_rate=5e-5, warmup=500),
    "stage3": replace(
        _STAGE1,
        trained=("vlm.", "mmdit."),
        tasks=UNIFIED,
        area=(512, 1024),
        steps=20_000,
        batch=1,
        accumulate=16,
        learning_rate=2e-5,
        warmup=500,
        ema=0.999,
    ),
    # Not in the report: the language model alone, on questions and captions.
    "understand": TextStage(
        trained=("vlm.",),
        tasks=(),
        steps=5000,
        batch=1,
        accumulate=16,
        learning_rate=1e-5,
        warmup=200,
        ema=0.999,
        checkpointing=True,
        sharded=True,
        save_every=500,
    ),
    # Not in the report: your own data, in the ratio in which it comes. --set 'trained=["vlm.","mmdit."]' and so on.
    "finetune": replace(
        _STAGE1,
        tasks=(),
        area=(512, 1024),
        steps=2000,
        batch=1,
        accumulate=4,
        learning_rate=1e-5,
        warmup=100,
        ema=0.99,
        save_every=200,
    ),
}
BEFORE = {"stage2": "stage1", "stage3": "stage2"}  # the stage whose checkpoint a stage starts from
