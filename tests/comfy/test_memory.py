"""Memory and lifetime: all three parts under ComfyUI's management, nothing kept alive, nothing run twice, no creep."""

import gc
import importlib
import os
import sys
import time
import weakref
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from internvlu_core.checkpoints.convert import convert
from internvlu_core.models.operations import bfloat16_is_fast
from internvlu_core.quantization import QUANTS
from scripts.soak import soak
from support.checkpoints import CHECKPOINT, copy_checkpoint, copy_json, random_checkpoint
from support.comfy_server import ComfyServer, link_folder
from support.inprocess import PACK, load_pack
from support.live_tensors import LiveTensors
from support.tensors import noise
from support.workflows import WORKFLOWS, assert_close_pictures, picture_of, workflow

ROOT = WORKFLOWS.parent
META = torch.device("meta")
# Not equal to torch.device("cpu"), so ComfyUI moves weights there and back, and what is there can still compute.
GPU = torch.device("cpu", 0)
PLENTY = 2**50  # bytes
PARTS = ("MODEL", "VLM", "VAE")


@pytest.fixture(scope="module")
def host():
    """The pack's modules in this process, by name."""
    load_pack()
    names = {
        "core_vae": "internvlu_core.models.vae",
        "config": "internvlu_core.checkpoints.config",
        "language": "internvlu_core.models.language",
    }
    names |= {"files": "internvlu_core.checkpoints.files", "decoding": "internvlu_core.decoding"}
    names |= {name: f"nodes.{name}" for name in ("encode", "sampling")}
    names |= {name: f"nodes.comfy.{name}" for name in ("clip", "load", "model", "packing", "vae")}
    return SimpleNamespace(**{key: importlib.import_module(f"{PACK}.{name}") for key, name in names.items()})


class Budget:
    """Free memory as ComfyUI is told: `total` on the GPU less the weights there, and as much as one likes elsewhere."""

    def __init__(self, management):
        self.management, self.total = management, PLENTY
        self.reserve = 0  # what ComfyUI keeps free for computing in any case
        self.required, self.least = [], []  # what was asked for: for weights and computing, and for computing at least

    def free(self, device=None, torch_free_too=False):
        free = PLENTY
        if device == GPU:
            free = self.total - sum(m.model_loaded_memory() for m in self.management.current_loaded_models)
        return (free, free) if torch_free_too else free

    def loaded(self) -> list:
        return self.management.loaded_models()


@pytest.fixture
def budget(host, monkeypatch):
    """ComfyUI believes in a GPU whose memory the test sets."""
    import comfy.model_management as management

    budget, free_memory, load = Budget(management), management.free_memory, management.load_models_gpu

    def spy_on_free(memory_required, device, *args, **options):
        budget.required.append(memory_required)
        return free_memory(memory_required, device, *args, **options)

    def spy_on_load(models, memory_required=0, **options):
        budget.least.append(options.get("minimum_memory_required") or memory_required)
        return load(models, memory_required, **options)

    replacements = {
        "get_torch_device": lambda: GPU,
        "text_encoder_device": lambda: GPU,
        "vae_device": lambda: GPU,
        "is_device_cpu": lambda device: device == torch.device("cpu"),
        "get_free_memory": budget.free,
        "minimum_inference_memory": lambda: budget.reserve,
        "extra_reserved_memory": lambda: 0,
        "vram_state": management.VRAMState.NORMAL_VRAM,
        "current_loaded_models": [],
        "free_memory": spy_on_free,
        "load_models_gpu": spy_on_load,
    }
    for name, value in replacements.items():
        monkeypatch.setattr(management, name, value)
    return budget


def load(host, checkpoint=CHECKPOINT, dtype: torch.dtype | None = torch.float32) -> SimpleNamespace:
    """What the loader's outputs are."""
    source = host.files.open_source(checkpoint)
    config = host.config.Config.read(source)
    return SimpleNamespace(
        model=host.load.load_model(source, config, dtype),
        vlm=host.load.load_vlm(source, config, dtype),
        vae=host.load.load_vae(source, config),
    )


