"""Weights kept in fewer bits, and computing in float16 without overflow; NaNs are errors on every route."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from internvlu_core.checkpoints.config import Config
from internvlu_core.checkpoints.files import File
from internvlu_core.checkpoints.load import load_networks, read_formats, read_weights
from internvlu_core.models import language, mmdit, vision, vlm
from internvlu_core.models.float16 import project_to_residual, scale_down
from internvlu_core.quantization import find_format, layer_formats
from support.checkpoints import CHECKPOINT
from support.comfy_server import ComfyError
from support.inprocess import PACK, denoised, load_pack
from support.networks import randomise
from support.tensors import noise, relative
from support.workflows import workflow

HALF, BFLOAT, FP8 = torch.float16, torch.bfloat16, torch.float8_e4m3fn
# What writes into a residual stream, and what leads there.
LARGE = ("to_out.0", "to_add_out", "net.2", "img_in", "txt_in", "o_proj", "down_proj", "attn.proj", "mlp.fc2")
LARGE += ("to_v", "add_v_proj", "v_proj", "net.0.proj", "gate_proj", "up_proj", "mlp.fc1", "patch_embedding")


@pytest.fixture(scope="module")
def config():
    return Config.read(CHECKPOINT)


def naive(monkeypatch):
    """The networks as they would be without float16.py."""
    for module in (mmdit, language, vision, vlm):
        for name, function in {
            "project_to_residual": lambda linear, x, dtype: linear(x),
            "to_residual_dtype": lambda x: x,
            "scale_for_norm": lambda x, dtype: x,
        }.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, function)


def networks(config, factor: float = 1.0):
    """MMDiT and VLM with random weights, the LARGE ones times the factor."""
    pair = randomise(mmdit.MMDiT(config.mmdit), seed=1), randomise(vlm.VLM(config), seed=2)
    for network in pair:
        for name, parameter in network.named_parameters():
            if name.removesuffix(".weight").removesuffix(".bias").endswith(LARGE):
                parameter.mul_(factor)
    return pair


@torch.inference_mode()
def velocity(network, dtype) -> torch.Tensor:
    """The first velocity, with a reference and ViT tokens."""
    mask = torch.tensor([False] * 5 + [True] * 16 + [False] * 3)
    inputs = noise(1, 16, 12, 10), noise(1, 24, network.config.context_size, seed=1), noise(1, 16, 8, 8, seed=2)
    x, context, reference = (tensor.to(dtype) for tensor in inputs)
    return network.to(dtype)(x, torch.tensor([999.0]), context, mask, [(1, 4, 4)], [reference]).float()


@torch.inference_mode()
def states(network, dtype) -> torch.Tensor:
    """The conditioning of a text with a picture: both select layers, and logits. Each normalised."""
    network.to(dtype)
    features = network.image_features(noise(1, 3, 224, 224).to(dtype)).flatten(0, 1)
    ids = torch.arange(3, 103)[None]
    mask = torch.zeros(100, dtype=torch.bool)
    mask[10 : 10 + len(features)] = True
    x = network.embed(ids, torch.arange(300, 310), mask, features)
    assert x.dtype == dtype
    layers = network.language_model.config.num_layers
    last, before = network.language_model(x, (layers, layers - 1))
    parts = last, before, network.language_model.logits(last)
    return torch.cat([(part.float() / part.float().norm()).flatten() for part in parts])


@torch.inference_mode()
def features(network, dtype) -> torch.Tensor:
    """A picture's tokens."""
    return network.to(dtype).image_features(noise(1, 3, 224, 224).to(dtype)).float()


RUNS = [
    pytest.param(0, velocity, id="mmdit"),
    pytest.param(1, states, id="language"),
    pytest.param(1, features, id="vision"),
]


@pytest.mark.parametrize(("which", "run"), RUNS)
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT])
def test_other_dtypes_are_untouched(config, monkeypatch, which, run, dtype):
    ours = run(networks(config)[which], dtype)
    naive(monkeypatch)
    assert torch.equal(ours, run(networks(config)[which], dtype))


