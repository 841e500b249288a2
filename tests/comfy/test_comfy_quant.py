"""Files of ComfyUI's quantised layers in ComfyUI: its own layers hold them, patch them and save them again."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvlu_core.checkpoints.convert import convert
from internvlu_core.checkpoints.files import SPLIT_FILES
from internvlu_core.checkpoints.load import load_networks
from internvlu_core.quantization import FILE_FORMATS, QUANTS, layer_formats
from support.checkpoints import CHECKPOINT
from support.inprocess import PACK, denoised, load_pack
from support.tensors import noise, relative

WEIGHT = "transformer_blocks.0.attn.to_q.weight"
KEY = f"diffusion_model.{WEIGHT}"
SHAPE = load_file(CHECKPOINT / "generation_decoder/model.safetensors")[f"decoder.{WEIGHT}"].shape


@pytest.fixture(scope="module")
def host():
    load_pack()
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    def module(name):
        return importlib.import_module(f"{PACK}.{name}")

    return SimpleNamespace(module=module, known=QUANT_ALGOS, tensor=QuantizedTensor, load=module("nodes.comfy.load"))


@pytest.fixture(scope="module", params=QUANTS)
def quant(request):
    return request.param


@pytest.fixture(scope="module")
def files(tmp_path_factory, quant):
    folder = tmp_path_factory.mktemp(quant)
    convert(CHECKPOINT, folder, "split", quant=quant)
    return folder


def open_file(host, file):
    source = host.module("internvlu_core.checkpoints.files").File(file)
    return source, host.module("internvlu_core.checkpoints.config").Config.read(source)


@torch.inference_mode()  # as ComfyUI runs every node
def load_model(host, file, dtype=None):
    return host.load.load_model(*open_file(host, file), dtype)


def weights(network) -> dict[str, torch.Tensor]:
    """{path: the weight that it stands for}, float32."""
    found = {}
    for path, layer in network.named_modules():
        weight = getattr(layer, "weight", None)
        if weight is not None and hasattr(weight, "dequantize") and hasattr(weight, "_qdata"):
            found[path] = weight.dequantize().float()
        elif hasattr(layer, "own_scale") or hasattr(layer, "matrix_shape"):
            found[path] = layer.convert_weight(weight)
    return found


@pytest.fixture(scope="module")
def core(files):
    """The same files in the core."""
    from internvlu_core.checkpoints.config import Config
    from internvlu_core.checkpoints.files import open_source

    source = open_source(files)
    return load_networks(source, Config.read(source))


def expected(network) -> dict[str, torch.Tensor]:
    layers = dict(network.named_modules())
    return {
        path: of_layer.dequantise({name: getattr(layers[path], name) for name in layers[path].names}, torch.float32)
        for path, of_layer in layer_formats(network).items()
    }


def of_layer(network, path):
    return layer_formats(network)[path]


def test_both_networks_hold_the_cores_numbers(host, quant, files, core):
    """As ComfyUI's layers where it knows the format, else as ours; they take the memory that the file has."""
    model = load_model(host, files / SPLIT_FILES["generation_decoder"])
    reader = host.load.load_vlm(*open_file(host, files / SPLIT_FILES["vlm"]), None)
    for network, theirs in ((model.model.diffusion_model, core.mmdit), (reader.patcher.model, core.vlm)):
        kept, wanted = weights(network), expected(theirs)
        assert kept.keys() == wanted.keys()
        for path, weight in wanted.items():
            assert torch.equal(kept[path], weight), path
            native = hasattr(network.get_submodule(path).weight, "_qdata")
            ours = of_layer(theirs, path).name not in host.known or path.endswith("embed_tokens")
            assert native or ours, path
    for patcher, name in ((model, "generation_decoder"), (reader.patcher, "vlm")):
        assert patcher.model_size() < 1.02 * (files / SPLIT_FILES[name]).stat().st_size


# Largest relative errors of x0. ComfyUI rounds the inputs of int8 layers too.
ERRORS = {"fp8": 0.02, "int8": 0.02, "mxfp8": 0.02, "nvfp4": 0.06}