def patchers(parts) -> dict:
    return dict(zip(PARTS, (parts.model, parts.vlm.patcher, parts.vae.patcher), strict=True))


@torch.inference_mode()
def forward(part: str, network, device="cpu") -> list[torch.Tensor]:
    """Everything that a part computes, with inputs on this device."""

    def inputs(*shape, seed=0):
        return noise(*shape, seed=seed).to(device)

    if part == "MODEL":
        mask = (False,) * 5 + (True,) * 16 + (False,) * 3
        form = importlib.import_module(f"{PACK}.nodes.comfy.packing").Form(mask, ((1, 4, 4),), 1)
        context = inputs(1, 24, network.diffusion_model.config.context_size)
        options = {"forms": (form,), "ref_latents": [inputs(1, 16, 1, 8, 8, seed=1)], "transformer_options": {}}
        return [network.apply_model(inputs(1, 16, 1, 12, 10), inputs(1).abs(), c_crossattn=context, **options)]
    if part == "VLM":
        ids = torch.arange(3, 100).to(device)[None]
        x = network.embed(ids, torch.arange(90, 100).to(device))
        last = network.language_model.config.num_layers
        states = network.language_model(x, (0, last - 1, last))
        logits = network.language_model.logits(states[-1])
        # 16 patches fewer a side than learned: positions are interpolated too.
        return [
            network.image_features(inputs(1, 3, 224, 224)),
            network.vision_model(inputs(2, 3, 112, 112)),
            *states,
            logits,
        ]
    return [network.encode_raw(inputs(1, 3, 32, 48)), network.decode_raw(inputs(1, 16, 4, 6))]


