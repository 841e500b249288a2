"""Weight formats: what is stored for a matrix leads back to nearly the same one, in every format alike."""

import json

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from internvlu_core import InternVLU
from internvlu_core.checkpoints.config import Config
from internvlu_core.checkpoints.files import COMPONENTS
from internvlu_core.checkpoints.load import build_on_meta, load_networks
from internvlu_core.quantization import (
    WEIGHT_FORMATS,
    FileFormat,
    QuantisedLinear,
    exact,
    find_format,
    formats,
    layer_formats,
    quantise_for,
    repeated_blocks,
)
from internvlu_core.quantization.float8 import DTYPE, quantise
from internvlu_core.quantization.formats import is_block_matrix
from support.checkpoints import CHECKPOINT
from support.networks import quantise_network, randomise
from support.tensors import noise, relative

# By format: the largest relative error of a product with a random matrix.
ERRORS = {"fp8": 0.04, "float8_e4m3fn": 0.04, "int8_tensorwise": 0.012, "mxfp8": 0.04, "nvfp4": 0.14}


@pytest.fixture(params=WEIGHT_FORMATS.values(), ids=list(WEIGHT_FORMATS))
def weight_format(request):
    return request.param


def block_of(linear: nn.Linear) -> nn.Module:
    """A network with one repeated layer, in which this is the only matrix."""
    network = nn.Module()
    network.layers = nn.ModuleList([nn.ModuleDict({"proj": linear})])
    return network


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_product(weight_format, dtype, bias):
    linear = randomise(nn.Linear(64, 40, bias=bias)).to(dtype)
    x, network = noise(3, 64).to(dtype), block_of(linear)
    exact, state = linear(x), dict(network.state_dict())
    quantise_network(network, state, weight_format)
    network.load_state_dict(state, assign=True)
    ours = network.layers[0]["proj"](x)
    assert ours.dtype == dtype
    assert 0 < relative(ours.float(), exact.float()) < ERRORS[weight_format.name]


# The bits of another device


def test_exact_arithmetic():
    powers = torch.exp2(torch.arange(-126, 128).double()).float()
    around = torch.cat(
        [powers, powers[1:].nextafter(torch.tensor(0.0)), powers[:-1].nextafter(torch.tensor(torch.inf))]
    )
    exponents = exact.ceil_log2(around)
    assert (torch.exp2(exponents.double()) >= around.double()).all()
    assert (torch.exp2(exponents.double() - 1) < around.double()).all()
    assert torch.equal(exact.exp2(torch.arange(-126, 128, dtype=torch.int32)), powers)
    for number in (127, 448.0):
        assert torch.equal(exact.divide(around, number), (around.double() / number).float())


MOVING = {"_to_copy", "_unsafe_view", "clone", "constant_pad_nd", "copy_", "detach", "full", "lift_fresh", "permute"}
MOVING |= {"scalar_tensor", "slice", "unsqueeze", "view", "where"}
BITS = {"__lshift__", "__rshift__", "bitwise_or", "nextafter", "signbit"}
# One rounding each, by IEEE 754, or none.
ROUNDED_ONCE = {"abs", "add", "amax", "bucketize", "clamp", "div", "eq", "mul", "reciprocal", "round", "sub"}


class Inexact(TorchDispatchMode):
    """Refuses what CUDA may round otherwise than a CPU: sums, functions such as log2, division by Python's numbers."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name.removeprefix("aten::")
        assert name in MOVING | BITS | ROUNDED_ONCE
        assert name != "div" or isinstance(args[1], torch.Tensor), "on CUDA a product with the reciprocal"
        return operation(*args, **(kwargs or {}))


def test_quantising_has_the_same_bits_on_cuda(weight_format):
    weight = noise(100, 64)
    with Inexact():
        weight_format.quantise(weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_quantises_what_a_whole_matrix_gives(weight_format, dtype, monkeypatch):
    """However few rows are quantised at once."""
    config = Config.read(CHECKPOINT)
    expected = load_networks(CHECKPOINT, config, dtype=dtype)
    monkeypatch.setattr(formats, "CHUNK", 64 * 33)
    loaded = load_networks(CHECKPOINT, config, dtype=dtype, weight_format=weight_format)
    for network, plain in zip(loaded, expected, strict=True):
        state = dict(plain.state_dict())
        quantise_network(plain, state, weight_format)
        found = network.state_dict()
        assert found.keys() == state.keys()
        for name, tensor in state.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name].float(), tensor.float()), name


def test_other_devices_quantise_on_the_cpu(weight_format):
    quantised = quantise_for(torch.device("mps"), weight_format, noise(40, 64))
    assert {tensor.device.type for tensor in quantised.stored.values()} == {"cpu"}


@pytest.mark.parametrize("name", ["int8_tensorwise", "float8_e4m3fn"])
def test_large_matrices_are_multiplied_in_pieces(name, monkeypatch):
    """The head of the language model never stands in memory as a whole. GGUF's: test_gguf.py."""
    weight_format, weight, x, bias = WEIGHT_FORMATS[name], noise(100, 64), noise(2, 3, 64), noise(100)
    layer = QuantisedLinear(weight_format, weight_format.quantise(weight), bias)
    expected, seen, dequantise = layer(x), [], type(weight_format).dequantise
    monkeypatch.setattr(formats, "CHUNK", 64 * 33)
    monkeypatch.setattr(type(weight_format), "dequantise", lambda *args: seen.append(dequantise(*args)) or seen[-1])
    assert relative(layer(x), expected) < 1e-6
    assert [len(part) for part in seen] == [33, 33, 33, 1]