@pytest.mark.parametrize(("which", "run"), RUNS)
def test_float16_is_more_exact_than_bfloat16(config, which, run):
    exact, half, brain = (run(networks(config)[which], dtype) for dtype in (torch.float32, HALF, BFLOAT))
    assert relative(half, exact) < min(3e-3, relative(brain, exact) / 3)


@pytest.mark.parametrize(("which", "run"), RUNS)
@pytest.mark.parametrize("factor", [200, 500])
def test_float16_does_not_overflow(config, monkeypatch, which, run, factor):
    """Streams of 1e5 to 1e8, where float16 ends at 65504: as exact as with small weights."""
    exact, half = (run(networks(config, factor)[which], dtype) for dtype in (torch.float32, HALF))
    assert half.isfinite().all()
    assert relative(half, exact) < 3e-3
    naive(monkeypatch)
    assert not run(networks(config, factor)[which], HALF).isfinite().all(), "this test provokes nothing"


def test_products_inside_swiglu_do_not_overflow(config):
    """Each factor is well in float16's range; it is their product that is not."""
    mlp = randomise(language.MLP(config.language, torch.nn))
    mlp.gate_proj.weight.mul_(500)
    mlp.up_proj.weight.mul_(500)
    x = noise(1, 7, config.language.hidden_size)
    exact = mlp(x)
    mlp.half()
    gate, up = mlp.gate_proj(x.half()), mlp.up_proj(x.half())
    assert gate.isfinite().all() and up.isfinite().all() and not (gate * up).isfinite().all()
    assert relative(mlp(x.half()), exact) < 1e-3


def test_projection_keeps_its_bias():
    """Scaling the input must not scale the bias; tokens are scaled apart, and partial sums stay in range."""
    linear = torch.nn.Linear(512, 8).requires_grad_(False)
    linear.weight.data.mul_(20)
    linear.bias.data.copy_(torch.arange(8) * 10.0)
    x = noise(2, 3, 512) * torch.tensor([1e-3, 1.0, 5e4])[:, None]
    exact = linear(x)
    actual = project_to_residual(linear.half(), x, HALF)
    assert actual.dtype == torch.float32 and not linear(x.half()).isfinite().all()
    for token in range(3):
        assert relative(actual[:, token], exact[:, token]) < 2e-3
    assert torch.equal(scale_down(torch.zeros(1, 4))[0], torch.zeros(1, 4))
    assert not project_to_residual(linear, torch.full((1, 1, 512), torch.nan), HALF).isfinite().any()


def test_scaling_down_in_float16_loses_nothing():
    """It rounds as a division in float32 does, for values that become subnormal too."""
    x = (noise(3, 4096) * torch.tensor([[1e-7], [1.0], [1e4]])).half().clamp(-65504, 65504)
    (found, scale), (exact, expected) = scale_down(x), scale_down(x.float())
    assert torch.equal(scale, expected) and scale.max() >= 1024
    assert torch.equal(found, exact.half())


def test_contexts_beyond_float16(config):
    """Massive activations of a language model's stream survive the cast; ordinary contexts are not touched at all."""
    network = networks(config)[0]
    context = noise(1, 6, config.mmdit.context_size)
    assert torch.equal(network.bound_context(context), context)
    context[0, 2, 7] = 3e6
    assert not context.half().isfinite().all()
    half = network.bound_context(context).half()
    normed = network.txt_norm(half.float())
    assert half.isfinite().all() and relative(normed, network.txt_norm(context)) < 1e-3


# ---------------------------------------------------------------- in ComfyUI


@pytest.fixture(scope="module")
def host():
    load_pack()

    def module(name):
        return importlib.import_module(f"{PACK}.{name}")

    pack_config = module("internvlu_core.checkpoints.config").Config.read(CHECKPOINT)

    def stored(component):
        return module("internvlu_core.checkpoints.load").read_weights(CHECKPOINT, pack_config, component)

    def build_model(dtype):
        return module("nodes.comfy.model").build_model(pack_config, stored("generation_decoder"), dtype)

    def build_vlm(dtype):
        tokenizer = module("internvlu_core.prompt").Tokenizer(CHECKPOINT / "processor")
        return module("nodes.comfy.vlm").ComfyVLM(pack_config, tokenizer, stored("vlm"), dtype)

    return SimpleNamespace(
        module=module, build_model=build_model, build_vlm=build_vlm, stored=stored, config=pack_config
    )