def test_first_step(host, quant, files):
    exact = denoised(load_model(host, files / SPLIT_FILES["generation_decoder"], torch.float32))
    plain = denoised(host.load.load_model(*folder(host), torch.float32))
    ours = denoised(load_model(host, files / SPLIT_FILES["generation_decoder"]))
    assert 0 < relative(exact, plain) < ERRORS[quant]
    assert relative(ours, plain) < ERRORS[quant]
    if QUANTS[quant].name not in host.known:  # then our layers compute with the core's values, and round no inputs
        assert relative(ours, exact) < 1e-5


def folder(host):
    source = host.module("internvlu_core.checkpoints.files").open_source(CHECKPOINT)
    return source, host.module("internvlu_core.checkpoints.config").Config.read(source)


def test_saved_and_read_again(host, quant, files, tmp_path):
    """ModelSave writes the bits that were read."""
    model = load_model(host, files / SPLIT_FILES["generation_decoder"])
    save(model, tmp_path / "saved.safetensors")
    again = load_model(host, tmp_path / "saved.safetensors")
    first, second = (weights(m.model.diffusion_model) for m in (model, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[path], second[path]) for path in first)
    assert relative(denoised(model), denoised(again)) < 1e-5
    if first:
        size = (tmp_path / "saved.safetensors").stat().st_size
        assert size < 1.1 * (files / SPLIT_FILES["generation_decoder"]).stat().st_size


@torch.inference_mode()
def save(model, file):
    import comfy.sd

    comfy.sd.save_checkpoint(str(file), model)


def test_patched(host, quant, files, core):
    """A LoRA's change arrives, when the weights are patched and when they are patched in the forward."""
    model = load_model(host, files / SPLIT_FILES["generation_decoder"])
    before = denoised(model)
    change = noise(*SHAPE) * 0.1
    changed = model.clone()
    assert changed.add_patches({KEY: ("diff", (change,))}) == [KEY]
    exact = load_model(host, files / SPLIT_FILES["generation_decoder"], torch.float32)
    exact.add_patches({KEY: ("diff", (change,))})
    wanted, patched = denoised(exact), denoised(changed)
    assert relative(patched, wanted) < ERRORS[quant] and relative(patched, before) > 1e-4
    assert relative(denoised(model), before) < 1e-6


def test_weights_of_eight_bits_are_saved_as_such(host, tmp_path):
    """What the loader keeps in 8 bits of its own accord: MXFP8 holds the same numbers, and both versions read it."""
    model = host.load.load_model(*folder(host), torch.float8_e4m3fn)
    save(model, tmp_path / "saved.safetensors")
    again = load_model(host, tmp_path / "saved.safetensors")
    first, second = (weights(m.model.diffusion_model) for m in (model, again))
    assert first and first.keys() == second.keys()
    assert all(torch.equal(first[path], second[path]) for path in first)
    stored = load_file(tmp_path / "saved.safetensors")
    sizes = {name: tensor.element_size() for name, tensor in stored.items() if "transformer_blocks" in name}
    assert all(size == 1 for name, size in sizes.items() if name.endswith("_proj.weight") or "to_q.weight" in name)


def test_scaled_fp8_of_others(host, tmp_path):
    """The oldest form: a mark, and a scale beside each weight."""
    convert(CHECKPOINT, tmp_path, "split")
    file = tmp_path / SPLIT_FILES["generation_decoder"]
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    stored = load_file(file)
    path = "decoder.transformer_blocks.0.attn.to_q"
    weight = stored[f"{path}.weight"]
    stored[f"{path}.weight"] = (weight / 0.5).to(torch.float8_e4m3fn)
    stored[f"{path}.scale_weight"], stored["scaled_fp8"] = torch.tensor(0.5), torch.empty(2, dtype=torch.float8_e4m3fn)
    save_file(stored, file, metadata)
    kept = weights(load_model(host, file).model.diffusion_model)
    assert list(kept) == ["transformer_blocks.0.attn.to_q"]
    assert torch.equal(kept["transformer_blocks.0.attn.to_q"], stored[f"{path}.weight"].float() * 0.5)


