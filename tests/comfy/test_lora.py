"""Adapters through ComfyUI's stock loaders: every spelling, exact weights, and an error instead of a silent no-op."""

import importlib
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from internvlu_core import InternVLU
from internvlu_train.lora import add_adapters, write_lora
from internvlu_train.settings import LoraStage
from internvlu_train.storage import Networks
from support.checkpoints import CHECKPOINT, copy_checkpoint
from support.comfy_server import ComfyError
from support.inprocess import PACK, load_pack
from support.workflows import assert_close_pictures, workflow

RANK, STRENGTH = 3, 0.7

MMDIT = [  # of both streams, and of what stands outside the blocks
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.attn.to_out.0",
    "transformer_blocks.1.attn.add_k_proj",
    "transformer_blocks.1.attn.to_add_out",
    "transformer_blocks.0.img_mod.1",
    "transformer_blocks.1.txt_mod.1",
    "transformer_blocks.0.img_mlp.net.0.proj",
    "transformer_blocks.0.txt_mlp.net.2",
    "img_in",
    "txt_in",
    "time_text_embed.timestep_embedder.linear_1",
    "norm_out.linear",
    "proj_out",
]
LM = [
    "language_model.model.layers.0.self_attn.q_proj",
    "language_model.model.layers.1.self_attn.o_proj",
    "language_model.model.layers.2.mlp.down_proj",
    "language_model.lm_head",
]
EYES = ["vision_model.encoder.layers.0.attn.qkv", "vision_model.encoder.layers.1.mlp.fc2", "mlp1.1", "mlp1.3"]


def dotted(prefix: str, cut: str = "", down: str = "lora_A.weight", up: str = "lora_B.weight"):
    """(module, down or up) → key of a tensor; cut is taken off the front of the module's name."""
    return lambda module, half: f"{prefix}{module.removeprefix(cut)}.{down if half == 'down' else up}"


def flat(prefix: str, cut: str = ""):
    """kohya's and LyCORIS' names."""
    return lambda module, half: f"{prefix}{module.removeprefix(cut).replace('.', '_')}.lora_{half}.weight"


DEFAULT = {"down": "lora_A.default.weight", "up": "lora_B.default.weight"}
KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight"}
BARE = "language_model."
MMDIT_SPELLINGS = {
    "peft": dotted("base_model.model."),
    "peft_default": dotted("base_model.model.", **DEFAULT),
    "peft_released": dotted("base_model.model.decoder."),
    "peft_pipeline": dotted("base_model.model.generation_decoder.decoder."),
    "diffusers": dotted("transformer."),
    "diffusers_released": dotted("transformer.decoder."),
    "bare": dotted(""),
    "bare_default": dotted("", **DEFAULT),
    "bare_decoder": dotted("decoder."),
    "bare_generation_decoder": dotted("generation_decoder."),
    "bare_both": dotted("generation_decoder.decoder."),
    "kohya": flat("lora_unet_"),
    "kohya_released": flat("lora_unet_decoder_"),
    "onetrainer": flat("lora_transformer_"),
    "lycoris": flat("lycoris_"),
    "comfy": dotted("diffusion_model."),
    "comfy_kohya": dotted("diffusion_model.", **KOHYA),
}
LM_SPELLINGS = {
    "peft": dotted("base_model.model."),
    "peft_vlm": dotted("base_model.model.vlm."),
    "peft_causal": dotted("base_model.model.", BARE),
    "peft_default": dotted("base_model.model.", BARE, **DEFAULT),
    "bare": dotted(""),
    "bare_vlm": dotted("vlm."),
    "bare_causal": dotted("", BARE),
    "diffusers": dotted("text_encoder."),
    "diffusers_causal": dotted("text_encoder.", BARE),
    "kohya": flat("lora_te_"),
    "kohya_causal": flat("lora_te_", BARE),
    "kohya_first": flat("lora_te1_", BARE),
    "lycoris": flat("lycoris_", BARE),
    "comfy": dotted("text_encoders."),
    "comfy_kohya": dotted("text_encoders.", **KOHYA),
}


