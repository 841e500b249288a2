"""What is read or seen once is not read or seen again, and whatever differs is."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from internvlu_core import InternVLU, TextResult, decoding
from internvlu_core.decoding import DecodingSession, TextSettings, continue_text
from internvlu_core.models import language
from internvlu_core.models.language import FixedStep, KVCache
from support.checkpoints import CHECKPOINT
from support.networks import tiny_language
from support.tensors import noise, relative

# So long that no pads go in front of it.
WORDS = "A long instruction, so that nothing needs padding, about a cat in a hat that sits upon a wall, and more."
QUESTION = {"prompt": "What is this?", "max_new_tokens": 2}


@pytest.fixture
def fresh():
    """A model of the test's own."""
    return InternVLU.from_pretrained(CHECKPOINT, device="cpu", dtype=torch.float32)


@contextmanager
def counted(module):
    """Shapes of the first argument, call by call."""
    sizes = []
    hook = module.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape)))
    try:
        yield sizes
    finally:
        hook.remove()


def encode(model, *args, **kwargs):
    """Hidden states of the full branch, and how many tokens the language model read for them."""
    with counted(model.vlm.language_model) as read:
        hidden = model.encode(*args, **kwargs).full.hidden
    return hidden, sum(shape[1] for shape in read)


def others(model, images) -> int:
    """Tokens of the branches that reasoning has no part in."""
    prompts, n = model.conditioner.prompts, len(images)
    return len(prompts.unconditional(n, None)) + 1 + (len(prompts.partial(n, None)) + 1 if n else 0)


def script(monkeypatch, tokens):
    """Let the model write these."""
    rest = iter(tokens)
    monkeypatch.setattr(decoding, "next_tokens", lambda *_: [next(rest)])


def written(model, monkeypatch, tokens, images=(), words=WORDS, **settings) -> TextResult:
    with monkeypatch.context() as patch:
        script(patch, tokens)
        result = model.reason(words, list(images), max_new_tokens=len(tokens), **settings)
    assert result.token_ids == tuple(tokens)
    return result


def assert_equal(model, hidden, *args, reasoning, **kwargs):
    """To a fresh pass."""
    expected, read = encode(model, *args, reasoning=replace(reasoning, prefix_cache=None), **kwargs)
    assert relative(hidden, expected) < 1e-5
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)
    return read


# Reasoning, read on from


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("stopped", [False, True])
def test_encoding_reads_on_from_reasoning(model, monkeypatch, photo, tall, images, whole, stopped):
    images = [photo, tall][:images]
    tokens = [*range(70, 90), model.tokenizer.stop_ids[0] if stopped else 91]
    reasoning = written(model, monkeypatch, tokens, images)
    options = {"reasoning": reasoning, "whole_reasoning": whole}
    hidden, read = encode(model, WORDS, images, **options)
    length = assert_equal(model, hidden, WORDS, images, **options) - others(model, images)
    # What is new is <img>, and the last token where it was the last allowed: nobody has read that.
    assert read - others(model, images) == (2 if whole and not stopped else 1)
    assert length > 100
    # Nothing of it has changed by that, nor by another cut.
    again, count = encode(model, WORDS, images, **options)
    assert torch.equal(again, hidden) and count == read
    options["whole_reasoning"] = not whole
    assert_equal(model, encode(model, WORDS, images, **options)[0], WORDS, images, **options)


def test_pictures_are_the_same(model, photo):
    """By sampled words, not scripted ones."""
    reasoning = model.reason(WORDS, [photo], max_new_tokens=12, temperature=1.5, seed=3)
    assert reasoning.prefix_cache is not None
    draw = {"images": [photo], "height": 32, "width": 32, "steps": 2}
    expected = model.generate(WORDS, **draw, reasoning=replace(reasoning, prefix_cache=None))
    assert relative(model.generate(WORDS, **draw, reasoning=reasoning).latents, expected.latents) < 1e-4