def as_comfyui_has_it(host, name, weight):
    """(what ComfyUI stores for a weight, what that stands for)."""
    layout = host.known[name]["comfy_tensor_layout"]
    if not hasattr(host.tensor, "state_dict"):  # 0.3
        made = host.tensor.from_float(weight, layout, scale=None, dtype=torch.float8_e4m3fn)
        return {"weight": made._qdata, "weight_scale": made._layout_params["scale"]}, made.dequantize()
    settings = {"int8_tensorwise": {"per_channel": True}}.get(name, {})
    if name.startswith("float8"):
        settings = {"scale": "recalculate"}
    made = host.tensor.from_float(weight, layout, **settings)
    return made.state_dict("weight"), made.dequantize()


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


@pytest.mark.parametrize("shape", [(96, 512), (40, 256)])
def test_equal_to_comfyuis_own(host, shape):
    """Every format that this ComfyUI knows: what is stored, bit by bit, and what it stands for, in float32."""
    weight = noise(*shape) * torch.logspace(-2, 0, shape[0])[:, None]
    assert {"float8_e4m3fn"} <= host.known.keys() <= FILE_FORMATS.keys(), "a format that the core does not know"
    for name in host.known:
        stored, stands_for = as_comfyui_has_it(host, name, weight)
        ours = FILE_FORMATS[name].of_shape(shape)
        assert torch.equal(ours.dequantise(stored, torch.float32), stands_for), name
        if name != "asym_w4a8_int8":  # which is only read
            written = ours.quantise(weight)
            assert written.keys() == stored.keys(), name
            assert all(torch.equal(bits(written[part]), bits(stored[part])) for part in stored), name


def test_weights_that_wait(host, quant, files):
    """In low memory, layers come to the device when they are used, with a LoRA's change on the way."""
    import comfy.model_management

    model = load_model(host, files / SPLIT_FILES["generation_decoder"])
    change = noise(*SHAPE) * 0.1
    model.add_patches({KEY: ("diff", (change,))})
    expected = denoised(model)
    with torch.inference_mode():
        comfy.model_management.unload_all_models()
        model.load(model.load_device, lowvram_model_memory=1)
        x, context = noise(1, 16, 1, 12, 10), noise(1, 24, model.model.diffusion_model.config.context_size, seed=1)
        waiting = model.model.apply_model(x, torch.tensor([0.999]), c_crossattn=context, transformer_options={}).float()
        model.unpatch_model()
    assert relative(waiting, expected) < ERRORS[quant]


@torch.inference_mode()
@pytest.mark.parametrize("quant", ["int8_tensorwise", "mxfp8", "nvfp4"])
def test_our_layers_when_patched(host, quant):
    """Also with columns that make no whole blocks: the bytes change their length, and come back as they were."""
    stored_as = host.module("internvlu_core.quantization").FILE_FORMATS[quant].of_shape((24, 40))
    weight, patched, x = noise(24, 40), noise(24, 40, seed=1), noise(3, 40, seed=2)
    layer = host.module("nodes.comfy.dequantising").DequantisingLinear(torch.nn.Linear(40, 24, False, device="meta"))
    stored = stored_as.quantise(weight)
    layer.keep(host.module("internvlu_core.quantization").QuantisedWeight(stored_as, stored), "cpu")
    loaded = layer.weight
    assert torch.equal(layer(x), torch.nn.functional.linear(x, stored_as.dequantise(stored, torch.float32)))
    written = layer.for_file(loaded)
    assert all(torch.equal(bits(written[name]), bits(tensor)) for name, tensor in stored.items())
    layer.set_weight(patched)
    assert relative(layer.convert_weight(layer.weight.float()), patched) < 0.01
    assert relative(layer(x), x @ patched.T) < 0.01
    assert layer.for_file(layer.weight).keys() == {"weight"}
    layer.weight = loaded
    assert torch.equal(layer.convert_weight(loaded), stored_as.dequantise(stored, torch.float32))
