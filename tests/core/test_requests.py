"""Requests check themselves, methods take them or their settings, and each shared rule has one owner."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from internvlu_core import DrawRequest, InputError, TextRequest, TextResult, Turn, guidance, sampling
from internvlu_core.conditioning import Branch, Context
from internvlu_core.grounding import MARKERS, answer_text, parse_boxes
from internvlu_core.imaging import vit_tiles
from support.tensors import noise, relative

SMALL = {"height": 32, "width": 32, "steps": 2}


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (TextRequest, {"prompt": 5}, "prompt must be a string, not int"),
        (TextRequest, {"system_prompt": 5}, "system_prompt must be a string"),
        (TextRequest, {"images": 5}, "images must be a list"),
        (TextRequest, {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (TextRequest, {"temperature": -1}, "temperature is -1"),
        (TextRequest, {"num_beams": 2, "temperature": 1.0}, "num_beams is 2 and temperature 1.0"),
        (TextRequest, {"seed": -1}, "seed is -1"),
        (TextRequest, {"max_tiles": 0}, "max_tiles is 0"),
        (TextRequest, {"history": "before"}, "history must be a tuple of Turns"),
        (DrawRequest, {"prompt": b"a cat"}, "prompt must be a string, not bytes"),
        (DrawRequest, {"negative": 5}, "negative must be a string"),
        (DrawRequest, {"partial_negative": None}, "partial_negative must be a string"),
        (DrawRequest, {"reasoning": ("a",)}, "reasoning must be a TextResult or a string, not tuple"),
        (DrawRequest, {"steps": 0}, "steps is 0"),
        (DrawRequest, {"num_images": 1.5}, "num_images is 1.5"),
        (DrawRequest, {"seed": None}, "seed is None"),
    ],
)
def test_bad_values_are_named(kind, settings, message):
    with pytest.raises(InputError, match=message):
        kind(**({"prompt": "a cat"} | settings))


def test_requests_are_values(photo):
    request = TextRequest("What is it?", photo, history=[Turn("Hello", "Hi.")])
    assert request.images == (photo,) and request.history == (Turn("Hello", "Hi."),)
    assert replace(request, seed=3) != request == replace(request, seed=None)
    with pytest.raises(FrozenInstanceError):
        request.seed = 3
    assert request.settings.max_new_tokens == 1024


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("answer", {"max_token": 3}),
        ("reason", {"max_tiles": 2}),
        ("reason", {"history": ()}),
        ("encode", {"steps": 3}),
        ("generate", {"max_tiles": 2}),
    ],
)
def test_unknown_settings_are_named(model, method, settings):
    with pytest.raises(TypeError, match=next(iter(settings))):
        getattr(model, method)("a cat", **settings)


def test_a_ready_request_is_the_same(model, photo):
    request = TextRequest("What is it?", [photo], max_new_tokens=4)
    assert model.answer(request) == model.answer("What is it?", [photo], max_new_tokens=4)
    assert model.reason(request) == model.reason("What is it?", [photo], max_new_tokens=4)
    drawn = model.generate(DrawRequest("a cat", **SMALL, seed=3)).latents
    assert torch.equal(drawn, model.generate("a cat", **SMALL, seed=3).latents)
    with pytest.raises(TypeError, match="already holds"):
        model.answer(request, [photo])
    with pytest.raises(TypeError, match="already holds"):
        model.generate(DrawRequest("a cat"), steps=2)


def test_a_seed_beside_latents_has_no_effect(model):
    latents = model.noise(32, 32, seed=3)
    expected = model.generate("a cat", **SMALL, seed=3).latents
    assert torch.equal(model.generate("a cat", **SMALL, seed=None, latents=latents).latents, expected)


# Branches


def test_distinct_branches():
    full, partial, unconditional = object(), object(), object()
    assert guidance.distinct(full, partial, unconditional) == [full, unconditional, partial]
    assert guidance.distinct(full, partial, partial) == [full, partial]
    assert guidance.distinct(1, 2, 2.0, same=lambda a, b: a == b) == [1, 2.0]
    assert guidance.by_name([1, 2, 3]) == (1, 3, 2) and guidance.by_name([1, 2]) == (1, 2, 2)


@pytest.mark.parametrize("timestep", [500, 990])
def test_guided_velocity_combines_by_name(timestep):
    full, partial, unconditional = (3 * noise(1, 16, 2, 2, seed=seed) for seed in range(3))
    expected = guidance.combine(full, partial, unconditional, 4.5, 2.0, timestep)
    assert torch.equal(guidance.guided_velocity([full, unconditional, partial], 4.5, 2.0, timestep), expected)
    alone = guidance.guided_velocity([full, unconditional], 4.5, 2.0, timestep)
    assert torch.equal(alone, guidance.combine(full, unconditional, unconditional, 4.5, 2.0, timestep))


def test_steps_that_are_guided():
    """As fractions of the steps, in every schedule, and also where a scheduler hits a fraction's noise level."""
    for steps, (start, end), expected in [
        (20, (0.0, 1.0), range(20)),
        (20, (0.25, 0.75), range(5, 15)),
        (7, (0.5, 1.0), range(4, 7)),
        (10, (0.3, 0.3), range(0)),
        (1, (0.0, 0.5), range(1)),
    ]:
        levels = sampling.sigma_at(start, 3.0), sampling.sigma_at(end, 3.0)
        sigmas = sampling.flow_sigmas(steps, 3.0)[:-1].tolist()
        assert [i for i, sigma in enumerate(sigmas) if guidance.is_guided(sigma, *levels)] == list(expected)
        exact = torch.tensor([sampling.sigma_at(i / steps, 3.0) for i in range(steps)]).tolist()  # of float32
        assert [i for i, sigma in enumerate(exact) if guidance.is_guided(sigma, *levels)] == list(expected)
    assert all(guidance.is_guided(sigma, *guidance.ALWAYS) for sigma in (1.0, 1e-12))