@pytest.fixture(scope="module")
def host():
    """ComfyUI with the hook in this process, and a MODEL and a CLIP of the recorded checkpoint."""
    load_pack()
    import comfy.lora
    import comfy.sd

    def module(name):
        return importlib.import_module(f"{PACK}.{name}")

    config = module("internvlu_core.checkpoints.config").Config.read(CHECKPOINT)
    read_weights = module("internvlu_core.checkpoints.load").read_weights
    hooked = comfy.lora.model_lora_keys_unet, comfy.lora.model_lora_keys_clip, comfy.lora.load_lora
    untouched = [getattr(function, "__wrapped__", function) for function in hooked]  # another test may have hooked them
    for _ in range(2):  # the second time it does nothing
        module("nodes.comfy.lora").install()

    tokenizer = module("internvlu_core.prompt").Tokenizer(CHECKPOINT / "processor")
    vlm, mmdit = (read_weights(CHECKPOINT, config, component) for component in ("vlm", "generation_decoder"))
    reader = module("nodes.comfy.vlm").ComfyVLM(config, tokenizer, vlm, torch.float32)
    return SimpleNamespace(
        model=module("nodes.comfy.model").build_model(config, mmdit, torch.float32),
        clip=module("nodes.comfy.clip").InternVLUCLIP(reader),
        load=comfy.sd.load_lora_for_models,
        untouched=untouched,
    )


def adapter(patcher, modules, spell, prefix="", *, alpha=None, seed=0):
    """An adapter in one spelling, and {parameter: alpha/rank · up · down}."""
    generator = torch.Generator().manual_seed(seed)
    tensors, deltas = {}, {}
    for module in modules:
        parameter = f"{prefix}{module}.weight"
        out, *rest = patcher.model.state_dict()[parameter].shape
        down = torch.randn(RANK, *rest, generator=generator)
        up = torch.randn(out, RANK, generator=generator) / 10
        keys = spell(module, "down"), spell(module, "up")
        tensors |= dict(zip(keys, (down, up), strict=True))
        if alpha is not None:
            tensors[keys[0].rsplit(".lora_", 1)[0] + ".alpha"] = torch.tensor(alpha)
        deltas[parameter] = (alpha / RANK if alpha else 1.0) * up @ down
    return tensors, deltas


def patched_weights(patcher) -> dict:
    """All weights while they are patched; afterwards they are checked to be bit by bit what they were."""
    before = {name: tensor.clone() for name, tensor in patcher.model.state_dict().items()}
    patcher.patch_model()
    patched = {name: tensor.clone() for name, tensor in patcher.model.state_dict().items()}
    patcher.unpatch_model()
    after = patcher.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    return patched


def assert_changed_by(patcher, deltas: dict):
    """Exactly the weights in deltas, each by its delta."""
    before = {name: tensor.clone() for name, tensor in patcher.model.state_dict().items()}
    patched = patched_weights(patcher)
    for name, tensor in before.items():
        if name in deltas:
            torch.testing.assert_close(patched[name], tensor + deltas[name], rtol=0, atol=1e-6)
            assert not torch.equal(patched[name], tensor), name
        else:
            assert torch.equal(patched[name], tensor), name


def scaled(deltas: dict, factor: float) -> dict:
    return {name: factor * delta for name, delta in deltas.items()}


@pytest.mark.parametrize("alpha", [None, 1.5])
@pytest.mark.parametrize("spelling", MMDIT_SPELLINGS)
def test_mmdit_spellings(host, caplog, spelling, alpha):
    tensors, deltas = adapter(host.model, MMDIT, MMDIT_SPELLINGS[spelling], prefix="diffusion_model.", alpha=alpha)
    with caplog.at_level(logging.WARNING):
        model, clip = host.load(host.model, None, tensors, STRENGTH, 0)
    assert clip is None and not caplog.records
    assert_changed_by(model, scaled(deltas, STRENGTH))
    assert_changed_by(host.model, {})