class OneDevice(TorchDispatchMode):
    """No operation but a copy takes tensors of two devices. (On the meta device alone torch does not mind all.)"""

    COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.ndim]
        devices = {tensor.device for tensor in tensors}
        assert len(devices) < 2 or function.overloadpacket in self.COPIES, f"{function} on {devices}"
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A checkpoint whose head is the token table."""
    folder = tmp_path_factory.mktemp("tied") / "checkpoint"
    changes = {"vlm/config.json": {"tie_word_embeddings": True, "llm_config": {"tie_word_embeddings": True}}}
    return copy_checkpoint(folder, changes, {"vlm": lambda tensors: tensors.pop("language_model.lm_head.weight")})


# Placement


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8, 2.0])
@pytest.mark.parametrize("part", [*PARTS, "tied VLM"])
def test_every_weight_moves_or_is_cast_at_use(host, budget, tied, part, share):
    """Loaded onto a device without values: a weight left behind that nobody casts would meet an input there."""
    part = part.removeprefix("tied ") if (is_tied := part.startswith("tied ")) else part
    patcher = patchers(load(host, tied if is_tied else CHECKPOINT))[part]
    patcher.partially_load(META, max(0.1, share * patcher.model_size()))
    moved = 0
    for name, module in patcher.model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.device == META:
                moved += parameter.nbytes
            else:
                casts = getattr(module, "comfy_cast_weights", False) or isinstance(module, host.core_vae.ChannelNorm)
                assert casts, f"{name}.{key} stays behind"
    size = sum(parameter.nbytes for parameter in patcher.model.parameters())
    if share in (0, 2):
        assert moved == min(share, 1) * size
    else:
        assert 0 < moved < size
    network = patcher.model
    with OneDevice():
        outputs = forward(part, network, META)
    assert all(output.device == META for output in outputs)


def test_a_weight_left_behind_is_found():
    layer = torch.nn.Linear(4, 4, bias=False)
    with pytest.raises(AssertionError, match="aten"), OneDevice():
        layer(torch.ones(2, 4, device=META))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("part", [*PARTS, "tied VLM"])
def test_partial_loading_does_not_change_numbers(host, budget, tied, part, dtype):
    part = part.removeprefix("tied ") if (is_tied := part.startswith("tied ")) else part
    patcher = patchers(load(host, tied if is_tied else CHECKPOINT, dtype))[part]
    expected = forward(part, patcher.model)
    size, seen = patcher.model_size(), []
    for share in (0.0, 0.3, 0.7, 2.0):
        patcher.partially_load(GPU, max(0.1, share * size - patcher.loaded_size()))
        seen.append(patcher.loaded_size())
        assert_same(forward(part, patcher.model), expected)
    assert seen[0] == 0 and sorted(set(seen)) == seen and seen[-1] == size
    patcher.partially_unload(patcher.offload_device, size // 2)
    assert 0 < patcher.loaded_size() < size
    patcher.detach()
    assert patcher.loaded_size() == 0
    assert_same(forward(part, patcher.model), expected)


@pytest.mark.parametrize("part", ["MODEL", "VLM"])
def test_patches_hold_under_partial_loading(host, budget, part):
    """LoRAs are added to weights that stay behind when these are used, whatever kind of layer they belong to."""

    def patched():
        patcher = patchers(load(host))[part]
        shapes = {name: parameter.shape for name, parameter in patcher.model.named_parameters()}
        differences = {name: ("diff", (0.1 * noise(*shape),)) for name, shape in shapes.items()}
        assert len(patcher.add_patches(differences)) == len(shapes)
        return patcher

    full, partial = patched(), patched()
    plain = forward(part, full.model)
    full.partially_load(GPU, PLENTY)
    partial.partially_load(GPU, 0.8 * partial.model_size())  # some of it for computing patched weights
    assert 0 < partial.loaded_size() < partial.model_size()
    outputs = zip(forward(part, full.model), forward(part, partial.model), plain, strict=True)
    for expected, actual, unpatched in outputs:
        assert not torch.allclose(expected, unpatched, rtol=1e-2)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# A short memory


@pytest.fixture
def draw(host, photo):
    """draw(parts) → (picture, latent, text): an edit and a question, by the nodes."""

    def run(parts):
        image = torch.from_numpy(np.asarray(photo).copy()).float()[None] / 255
        encoded = host.encode.InternVLUEncode.execute(parts.vlm, "add a hat", vae=parts.vae, image1=image).result
        sample = {"seed": 5, "steps": 2, "all_scale": 4.5, "partial_scale": 2.0, "denoise": 1.0}
        latent = {"samples": torch.zeros(1, 16, 8, 10)}
        latent, _ = host.sampling.InternVLUSampler.execute(parts.model, *encoded, latent, **sample).result
        return parts.vae.decode(latent["samples"]), latent["samples"], ask(host, parts.vlm)

    with torch.inference_mode():
        yield run


def ask(host, vlm) -> str:
    prompt = vlm.conditioner.prompts.chat("What is this?", [], None)
    return vlm.generate(prompt, [], host.decoding.TextSettings(max_new_tokens=6)).text


@pytest.fixture
def expected(host, budget, draw):
    """What draw gives with all the memory there can be, and how much the sampler then asks for."""
    parts = load(host)
    outputs = draw(parts)
    assert set(budget.loaded()) == set(patchers(parts).values())
    assert all(patcher.loaded_size() == patcher.model_size() for patcher in patchers(parts).values())
    budget.management.current_loaded_models.clear()
    required, least = max(budget.required), max(budget.least)  # nothing else asks for as much
    budget.required.clear()
    return SimpleNamespace(outputs=outputs, required=required, least=least)


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
        else:
            assert a == b


def test_the_vlm_leaves_for_the_sampler(host, budget, draw, expected):
    parts = load(host)
    shares = watch_forwards(parts)
    budget.total = expected.required
    assert_same(draw(parts), expected.outputs)
    assert shares and all(share == {"MODEL": 1, "VLM": 0, "VAE": 0} for share in shares)
    # The question afterwards brought it back.
    assert parts.vlm.patcher in budget.loaded() and parts.vlm.patcher.loaded_size() == parts.vlm.patcher.model_size()


def watch_forwards(parts) -> list[dict]:
    """A list that gets, at each forward of the MODEL, the share of each part's weights that is on the GPU."""
    from comfy.patcher_extension import WrappersMP

    shares = []

    def on_forward(executor, *args, **kwargs):
        shares.append({name: p.loaded_size() / p.model_size() for name, p in patchers(parts).items()})
        return executor(*args, **kwargs)

    parts.model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", on_forward)
    return shares


