"""What the released sizes need of a GPU: all stages run at full depth on a fake one (tests/support/fake_device.py)."""

import tempfile
from pathlib import Path

import torch
from PIL import Image

from internvlu_core import InternVLU
from internvlu_core.checkpoints.config import Config
from internvlu_core.sampling import flow_sigmas
from support.checkpoints import copy_json
from support.fake_device import FakeDevice, Record, hollow_model
from support.scaled_checkpoints import SCALES

SIDE = 1024  # of the pictures, in pixels
DTYPE = torch.bfloat16


def released_config() -> Config:
    with tempfile.TemporaryDirectory() as folder:
        copy_json(Path(folder, "released"), SCALES["released"])
        return Config.read(Path(folder, "released"))


def table() -> list[dict]:
    """A row for each stage: bytes of its network's weights and beside them, in 16 and in 8 bits; kernels and FLOPs."""
    sixteen, eight = measure(None), measure("fp8")
    rows = []
    for stage, (network, weights, record) in sixteen.items():
        _, weights8, record8 = eight[stage]
        row = {"stage": stage, "network": network, "bf16": weights, "working": record.working}
        row |= {"fp8": weights8, "working_fp8": record8.working}
        rows.append(row | {"kernels": record.kernels, "kernels_fp8": record8.kernels, "flops": record.flops})
    return rows


def measure(weight_format: str | None) -> dict[str, tuple[str, int, Record]]:
    """{stage: (name of its network, bytes of that network's weights, what happened)}"""
    with tempfile.TemporaryDirectory() as folder, FakeDevice() as device:
        copy_json(Path(folder, "released"), SCALES["released"])
        model = hollow_model(Path(folder, "released"), device.device, DTYPE, weight_format)
        networks = {"VLM": model.vlm, "MMDiT": model.mmdit, "VAE": model.vae}
        weights = {name: sum(p.nbytes for p in network.parameters()) for name, network in networks.items()}
        return {stage: (name, weights[name], record) for stage, (name, record) in stages(model, device).items()}


def stages(model: InternVLU, device: FakeDevice) -> dict[str, tuple[str, Record]]:
    """{stage: (name of its network, what happened)}"""
    photo = Image.new("RGB", (SIDE, SIDE))
    found = {}
    with device.laps() as text:
        model.answer("What is in this picture?", [photo], max_new_tokens=3, on_token=text)
    found["VLM, a picture and a question"] = "VLM", text.records[0]
    found["VLM, a token"] = "VLM", text.records[2]
    with device.watch() as context:
        edit = model.encode("Make it night.", [photo])
    found["VAE and VLM, context of an edit"] = "VLM", context
    scales = model.config.mmdit.guidance(reasoned=False)
    drawing = model.encode("A photo of a red boat on a lake at dawn.")
    for name, conditions, pictures in (("a drawing", drawing, 1), ("an edit", edit, 1), ("4 drawings", drawing, 4)):
        noise = torch.randn(pictures, model.config.vae.latent_channels, SIDE // 8, SIDE // 8)
        with device.laps() as steps:
            latents = model.sample(conditions, noise, flow_sigmas(1), *scales, steps)
        found[f"MMDiT, first step of {name}"] = "MMDiT", steps.records[0]
    with device.watch() as decoding:
        model.decode(latents[:1])
    found["VAE, decoding"] = "VAE", decoding
    return found