@pytest.mark.parametrize("alpha", [None, 1.5])
@pytest.mark.parametrize("spelling", LM_SPELLINGS)
def test_language_model_spellings(host, caplog, spelling, alpha):
    modules = LM if LM_SPELLINGS[spelling]("language_model.x", "up").count("language") == 0 else LM + EYES
    tensors, deltas = adapter(host.clip.patcher, modules, LM_SPELLINGS[spelling], alpha=alpha)
    with caplog.at_level(logging.WARNING):
        model, clip = host.load(host.model, host.clip, tensors, 1.0, STRENGTH)
    assert not caplog.records
    assert_changed_by(clip.patcher, scaled(deltas, STRENGTH))
    assert_changed_by(model, {})


def test_adapter_of_both(host, caplog):
    """One file, two strengths."""
    drawing, model_deltas = adapter(host.model, MMDIT, MMDIT_SPELLINGS["kohya"], "diffusion_model.")
    reading, clip_deltas = adapter(host.clip.patcher, LM, LM_SPELLINGS["kohya"])
    with caplog.at_level(logging.WARNING):
        model, clip = host.load(host.model, host.clip, drawing | reading, 0.5, -2.0)
    assert not caplog.records
    assert_changed_by(model, scaled(model_deltas, 0.5))
    assert_changed_by(clip.patcher, scaled(clip_deltas, -2.0))


def test_what_our_training_writes(host, tmp_path, caplog):
    """Adapters of both networks, in one file that the loader takes whole."""
    networks = Networks(CHECKPOINT)
    stage = LoraStage(trained=("mmdit.", "vlm.language_model."), pictures="", rank=RANK, alpha=1.5)
    weights = add_adapters(networks, stage)
    for index, weight in enumerate(weights.values()):
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(index))
    write_lora(tmp_path / "lora.safetensors", weights, stage.alpha, torch.float32)
    with caplog.at_level(logging.WARNING):
        model, clip = host.load(host.model, host.clip, load_file(tmp_path / "lora.safetensors"), STRENGTH, STRENGTH)
    assert not caplog.records
    deltas = {}
    for name in {name.rsplit(".lora_", 1)[0] for name in weights}:
        delta = 1.5 / RANK * STRENGTH * weights[f"{name}.lora_up.weight"] @ weights[f"{name}.lora_down.weight"]
        deltas[f"{name}.weight"] = delta.detach()
    for patcher, old, new in ((model, "mmdit.", "diffusion_model."), (clip.patcher, "vlm.", "")):
        own = {new + name.removeprefix(old): delta for name, delta in deltas.items() if name.startswith(old)}
        assert len(own) > 20
        assert_changed_by(patcher, own)


def test_every_weight_can_be_adapted(host):
    """Also those of which a parent module holds parameters itself, which ComfyUI would skip."""
    modules = [
        name.removeprefix("diffusion_model.").removesuffix(".weight")
        for name, tensor in host.model.model.state_dict().items()
        if name.startswith("diffusion_model.") and name.endswith(".weight") and tensor.ndim == 2
    ]
    assert len(modules) == 2 * 14 + 6
    tensors, deltas = adapter(host.model, modules, MMDIT_SPELLINGS["bare"], "diffusion_model.")
    assert_changed_by(host.load(host.model, None, tensors, 1.0, 0)[0], deltas)


