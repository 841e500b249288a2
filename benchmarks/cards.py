"""Which weight format draws and edits 1024 × 1024 on which card, by ComfyUI's own accounting on a pretended one.

A card is a FakeDevice of tests/support: what is alive on it is counted, and more than its memory raises as a GPU does.
The nodes run one step on the released sizes with the weights of all layers. ComfyUI decides what it loads and unloads.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch

from internvlu_core.quantization import QUANTS
from support.checkpoints import copy_json
from support.fake_card import NODES_FP8, fake_card, hollow_parts, pack, sample
from support.scaled_checkpoints import SCALES

SIDE = 1024  # of the pictures, in pixels
CARDS = (4, 6, 8, 12)  # GiB
# Of a card, assumed: CUDA itself, kernels, the desktop, and what the allocator cannot use.
TAKEN = 3 * 2**28
# The loader's own 8 bits, files in ComfyUI's formats, and GGUF files.
FORMATS = ("bf16", "fp16", NODES_FP8, *(quant.name for quant in QUANTS.values()), "Q8_0", "Q5_0", "Q4_0")
TASKS = ("draw", "edit")
PARTS = ("VLM", "MODEL", "VAE")


def table(formats=FORMATS, cards=CARDS, tasks=TASKS) -> Iterator[dict]:
    """A row for each format, card and task."""
    host = pack()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "released")
        copy_json(folder, SCALES["released"])
        for name in formats:
            with fake_card(enforced=True) as gpu:
                parts = hollow_parts(host, folder, name)
                skip_blocks(host, parts)
                for card, task in product(cards, tasks):
                    print(f"{name}, {card} GB, {task} …", file=sys.stderr)
                    gpu.total = card * 2**30 - TAKEN
                    yield {"stage": name, "card": card, "task": task, **measure(host, gpu, parts, task)}
                del parts


def measure(host, gpu, parts, task: str) -> dict:
    """done; peak: bytes alive; stages: {stage: {part: share of its weights on the card, "peak": bytes}}."""
    import comfy.model_management

    found: dict[str, dict] = {}
    patchers = dict(zip(PARTS, (parts.vlm.patcher, parts.model, parts.vae.patcher), strict=True))

    def stage(label: str, function: Callable):
        with gpu.watch() as record:
            try:
                return function()
            finally:  # also when there was too little memory
                shares = {part: round(p.loaded_size() / p.model_size(), 3) for part, p in patchers.items()}
                found[label] = {**shares, "peak": record.peak}

    try:
        run(host, parts, task, stage)
        done = True
    except torch.cuda.OutOfMemoryError:
        done = False
    comfy.model_management.unload_all_models()
    return {"done": done, "memory": gpu.total, "peak": max(each["peak"] for each in found.values()), "stages": found}


def skip_blocks(host, parts):
    """Let most blocks pass on what they get: they take turns in the same memory, so three of each kind tell it."""
    for network in (parts.model.model, parts.vlm.patcher.model):
        lists: dict[str, list] = {}
        for name, block in host.quantization.repeated_blocks(network).items():
            lists.setdefault(name.rpartition(".")[0], []).append(block)
        for blocks in lists.values():
            for block in {*blocks} - {blocks[0], blocks[len(blocks) // 2], blocks[-1]}:
                block.forward = PASS_ON[len(lists)]


# By how many kinds of blocks a network has: those of the MMDiT have two streams, those of ViT and language model one.
PASS_ON = {1: lambda img, txt, *_, **__: (img, txt), 2: lambda x, *_, **__: x}


def run(host, parts, task: str, stage: Callable):
    """One picture, stage by stage, as the nodes do it."""
    options = {"vae": parts.vae, "image1": torch.zeros(1, SIDE, SIDE, 3)} if task == "edit" else {}
    conditionings = stage("encode", lambda: host.encode.InternVLUEncode.execute(parts.vlm, "a boat", **options).result)
    latents = stage("sample", lambda: sample(host, parts, conditionings, (SIDE, SIDE), steps=1))
    stage("decode", lambda: parts.vae.decode(latents))
