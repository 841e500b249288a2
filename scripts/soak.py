#!/usr/bin/env python3
"""Queues prompts of mixed modes, some of them cancelled, on a ComfyUI server, and prints as JSON what became of its
memory and whether every prompt still gives what it gave the first time. Status 1 if either is not as it should be.

    .cache/venv/bin/python scripts/soak.py [--prompts 300] [--checkpoint DIR] [--seed 0]
    … --url http://127.0.0.1:8188 --pid PID    a server that runs already, whose pack knows the checkpoint "InternVL-U"

The ComfyUI is COMFYUI_PATH's, else the one that scripts/dev.py downloads. Memory is resident memory of the server's
process in bytes, read after each prompt.
"""

import argparse
import copy
import hashlib
import json
import random
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.comfy_server import ComfyInterrupted, ComfyServer, link_folder  # noqa: E402
from support.environment import find_comfyui  # noqa: E402
from support.workflows import workflow  # noqa: E402

CHECKPOINT = ROOT / "tests" / "golden" / "checkpoint"
SMALL = {"steps": 3, "max_new_tokens": 12, "width": 128, "height": 96}
CANCELLED = 0.2  # of the prompts
WARM_UP, MAX_GROWTH = 30, 3.0  # prompts, percent


@dataclass
class Report:
    memory: list[int] = field(default_factory=list)  # after each prompt
    modes: dict[str, int] = field(default_factory=dict)  # finished prompts of each
    cancelled: int = 0
    differing: list[str] = field(default_factory=list)

    def summary(self, warm_up: int = WARM_UP) -> dict:
        baseline, later = self.memory[warm_up - 1], self.memory[warm_up:]
        return {
            "prompts": len(self.memory),
            "cancelled": self.cancelled,
            "finished": self.modes,
            "differing": self.differing,
            f"after_{warm_up}": baseline,
            "final": later[-1],
            "maximum_later": max(later),
            "growth_percent": round(100 * (later[-1] / baseline - 1), 2),
        }


def jobs() -> dict[str, dict]:
    """{name: prompt} of what the soak draws from: every mode, sizes and seeds of all kinds."""
    found = {}
    for seed, (width, height) in enumerate([(96, 96), (160, 128), (128, 208)]):
        inputs = {"seed": seed, "width": width, "height": height}
        for batch in (1, 2):
            found[f"text_to_image {width}x{height} batch {batch}"] = job("text_to_image", batch_size=batch, **inputs)
        found[f"reason_then_draw {width}x{height}"] = job("reason_then_draw", **inputs)
    for name in ("edit", "edit_with_mask", "two_references", "reason_then_edit", "image_to_image"):
        for seed in (1, 2):
            found[f"{name} seed {seed}"] = job(name, seed=seed)
    for name in ("second_pass", "ksampler", "advanced_sampling", "caption_batch", "ask"):
        found[name] = job(name)
    found["ask sampled"] = job("ask", temperature=1.5, seed=3)
    found["ask beams"] = job("ask", num_beams=3)
    # Another dtype: all networks are loaded anew, and once more for the prompt after it.
    found["text_to_image bf16"] = job("text_to_image", weight_dtype="bf16")
    return found


def job(name: str, **inputs) -> dict:
    """A shipped workflow with these inputs, and small where they do not say otherwise."""
    prompt = workflow(name, **inputs)
    for node in prompt.values():
        node["inputs"] |= {key: value for key, value in SMALL.items() if key in node["inputs"] and key not in inputs}
    return prompt


def soak(server: ComfyServer, pid: int, prompts: int, seed: int = 0, say=lambda text: None) -> Report:
    chance, process, report = random.Random(seed), psutil.Process(pid), Report()
    pool, first = jobs(), {}
    for number in range(prompts):
        name = chance.choice(list(pool))
        cancel_at = chance.randrange(1, 15) if chance.random() < CANCELLED else None
        outcome = run(server, pool[name], cancel_at)
        if outcome is None:
            report.cancelled += 1
        else:
            mode = name.partition(" ")[0]
            report.modes[mode] = report.modes.get(mode, 0) + 1
            if first.setdefault(name, outcome) != outcome:
                report.differing.append(f"prompt {number}: {name}")
        report.memory.append(process.memory_info().rss)
        say(f"{number + 1:4} {report.memory[-1] / 2**20:8.1f} MiB  {name}{'' if outcome else ' (cancelled)'}")
    return report


def run(server: ComfyServer, prompt: dict, cancel_at: int | None) -> list[str] | None:
    """Digests of all pictures and texts, or None if it was cancelled, which is done at an event of that number."""
    events = 0

    def on_event(kind, data):
        nonlocal events
        events += 1
        if events == cancel_at:
            server.interrupt()

    try:
        result = server.run(copy.deepcopy(prompt), on_event=on_event)
    except ComfyInterrupted:
        return None
    pictures = [hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest() for picture in server.images(result)]
    return pictures + list(server.texts(result))


class RunningServer(ComfyServer):
    """Someone else's server: neither started nor stopped here."""

    def __init__(self, url: str):
        super().__init__(ROOT, ROOT, ROOT)
        self.url = url.rstrip("/")

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass

    def log_tail(self, lines=40):
        return "(see the server's own log)"


@contextmanager
def own_server(comfyui: Path, checkpoint: Path):
    with tempfile.TemporaryDirectory(prefix="internvlu_soak_") as base:
        folder = Path(base) / "models" / "internvl_u"
        folder.mkdir(parents=True)
        link_folder(checkpoint.resolve(), folder / "InternVL-U")
        with ComfyServer(comfyui, base, ROOT) as server:
            yield server


def main(options) -> int:
    if options.url:
        server, pid = RunningServer(options.url), lambda: options.pid
    else:
        server = own_server(find_comfyui(), options.checkpoint)
        pid = lambda: started.pid  # noqa: E731
    with server as started:
        for picture in (ROOT / "tests" / "pictures").glob("*.png"):
            started.upload_image(picture)
        report = soak(started, pid(), options.prompts, options.seed, lambda text: print(text, file=sys.stderr))
    summary = report.summary()
    print(json.dumps(summary, indent=1))
    return int(summary["growth_percent"] > MAX_GROWTH or bool(report.differing))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--prompts", type=int, default=300, help=f"more than {WARM_UP}")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, metavar="DIR", help="for a server of its own")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the cancels")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--pid", type=int, help="of that server's process")
    options = parser.parse_args()
    if options.prompts <= WARM_UP:
        parser.error(f"--prompts must be more than {WARM_UP}")
    if bool(options.url) != bool(options.pid):
        parser.error("--url and --pid go together")
    sys.exit(main(options))
