#!/usr/bin/env python3
"""Draws, edits, answers and reasons on the toy world's unseen prompts through a real ComfyUI's queue and in the core,
and prints the share of right ones of both as JSON. Status 1 if they differ by more than 3 points.

    .cache/venv/bin/python scripts/score_queue.py CHECKPOINT [--prompts 256]

The ComfyUI is COMFYUI_PATH's, else the one that scripts/dev.py downloads.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from internvlu_core import InternVLU  # noqa: E402
from internvlu_train.evaluation.sampling import Settings  # noqa: E402
from internvlu_train.evaluation.toy import draw, judge, reply, think, unseen  # noqa: E402
from internvlu_train.toy.world import Sample, check, check_answer  # noqa: E402
from support.comfy_server import ComfyServer, link_folder  # noqa: E402
from support.environment import find_comfyui  # noqa: E402
from support.workflows import workflow  # noqa: E402

# By workflow: domain and task of its samples.
MODES = {
    "text_to_image": ("objects", "draw"),
    "edit": ("objects", "edit"),
    "ask": ("objects", "ask"),
    "reason_then_draw": ("reasoning", "reason"),
}
MOST = 0.03


def samples(mode: str, count: int, settings: Settings) -> list[Sample]:
    """Those that the workflow can take: with a picture or without."""
    made = unseen(*MODES[mode], 4 * count, settings)
    return [sample for sample in made if bool(sample.images) == (mode in ("edit", "ask"))][:count]


def in_core(model: InternVLU, mode: str, made: list[Sample], settings: Settings) -> list[bool]:
    if mode == "ask":
        return [check_answer(reply(model, sample), sample.truth).right for sample in made]
    thoughts = [think(model, sample) for sample in made] if mode == "reason_then_draw" else None
    pictures = draw(model, made, settings, thoughts)
    return [verdict.right for verdict in judge(pictures, made)]


def in_queue(server: ComfyServer, mode: str, made: list[Sample], settings: Settings, scales) -> list[bool]:
    """scales: all_scale and partial_scale, which the core takes by itself."""
    rights = []
    for seed, sample in enumerate(made):
        # In float32 both compute the same pictures; rounding to bfloat16 makes or unmakes doubtful ones.
        changes = {"question" if mode == "ask" else "prompt": sample.prompt, "seed": seed, "weight_dtype": "fp32"}
        if mode != "ask":
            changes |= {"steps": settings.steps, "all_scale": scales[0], "partial_scale": scales[1]}
        if sample.images:
            changes["image"] = upload(server, f"{mode}{seed}", sample.images[0])
        else:
            changes |= dict(zip(("width", "height"), settings.size, strict=True))
        result = server.run(workflow(mode, **changes))
        if mode == "ask":
            rights.append(check_answer(next(server.texts(result)), sample.truth).right)
        else:
            picture = np.asarray(next(server.images(result)).convert("RGB"))
            rights.append(check(picture, sample.truth).right)
    return rights


def upload(server: ComfyServer, name: str, picture: np.ndarray) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.png"
        Image.fromarray(picture).save(file)
        return server.upload_image(file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompts", type=int, default=256, help="of all workflows together")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--all-scale", type=float)
    parser.add_argument("--partial-scale", type=float)
    options = parser.parse_args()
    model = InternVLU.from_pretrained(options.checkpoint, dtype=torch.float32)
    config, count = model.config.mmdit, options.prompts // len(MODES)
    scales = {"all_scale": options.all_scale, "partial_scale": options.partial_scale}
    settings = Settings((config.image_width, config.image_height), options.steps, **scales)
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "models" / "internvl_u").mkdir(parents=True)
        link_folder(options.checkpoint.resolve(), base / "models" / "internvl_u" / "InternVL-U")
        with ComfyServer(find_comfyui(), base, ROOT) as server:
            for mode in MODES:
                made = samples(mode, count, settings)
                mode_scales = settings.scales(config, mode == "reason_then_draw")
                queue = in_queue(server, mode, made, settings, mode_scales)
                core = in_core(model, mode, made, settings)
                report[mode] = {"prompts": len(made), "queue": np.mean(queue), "core": np.mean(core)}
    prompts = [mode["prompts"] for mode in report.values()]
    report["all"] = {
        side: float(np.average([mode[side] for mode in report.values()], weights=prompts)) for side in ("queue", "core")
    }
    json.dump(report, sys.stdout, indent=2)
    print()
    return int(abs(report["all"]["queue"] - report["all"]["core"]) > MOST)


if __name__ == "__main__":
    sys.exit(main())