def test_two_adapters_add(host):
    first, one = adapter(host.model, MMDIT, MMDIT_SPELLINGS["peft"], "diffusion_model.", seed=1)
    second, two = adapter(host.model, MMDIT[:5], MMDIT_SPELLINGS["lycoris"], "diffusion_model.", seed=2)
    model = host.load(host.model, None, first, 1.0, 0)[0]
    model = host.load(model, None, second, -0.5, 0)[0]
    deltas = {name: delta - 0.5 * two.get(name, torch.zeros(())) for name, delta in one.items()}
    assert_changed_by(model, deltas)


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("axis", ["output", "input"])
def test_dora_as_comfyui_has_it(host, strength, axis):
    """arXiv 2402.09353, with the norm over outputs of the plain weight, over inputs of the changed one."""
    module, alpha = "transformer_blocks.0.img_mlp.net.0.proj", 6.0
    tensors, deltas = adapter(host.model, [module], MMDIT_SPELLINGS["kohya"], "diffusion_model.", alpha=alpha)
    ((parameter, delta),) = deltas.items()
    weight = host.model.model.state_dict()[parameter].clone()
    changed = weight + delta
    norm = weight.norm(dim=1, keepdim=True) if axis == "output" else changed.norm(dim=0, keepdim=True)
    magnitude = torch.linspace(0.5, 2, norm.numel()).view(norm.shape)
    key = next(iter(tensors)).split(".")[0]
    tensors[f"{key}.dora_scale"] = magnitude
    expected = weight + strength * (changed * magnitude / norm - weight)
    patched = patched_weights(host.load(host.model, None, tensors, strength, 0)[0])
    torch.testing.assert_close(patched[parameter], expected, rtol=1e-5, atol=1e-6)


def test_full_weights_and_biases(host):
    """.diff and .diff_b, as extracted adapters have them."""
    module = "transformer_blocks.1.attn.to_out.0"
    weight, bias = torch.randn(64, 64), torch.randn(64)
    tensors = {f"diffusion_model.{module}.diff": weight, f"diffusion_model.{module}.diff_b": bias}
    model = host.load(host.model, None, tensors, 1.0, 0)[0]
    parameter = f"diffusion_model.{module}"
    assert_changed_by(model, {f"{parameter}.weight": weight, f"{parameter}.bias": bias})


def test_partial_match_warns_once_with_counts(host, caplog):
    tensors, deltas = adapter(host.model, MMDIT, MMDIT_SPELLINGS["peft"], "diffusion_model.")
    foreign = {f"base_model.model.single_blocks.{i}.lora_A.weight": torch.zeros(RANK, 64) for i in range(7)}
    with caplog.at_level(logging.WARNING):
        model = host.load(host.model, None, tensors | foreign, 1.0, 0)[0]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"7 of {len(tensors) + 7} tensors" in record.getMessage()
    assert "base_model.model.single_blocks.0.lora_A.weight" in record.getMessage()
    assert_changed_by(model, deltas)


def test_no_match_is_an_error(host):
    foreign = {f"lora_unet_input_blocks_{i}.lora_up.weight": torch.zeros(4, 4) for i in range(9)}
    with pytest.raises(ValueError) as caught:
        host.load(host.model, host.clip, foreign, 1.0, 1.0)
    for words in ("9 tensors", "lora_unet_input_blocks_0", "diffusion_model.transformer_blocks.0", "language_model."):
        assert words in str(caught.value)
    # One for the other half of the model is no match either.
    reading, _ = adapter(host.clip.patcher, LM, LM_SPELLINGS["peft"])
    with pytest.raises(ValueError, match=f"{len(reading)} tensors"):
        host.load(host.model, None, reading, 1.0, 0)
    with pytest.raises(ValueError, match="0 tensors"):
        host.load(host.model, None, {}, 1.0, 0)


