"""What the VLM remembers under ComfyUI: right under LoRAs and hooks, and gone with who holds it."""

import importlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from support.checkpoints import CHECKPOINT
from support.inprocess import PACK, load_pack
from support.tensors import noise, relative

WORDS = "A long instruction, so that nothing needs padding, about a cat in a hat that sits upon a wall, and more."
LANGUAGE = "language_model.model.layers.0.self_attn.o_proj.weight"
EYES = "vision_model.encoder.layers.0.attn.proj.weight"


@pytest.fixture(scope="module")
def host():
    load_pack()
    names = {"config": "internvlu_core.checkpoints.config", "files": "internvlu_core.checkpoints.files"}
    names |= {"decoding": "internvlu_core.decoding", "encode": "nodes.encode", "reason": "nodes.reason"}
    names |= {name: f"nodes.comfy.{name}" for name in ("clip", "images", "load")}
    return SimpleNamespace(**{key: importlib.import_module(f"{PACK}.{name}") for key, name in names.items()})


@pytest.fixture
def parts(host):
    source = host.files.open_source(CHECKPOINT)
    config = host.config.Config.read(source)
    with torch.inference_mode():
        yield SimpleNamespace(
            vlm=host.load.load_vlm(source, config, torch.float32), vae=host.load.load_vae(source, config)
        )


@pytest.fixture
def image(photo):
    return torch.from_numpy(np.asarray(photo).copy()).float()[None] / 255


@pytest.fixture
def read(parts):
    """What the language model and the ViT get: tokens, tiles."""
    network, counts = parts.vlm.patcher.model, SimpleNamespace(tokens=0, tiles=0)

    def count(name, dim):
        return lambda _, args: setattr(counts, name, getattr(counts, name) + args[0].shape[dim])

    network.language_model.register_forward_pre_hook(count("tokens", 1))
    network.vision_model.register_forward_pre_hook(count("tiles", 0))
    return counts


def reason(host, monkeypatch, vlm, **inputs):
    hidden = SimpleNamespace(unique_id=None, prompt={}, extra_pnginfo=None)
    monkeypatch.setattr(host.reason.InternVLUReason, "hidden", hidden, raising=False)
    options = {"vlm": vlm, "prompt": WORDS, "max_new_tokens": 20, "seed": 3, "temperature": 1.5}
    lists = {name: [value] for name, value in (options | inputs).items()}  # as ComfyUI calls it
    (reasoning,) = host.reason.InternVLUReason.execute(**lists).result[0]
    return reasoning


def encode(host, read, vlm, **inputs):
    """The full branch, and how many tokens it and the others took."""
    before = read.tokens
    full = host.encode.InternVLUEncode.execute(vlm, WORDS, **inputs).result[0]
    return full[0][0], read.tokens - before


def forgetful(reasoning):
    return replace(reasoning, result=replace(reasoning.result, prefix_cache=None))


def with_lora(host, vlm, key):
    clip = host.clip.InternVLUCLIP(vlm).clone()
    weight = vlm.patcher.model.state_dict()[key]
    assert clip.patcher.add_patches({key: ("diff", (0.3 * noise(*weight.shape),))})
    return clip


def test_encode_reads_on_from_reason(host, monkeypatch, parts, read, image):
    reasoning = reason(host, monkeypatch, parts.vlm, image1=image)
    assert read.tiles == 1
    inputs = {"vae": parts.vae, "image1": image, "reasoning": reasoning}
    full, tokens = encode(host, read, parts.vlm, **inputs)
    expected, fresh = encode(host, read, parts.vlm, **(inputs | {"reasoning": forgetful(reasoning)}))
    assert relative(full, expected) < 1e-5
    length = len(parts.vlm.conditioner.prompts.full(WORDS, 1, None))
    assert fresh - tokens > length
    assert read.tiles == 1  # seen once by all of this
    # Through a CLIP that shares the weights, too.
    full, through_clip = encode(host, read, host.clip.InternVLUCLIP(parts.vlm), **inputs)
    assert through_clip == tokens and relative(full, expected) < 1e-5


@pytest.mark.parametrize("lora", ["at Reason", "at Encode", "another one", "of the eyes"])
def test_loras_are_respected(host, monkeypatch, parts, read, image, lora):
    plain = parts.vlm
    patched = with_lora(host, plain, EYES if lora == "of the eyes" else LANGUAGE)
    first = patched if lora in ("at Reason", "another one") else plain
    second = with_lora(host, patched.vlm, LANGUAGE) if lora == "another one" else plain if first is patched else patched
    reasoning = reason(host, monkeypatch, first, image1=image)
    inputs = {"vae": parts.vae, "image1": image, "reasoning": reasoning}
    full, tokens = encode(host, read, second, **inputs)
    expected, fresh = encode(host, read, second, **(inputs | {"reasoning": forgetful(reasoning)}))
    assert tokens == fresh and torch.equal(full, expected)
    # And the one that reasoned still remembers, although others have had its weights.
    tiles = read.tiles
    full, tokens = encode(host, read, first, **inputs)
    assert fresh - tokens > len(plain.conditioner.prompts.full(WORDS, 1, None)) and read.tiles == tiles
    assert relative(full, encode(host, read, first, **(inputs | {"reasoning": forgetful(reasoning)}))[0]) < 1e-5
    assert not torch.allclose(full, expected, rtol=1e-2)


@pytest.mark.parametrize("what", ["object_patches", "hook_patches", "forced_hooks"])
def test_where_weights_cannot_be_told_nothing_is_remembered(host, monkeypatch, parts, read, image, what):
    reasoning = reason(host, monkeypatch, parts.vlm, image1=image)
    with monkeypatch.context() as patch:
        patch.setattr(parts.vlm.patcher, what, {"something": 1})
        inputs = {"tiles": parts.vlm.see([host.images.collect({"image1": image})[0]])}
        features = [parts.vlm.conditioner.image_features(**inputs, device="cpu", dtype=torch.float32) for _ in range(2)]
        assert read.tiles == 3 and torch.equal(features[0][0], features[1][0])
        again = parts.vlm.conditioner.context(WORDS, features[0], [], device="cpu", reasoning=reasoning.result)
        tokens = read.tokens
        expected = parts.vlm.conditioner.context(
            WORDS, features[0], [], device="cpu", reasoning=forgetful(reasoning).result
        )
    assert torch.equal(again.full.hidden, expected.full.hidden)
    assert read.tokens - tokens > len(parts.vlm.conditioner.prompts.full(WORDS, 1, None))


def test_a_prefix_cache_waits_where_weights_wait(host, monkeypatch, parts):
    vlm = parts.vlm
    monkeypatch.setattr(vlm.patcher, "offload_device", torch.device("meta"))
    prefix = reason(host, monkeypatch, vlm).result.prefix_cache
    assert {t.device.type for t in (prefix.inputs, prefix.hidden, *prefix.keys.keys, *prefix.keys.values)} == {"meta"}
    prompt = vlm.conditioner.prompts.chat("What is this?", [], None)
    assert vlm.generate(prompt, [], host.decoding.TextSettings(2)).prefix_cache is None