@pytest.mark.parametrize(
    "case", ["words", "system", "picture", "no picture", "other tokens", "padded", "special token", "img token"]
)
def test_whatever_differs_is_read_anew(model, monkeypatch, photo, tall, case):
    special = {"special token": "<box>", "img token": "<img>"}.get(case)
    tokens = list(range(70, 90))
    if special:
        tokens[3] = model.tokenizer.id(special)
        if special == "<img>":  # else the text would end there; the prefix cache does not know that rule
            monkeypatch.setattr(model.tokenizer, "stop_ids", (model.tokenizer.stop_ids[0],))
    reasoning = written(model, monkeypatch, tokens, [photo], "Hat" if case == "padded" else WORDS)
    if case == "other tokens":
        reasoning = replace(reasoning, token_ids=(7, *reasoning.token_ids[1:]))
    words = {"words": "B" + WORDS, "padded": "Hat"}.get(case, WORDS)
    images = {"picture": [tall], "no picture": []}.get(case, [photo])
    options = {"reasoning": reasoning, "system_prompt": "Be brief." if case == "system" else None}
    hidden, read = encode(model, words, images, **options)
    assert read == assert_equal(model, hidden, words, images, **options)


def test_a_late_special_token_is_read_again_as_what_it_is(model, monkeypatch):
    tokens = [*range(70, 90), model.tokenizer.id("<box>"), 90, 91]
    reasoning = written(model, monkeypatch, tokens)
    hidden, read = encode(model, WORDS, reasoning=reasoning, whole_reasoning=True)
    assert_equal(model, hidden, WORDS, reasoning=reasoning, whole_reasoning=True)
    assert read - others(model, []) == 4  # it, what follows it, <img>


@pytest.mark.parametrize("change", ["in place", "another tensor", "another model"])
def test_other_weights_read_anew(fresh, model, monkeypatch, photo, change):
    reasoning = written(fresh, monkeypatch, range(70, 90), [photo])
    conditioner = model if change == "another model" else fresh
    projection = conditioner.vlm.language_model.model["layers"][0].self_attn.o_proj
    if change == "in place":
        projection.weight.mul_(2)
    elif change == "another tensor":
        projection.weight = torch.nn.Parameter(projection.weight * 2, requires_grad=False)
    hidden, read = encode(conditioner, WORDS, [photo], reasoning=reasoning)
    assert read == assert_equal(conditioner, hidden, WORDS, [photo], reasoning=reasoning)


def test_weights_that_take_the_place_of_others_are_noticed(fresh):
    """Also those that get the address of the ones before, which the allocator gives out again at once."""
    layer = fresh.vlm.language_model.model["layers"][0].self_attn.o_proj
    original = layer.weight.detach().clone()
    identities = [fresh.conditioner.weights()]
    for factor in range(1, 12):
        layer.weight = torch.nn.Parameter(original * factor, requires_grad=False)
        identities.append(fresh.conditioner.weights())
        assert fresh.conditioner.weights() is identities[-1]
    assert len(set(identities)) == len(identities)


def test_who_keeps_a_prefix_cache(model):
    """Only greedy or sampled reasoning; an answer is not drawn from. It is part of no comparison."""
    assert model.answer(**QUESTION).prefix_cache is None
    assert model.reason("a cat", max_new_tokens=3, num_beams=2).prefix_cache is None
    reasoning = model.reason("a cat", max_new_tokens=3)
    assert reasoning == replace(reasoning, prefix_cache=None)
    assert "prefix_cache" not in repr(reasoning)


def test_size_of_a_prefix_cache(model):
    """No more than of the tokens read, however many were allowed."""
    settings = {"max_new_tokens": 300, "temperature": 1.0, "seed": 2}
    reasoning = model.reason("a cat", **settings)
    assert len(reasoning.token_ids) < 300
    prefix, config = reasoning.prefix_cache, model.config.language
    tokens = len(model.conditioner.prompts.full("a cat", 0, None)) + len(reasoning.token_ids) - 1
    tensors = [*prefix.keys.keys, *prefix.keys.values, prefix.inputs, prefix.hidden]
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim + 3 * config.hidden_size
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) == 4 * tokens * per_token


# Pictures, seen once


def test_a_picture_is_seen_once(fresh, photo, tall):
    with counted(fresh.vlm.vision_model) as seen:
        first = fresh.answer(**QUESTION, images=[photo])
        assert fresh.answer(**QUESTION, images=[photo]) == first
        fresh.answer("And this?", [photo.copy(), photo], max_new_tokens=2)
        fresh.encode("Hat", [photo], reasoning=fresh.reason("Hat", [photo], max_new_tokens=2))
        assert len(seen) == 1
        fresh.answer(**QUESTION, images=[photo, tall])
        assert len(seen) == 2
        fresh.answer(**QUESTION, images=[photo.resize((1800, 900))], max_tiles=4)
        assert len(seen) == 3 and seen[2][0] > 1
        fresh.vlm.vision_model.embeddings.patch_embedding.weight.mul_(1.5)
        fresh.answer(**QUESTION, images=[photo])
        assert len(seen) == 4