@pytest.mark.parametrize("suffixes", [("lora_A.weight", "lora_B.weight"), ("diff",)])
def test_another_models_shapes_are_an_error(host, suffixes):
    """Qwen-Image's blocks have our names, but are twice as wide."""
    tensors, _ = adapter(host.model, MMDIT[:2], MMDIT_SPELLINGS["bare"], "diffusion_model.")
    tensors |= {f"transformer_blocks.0.attn.to_k.{suffix}": torch.zeros(192, 192) for suffix in suffixes}
    with pytest.raises(ValueError, match=r"1 of 3 weights .*to_k.weight: \[192, 192\] .* \[64, 64\]"):
        host.load(host.model, None, tensors, 1.0, 0)


def test_other_models_pass_through_untouched(host, caplog):
    """Same keys, same patches and same log as without the hook; nothing is an error."""
    import comfy.lora

    class Foreign(torch.nn.Module):
        model_config = SimpleNamespace(unet_config={})

        def __init__(self):
            super().__init__()
            self.diffusion_model = torch.nn.ModuleDict({"img_in": torch.nn.Linear(2, 2)})

    foreign, given = Foreign(), {"given": "key"}
    unet_keys, clip_keys, load_lora = host.untouched
    assert unet_keys is not comfy.lora.model_lora_keys_unet and unet_keys is comfy.lora.model_lora_keys_unet.__wrapped__
    keys = comfy.lora.model_lora_keys_unet(foreign, given)
    assert keys is given and type(keys) is dict and keys == unet_keys(foreign, {"given": "key"})
    keys = comfy.lora.model_lora_keys_clip(foreign, given)
    assert keys is given and keys == clip_keys(foreign, unet_keys(foreign, {"given": "key"}))

    tensors = {"diffusion_model.img_in.diff": torch.ones(2, 2), "other.lora_up.weight": torch.ones(2, 2)}
    logs = []
    for load in (load_lora, comfy.lora.load_lora):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert load(tensors, keys)["diffusion_model.img_in.weight"][1][0] is tensors["diffusion_model.img_in.diff"]
            assert load({"nothing": torch.ones(1)}, keys) == {}
        logs.append([record.getMessage() for record in caplog.records])
    assert logs[0] == logs[1] == ["lora key not loaded: other.lora_up.weight", "lora key not loaded: nothing"]


def test_hooked_adapters(host):
    """A WeightHook asks for MODEL and CLIP apart; one of them may find nothing."""
    import comfy.lora

    tensors, _ = adapter(host.model, MMDIT, MMDIT_SPELLINGS["peft"], "diffusion_model.")
    clip_keys = comfy.lora.model_lora_keys_clip(host.clip.cond_stage_model, {})
    assert comfy.lora.load_lora(tensors, clip_keys, log_missing=False) == {}
    model_keys = comfy.lora.model_lora_keys_unet(host.model.model, {})
    assert len(comfy.lora.load_lora(tensors, model_keys, log_missing=False)) == len(MMDIT)


def merge(stored, tensors, prefix=""):
    """Add an adapter with bare names to the weights of a checkpoint."""
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            stored[f"{prefix}{module}.weight"] += STRENGTH * tensors[f"{module}.lora_B.weight"] @ tensors[key]


@pytest.fixture(scope="module")
def files(server, host):
    """Adapters in the server's folder: "style" for both halves of the model, "drawing" for the MMDiT, "foreign"."""
    drawing, _ = adapter(host.model, MMDIT, MMDIT_SPELLINGS["bare"], "diffusion_model.", seed=3)
    reading, _ = adapter(host.clip.patcher, LM, LM_SPELLINGS["bare"], seed=4)
    loras = server.base_dir / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    peft = {f"base_model.model.decoder.{key}": tensor for key, tensor in drawing.items()}
    save_file(peft, loras / "drawing.safetensors")
    save_file(
        peft | {f"base_model.model.{key}": tensor for key, tensor in reading.items()}, loras / "style.safetensors"
    )
    save_file({"double_blocks.0.lora_A.weight": torch.zeros(3, 3)}, loras / "foreign.safetensors")
    return SimpleNamespace(drawing=drawing, reading=reading)