@torch.inference_mode()
def hidden(reader) -> torch.Tensor:
    context = reader.conditioner.context("a cat", [], [], device="cpu")
    return torch.cat([branch.hidden.float() for branch in (context.full, context.unconditional)])


# Largest relative errors of x0 and of hidden states. Measured for 8 bits: 0.7% and 12%.
TOLERANCES = {"bf16": (2e-2, 2e-2), "fp16": (2e-3, 2e-3), "fp32": (1e-6, 1e-6), "fp8_e4m3fn": (3e-2, 0.15)}


@pytest.mark.parametrize("name", TOLERANCES)
def test_every_weight_dtype(host, name):
    """What is kept in which dtype, and how much that changes. A CPU computes in float32."""
    dtype = host.module("nodes.comfy.dtypes").DTYPES[name]
    for build, run, tolerance in zip(
        (host.build_model, host.build_vlm), (denoised, hidden), TOLERANCES[name], strict=True
    ):
        built = build(dtype)
        network = built.patcher.model if hasattr(built, "patcher") else built.model.diffusion_model
        kept = {parameter: tensor.dtype for parameter, tensor in network.named_parameters()}
        if dtype != FP8:
            assert set(kept.values()) == {dtype}
        else:
            assert set(kept.values()) == {FP8, torch.float32}
            matrices = [
                parameter for parameter, tensor in network.named_parameters()
                if tensor.ndim == 2 and len(tensor) > 1
                and any(part in parameter for part in (".attn.", "_attn.", "mlp.", "_mod."))
            ]  # fmt: skip
            assert {parameter for parameter in kept if kept[parameter] == FP8} == set(matrices)
        assert relative(run(built), run(build(torch.float32))) <= tolerance


def float8_weights(built) -> dict[str, torch.Tensor]:
    """{path: what the weight stands for} of the layers that are kept in 8 bits, of a MODEL or a VLM."""
    network = built.patcher.model if hasattr(built, "patcher") else built.model.diffusion_model
    layers = {path: layer for path, layer in network.named_modules() if hasattr(layer, "own_scale")}
    assert layers
    return {path: layer.convert_weight(layer.weight) for path, layer in layers.items()}


def test_eight_bits_are_the_cores(host, core_in_float8):
    """The same numbers, on a checkpoint whose rows differ in size: a cast without scales would be another."""
    for built, network in zip(
        (host.build_model(FP8), host.build_vlm(FP8)), (core_in_float8.mmdit, core_in_float8.vlm), strict=True
    ):
        ours, layers = float8_weights(built), dict(network.named_modules())
        assert ours.keys() == layer_formats(network).keys()
        for path, weight in ours.items():
            stored = {name: getattr(layers[path], name) for name in layers[path].names}
            assert torch.equal(weight, layers[path].format.dequantise(stored, torch.float32)), path


@torch.inference_mode()
def test_eight_bits_give_the_cores_outputs(host, core_in_float8, config):
    """The velocity and the features of a picture, in float32."""
    model, reader = host.build_model(FP8).model, host.build_vlm(FP8)
    model.diffusion_model.to("cpu")
    ours = model.diffusion_model, reader.patcher.model
    for run, network, core in zip((velocity, features), ours, (core_in_float8.mmdit, core_in_float8.vlm), strict=True):
        x = (noise(1, 16, 12, 10), noise(1, 24, config.mmdit.context_size, seed=1)) if run is velocity else None
        if x:
            mask, time = torch.tensor([False] * 24), torch.tensor([999.0])
            expected = core(x[0], time, x[1], mask, [], [])
            actual = network(x[0].unsqueeze(2), time, x[1], transformer_options={}).squeeze(2)
        else:
            pixels = noise(1, 3, 224, 224)
            expected, actual = core.image_features(pixels), network.image_features(pixels)
        assert relative(actual, expected) < 1e-5


@pytest.fixture(scope="module")
def core_in_float8(config):
    return load_networks(CHECKPOINT, config, dtype=torch.float32, weight_format=find_format(FP8))