@pytest.mark.parametrize("state", ["NORMAL_VRAM", "LOW_VRAM", "NO_VRAM"])
def test_a_memory_that_holds_half_of_the_model(host, budget, monkeypatch, draw, expected, state):
    """Also with --lowvram and --novram, which mean something with a GPU only."""
    monkeypatch.setattr(budget.management, "vram_state", budget.management.VRAMState[state])
    parts = load(host)
    shares = watch_forwards(parts)
    half_of_the_model(budget, expected, parts)
    assert_same(draw(parts), expected.outputs)
    assert shares and all(share["MODEL"] == 0 if state == "NO_VRAM" else 0 < share["MODEL"] < 1 for share in shares), (
        shares
    )


@pytest.fixture(scope="module", params=["fp8_e4m3fn", *QUANTS, "Q4_0"])
def in_fewer_bits(request, tmp_path_factory):
    """(checkpoint, dtype to load it with) for each weight format of files, and for the loaders' own 8 bits."""
    if request.param == "fp8_e4m3fn":
        return CHECKPOINT, torch.float8_e4m3fn
    file = tmp_path_factory.mktemp("bits") / ("x.safetensors" if request.param in QUANTS else "x.gguf")
    convert(CHECKPOINT, file, "single", quant=request.param)
    return file, None


@pytest.mark.parametrize("state", ["LOW_VRAM", "NO_VRAM"])
def test_weights_in_fewer_bits_in_a_short_memory(host, budget, monkeypatch, draw, in_fewer_bits, state):
    parts = load(host, *in_fewer_bits)
    outputs = draw(parts)
    budget.management.unload_all_models()
    monkeypatch.setattr(budget.management, "vram_state", budget.management.VRAMState[state])
    half_of_the_model(budget, SimpleNamespace(least=max(budget.least)), parts)
    shares = watch_forwards(parts)
    assert_same(draw(parts), outputs)
    assert shares and all(share["MODEL"] == 0 if state == "NO_VRAM" else 0 < share["MODEL"] < 1 for share in shares)


def half_of_the_model(budget, expected, parts):
    """Give the sampler what it needs besides weights, and half of the MODEL's weights."""
    budget.reserve = expected.least
    budget.total = expected.least + parts.model.model_size() // 2


# Nothing stays


@pytest.mark.parametrize("partial", [False, True])
def test_free_memory_frees_everything(host, budget, draw, expected, partial):
    """What "Free model and node cache" does, after an edit and a cancelled text; reference counts suffice for it."""
    import comfy.model_management as management

    parts = load(host)
    if partial:
        half_of_the_model(budget, expected, parts)
    draw(parts)
    clip = host.clip.InternVLUCLIP(parts.vlm).clone()
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize("a cat"))
    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        ask(host, parts.vlm)

    watched = {name: weakref.ref(patcher) for name, patcher in patchers(parts).items()}
    for name, patcher in patchers(parts).items():
        watched[f"{name} network"] = weakref.ref(patcher.model)
        watched |= {f"{name}.{key}": weakref.ref(value) for key, value in patcher.model.named_parameters()}
    watched |= {
        "vlm": weakref.ref(parts.vlm),
        "vae": weakref.ref(parts.vae),
        "conditioner": weakref.ref(parts.vlm.conditioner),
    }
    watched |= {"tokenizer": weakref.ref(parts.vlm.tokenizer), "clip": weakref.ref(clip)}
    watched["conditioning"] = weakref.ref(conditioning[0][0])
    caches = sum(type(item) is host.language.KVCache for item in gc.get_objects())

    gc.collect()  # what pytest and the exception left
    gc.disable()
    try:
        management.unload_all_models()
        management.soft_empty_cache()
        assert not management.current_loaded_models
        del parts, patcher, clip, conditioning
        alive = [name for name, reference in watched.items() if reference() is not None]
    finally:
        gc.enable()
    assert not alive, f"{len(alive)} alive: {alive[:5]}"
    assert caches == 0