SETTINGS = {"width": 160, "height": 128, "steps": 3, "seed": 42, "prompt": "a cat in another style"}


def with_adapter(node: str, name: str, **inputs) -> dict:
    """The text-to-image workflow with a stock loader behind the MODEL, and for LoraLoader behind the VLM's CLIP too."""
    prompt = workflow("text_to_image", **SETTINGS)
    prompt["20"] = {
        "class_type": node,
        "inputs": {"model": ["1", 0], "lora_name": name, "strength_model": STRENGTH, **inputs},
    }
    prompt["4"]["inputs"]["model"] = ["20", 0]
    return prompt


def drawn(server, prompt):
    prompt["6"]["inputs"]["filename_prefix"] = "lora"
    (picture,) = server.images(server.run(prompt))
    return picture.convert("RGB")


def of_core(folder):
    """The picture of another checkpoint, without ComfyUI."""
    model = InternVLU.from_pretrained(folder, device="cpu", dtype=torch.float32)
    options = {key: value for key, value in SETTINGS.items() if key != "prompt"}
    return model.generate(SETTINGS["prompt"], **options).images[0]


def distance(picture, other) -> float:
    return np.abs(np.asarray(picture).astype(int) - np.asarray(other).astype(int)).mean()


def test_model_only_loader_through_the_queue(server, files, tmp_path):
    """The picture is the core's with merged weights, and the plain one again once the loader is gone."""
    plain = drawn(server, workflow("text_to_image", **SETTINGS))
    styled = drawn(server, with_adapter("LoraLoaderModelOnly", "drawing.safetensors"))
    folder = copy_checkpoint(
        tmp_path / "merged", tensors={"generation_decoder": lambda stored: merge(stored, files.drawing, "decoder.")}
    )
    assert_close_pictures(styled, np.asarray(of_core(folder)))
    assert distance(styled, plain) > 2
    assert drawn(server, workflow("text_to_image", **SETTINGS)).tobytes() == plain.tobytes()


def test_loader_of_both_through_the_queue(server, files, tmp_path):
    """One file for MMDiT and language model; the loader's CLIP serves as the VLM."""
    prompt = with_adapter("LoraLoader", "style.safetensors", clip=["21", 0], strength_clip=STRENGTH)
    prompt["21"] = {"class_type": "InternVLUCLIP", "inputs": {"vlm": ["1", 1]}}
    prompt["2"]["inputs"]["vlm"] = ["20", 1]
    changes = {
        "generation_decoder": lambda stored: merge(stored, files.drawing, "decoder."),
        "vlm": lambda stored: merge(stored, files.reading),
    }
    both = drawn(server, prompt)
    assert_close_pictures(both, np.asarray(of_core(copy_checkpoint(tmp_path / "both", tensors=changes))))
    only_drawing = drawn(server, with_adapter("LoraLoaderModelOnly", "style.safetensors"))
    assert distance(both, only_drawing) > 0.5
    log = server.log.read_text(encoding="utf-8", errors="replace")
    assert f"LoRA: {2 * len(LM)} of {2 * len(LM + MMDIT)} tensors fit nothing" in log


def test_foreign_adapter_through_the_queue(server, files):
    with pytest.raises(ComfyError, match=r"none of the adapter's 1 tensors .*double_blocks\.0") as caught:
        server.run(with_adapter("LoraLoaderModelOnly", "foreign.safetensors"))
    assert caught.value.node_id == "20"


def test_golden_names_are_covered():
    """The lists above name what there is: a renamed module would otherwise leave the tests green and users stranded."""
    stored = load_file(CHECKPOINT / "generation_decoder" / "model.safetensors")
    assert {f"decoder.{module}.weight" for module in MMDIT} <= stored.keys()
    stored = load_file(CHECKPOINT / "vlm" / "model.safetensors")
    assert {f"{module}.weight" for module in LM + EYES} <= stored.keys()