def test_saved_and_read_again(weight_format):
    """The state dict and the metadata, which is JSON, are all that is needed to build the layer again."""
    network = block_of(randomise(nn.Linear(64, 40)))
    state = dict(network.state_dict())
    quantise_network(network, state, weight_format)
    network.load_state_dict(state, assign=True)
    (path, of_layer), = layer_formats(network).items()  # fmt: skip
    assert path == "layers.0.proj"
    saved, metadata = network.state_dict(), json.loads(json.dumps(of_layer.metadata()))
    stored = {name.removeprefix(f"{path}."): tensor for name, tensor in saved.items()}
    read_format = type(WEIGHT_FORMATS[metadata.pop("format")])(**metadata)
    again = QuantisedLinear(read_format, stored, stored.pop("bias"))
    assert torch.equal(again(noise(3, 64)), network.layers[0]["proj"](noise(3, 64)))


def test_which_layers(weight_format):
    """All matrices of the repeated layers; in the formats of files the head, the embedding and the projector too."""
    config = Config.read(CHECKPOINT)
    for component in COMPONENTS:
        network = build_on_meta(config, component)
        linear = {name for name, module in network.named_modules() if isinstance(module, nn.Linear)}
        expected = {
            name for name in linear if name.startswith(tuple(f"{block}." for block in repeated_blocks(network)))
        }
        if isinstance(weight_format, FileFormat) and component == "vlm":
            outside = {name for name in linear if name.startswith("mlp1")}
            outside |= {"language_model.lm_head", "language_model.model.embed_tokens"}
            expected |= outside
        before = {name: tensor.shape for name, tensor in network.state_dict().items()}
        state = network.state_dict()
        quantise_network(network, state, weight_format)
        assert layer_formats(network).keys() == expected
        assert network.state_dict().keys() == state.keys()
        for path, of_layer in layer_formats(network).items():
            outer = weight_format.name != "fp8" and "layers." not in path and "_blocks." not in path
            assert of_layer.name == ("int8_tensorwise" if outer else weight_format.name)
        kept = {name for name in before if name.removesuffix(".weight") not in expected}
        assert {name: state[name].shape for name in kept} == {name: before[name] for name in kept}
        assert bool(expected) == (component != "vae")
        if component == "generation_decoder":
            assert linear - expected and "time_text_embed.timestep_embedder.linear_1" in linear - expected


@pytest.mark.parametrize("component", COMPONENTS)
def test_matrices_by_name(component):
    """A state dict alone, without the network's classes, tells the same matrices: ComfyUI's nodes have no more."""
    network = build_on_meta(Config.read(CHECKPOINT), component)
    linear = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    expected = {name for name in linear if name.startswith(tuple(f"{block}." for block in repeated_blocks(network)))}
    assert {name for name, tensor in network.state_dict().items() if is_block_matrix(name, tensor)} == expected


def test_found_by_name_and_dtype():
    assert find_format("fp8") is find_format(torch.float8_e4m3fn) is WEIGHT_FORMATS["fp8"]
    assert find_format("auto") is find_format(torch.bfloat16) is None


def test_float8_values_are_near_and_finite():
    weight = torch.cat([noise(4, 64), 1e-4 * noise(4, 64), torch.zeros(1, 64), torch.full((1, 64), 65504.0)])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        kept, scale = quantise(weight.to(dtype))
        assert (kept.dtype, scale.dtype) == (DTYPE, dtype)
        back = kept.float() * scale.float()[:, None]
        assert back.isfinite().all()
        error = (back - weight.to(dtype).float()).abs().amax(1) / weight.abs().amax(1).clamp(min=1e-9)
        assert error.max() <= 2**-4  # half a step of the top binade


def test_8_bits_draw_nearly_the_same(model):
    small = InternVLU.from_pretrained(CHECKPOINT, dtype=torch.float8_e4m3fn)
    sizes = [sum(p.nbytes for network in (m.vlm, m.mmdit, m.vae) for p in network.parameters()) for m in (small, model)]
    assert small.dtype == torch.float32 and sizes[0] < 0.6 * sizes[1]
    context, x = model.encode("a boat"), noise(1, 16, 8, 8)
    step = torch.tensor([999.0])
    exact = model.velocity(context.full, x, step)
    assert 0 < relative(small.velocity(context.full, x, step), exact) < 0.03