@pytest.mark.parametrize("images", [0, 1])
def test_other_steps_are_the_full_branch_alone(model, photo, monkeypatch, images):
    """And compute no other: counted in the tokens of the network's image stream."""
    tokens, block = [], model.mmdit.transformer_blocks[0]
    hook = block.register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[1]))
    context = model.encode("a cat", [photo] * images)
    noise_, sigmas = model.noise(32, 32, seed=1), sampling.flow_sigmas(4)
    found = model.sample(context, noise_, sigmas, 4.5, 2.0, guided=(0.25, 0.75))
    hook.remove()
    branches = guidance.distinct(context.full, context.partial, context.unconditional)
    generated = 4
    references = [sum(r.shape[-2] * r.shape[-1] // 4 for r in branch.references) for branch in branches]
    all_tokens, full = len(branches) * generated + sum(references), generated + references[0]
    assert tokens == [full, all_tokens, all_tokens, full]

    def denoise(x, sigma):
        timestep = float(sampling.sigma_to_timestep(sigma))
        velocities = [model.velocity(branch, x, timestep) for branch in branches]
        guided = sigma in sigmas[1:3]
        return x - sigma * (guidance.guided_velocity(velocities, 4.5, 2.0, timestep) if guided else velocities[0])

    expected = sampling.dpmpp_2m(denoise, noise_, sigmas)
    assert relative(found, expected) < 1e-5
    assert relative(model.sample(context, noise_, sigmas, 4.5, 2.0), expected) > 1e-2
    drawn = model.generate(
        "a cat",
        [photo] * images,
        height=32,
        width=32,
        steps=4,
        latents=noise_,
        all_scale=4.5,
        partial_scale=2.0,
        guidance_start=0.25,
        guidance_end=0.75,
    )
    assert relative(drawn.latents, expected) < 1e-5


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "0.5", True])
@pytest.mark.parametrize("name", ["guidance_start", "guidance_end"])
def test_fractions_that_are_none(name, value):
    with pytest.raises(InputError, match=f"{name} is .*; it must be from 0 to 1"):
        DrawRequest("a cat", **{name: value})


def test_a_range_that_ends_before_it_starts():
    with pytest.raises(InputError, match=r"guidance_start is 0.6, behind guidance_end, 0.5"):
        DrawRequest("a cat", guidance_start=0.6, guidance_end=0.5)


def test_prompts_with_a_batch_axis_are_sampled_together(model):
    """As one by one."""
    drawn = model.encode("a red cat")
    other = replace(drawn.unconditional, hidden=drawn.unconditional.hidden.flip(0))
    contexts = [drawn, Context(replace(drawn.full, hidden=drawn.full.hidden.flip(0)), other, other)]
    together = torch.cat([model.noise(32, 32, seed) for seed in (1, 2)])
    sigmas = sampling.flow_sigmas(2)

    def stacked(name: str) -> Branch:
        branches = [getattr(context, name) for context in contexts]
        return replace(branches[0], hidden=torch.stack([branch.hidden for branch in branches]))

    unconditional = stacked("unconditional")
    both = model.sample(Context(stacked("full"), unconditional, unconditional), together, sigmas, 4.5, 2.0)
    for context, x, found in zip(contexts, together, both, strict=True):
        assert relative(found, model.sample(context, x[None], sigmas, 4.5, 2.0)[0]) < 1e-5


def test_samples_that_are_not_finite_are_an_error():
    def velocities(latents, timestep, guided):
        return [[x / 0, x] for x in latents]

    latents = sampling.sample(velocities, [noise(1, 16, 2, 2)], sampling.flow_sigmas(2), [(4.5, 2.0)])
    with pytest.raises(FloatingPointError, match="not finite"):
        sampling.check_sampled(latents)


# Answers


def test_answers_keep_the_markers_of_their_boxes(model, monkeypatch):
    tokenizer, calls = model.tokenizer, []
    pieces = ("<ref>", "cat", "</ref>", "<box>", "[[1, 2, 3, 4]]", "</box>")
    encoded = [[tokenizer.id(piece)] if piece in MARKERS else tokenizer.encode(piece) for piece in pieces]
    ids = (*(token for piece in encoded for token in piece), tokenizer.stop_ids[0])

    def write(*args, on_tokens=None, **kwargs):
        on_tokens(list(ids))
        return TextResult(tokenizer.decode(ids), ids)

    monkeypatch.setattr(model.conditioner, "write", write)
    answer = model.answer("Where?", on_token=lambda *call: calls.append(call))
    assert answer.text == "".join(pieces) == answer_text(tokenizer, ids) and calls == [(len(ids), answer.text)]
    assert [(box.label, box.x1, box.y2) for box in parse_boxes(answer.text)] == [("cat", 1, 4)]
    assert model.reason("Where?", on_token=lambda *call: None).text == "cat[[1, 2, 3, 4]]"
    assert answer_text(tokenizer, ids[:3]) == tokenizer.decode(ids[:3])


def test_tiles_never_exceed_the_checkpoints_most(model, photo):
    config = replace(model.config.processor, max_tiles=2)
    assert len(vit_tiles(photo, config, 12)) == len(vit_tiles(photo, config, 2)) <= 3


def test_text_never_exceeds_the_context(model, monkeypatch):
    prompt = model.conditioner.prompts.chat("a cat", [], None)
    language = replace(model.config.language, max_positions=len(prompt) + 2)
    monkeypatch.setattr(model.conditioner, "config", replace(model.config, language=language))
    assert len(model.answer("a cat", max_new_tokens=9, temperature=2.0, seed=1).token_ids) <= 2