def test_a_pixel_matters(model, photo):
    other = photo.copy()
    for x in range(20):
        other.putpixel((x, 3), (255, 0, 0))
    branches = [model.encode("Hat", [picture]).full.hidden for picture in (photo, other, photo)]
    assert not torch.equal(branches[0], branches[1]) and torch.equal(branches[0], branches[2])


def test_only_the_last_pictures_are_remembered(fresh, monkeypatch):
    monkeypatch.setattr(fresh.conditioner, "_most_tokens", 2 * fresh.conditioner.prompts.tokens_per_tile)
    size = fresh.config.processor.tile_size
    pictures = [noise(1, 3, size, size, seed=seed) for seed in range(3)]

    def see(*which):
        with counted(fresh.vlm.vision_model) as seen:
            fresh.conditioner.image_features([pictures[i] for i in which], fresh.device, fresh.dtype)
        return len(seen)

    assert [see(0, 1), see(0), see(2), see(0, 2), see(1)] == [2, 0, 1, 0, 1]
    assert len(fresh.conditioner.seen) == 2
    assert len(fresh.conditioner.image_features([noise(3, 3, size, size)], fresh.device, fresh.dtype)[0]) == 3 * 64
    assert len(fresh.conditioner.seen) == 1  # more than there should be, but it was just needed


# Steps


def test_only_the_last_position_has_logits(model):
    with counted(model.vlm.language_model.lm_head) as positions:
        model.answer("What is a cat?", max_new_tokens=3)
    assert all(shape[:-1].numel() == 1 for shape in map(torch.Size, positions)) and 1 <= len(positions) <= 3


def test_beams_reorder_in_place():
    network = tiny_language().language_model
    cache = KVCache(network.config, 3, 6, dtype=torch.float32, device="cpu")
    network(noise(3, 4, network.config.hidden_size), (2,), cache)
    before, places = [t.clone() for t in cache.keys], [t.data_ptr() for t in (*cache.keys, *cache.values)]
    rows = torch.tensor([2, 0, 0])
    cache.select(rows)
    assert [t.data_ptr() for t in (*cache.keys, *cache.values)] == places
    for old, new in zip(before, cache.keys, strict=True):
        assert torch.equal(new[:, :, :4], old[rows, :, :4])


@pytest.mark.parametrize("heads, kv_heads", [(2, 2), (4, 2), (4, 1)])
@torch.inference_mode()
def test_a_fixed_step_equals_a_plain_one(heads, kv_heads):
    """What lies behind the text in the cache must not matter."""
    vlm = tiny_language(num_heads=heads, num_kv_heads=kv_heads, head_dim=8)
    network = vlm.language_model
    prompt, tokens = noise(2, 5, network.config.hidden_size), torch.tensor([[3, 1, 4], [1, 5, 9]])
    plain, other = (KVCache(network.config, 2, 12, dtype=torch.float32, device="cpu") for _ in range(2))
    for tensor in (*other.keys, *other.values):
        tensor.fill_(float("nan"))
    for cache in (plain, other):
        network(prompt, (2,), cache)
    fixed = FixedStep(other, window=10)
    for column in tokens.T:
        x = vlm.embed_generated(column[:, None])
        fixed.position.fill_(other.length)
        for _ in range(2):  # as often as one likes: only the counting moves on
            states = network(x, (2, 1), fixed)
        other.advance(1)
        for state, expected in zip(states, network(x, (2, 1), plain), strict=True):
            torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
@torch.inference_mode()
def test_a_compiled_step_writes_the_same(monkeypatch, num_beams):
    """Through windows that the text outgrows, beams, and what is kept for the prefix cache."""
    monkeypatch.setattr(language, "WINDOW", 16)
    torch.compiler.reset()
    vlm, settings = tiny_language(seed=4), TextSettings(30, num_beams)
    prompt = noise(1, 5, vlm.language_model.config.hidden_size)
    select = (2, 1) if num_beams == 1 else ()
    plain = DecodingSession(vlm, prompt, 30, select)
    compiled = DecodingSession(vlm, prompt, 30, select, {"backend": "eager", "fullgraph": True})
    assert continue_text(compiled, (), settings) == continue_text(plain, (), settings)
    assert compiled.fixed.window == 48
    for mine, expected in zip(compiled.inputs + compiled.hidden, plain.inputs + plain.hidden, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
