"""The nodes' MODEL, VLM and VAE on a GPU that is not there (tests/support/fake_device.py), at the released widths."""

import importlib
from types import SimpleNamespace

import pytest
import torch

from support.fake_device import FakeDevice, hollow_checkpoint
from support.inprocess import PACK, load_pack
from support.scaled_checkpoints import SCALES
from support.tensors import noise

SIZE = {"width": 1024, "height": 1024}


@pytest.fixture(scope="module")
def host():
    """The pack's modules in this process, by name."""
    load_pack()
    names = {"config": "internvlu_core.checkpoints.config", "files": "internvlu_core.checkpoints.files"}
    names |= {"decoding": "internvlu_core.decoding", "load": "nodes.comfy.load", "guider": "nodes.comfy.guider"}
    names |= {name: f"nodes.{name}" for name in ("encode", "sampling")}
    return SimpleNamespace(**{key: importlib.import_module(f"{PACK}.{name}") for key, name in names.items()})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return hollow_checkpoint(tmp_path_factory.mktemp("fake") / "checkpoint", SCALES["shallow"])


@pytest.fixture
def gpu(host, monkeypatch):
    """A fake GPU on which ComfyUI works as on an RTX 30."""
    import comfy.ldm.modules.attention as attention
    import comfy.model_management as management

    gpu = FakeDevice()
    about = SimpleNamespace(major=8, minor=6, name="fake", total_memory=gpu.total, multi_processor_count=84)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: about)
    live = ("active_bytes.all.current", "reserved_bytes.all.current")
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device=None: dict.fromkeys(live, gpu.live))
    for name, value in {
        "cpu_state": management.CPUState.GPU,
        "vram_state": management.VRAMState.NORMAL_VRAM,
        "get_torch_device": lambda: gpu.device,
        "pytorch_attention_enabled": lambda: True,
        "current_loaded_models": [],
    }.items():
        monkeypatch.setattr(management, name, value)
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    with gpu, torch.inference_mode():  # as ComfyUI runs its nodes
        yield gpu
        management.unload_all_models()


def load(host, checkpoint, dtype: torch.dtype | None) -> SimpleNamespace:
    """What the loader's outputs are."""
    source = host.files.open_source(checkpoint)
    config = host.config.Config.read(source)
    return SimpleNamespace(
        model=host.load.load_model(source, config, dtype),
        vlm=host.load.load_vlm(source, config, dtype),
        vae=host.load.load_vae(source, config),
    )


def sample(host, parts, conditionings, batch: int, laps):
    """InternVLUSampler over two steps; a new record begins at each."""
    guider = host.guider.DualGuider(parts.model)
    guider.set_conds(*conditionings, 4.5, 2.0)
    sampler = host.sampling.InternVLUSamplerSelect.execute().result[0]
    latents = torch.zeros(batch, 16, 1, SIZE["height"] // 8, SIZE["width"] // 8)
    sigmas = host.sampling.InternVLUScheduler.execute(steps=2, shift=3.0, denoise=1.0).result[0]
    return guider.sample(noise(*latents.shape), latents, sampler, sigmas, callback=laps, disable_pbar=True, seed=0)


RARE = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float16, torch.float8_e4m3fn)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, *RARE], ids=str)
def test_draw_and_edit(host, checkpoint, gpu, dtype):
    parts = load(host, checkpoint, dtype)
    compute = torch.float16 if dtype == torch.float16 else torch.bfloat16
    pictures = {f"image{number}": torch.zeros(1, 768, 1024, 3) for number in (1, 2)}
    drawing = host.encode.InternVLUEncode.execute(parts.vlm, "a boat").result
    edit = host.encode.InternVLUEncode.execute(parts.vlm, "make it night", vae=parts.vae, **pictures).result
    for conditionings, batch in ((drawing, 1), (edit, 1), (drawing, 4)):
        with gpu.laps() as laps:
            latents = sample(host, parts, conditionings, batch, laps)
        step = laps.records[1]
        assert not step.waits + step.uploads + step.downloads
        assert step.product_dtypes == {compute}
    with gpu.watch() as decoding:
        pixels = parts.vae.decode(latents[:1])
    assert pixels.shape[-3:] == (SIZE["height"], SIZE["width"], 3) and pixels.device.type == "cpu"
    assert decoding.product_dtypes == {torch.bfloat16}
    needed = parts.vae.memory_used_decode(latents[:1].shape, torch.bfloat16)
    assert decoding.working <= needed, "what ComfyUI makes room for"


def test_text(host, checkpoint, gpu):
    """A token waits once; beams wait twice, for the scores and for what has ended."""
    parts = load(host, checkpoint, torch.bfloat16)
    prompt = parts.vlm.conditioner.prompts.chat("what is it?", [], None)
    for beams, waits, uploads in ((1, 1, 1), (3, 2, 3)):
        with gpu.laps() as laps:
            parts.vlm.generate(prompt, [], host.decoding.TextSettings(max_new_tokens=4, num_beams=beams), laps)
        token = laps.records[2]
        assert (len(token.waits), len(token.downloads), len(token.uploads)) == (waits, waits, uploads)
        assert token.product_dtypes == {torch.bfloat16}
        assert beams > 1 or token.kernels <= 110


def test_a_model_that_is_not_there(host, checkpoint, gpu, monkeypatch):
    """As under --novram, where ComfyUI copies each weight when it is used: nothing else is different in a step."""
    import comfy.model_management as management

    parts = load(host, checkpoint, torch.bfloat16)
    drawing = host.encode.InternVLUEncode.execute(parts.vlm, "a boat").result
    with gpu.laps() as laps:
        sample(host, parts, drawing, 1, laps)
    whole = laps.records[1]
    management.unload_all_models()
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NO_VRAM)
    with gpu.laps() as laps:
        sample(host, parts, drawing, 1, laps)
    step = laps.records[1]
    assert parts.model.loaded_size() < parts.model.model_size() / 10
    assert step.uploads and not step.downloads
    assert step.product_dtypes == {torch.bfloat16} and step.products == whole.products
    assert step.peak < whole.peak