def test_eight_bits_hold_weights_beyond_their_range(host):
    """500 is more than float8 has without a scale. Layer scales and norms are kept as they are."""
    float8 = host.module("nodes.comfy.float8")
    layer = float8.Float8Linear(torch.nn.Linear(2, 2, device="meta"))
    layer.keep(torch.tensor([[500.0, -3.0], [1e-3, 2e-4]]), "cpu")
    assert layer.weight.dtype == FP8
    assert relative(layer.convert_weight(layer.weight), torch.tensor([[500.0, -3.0], [1e-3, 2e-4]])) < 0.03
    kept = host.build_vlm(FP8).patcher.model.vision_model.encoder["layers"][0].norm1.weight
    assert kept.dtype == torch.float32


@pytest.mark.parametrize("patched", [False, True])
def test_eight_bits_save_what_they_stand_for(host, patched, tmp_path):
    """As MXFP8, which holds a float8 value times a power of two, in 8 bits. Read again, the numbers are equal."""
    model = host.build_model(FP8)
    if patched:
        key = "diffusion_model.transformer_blocks.0.attn.to_q.weight"
        model.add_patches({key: ("diff", (noise(*model.model.state_dict()[key].shape),))})
        model.patch_model()
    before = float8_weights(model)
    saved = model.model.model_config.process_unet_state_dict_for_saving(model.model.diffusion_model.state_dict())
    file = tmp_path / "saved.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in saved.items()}, file)
    config = Config.read(File(file))
    stored = read_weights(file, config, "generation_decoder")
    formats = read_formats(file, config, "generation_decoder")
    assert formats.keys() == before.keys()
    for path, weight in before.items():
        parts = {name: stored[f"{path}.{name}"] for name in ("weight", "weight_scale")}
        assert torch.equal(formats[path].dequantise(parts, torch.float32), weight), path
    model.unpatch_model()


def test_eight_bits_of_a_file_are_kept(host):
    """A file that is in float8 itself is not rounded again."""
    state = {name: tensor.to(FP8) for name, tensor in host.stored("generation_decoder").items()}
    expected = {name: tensor.float() for name, tensor in state.items()}
    for path, weight in float8_weights(host.module("nodes.comfy.model").build_model(host.config, state, FP8)).items():
        assert torch.equal(weight, expected[f"{path}.weight"]), path


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp8_e4m3fn"])
def test_computing_in_float16_under_comfyui(host, name):
    """ModelComputeDtype fp16, over weights of each kind; a conditioning beyond float16's range included."""
    import comfy.samplers

    model = host.build_model(host.module("nodes.comfy.dtypes").DTYPES[name])
    exact = denoised(model)
    half = model.clone()
    half.set_model_compute_dtype(HALF)
    error = relative(denoised(half), exact)
    assert 0 < error < 2e-3
    huge = noise(1, 24, host.config.mmdit.context_size, seed=1)
    huge[0, 3, 5] = 1e6
    results = []
    for patcher in (model, half):
        guider = comfy.samplers.CFGGuider(patcher)
        guider.set_conds([[huge, {}]], [[huge, {}]])
        guider.set_cfg(1.0)
        sampler = comfy.samplers.sampler_object("euler")
        results.append(
            guider.sample(
                noise(1, 16, 1, 12, 10), torch.zeros(1, 16, 1, 12, 10), sampler, torch.tensor([0.999, 0.5, 0])
            )
        )
    assert relative(results[1], results[0]) < 5e-3


