"""Weights of GGUF files in ComfyUI: packed in memory, and under patches, offloading, merging and saving."""

import importlib
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file

from internvlu_core.checkpoints import convert
from support.checkpoints import CHECKPOINT
from support.comfy_server import ComfyError
from support.inprocess import PACK, denoised, load_pack
from support.tensors import noise, relative
from support.workflows import workflow

PATH = "transformer_blocks.0.attn.to_q"
KEY = f"diffusion_model.{PATH}.weight"
TABLE = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The recorded checkpoint in Q4_0, and its unpacked twin in float32."""
    folder = tmp_path_factory.mktemp("gguf")
    convert.convert(CHECKPOINT, folder / "small.gguf", "single", quant="Q4_0")
    convert.convert(folder / "small.gguf", folder / "unpacked.safetensors", "single", dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def host(files):
    load_pack()

    def module(name):
        return importlib.import_module(f"{PACK}.{name}")

    def build(loader, name, dtype=None):
        source = module("internvlu_core.checkpoints.files").open_source(files / name)
        config = module("internvlu_core.checkpoints.config").Config.read(source)
        return getattr(module("nodes.comfy.load"), loader)(source, config, dtype)

    return SimpleNamespace(
        module=module,
        model=lambda name="small.gguf", **settings: build("load_model", name, **settings),
        vlm=lambda name="small.gguf", **settings: build("load_vlm", name, **settings),
        values=lambda model: {
            path: layer.convert_weight(layer.weight)
            for path, layer in module("nodes.comfy.dequantising")
            .dequantising_layers(model.model.diffusion_model)
            .items()
        },
    )


@torch.inference_mode()
def logits(reader) -> torch.Tensor:
    network = reader.patcher.model
    x = network.embed(torch.arange(3, 40)[None], torch.arange(300, 310))
    layers = network.language_model.config.num_layers
    return network.language_model.logits(network.language_model(x, (layers,))[0])


def test_packed_weights_give_the_unpacked_ones_outputs(host):
    model, reader = host.model(), host.vlm()
    dtypes = {tensor.dtype for tensor in model.model.diffusion_model.state_dict().values()}
    assert dtypes == {torch.uint8, torch.float32}
    assert model.model.diffusion_model.state_dict()[f"{PATH}.weight"].dtype == torch.uint8
    assert relative(denoised(model), denoised(host.model("unpacked.safetensors"))) < 1e-5
    assert relative(logits(reader), logits(host.vlm("unpacked.safetensors"))) < 1e-5
    state = reader.patcher.model.state_dict()
    assert state[TABLE].dtype == state[HEAD].dtype == torch.uint8
    unpacked = host.model("unpacked.safetensors")
    assert model.model_size() < 0.45 * unpacked.model_size()


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp8_e4m3fn"])
def test_weight_dtypes(host, dtype):
    """The choice is for the weights that are not packed."""
    dtype = host.module("nodes.comfy.dtypes").DTYPES[dtype]
    model, reader = host.model(dtype=dtype), host.vlm(dtype=dtype)
    rest = torch.float32 if dtype == torch.float8_e4m3fn else dtype
    assert {t.dtype for t in model.model.diffusion_model.state_dict().values()} == {torch.uint8, rest}
    assert relative(denoised(model), denoised(host.model("unpacked.safetensors"))) < 2e-2
    assert logits(reader).isfinite().all()


@pytest.mark.parametrize("size", [1e-3, 0.1])
def test_adapters(host, size):
    """A patch changes the values, in Q8_0; taken off, the bytes are as they were."""
    model = host.model()
    before, stored = host.values(model)[PATH], model.model.state_dict()[KEY].clone()
    delta = noise(*before.shape) * size
    patched = model.clone()
    patched.add_patches({KEY: ("diff", (delta,))})
    patched.patch_model()
    after = host.values(patched)[PATH]
    assert patched.model.state_dict()[KEY].dtype == torch.uint8
    patched.unpatch_model()
    assert relative(after, before + delta) < 0.01
    assert torch.equal(model.model.state_dict()[KEY], stored)


@torch.inference_mode()
def test_adapters_on_offloaded_layers(host):
    model = host.model()
    layer = model.model.diffusion_model.transformer_blocks[0].attn.to_q
    delta = noise(*layer.matrix_shape) / 10
    x = noise(3, layer.in_features)
    plain = torch.nn.functional.linear(x, layer.convert_weight(layer.weight), layer.bias)
    expected = torch.nn.functional.linear(x, layer.convert_weight(layer.weight) + delta, layer.bias)
    model.load(torch.device("cpu"), lowvram_model_memory=1)
    assert relative(layer(x), plain) < 1e-5
    model.unpatch_model()
    model.add_patches({KEY: ("diff", (delta,))})
    model.load(torch.device("cpu"), lowvram_model_memory=1)
    assert layer.weight_function, "nothing is offloaded"
    assert relative(layer(x), expected) < 1e-5
    model.unpatch_model()
    assert relative(layer(x), plain) < 1e-5


@torch.inference_mode()
def test_adapters_on_the_embedding(host):
    reader = host.vlm()
    plain, table = logits(reader), reader.patcher.model.language_model.model["embed_tokens"]
    delta = noise(*table.matrix_shape) / 10
    ids = torch.tensor([[3, 7], [9, 3]])
    expected = table.convert_weight(table.weight)[ids] + delta[ids]
    reader.patcher.add_patches({TABLE: ("diff", (delta,))})
    for offloaded in (True, False):
        reader.patcher.load(torch.device("cpu"), **{"lowvram_model_memory": 1} if offloaded else {"full_load": True})
        assert bool(table.weight_function) == offloaded
        assert relative(table(ids), expected) < (1e-5 if offloaded else 0.01)
        reader.patcher.unpatch_model()
    assert torch.equal(logits(reader), plain)


def test_adapters_by_their_names(host):
    """The stock loaders check shapes: those of the matrices, not of the bytes."""
    import comfy.lora
    import comfy.sd

    host.module("nodes.comfy.lora").install()
    model = host.model()
    rows, columns = model.model.diffusion_model.transformer_blocks[0].attn.to_q.matrix_shape
    lora = {f"{PATH}.lora_A.weight": noise(2, columns), f"{PATH}.lora_B.weight": noise(rows, 2)}
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)
    patched.patch_model()
    expected = host.values(host.model())[PATH] + lora[f"{PATH}.lora_B.weight"] @ lora[f"{PATH}.lora_A.weight"]
    assert relative(host.values(patched)[PATH], expected) < 0.01
    patched.unpatch_model()
    lora[f"{PATH}.lora_A.weight"] = noise(2, columns + 2)
    with pytest.raises(ValueError, match="the adapter is for another model"):
        comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)


def test_merging(host):
    """A merge mixes values, also of a model that is patched at the time."""
    one, other = host.model(), host.model("unpacked.safetensors")
    other.model.diffusion_model.transformer_blocks[0].attn.to_q.weight.data.mul_(5)
    values = host.values(one)[PATH]
    for first, second, factor in ((one, other, 0.25 + 0.75 * 5), (other, one, 0.25 * 5 + 0.75)):
        merged = first.clone()
        merged.add_patches(second.get_key_patches("diffusion_model."), 0.75, 0.25)
        merged.patch_model()
        layer = merged.model.diffusion_model.transformer_blocks[0].attn.to_q
        found = layer.convert_weight(layer.weight) if hasattr(layer, "convert_weight") else layer.weight
        assert relative(found, factor * values) < 0.01
        merged.unpatch_model()


@pytest.mark.parametrize("patched", [False, True])
def test_saved_as_values(host, patched, tmp_path):
    """ModelSave writes a safetensors file that loads again, without the package."""
    import comfy.sd

    model = host.model()
    expected = host.values(model)[PATH]
    if patched:
        delta = noise(*expected.shape) / 10
        model.add_patches({KEY: ("diff", (delta,))})
        expected = expected + delta
    comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), model)
    saved = load_file(tmp_path / "saved.safetensors")
    weight = saved[f"model.diffusion_model.decoder.{PATH}.weight"]
    assert weight.dtype == torch.bfloat16
    assert relative(weight.float(), expected) < 0.01
    model.unpatch_model()


# ---------------------------------------------------------------- through the queue


@pytest.fixture(scope="module")
def installed(server, files):
    """One file for Load, and two of the three for the others."""
    models = server.base_dir / "models"
    convert.convert(CHECKPOINT, models, quant="Q8_0", force=True)
    (models / "internvl_u").mkdir(exist_ok=True)
    shutil.copy(files / "small.gguf", models / "internvl_u/small.gguf")
    writer = GGUFWriter(models / "diffusion_models/other.gguf", "flux")
    writer.add_tensor("img_in.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    yield server
    for path in models.rglob("*.gguf"):
        path.unlink()
    (models / "vae/internvl_u_vae.safetensors").unlink()


def test_one_file_through_the_queue(installed):
    """Listed, loaded, and a picture is drawn with an adapter on it."""
    names = installed.object_info()["InternVLULoader"]["input"]["required"]["checkpoint"]
    assert "small.gguf" in str(names)
    prompt = workflow("text_to_image", prompt="a cat", width=96, height=96, steps=2, seed=1, checkpoint="small.gguf")
    (plain,) = installed.images(installed.run(prompt))
    loras = installed.base_dir / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    rows = load_file(CHECKPOINT / "generation_decoder/model.safetensors")[f"decoder.{PATH}.weight"].shape
    tensors = {f"{PATH}.lora_A.weight": noise(2, rows[1]), f"{PATH}.lora_B.weight": noise(rows[0], 2)}
    save_file(tensors, loras / "packed.safetensors")
    prompt["20"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["1", 0], "lora_name": "packed.safetensors", "strength_model": 1.0},
    }
    prompt["4"]["inputs"]["model"] = ["20", 0]
    (changed,) = installed.images(installed.run(prompt))
    assert np.abs(np.asarray(plain).astype(float) - np.asarray(changed).astype(float)).mean() > 0.1


def test_files_of_their_own_through_the_queue(installed):
    def loader(kind, file):
        return {"class_type": f"InternVLU{kind}Loader", "inputs": {"file": file, "weight_dtype": "auto"}}

    listed = str(installed.object_info()["InternVLUModelLoader"]["input"]["required"]["file"])
    assert "internvl_u_mmdit.gguf" in listed and "other.gguf" in listed
    draw = workflow("text_to_image", prompt="a cat", width=96, height=96, steps=2, seed=1)
    draw["4"]["inputs"]["model"] = ["30", 0]
    with pytest.raises(ComfyError, match="architecture 'flux'"):
        installed.run(draw | {"30": loader("Model", "other.gguf")})
    assert installed.images(installed.run(draw | {"30": loader("Model", "internvl_u_mmdit.gguf")}))
    ask = workflow("ask", question="Who?", max_new_tokens=3) | {"1": loader("VLM", "internvl_u_vlm.gguf")}
    ask["8"]["inputs"]["vlm"] = ["1", 0]
    (answer,) = set(installed.texts(installed.run(ask)))
    assert answer
