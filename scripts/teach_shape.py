#!/usr/bin/env python3
"""Teaches the toy checkpoint a shape that it has never seen, with an adapter, and scores it before and after.

    .cache/venv/bin/python scripts/teach_shape.py FOLDER [--pictures N] [--steps N]

FOLDER gets pictures/ with captions (half of them of shapes that it knows, so that it does not forget them) and
lora/lora.safetensors, which ComfyUI's LoraLoader takes. Prints the scores as JSON.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from internvlu_core import InternVLU  # noqa: E402
from internvlu_train import __main__ as training  # noqa: E402
from internvlu_train.evaluation.sampling import Order, Settings, draw_all  # noqa: E402
from internvlu_train.evaluation.toy import share  # noqa: E402
from internvlu_train.toy.world import NEW_SHAPES, SHAPES, Choices, check  # noqa: E402
from internvlu_train.toy.world.objects import single  # noqa: E402
from support import toy  # noqa: E402

SIZE = 64, 64


def plans(shapes: tuple[str, ...], count: int, odd: int) -> list:
    """Single objects of these shapes. odd: 1 for what is never trained on."""
    found, seed = [], odd
    while len(found) < count:
        choices = Choices("teach", seed, SIZE)
        plan, seed = single(choices, shapes), seed + 2
        if choices.wants(plan.keys):
            found.append(plan)
    return found


def write_pictures(folder: Path, count: int):
    folder.mkdir(parents=True, exist_ok=True)
    for index, plan in enumerate(plans(NEW_SHAPES, count // 2, 0) + plans(SHAPES, count // 2, 0)):
        Image.fromarray(plan.paint()[1]).save(folder / f"{index:04}.png")
        (folder / f"{index:04}.txt").write_text(plan.prompt, encoding="utf-8")


def merge(model: InternVLU, file: Path):
    """W += alpha / rank · up · down, for every layer in the file."""
    tensors = load_file(file)
    for name in {key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha")}:
        up, down = (tensors[f"{name}.lora_{part}.weight"].float() for part in ("up", "down"))
        weight = model.mmdit.get_submodule(name.removeprefix("diffusion_model.")).weight
        with torch.no_grad():
            weight += tensors[f"{name}.alpha"] / len(down) * (up @ down)


def scores(model: InternVLU, count: int) -> dict[str, float]:
    found = {}
    for name, shapes in (("new", NEW_SHAPES), ("known", SHAPES)):
        unseen = plans(shapes, count, 1)
        pictures = draw_all(model, [Order(plan.prompt, seed=i) for i, plan in enumerate(unseen)], Settings(SIZE))
        found[name] = share([check(picture, plan.truth).right for picture, plan in zip(pictures, unseen, strict=True)])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--count", type=int, default=200, help="unseen prompts to score")
    options = parser.parse_args()
    model = InternVLU.from_pretrained(toy.CHECKPOINT, dtype=torch.float32)
    before = scores(model, options.count)
    write_pictures(options.folder / "pictures", options.pictures)
    arguments = ["lora", str(options.folder), "--base", str(toy.CHECKPOINT)]
    arguments += ["--pictures", str(options.folder / "pictures"), "--set", f"steps={options.steps}"]
    if status := training.main([*arguments, "--set", "batch=32"]):
        return status
    merge(model, options.folder / "lora" / "lora.safetensors")
    json.dump({"shape": NEW_SHAPES[0], "before": before, "after": scores(model, options.count)}, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
