"""What the released sizes need of a GPU: every stage runs at full depth on a fake one (see fake_device.py)."""

import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from internvlu_core import InternVLU
from internvlu_core.sampling import flow_sigmas
from scripts.random_checkpoint import SCALES, write_json

from .fake_device import FakeDevice, Record, hollow_model

SIDE = 1024  # of the pictures, in pixels
DTYPE = torch.bfloat16


def table() -> list[dict]:
    """A row for each stage: bytes of its network's weights and beside them, in 16 and in 8 bits; kernels and FLOPs."""
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder, "released"), SCALES["released"])
        sixteen, eight = (measure(Path(folder, "released"), name) for name in (None, "fp8"))
    rows = []
    for stage, (weights, record) in sixteen.items():
        weights8, record8 = eight[stage]
        row = {"stage": stage, "bf16": weights, "working": record.working}
        row |= {"fp8": weights8, "working_fp8": record8.working}
        rows.append(row | {"kernels": record.kernels, "kernels_fp8": record8.kernels, "flops": record.flops})
    return rows


def measure(folder: Path, weight_format: str | None) -> dict[str, tuple[int, Record]]:
    """{stage: (bytes of its network's weights, what happened)}"""
    with FakeDevice() as device:
        model = hollow_model(folder, device.device, DTYPE, weight_format)
        found = stages(model, device)
    return {stage: (sum(p.nbytes for p in network.parameters()), record) for stage, (network, record) in found.items()}


def stages(model: InternVLU, device: FakeDevice) -> dict[str, tuple[nn.Module, Record]]:
    """{stage: (its network, what happened)}, in bytes that include nothing of the other stages' results."""
    photo = Image.new("RGB", (SIDE, SIDE))
    found = {}
    with device.laps() as text:
        model.answer("What is in this picture?", [photo], max_new_tokens=3, on_token=text)
    found["VLM, a picture and a question"] = model.vlm, text.records[0]
    found["VLM, a token"] = model.vlm, text.records[2]
    with device.watch() as context:
        edit = model.encode("Make it night.", [photo])
    found["context of an edit"] = model.vlm, context
    drawing = model.encode("A photo of a red boat on a lake at dawn.")
    for name, conditions, pictures in (("a drawing", drawing, 1), ("an edit", edit, 1), ("4 drawings", drawing, 4)):
        noise = torch.randn(pictures, model.config.vae.latent_channels, SIDE // 8, SIDE // 8)
        with device.laps() as steps:
            latents = model.sample(conditions, noise, flow_sigmas(2), 4.5, 2.0, steps)
        found[f"MMDiT, a step of {name}"] = model.mmdit, steps.records[1]
    with device.watch() as decoding:
        model.decode(latents[:1])
    found["VAE, decoding"] = model.vae, decoding
    return found