def resident(server) -> int:
    """Bytes of the server's process."""
    return psutil.Process(server.pid).memory_info().rss


def test_free_gives_memory_back(server, tmp_path):
    """POST /free, as the button does, with weights of 200 MB."""

    def free():
        server.post("/free", {"unload_models": True, "free_memory": True})

    vocabulary = 800_000  # weights that computing does not make much of
    weights = 2 * vocabulary * 64 * 2  # bytes: table and head, hidden size, bfloat16
    changes = {"vlm/config.json": {"llm_config": {"vocab_size": vocabulary}}}
    name = "free_test"
    link_folder(random_checkpoint(tmp_path / name, changes), server.base_dir / "models" / "internvl_u" / name)
    small = {"width": 96, "height": 96, "steps": 1}
    server.run(workflow("text_to_image", **small))
    free()
    time.sleep(1)
    before = resident(server)
    server.run(workflow("text_to_image", checkpoint=name, weight_dtype="bf16", **small))
    loaded = resident(server)
    assert loaded > before + weights / 2
    free()
    deadline = time.monotonic() + 30
    while resident(server) > before + 0.05 * (loaded - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert resident(server) - before <= 0.05 * (loaded - before)
    # And all is loaded again when it is needed.
    result = server.run(workflow("text_to_image", **small))
    assert result.cached == [] and {"1", "2", "4", "6"} <= set(result.executed)


# Start-up flags


@pytest.fixture(scope="module")
def cpu_pack(tmp_path_factory):
    """A pack that says --cpu beside --lowvram and --novram, which ComfyUI's command line takes for a contradiction."""
    folder = tmp_path_factory.mktemp("cpu_pack")
    (folder / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n", encoding="utf-8")
    (folder / "prestartup_script.py").write_text("from comfy.cli_args import args\n\nargs.cpu = True\n")
    return folder


RARE = pytest.param("--lowvram --cache-lru 2", marks=pytest.mark.slow)


@pytest.mark.parametrize("flags", ["--cpu", "--novram --cache-none", RARE])
def test_start_up_flags(request, tmp_path, recorded, cpu_pack, flags):
    if flags == "--cpu":  # as all other tests' server has it
        official_results(request.getfixturevalue("server"), recorded, flags)
        return
    (tmp_path / "models" / "internvl_u").mkdir(parents=True)
    link_folder(CHECKPOINT, tmp_path / "models" / "internvl_u" / "InternVL-U")
    vram = "vram" in flags
    packs = {"cpu_pack": cpu_pack} if vram else {}
    comfyui = os.environ["COMFYUI_PATH"]
    with ComfyServer(comfyui, tmp_path, ROOT, flags.split(), cpu=not vram, extra_packs=packs) as server:
        for picture in (ROOT / "tests" / "pictures").glob("*.png"):
            server.upload_image(picture)
        official_results(server, recorded, flags)


def official_results(server, recorded, flags):
    for name, recording in (("text_to_image", "t2i"), ("edit", "edit_small")):
        case, tensors = recorded(recording)
        prompt = workflow(name, prompt=case["prompt"], steps=case["steps"], seed=case["seed"])
        if "images" in case:
            prompt["7"]["inputs"]["image"] = case["images"][0]
        prompt["20"] = empty_latent(case["width"], case["height"])
        prompt["4"]["inputs"]["latent_image"] = ["20", 0]
        prompt["6"]["inputs"]["images"] = ["5", 0]
        result = server.run(prompt)
        assert_close_pictures(picture_of(server, result, "6"), tensors["images"][0])
    assert (not server.run(prompt).cached) == ("--cache-none" in flags)
    case, _ = recorded("understand")
    prompt = workflow("ask", question=case["prompt"], max_new_tokens=case["max_new_tokens"])
    assert case["output_text"][0] in list(server.texts(server.run(prompt)))


def empty_latent(width: int, height: int) -> dict:
    inputs = {"width": width, "height": height, "batch_size": 1}
    return {"class_type": "InternVLUEmptyLatent", "inputs": inputs}


# Only what depends on a change runs again

DRAWN = {"4", "5", "10", "6"}  # sampler, decoder, restorer, saver
# node, input, value, what runs
EDIT_CHANGES = [
    ("2", "prompt", "Make it night", {"2"} | DRAWN),
    ("4", "seed", 7, DRAWN),
    ("4", "all_scale", 3.0, DRAWN),
    ("2", "negative", "clouds", {"2"} | DRAWN),
    ("20", "width", 112, {"20"} | DRAWN),
    ("6", "filename_prefix", "other", {"6"}),
    ("7", "image", "tall.png", {"7", "2", "3"} | DRAWN),
    ("1", "weight_dtype", "bf16", {"1", "2", "3"} | DRAWN),
]
REASON_CHANGES = [
    ("2", "prompt", "Make it night", {"2"} | DRAWN),
    ("8", "prompt", "Make it night", {"8", "2"} | DRAWN),
    ("8", "seed", 3, {"8", "2"} | DRAWN),
    ("4", "seed", 7, DRAWN),
    ("4", "partial_scale", 1.0, DRAWN),
    ("20", "height", 112, {"20"} | DRAWN),
    ("7", "image", "tall.png", {"7", "8", "2", "3"} | DRAWN),
    ("1", "weight_dtype", "bf16", {"1", "8", "2", "3"} | DRAWN),
]


@pytest.mark.parametrize(("name", "changes"), [("edit", EDIT_CHANGES), ("reason_then_edit", REASON_CHANGES)])
def test_a_change_runs_only_what_depends_on_it(server, name, changes):
    prompt = workflow(name, steps=2)
    prompt["20"] = empty_latent(96, 96)
    prompt["4"]["inputs"]["latent_image"] = ["20", 0]
    if "8" in prompt:
        prompt["8"]["inputs"]["max_new_tokens"] = 8
    server.run(prompt)
    assert server.run(prompt).executed == []
    for node, key, value, expected in changes:
        prompt[node]["inputs"][key] = value
        result = server.run(prompt)
        assert set(result.executed) == expected, f"{key} of node {node}"
        # Edit stays although its latent is not used here, its memory of the picture is.
        assert set(result.cached) == set(prompt) - expected, f"{key} of node {node}"


# Estimates


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
def test_memory_estimate_of_the_model(host, monkeypatch, tmp_path, dtype):
    """Enough for the released width, and at most about half too much, at any size.

    On the meta device, and so without attention's own working memory: pytorch's flash attention has next to none.
    """
    import comfy.ldm.modules.attention
    import comfy.model_management

    from support.scaled_checkpoints import SCALES

    monkeypatch.setattr(comfy.ldm.modules.attention, "optimized_attention", lambda q, *_, **__: torch.empty_like(q))
    monkeypatch.setattr(comfy.model_management, "pytorch_attention_flash_attention", lambda: True)
    monkeypatch.setitem(SCALES["released"]["generation_decoder/config.json"]["decoder_config"], "num_layers", 2)
    copy_json(tmp_path / "released", SCALES["released"])
    config = host.model.ModelConfig(host.config.Config.read(host.files.open_source(tmp_path / "released")))
    config.set_inference_dtype(dtype, None)
    model = host.model.InternVLUModel(config, device=META)
    for side in (512, 1024):
        for references in (0, 1):
            for tokens in (64, 768):
                latent = torch.empty(1, 16, 1, side // 8, side // 8, device=META)
                context = torch.empty(1, tokens, 4096, device=META)
                form = host.packing.Form((False,) * tokens, (), references)
                options = {"forms": (form,), "ref_latents": [latent] * references}
                with torch.inference_mode(), LiveTensors() as tensors:
                    model.apply_model(latent, torch.ones(1, device=META), c_crossattn=context, **options)
                shapes = model.extra_conds_shapes(cross_attn=context, reference_latents=[latent] * references)
                needed = model.memory_required(list(latent.shape), {key: [shape] for key, shape in shapes.items()})
                ratio = needed / tensors.peak
                assert 1 <= ratio <= 1.65, f"{side} px, {references} references, {tokens} tokens: {ratio:.2f}"


def test_memory_estimate_of_the_vae(host, budget):
    """Tensors take the same number of elements a pixel at any size; the estimate leaves convolutions a little room."""
    from scripts.measure_vae import random_vae

    vae = random_vae(torch.float32, "cpu")
    for function, elements, shape in (
        (vae.encode_raw, host.vae.ENCODE_ELEMENTS, (3, 8, 8)),
        (vae.decode_raw, host.vae.DECODE_ELEMENTS, (16, 1, 1)),
    ):
        channels, *sides = shape
        for scale in (8, 12):
            x = torch.zeros(1, channels, *(scale * side for side in sides))
            with torch.inference_mode(), LiveTensors() as tensors:
                function(x)
            per_pixel = tensors.peak / 4 / (8 * scale) ** 2
            assert 1 <= elements / per_pixel <= 1.25


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux how much a process has grown")
@pytest.mark.parametrize("case", [("encode", "fp32", 512), ("decode", "fp32", 512), ("decode", "bf16", 256)], ids=str)
def test_memory_estimate_of_the_vae_is_what_a_process_grows_by(host, case):
    from scripts.measure_vae import DTYPES, measure_apart

    half, dtype, side = case
    if dtype == "bf16" and not bfloat16_is_fast(torch.device("cpu")):
        pytest.skip("this CPU computes bfloat16 in float32, in more memory; ComfyUI takes float32 on any CPU")
    (peaks,) = measure_apart([(half, dtype, side, "cpu")])
    elements = {"encode": host.vae.ENCODE_ELEMENTS, "decode": host.vae.DECODE_ELEMENTS}[half]
    size = side**2 * DTYPES[dtype].itemsize
    assert peaks["resident"] * size == pytest.approx(host.vae.FIXED + elements * size, rel=0.2)


def test_memory_estimate_counts_frames(host, budget):
    vae = load(host).vae
    one, three = (vae.memory_used_decode((1, 16, frames, 8, 8), torch.float32) for frames in (1, 3))
    fixed = host.vae.FIXED
    assert three - fixed == pytest.approx(3 * (one - fixed))
    assert one == vae.memory_used_decode((1, 16, 8, 8), torch.float32)
    base = vae.first_stage_model.config.base_channels
    assert one == pytest.approx(fixed + host.vae.DECODE_ELEMENTS * 64 * 64 * 4 * base / 96)


# Creep


def test_a_short_soak(server):
    """scripts/soak.py does it with 300."""
    report = soak(server, server.pid, prompts=40)
    summary = report.summary(warm_up=25)
    assert report.cancelled and not report.differing
    assert summary["growth_percent"] <= 3, summary