@pytest.mark.parametrize("name", ["auto", "fp16", "fp8_e4m3fn"])
def test_what_a_gpu_without_bfloat16_computes_in(host, monkeypatch, name):
    """Turing has fast float16 and no bfloat16."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "should_use_fp16", lambda *args, **kwargs: True)
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda *args, **kwargs: False)
    dtype = host.module("nodes.comfy.dtypes").DTYPES[name]
    model, reader = host.build_model(dtype), host.build_vlm(dtype)
    assert (model.model.manual_cast_dtype or model.model.get_dtype()) == reader.dtype == HALF
    exact = denoised(host.build_model(torch.float32)), hidden(host.build_vlm(torch.float32))
    tolerances = TOLERANCES["fp8_e4m3fn" if dtype == FP8 else "fp16"]
    for actual, expected, tolerance in zip((denoised(model), hidden(reader)), exact, tolerances, strict=True):
        assert relative(actual, expected) < 1.5 * tolerance
    settings = host.module("internvlu_core.decoding").TextSettings(max_new_tokens=4)
    assert reader.generate(reader.conditioner.prompts.chat("Who?", [], None), [], settings).token_ids


KEY = "diffusion_model.transformer_blocks.0.attn.to_q.weight"


@pytest.mark.parametrize("size", [1e-3, 0.1, 10.0])
def test_adapters_on_eight_bits(host, size):
    """ComfyUI patches the scaled weight in float32, and rounds it to float8 with scales of its own; then undoes it."""
    model = host.build_model(FP8)
    path = KEY.removeprefix("diffusion_model.").removesuffix(".weight")
    before = float8_weights(model)[path]
    delta = noise(*before.shape) * size
    patched = model.clone()
    patched.add_patches({KEY: ("diff", (delta,))})
    patched.patch_model()
    after = float8_weights(patched)[path]
    assert patched.model.state_dict()[KEY].dtype == FP8
    patched.unpatch_model()
    assert relative(after, before + delta) < 0.05
    assert torch.equal(float8_weights(model)[path], before)


@torch.inference_mode()
def test_adapters_on_offloaded_eight_bits(host):
    """A layer that stays in main memory is patched whenever it is used, on the scaled weight."""
    model = host.build_model(FP8)
    layer = model.model.diffusion_model.transformer_blocks[0].attn.to_q
    delta = noise(*layer.weight.shape) / 10
    x = noise(3, layer.in_features)
    expected = torch.nn.functional.linear(x, layer.convert_weight(layer.weight) + delta, layer.bias)
    model.add_patches({KEY: ("diff", (delta,))})
    model.load(torch.device("cpu"), lowvram_model_memory=1)
    assert layer.weight_function, "nothing is offloaded"
    assert relative(layer(x), expected) < 1e-5
    model.unpatch_model()
    assert relative(layer(x), expected) > 0.1


@pytest.mark.parametrize("name", ["fp32", "fp8_e4m3fn"])
def test_networks_whose_layers_have_no_weights_yet(host, monkeypatch, name):
    """Newer versions of ComfyUI leave out a layer's parameters on a GPU until they are loaded."""
    import comfy.ops

    dtype = host.module("nodes.comfy.dtypes").DTYPES[name]
    expected = denoised(host.build_model(dtype))
    original = comfy.ops.disable_weight_init.Linear.__init__

    def lazy(self, *args, **kwargs):
        original(self, *args, **kwargs)
        del self.weight, self.bias
        self.weight = self.bias = None

    monkeypatch.setattr(comfy.ops.disable_weight_init.Linear, "__init__", lazy)
    assert torch.equal(denoised(host.build_model(dtype)), expected)


def test_merging_models_in_eight_bits(host):
    """A merge mixes scaled weights, whatever scales the two models have."""
    one, other = host.build_model(FP8), host.build_model(FP8)
    path = KEY.removeprefix("diffusion_model.").removesuffix(".weight")
    layer = other.model.diffusion_model.transformer_blocks[0].attn.to_q
    layer.keep(layer.convert_weight(layer.weight) * 5, "cpu")
    expected = 0.25 * float8_weights(one)[path] + 0.75 * float8_weights(other)[path]
    merged = one.clone()
    merged.add_patches(other.get_key_patches("diffusion_model."), 0.75, 0.25)
    merged.patch_model()
    assert relative(float8_weights(merged)[path], expected) < 0.05
    merged.unpatch_model()


def test_vae_never_draws_nans(host):
    comfy_vae = host.module("nodes.comfy.vae").ComfyVAE(host.config, host.stored("vae"))
    latent = torch.full((1, 16, 1, 8, 8), torch.nan)
    for decode in (comfy_vae.decode, comfy_vae.decode_tiled):
        with pytest.raises(FloatingPointError, match="not finite"):
            decode(latent)
    with pytest.raises(FloatingPointError, match="not finite"):
        comfy_vae.encode(torch.full((1, 64, 64, 3), torch.nan))


