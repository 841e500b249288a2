"""The nodes' MODEL, VLM and VAE on a GPU that is not there (tests/support/fake_device.py), at the released widths."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import cards
from internvlu_core.quantization.formats import WORKING_BYTES
from support.fake_card import fake_card, pack, sample
from support.fake_device import hollow_checkpoint
from support.scaled_checkpoints import SCALES

SIZE = 1024, 1024


@pytest.fixture(scope="module")
def host():
    return pack()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return hollow_checkpoint(tmp_path_factory.mktemp("fake") / "checkpoint", SCALES["shallow"])


@pytest.fixture
def gpu(host):
    with fake_card() as gpu:
        yield gpu


def load(host, checkpoint, dtype: torch.dtype | None) -> SimpleNamespace:
    """What the loader's outputs are."""
    source = host.files.open_source(checkpoint)
    config = host.config.Config.read(source)
    return SimpleNamespace(
        model=host.load.load_model(source, config, dtype),
        vlm=host.load.load_vlm(source, config, dtype),
        vae=host.load.load_vae(source, config),
    )


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
            latents = sample(host, parts, conditionings, SIZE, batch, callback=laps)
        step = laps.records[1]
        assert not step.waits + step.uploads + step.downloads
        assert step.product_dtypes == {compute}
    with gpu.watch() as decoding:
        pixels = parts.vae.decode(latents[:1])
    assert pixels.shape[-3:] == (*SIZE, 3) and pixels.device.type == "cpu"
    assert decoding.product_dtypes == {torch.bfloat16}
    needed = parts.vae.memory_used_decode(latents[:1].shape, torch.bfloat16)
    assert decoding.working <= needed, "what ComfyUI makes room for"


def test_eight_bits_are_made_on_the_gpu(host, checkpoint, gpu, monkeypatch):
    """Of a file in 16 bits, a part of a weight after the other; they then wait in main memory, as others do."""
    import comfy.model_management as management

    kind, devices, asked = type(host.quantization.WEIGHT_FORMATS["fp8"]), [], []
    quantise, free_memory = kind.quantise, management.free_memory
    monkeypatch.setattr(kind, "quantise", lambda *of: devices.append(of[1].device) or quantise(*of))
    monkeypatch.setattr(management, "free_memory", lambda *of: asked.append(of) or free_memory(*of))
    with gpu.watch() as record:
        parts = load(host, checkpoint, torch.float8_e4m3fn)
    assert set(devices) == {gpu.device}
    assert set(asked) == {(WORKING_BYTES, gpu.device)}, "for which ComfyUI makes room"
    assert record.peak <= WORKING_BYTES and gpu.live == 0
    for network in (parts.model.model, parts.vlm.patcher.model):
        assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}


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
        assert beams > 1 or token.kernels <= 120


def test_a_model_that_is_not_there(host, checkpoint, gpu, monkeypatch):
    """As under --novram, where ComfyUI copies each weight when it is used: nothing else is different in a step."""
    import comfy.model_management as management

    parts = load(host, checkpoint, torch.bfloat16)
    drawing = host.encode.InternVLUEncode.execute(parts.vlm, "a boat").result
    with gpu.laps() as laps:
        sample(host, parts, drawing, SIZE, callback=laps)
    whole = laps.records[1]
    management.unload_all_models()
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NO_VRAM)
    with gpu.laps() as laps:
        sample(host, parts, drawing, SIZE, callback=laps)
    step = laps.records[1]
    assert parts.model.loaded_size() < parts.model.model_size() / 10
    assert step.uploads and not step.downloads
    assert step.product_dtypes == {torch.bfloat16} and step.products == whole.products
    assert step.peak < whole.peak


def test_comfyuis_quantised_tensors(gpu):
    """Their parts are on the card, and counted there. Without fp8 products (RTX 30) they are dequantised when used."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    layout = QUANT_ALGOS["float8_e4m3fn"]["comfy_tensor_layout"]
    waiting = QuantizedTensor.from_float(torch.ones(64, 32, dtype=torch.bfloat16), layout)
    x = torch.ones(3, 32, dtype=torch.bfloat16, device=gpu.device)
    before = gpu.live
    with gpu.watch() as record:
        weight = waiting.to(gpu.device)
        assert gpu.live - before == 64 * 32 + 4, "a byte a value, and the scale"
        product = torch.nn.functional.linear(x, weight)
        torch.empty_like(weight).copy_(waiting)  # as a layer is cast that stays in main memory
    assert product.shape == (3, 64) and product.device == gpu.device
    assert record.product_dtypes == {torch.bfloat16} and len(record.uploads) == 4
    del weight
    assert gpu.live - before == product.nbytes


def test_an_edit_on_4_gb():
    """As the table in docs/quantisation.md says. Estimates that are too high would leave weights in main memory."""
    row = next(cards.table(["Q4_0"], [4], ["edit"]))
    assert row["done"]
    encode, drawn = row["stages"]["encode"], row["stages"]["sample"]
    assert encode["VLM"] == drawn["MODEL"] == 1 and 0.5 < drawn["VLM"] < 0.8
    assert row["peak"] == pytest.approx(2.90e9, rel=0.03)


def test_a_card_that_is_too_small(monkeypatch):
    monkeypatch.setattr(cards, "TAKEN", 15 * 2**28)
    row = next(cards.table(["Q4_0"], [4], ["draw"]))
    assert not row["done"] and row["peak"] > row["memory"]
