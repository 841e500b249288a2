"""All that a GPU is asked to do, on one that is not there: see tests/support/fake_device.py."""

import weakref

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import counts, memory
from internvlu_core import InternVLU
from internvlu_core.offload import WORKING_MEMORY, Offload
from internvlu_core.quantization import WEIGHT_FORMATS
from internvlu_core.quantization.formats import WORKING_BYTES
from internvlu_core.quantization.gguf import TYPES
from internvlu_core.sampling import flow_sigmas
from support.checkpoints import merge_json
from support.fake_device import FakeDevice, build_hollow, hollow_checkpoint, hollow_model
from support.scaled_checkpoints import SCALES

PHOTO, TALL = Image.new("RGB", (1024, 1024)), Image.new("RGB", (800, 1200))
LAYERS = 2
FEW = {
    "vlm/config.json": {"vision_config": {"num_hidden_layers": LAYERS}, "llm_config": {"num_hidden_layers": LAYERS}},
    "generation_decoder/config.json": {"decoder_config": {"num_layers": LAYERS}},
}
# {name: (dtype to compute in, weight format)}
DTYPES = {"bfloat16": (torch.bfloat16, None), "float16": (torch.float16, None)}
DTYPES |= {name: (torch.bfloat16, name) for name in (*WEIGHT_FORMATS, *TYPES)}
EVERY_TASK = ("bfloat16", "float16", "fp8")  # the other formats do the same between their matrices
RARE = "int8_tensorwise", "Q8_0", "Q5_1", "Q5_0", "Q4_1"  # whose kernels are of the kinds that others have


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The released widths with few layers: what one layer does, the others do too."""
    return hollow_checkpoint(tmp_path_factory.mktemp("fake") / "few", merge_json(SCALES["released"], FEW))


def rare(names) -> list:
    return [pytest.param(name, marks=pytest.mark.slow) if name in RARE else name for name in names]


def noise_of(model: InternVLU, pictures: int = 1, side: int = 1024) -> torch.Tensor:
    return torch.randn(pictures, model.config.vae.latent_channels, side // 8, side // 8)


# The device


def test_operations_are_counted():
    with FakeDevice() as gpu, torch.inference_mode():
        x, weight = torch.empty(3, 5, device="cuda"), torch.empty(7, 5, device="cuda")
        with gpu.watch() as record:
            y = nn.functional.linear(x.view(3, 5), weight).t()[0] * 2
    assert y.device == gpu.device and y.shape == (3,)
    assert record.operations == {"aten.mm": 1, "aten.mul": 1}, "views are none"
    assert record.products == {("aten.mm", torch.float32): 1}
    assert record.flops == 2 * 3 * 5 * 7
    assert not record.waits + record.uploads + record.downloads


def test_bytes_alive():
    with FakeDevice() as gpu:
        kept = torch.empty(100, dtype=torch.float32, device="cuda")
        with gpu.watch() as record:
            a = kept + 1
            b = a.view(10, 10)  # nothing new
            del a
            c = b + 1
            del b
            d = c * 2
        assert (record.before, record.peak, record.after) == (400, 1200, 1200)
        del c, d
        assert gpu.live == 400


def test_two_devices_do_not_mix():
    with FakeDevice():
        x = torch.ones(3, device="cuda")
        assert (x * torch.tensor(2.0)).shape == (3,), "a number is no tensor of the other device"
        for wrong in (lambda: x + torch.ones(3), lambda: nn.functional.linear(x, torch.ones(2, 3))):
            with pytest.raises(RuntimeError, match="device"):
                wrong()
        with pytest.raises(RuntimeError):
            x @ torch.ones(4, device="cuda")


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x[0]),
        lambda x: x[0].item(),
        lambda x: bool(x.isfinite().all()),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x.to("cpu"),
        lambda x: torch.empty(3).copy_(x),
        lambda x: torch.cuda.synchronize(),
        lambda x: x.index_put_((x > 0,), x[0]),
    ],
)
def test_waits_are_noticed(wait):
    with FakeDevice() as gpu, torch.inference_mode():
        x = torch.ones(3, device="cuda")
        with gpu.watch() as record:
            wait(x)
    (place,) = record.waits
    assert "tests/core/test_fake_device.py:" in place


def test_uploads_are_noticed():
    with FakeDevice() as gpu:
        x = torch.ones(3, device="cuda")
        with gpu.watch() as record:
            torch.tensor([1.0, 2.0], device="cuda")
            torch.ones(3).to(gpu.device)
            x.copy_(torch.ones(3))
            x[torch.tensor([0, 2])]
    assert len(record.uploads) == 4


def test_values_that_are_read():
    """The CPU has real ones."""
    with FakeDevice(number=5):
        x = torch.ones(2, device="cuda")
        assert (int(x.sum()), x.tolist(), bool(x.all())) == (5, [5.0, 5.0], True)
        assert torch.arange(3).sum().item() == 3


def test_attention_is_fused_or_refused():
    with FakeDevice() as gpu, torch.inference_mode():
        q = torch.empty(1, 2, 64, 128, dtype=torch.bfloat16, device="cuda")
        with gpu.watch() as record:
            nn.functional.scaled_dot_product_attention(q, q, q)
        assert record.working < 2 * q.nbytes, "64 × 64 weights are not among it"
        with pytest.raises(ValueError, match="contiguous"):
            nn.functional.scaled_dot_product_attention(q.mT, q.mT, q.mT)


def test_nothing_is_left_behind():
    apply = nn.Module._apply
    with FakeDevice():
        torch.ones(3, device="cuda")
    assert nn.Module._apply is apply and not torch.cuda.is_available()
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        torch.ones(3, device="cuda")


def test_flops_are_those_of_torch_and_of_the_benchmarks(folder):
    with FakeDevice() as gpu:
        model = hollow_model(folder, gpu.device, torch.bfloat16)
        with gpu.watch() as record, FlopCounterMode(display=False):
            model.decode(noise_of(model, side=256))
    assert record.flops == counts.vae_decode(model.config.vae, 256, 256)


# The model


@pytest.mark.parametrize("dtype", [torch.bfloat16, *rare(WEIGHT_FORMATS)], ids=str)
def test_loading(folder, dtype, monkeypatch):
    """No more than the weights, and for a moment one tensor twice, or what quantising a part of one takes."""
    seen = watch_quantising(monkeypatch)
    with FakeDevice() as gpu:
        with gpu.watch() as record:
            model = InternVLU.from_pretrained(folder, device=gpu.device, dtype=dtype)
        weights = [p for network in (model.vlm, model.mmdit, model.vae) for p in network.parameters()]
        assert all(p.device == gpu.device for p in weights)
        assert gpu.live == sum(p.nbytes for p in weights)
        assert record.peak <= gpu.live + (2 * WORKING_BYTES if seen else max(p.nbytes for p in weights))
        assert bool(seen) == isinstance(dtype, str) and set(seen) <= {gpu.device}
        assert not record.downloads
        if dtype in (torch.bfloat16, torch.float16, "fp8"):
            assert model.generate("a boat", [PHOTO], height=256, width=256, steps=1).images[0].size == (256, 256)


def watch_quantising(monkeypatch) -> list[torch.device]:
    """A list of the devices of all weights that are quantised from now on. Two are never there at once."""
    devices, last = [], lambda: None

    def watched(quantise):
        def run(weight_format, weight):
            nonlocal last
            assert last() is None, "the weight before is still there"
            last = weakref.ref(weight)
            if not weight.is_meta:
                devices.append(weight.device)
            return quantise(weight_format, weight)

        return run

    for kind in {type(weight_format) for weight_format in WEIGHT_FORMATS.values()}:
        monkeypatch.setattr(kind, "quantise", watched(kind.quantise))
    return devices


@pytest.mark.parametrize("name", ["fp8", "int8_tensorwise"])
def test_quantised_on_the_device_for_main_memory(folder, name, monkeypatch):
    """Where weights wait in main memory, they come back from the device, which then has nothing of them."""
    seen = watch_quantising(monkeypatch)
    with FakeDevice() as gpu:
        with gpu.watch() as record:
            model = InternVLU.from_pretrained(folder, gpu.device, name, device_map="auto", max_memory="8GB")
        assert set(seen) == {gpu.device}
        waiting = [tensor for state in model.offload.resident.values() for tensor in state.values()]
        assert {tensor.device.type for tensor in waiting} == {"cpu"} and gpu.live == 0
        assert record.peak <= max(tensor.nbytes for tensor in waiting if tensor.itemsize == 1) + WORKING_BYTES
        assert len(record.downloads) == len(record.waits) > 0
        model.generate("a boat", height=256, width=256, steps=1)


# Kernels of a step: beside the blocks, and of a block. Each bound is what there was when it was set.
STEP = {"bfloat16": (40, 64), "float16": (25, 128), "fp8": (40, 92)}
STEP |= {"float8_e4m3fn": (40, 106), "int8_tensorwise": (40, 106), "mxfp8": (40, 148), "nvfp4": (40, 274)}
STEP |= {"Q8_0": (40, 148), "Q5_1": (40, 302), "Q5_0": (40, 274), "Q4_1": (40, 232), "Q4_0": (40, 204)}
STEP |= {"MXFP4": (40, 442)}


def test_every_format_has_its_bounds():
    assert DTYPES.keys() == STEP.keys() == TOKEN.keys()


@pytest.mark.parametrize("name", rare(STEP))
def test_a_step_waits_for_nothing(folder, name):
    """Of a drawing, an edit of two pictures after reasoning, and four pictures at once."""
    dtype, weight_format = DTYPES[name]
    with FakeDevice() as gpu:
        model = hollow_model(folder, gpu.device, dtype, weight_format)
        drawing = model.encode("a boat")
        cases = [(drawing, 1)]
        if name in EVERY_TASK:
            thought = model.reason("make it night", [PHOTO, PHOTO], max_new_tokens=2)
            edit = model.encode("make it night", [PHOTO, PHOTO], reasoning=thought)
            cases += [(edit, 1), (drawing, 4)]
        for context, pictures in cases:
            with gpu.laps() as laps:
                model.sample(context, noise_of(model, pictures), flow_sigmas(2), 4.5, 2.0, laps)
            _, step, _ = laps.records
            assert not step.waits + step.uploads + step.downloads
            assert step.product_dtypes == {dtype}
            assert step.working <= WORKING_MEMORY, "at any depth, for blocks take turns"
            beside, of_a_block = STEP[name]
            assert step.kernels <= beside + LAYERS * of_a_block


# Of a token, as of a step.
TOKEN = {"bfloat16": (33, 22), "float16": (38, 75), "fp8": (33, 36)}
TOKEN |= {"float8_e4m3fn": (113, 43), "int8_tensorwise": (113, 43), "mxfp8": (113, 64), "nvfp4": (113, 127)}
TOKEN |= {"Q8_0": (173, 64), "Q5_1": (173, 141), "Q5_0": (173, 127), "Q4_1": (173, 106), "Q4_0": (173, 92)}
TOKEN |= {"MXFP4": (173, 211)}
HEAD = 210e6  # bytes beside the weights while a token is computed, however large the head


@pytest.mark.parametrize("name", rare(TOKEN))
def test_a_token_waits_once(folder, name):
    """For itself: the host must see whether it ends the text. It goes back to the device in a copy of 8 bytes."""
    dtype, weight_format = DTYPES[name]
    with FakeDevice() as gpu:
        model = hollow_model(folder, gpu.device, dtype, weight_format)
        ways, pictures = [({}, 1, 1)], []
        if name in EVERY_TASK:
            ways, pictures = [*ways, ({"temperature": 1.0}, 1, 1), ({"num_beams": 3}, 2, 3)], [PHOTO]
        for options, waits, uploads in ways:
            with gpu.laps() as laps:
                model.answer("what is it?", pictures, max_new_tokens=4, on_token=laps, **options)
            for token in laps.records[2:4]:
                assert (len(token.waits), len(token.downloads), len(token.uploads)) == (waits, waits, uploads)
                assert token.product_dtypes == {dtype}
                beside, of_a_layer = TOKEN[name]
                assert token.kernels <= beside + LAYERS * of_a_layer
                assert token.working <= HEAD


@pytest.mark.parametrize("name", ["bfloat16", "fp8"])
def test_texts_together_wait_once_for_all(folder, name):
    """Their prompts are read in one forward, and then each step waits once, whatever their number."""
    dtype, weight_format = DTYPES[name]
    with FakeDevice() as gpu:
        model, found = hollow_model(folder, gpu.device, dtype, weight_format), {}
        for count in (1, 5):
            with gpu.laps() as laps:
                asked = [{"prompt": "what is it?" * (i + 1), "max_new_tokens": 4} for i in range(count)]
                list(model.answer_many(asked, on_token=lambda index, *_, laps=laps: index or laps()))
            found[count] = laps.records[:4]
        (reading, *steps), (reading_all, *steps_of_all) = found.values()
        assert reading_all.kernels < 2 * reading.kernels
        assert (len(reading_all.waits), len(reading_all.downloads)) == (1, 1)
        for alone, together in zip(steps, steps_of_all, strict=True):
            assert together.kernels == alone.kernels
            assert (len(together.waits), len(together.downloads), len(together.uploads)) == (1, 1, 2)


def test_what_is_compiled_waits_for_nothing(folder, monkeypatch):
    """So that a CUDA graph can be made of it (mode="reduce-overhead")."""
    records = []

    def watched(function, **options):
        def run(*args, **kwargs):
            with gpu.watch() as record:
                records.append(record)
                return function(*args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", watched)
    with FakeDevice() as gpu:
        model = hollow_model(folder, gpu.device, torch.bfloat16)
        model.compile(text=True)
        model.answer("what is it?", [PHOTO], max_new_tokens=4)
        texts = len(records)
        model.generate("make it night", [PHOTO], height=256, width=256, steps=2)
    assert texts == 3 and len(records) == texts + 2 * LAYERS, "tokens, and blocks of each step"
    assert not any(record.waits + record.uploads + record.downloads for record in records)


def test_offloading(folder):
    """Networks take turns, and never is there more than was allowed."""
    with FakeDevice() as gpu:
        limit = max(sum(p.nbytes for p in network.parameters()) for network in _networks(folder, gpu))
        model = InternVLU.from_pretrained(folder, device=gpu.device, device_map="auto", max_memory=limit)
        with gpu.watch() as record:
            thought = model.reason("make it night", [PHOTO], max_new_tokens=2)
            model.generate("make it night", [PHOTO], height=512, width=512, steps=2, reasoning=thought)
        assert record.product_dtypes == {torch.bfloat16}
        assert record.peak <= limit + WORKING_MEMORY
        with gpu.laps() as laps:
            model.sample(model.encode("a boat"), noise_of(model), flow_sigmas(2), 4.5, 2.0, laps)
        assert not laps.records[1].uploads, "all of it is there"


@pytest.mark.parametrize("weight_format", [None, "fp8"])
def test_offloading_layer_by_layer(folder, weight_format):
    """With less room than the MMDiT needs, blocks are there only while they compute."""
    with FakeDevice() as gpu:
        model = hollow_model(folder, gpu.device, torch.bfloat16, weight_format)
        context, noise = model.encode("a boat"), noise_of(model, side=256)
        with gpu.laps() as laps:
            model.sample(context, noise, flow_sigmas(2), 4.5, 2.0, laps)
        expected = laps.records[1]

        network, state = build_hollow(model.config, torch.bfloat16, weight_format)["MMDiT"]
        waiting = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in state.items()}  # in main memory
        blocks = [name for name in waiting if name.startswith("transformer_blocks.")]
        block = sum(waiting[name].nbytes for name in blocks) // LAYERS
        offload = Offload({"MMDiT": (network, waiting)}, gpu.device, sum(t.nbytes for t in waiting.values()) - block)
        small = InternVLU(model.config, model.tokenizer, model.vlm, network, model.vae, offload)
        with gpu.laps() as laps:
            small.sample(context, noise, flow_sigmas(2), 4.5, 2.0, laps)
        step = laps.records[1]
        assert len(step.uploads) == len(blocks), "both blocks, for one has to make room for the other"
        assert step.operations - expected.operations == {"aten._to_copy": len(blocks)}, "nothing else is different"
        assert step.product_dtypes == {torch.bfloat16} and not step.waits + step.downloads
        assert step.working <= expected.working + block


def _networks(folder, gpu):
    model = hollow_model(folder, gpu.device, torch.bfloat16)
    return model.vlm, model.mmdit, model.vae


def test_what_apple_devices_lack(folder):
    """MPS has no float64, and before macOS 14 no complex numbers."""
    with FakeDevice("mps") as gpu:
        model = hollow_model(folder, gpu.device, torch.float16)
        with gpu.watch() as record:
            thought = model.reason("make it night", [PHOTO], max_new_tokens=2)
            model.answer("what is it?", [PHOTO], max_new_tokens=2, num_beams=2)
            model.answer("what is it?", max_new_tokens=2, temperature=1.0)
            model.generate("make it night", [PHOTO], height=256, width=256, steps=2, reasoning=thought, num_images=2)
    assert not {torch.float64, torch.complex64, torch.complex128} & record.dtypes.keys()


@pytest.fixture(scope="module")
def released():
    """{stage: (its network, bytes of that network's weights, record)} of the released sizes at full depth."""
    return memory.measure(None)


@pytest.mark.parametrize(("weight_format", "card"), [(None, 6e9), ("fp8", 4e9)])
def test_released_sizes_fit_small_devices(released, weight_format, card):
    """What Offload puts on a card at once, and what each stage works in beside it."""
    networks = build_hollow(memory.released_config(), torch.bfloat16, weight_format)
    offload = Offload(networks, torch.device("cpu"), limit=int(card))
    for stage, (name, _, record) in released.items():
        network, state = networks[name]
        assert offload.resident[network].keys() == state.keys(), "no layer has to be copied in each forward pass"
        # A matrix of 8 bits is cast, then scaled, whenever it is used.
        cast = [2 * 2 * t.numel() for t in state.values() if t.dtype.itemsize == 1]
        working = record.working + max(cast, default=0)
        assert offload.sizes[network] + working <= card, stage
        assert working <= WORKING_MEMORY, stage


def test_kernels_of_the_released_sizes(released):
    kernels = {stage: record.kernels for stage, (_, _, record) in released.items()}
    assert kernels["MMDiT, first step of a drawing"] == kernels["MMDiT, first step of 4 drawings"] <= 1320
    assert kernels["MMDiT, first step of an edit"] <= 1370
    assert kernels["VLM, a token"] <= 720