# ---------------------------------------------------------------- through the queue

INPUTS = {
    "text_to_image": {"prompt": "a cat on a mat", "width": 160, "height": 128, "steps": 3, "seed": 42},
    "edit": {"prompt": "make it night", "steps": 2, "seed": 42},
}
# Mean difference to float32 in levels of 256. Measured, for the two workflows: 0.13 and 0.20; 0.01; 0; 0.31 and 0.16.
LEVELS = {"bf16": 0.6, "fp16": 0.05, "fp32": 0.0, "fp8_e4m3fn": 1.0}


@pytest.fixture(scope="module")
def float32_pictures(server):
    return {name: levels(server, name, "fp32") for name in INPUTS}


def levels(server, name: str, dtype: str) -> np.ndarray:
    prompt = workflow(name, weight_dtype=dtype, **INPUTS[name])
    (picture,) = server.images(server.run(prompt))
    return np.asarray(picture.convert("RGB")).astype(float)


@pytest.mark.parametrize("dtype", LEVELS)
def test_weight_dtypes_through_the_queue(server, float32_pictures, recorded, dtype):
    for name, expected in float32_pictures.items():
        difference = np.abs(levels(server, name, dtype) - expected).mean()
        assert difference <= LEVELS[dtype]
        assert (difference > 0) == (dtype != "fp32"), "the choice is without effect"
    case, _ = recorded("understand")
    prompt = workflow("ask", question=case["prompt"], max_new_tokens=case["max_new_tokens"], weight_dtype=dtype)
    prompt["8"]["inputs"] |= {"num_beams": 1, "system_prompt": ""}
    (answer,) = set(server.texts(server.run(prompt)))
    # Random weights babble: after a few tokens any rounding as coarse as bfloat16's makes it another text.
    assert answer and (answer == case["output_text"][0] or dtype in ("bf16", "fp8_e4m3fn"))


ROUTES = {
    "InternVLUSampler": {},
    "KSampler": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["20", 0], "positive": ["2", 0], "negative": ["2", 2], "latent_image": ["3", 0], "seed": 1,
            "steps": 2, "cfg": 4.5, "sampler_name": "dpmpp_2m", "scheduler": "simple", "denoise": 1.0,
        },
    },
    "SamplerCustom": {
        "class_type": "SamplerCustom",
        "inputs": {
            "model": ["20", 0], "positive": ["2", 0], "negative": ["2", 2], "latent_image": ["3", 0], "cfg": 4.5,
            "add_noise": True, "noise_seed": 1, "sampler": ["31", 0], "sigmas": ["32", 0],
        },
    },
    "SamplerCustomAdvanced": {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {
            "noise": ["34", 0], "guider": ["33", 0], "sampler": ["31", 0], "sigmas": ["32", 0],
            "latent_image": ["3", 0],
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("route", ROUTES)
def test_nans_are_errors_on_every_route(server, route):
    """An adapter full of NaNs stands for whatever makes them."""
    loras = server.base_dir / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    save_file({"diffusion_model.proj_out.diff_b": torch.full((64,), torch.nan)}, loras / "nans.safetensors")
    prompt = workflow("text_to_image", width=96, height=96)
    prompt |= {
        "20": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["1", 0], "lora_name": "nans.safetensors", "strength_model": 1.0},
        },
        "31": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "32": {
            "class_type": "BasicScheduler",
            "inputs": {"model": ["20", 0], "scheduler": "simple", "steps": 2, "denoise": 1.0},
        },
        "33": {
            "class_type": "CFGGuider",
            "inputs": {"model": ["20", 0], "positive": ["2", 0], "negative": ["2", 2], "cfg": 4.5},
        },
        "34": {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}},
    }
    prompt["4"]["inputs"] |= {"model": ["20", 0], "steps": 2}
    prompt["4"] = ROUTES[route] or prompt["4"]
    with pytest.raises(ComfyError, match="latents are not finite") as caught:
        server.run(prompt)
    assert caught.value.node_id == "4"
