"""Hooks on quantised layers (Create Hook LoRA): on for one branch, off for the other, and on again in the next step."""

import importlib

import pytest
import torch

from internvlu_core.checkpoints.convert import convert
from support.checkpoints import CHECKPOINT
from support.inprocess import PACK, denoised, load_pack
from support.tensors import noise, relative

QUANTISED, PLAIN = "transformer_blocks.0.attn.to_q", "img_in"
STORED = ("fp8_e4m3fn", "fp8", "int8", "nvfp4", "Q4_0")  # the first by the loader's choice, the others in a file


@pytest.fixture(scope="module", params=STORED)
def file(request, tmp_path_factory):
    if request.param == "fp8_e4m3fn":
        return CHECKPOINT
    file = tmp_path_factory.mktemp(request.param) / f"model.{'gguf' if request.param == 'Q4_0' else 'safetensors'}"
    convert(CHECKPOINT, file, "single", quant=request.param)
    return file


@torch.inference_mode()
def load(file, dtype=None):
    load_pack()
    module = importlib.import_module
    source = module(f"{PACK}.internvlu_core.checkpoints.files").open_source(file)
    config = module(f"{PACK}.internvlu_core.checkpoints.config").Config.read(source)
    dtype = dtype or (torch.float8_e4m3fn if file == CHECKPOINT else None)
    return module(f"{PACK}.nodes.comfy.load").load_model(source, config, dtype)


@torch.inference_mode()
def applied(model) -> torch.Tensor:
    """The model's x0 as its weights are; `denoised` would load them anew."""
    x, context = noise(1, 16, 1, 12, 10), noise(1, 24, model.model.diffusion_model.config.context_size, seed=1)
    return model.model.apply_model(x, torch.tensor([0.999]), c_crossattn=context, transformer_options={}).float()


@pytest.mark.parametrize("waits", [False, True])
def test_on_and_off_again(file, waits):
    """Also while layers wait in main memory. Layers that are not quantised are ComfyUI's to patch."""
    exact, model = load(file, torch.float32), load(file)
    import comfy.hooks
    import comfy.model_management

    plain = denoised(model)
    shapes = {path: exact.model.diffusion_model.get_submodule(path).weight.shape for path in (QUANTISED, PLAIN)}
    if file.suffix == ".gguf":
        shapes[QUANTISED] = model.model.diffusion_model.get_submodule(QUANTISED).matrix_shape
    patches = {f"diffusion_model.{path}.weight": ("diff", (noise(*shape) / 5,)) for path, shape in shapes.items()}
    patched = exact.clone()
    patched.add_patches(patches)
    wanted = denoised(patched)
    effect = relative(wanted, plain)

    group = comfy.hooks.HookGroup()
    group.add(comfy.hooks.WeightHook(strength_model=1.0))
    hooked = model.clone()
    hooked.add_hook_patches(group.hooks[0], patches)
    with torch.inference_mode():
        comfy.model_management.cleanup_models()  # of other tests, which are gone; ComfyUI does it between prompts
        comfy.model_management.unload_all_models()
        hooked.load(hooked.load_device, lowvram_model_memory=1 if waits else 0, full_load=not waits)
        for _ in range(2):
            hooked.apply_hooks(group)
            assert relative(applied(hooked), wanted) < 0.25 * effect
            hooked.apply_hooks(None)
            assert relative(applied(hooked), plain) < 0.25 * effect
        hooked.apply_hooks(group)
        hooked.clean_hooks()
        assert relative(applied(hooked), plain) < 0.25 * effect
        hooked.unpatch_model()
    assert relative(denoised(model), plain) < 1e-6


def test_merging(file):
    """The other way in which ComfyUI reads all of a model's weights."""
    one, other = load(file), load(file)
    merged = one.clone()
    merged.add_patches(other.get_key_patches("diffusion_model."), 0.5, 0.5)
    tolerance = 0.08 if "nvfp4" in str(file) else 0.02  # ComfyUI rounds merged weights to the format again
    assert relative(denoised(merged), denoised(one)) < tolerance
