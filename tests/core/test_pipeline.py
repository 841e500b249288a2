"""The whole model: several pictures, several references, sizes, callbacks, bfloat16, and other checkpoints."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter

from internvlu_core import InputError, InternVLU, TextResult
from internvlu_core.checkpoints.config import Config
from internvlu_core.sampling import flow_sigmas
from support.checkpoints import CHECKPOINT, copy_checkpoint, random_checkpoint
from support.tensors import noise, relative

DRAW = {"prompt": "a cat", "height": 64, "width": 80, "steps": 3}


class Cancelled(Exception):
    pass


def levels(picture) -> np.ndarray:
    return np.asarray(picture, dtype=int)


def load(folder, dtype=torch.float32) -> InternVLU:
    return InternVLU.from_pretrained(folder, "cpu", dtype)


def run_all_modes(model, photo, tall) -> tuple:
    """Understand, draw, edit, think and draw; checks what can be checked of any weights. Returns the results."""
    answer = model.answer("What is <image>?", [photo], max_new_tokens=4)
    assert isinstance(answer, TextResult) and 1 <= len(answer.token_ids) <= 4
    factor = model.config.size_factor
    size = {"height": 4 * factor, "width": 5 * factor, "steps": 2}
    reasoning = model.reason("a cat", [tall], max_new_tokens=4)
    results = [
        model.generate("a cat", **size),
        model.generate("a hat", [photo], **size),
        model.generate("a cat", [tall], **size, reasoning=reasoning),
        model.generate("mix them", [photo, tall], **size, num_images=2),
    ]
    for result in results:
        assert result.latents.isfinite().all() and result.latents.dtype == torch.float32
        assert all(picture.size == (5 * factor, 4 * factor) for picture in result.images)
        assert all(levels(picture).std() > 1 for picture in result.images)  # not one colour
    assert [len(result.images) for result in results] == [1, 1, 1, 2]
    return answer, reasoning, results


# Several pictures, several references


@pytest.mark.parametrize("images", [0, 2])
def test_several_pictures_equal_single_runs(model, photo, tall, images):
    pictures = [photo, tall][:images]
    together = model.generate(**DRAW, images=pictures, seed=5, num_images=3)
    assert len(together.images) == len(together.latents) == 3
    start = noise(3, 16, 8, 10, seed=5)  # one tensor from one seed
    for index in range(3):
        alone = model.generate(**DRAW, images=pictures, latents=start[index : index + 1])
        assert relative(together.latents[index : index + 1], alone.latents) < 1e-5
        assert np.abs(levels(together.images[index]) - levels(alone.images[0])).max() <= 1
    assert relative(together.latents[0], together.latents[1]) > 0.1
    assert torch.equal(model.generate(**DRAW, images=pictures, num_images=3, latents=start).latents, together.latents)


def test_seeds(model):
    first, second, other = (model.generate(**DRAW, seed=seed).latents for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert relative(first, other) > 0.1
    assert torch.equal(model.generate(**DRAW).latents, model.generate(**DRAW, seed=0).latents)


def test_global_random_state_is_left_alone(model):
    before = torch.get_rng_state()
    model.generate(**DRAW, seed=7)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_reference_matters(model, photo, tall):
    """Their number, order and sizes; and equal references give equal pictures."""
    runs = ([photo, tall], [tall, photo], [photo], [tall], [photo, tall, photo], [])
    results = [model.generate(**DRAW, images=images).latents for images in runs]
    for i, first in enumerate(results):
        for second in results[:i]:
            assert relative(first, second) > 1e-3
    assert torch.equal(model.generate(**DRAW, images=[photo.copy(), tall.copy()]).latents, results[0])
    assert torch.equal(model.generate(**DRAW, images=photo).latents, results[2])  # one picture without its list


@pytest.mark.parametrize("changed", [0, 1])
def test_a_changed_reference_changes_the_picture(model, photo, tall, changed):
    """Through the VAE alone, too: the first velocity hangs on each reference's latents."""
    context = model.encode("a cat", [photo, tall])
    x, timestep = noise(1, 16, 8, 10), torch.tensor(999.0)
    before = model.velocity(context.full, x, timestep)
    context.full.references[changed] = context.full.references[changed] * 1.5
    assert relative(model.velocity(context.full, x, timestep), before) > 1e-4


@pytest.mark.parametrize("scale", ["all_scale", "partial_scale"])
def test_guidance_scales_matter_as_documented(model, photo, scale):
    plain = model.generate(**DRAW, images=[photo]).latents
    defaults = {"all_scale": 4.5, "partial_scale": 2.0}
    assert torch.equal(model.generate(**DRAW, images=[photo], **defaults).latents, plain)
    other = {scale: defaults[scale] + 1}
    assert relative(model.generate(**DRAW, images=[photo], **other).latents, plain) > 1e-3
    # Without images the middle term is 0.
    same = torch.equal(model.generate(**DRAW, **other).latents, model.generate(**DRAW).latents)
    assert same == (scale == "partial_scale")


def test_scales_after_reasoning(model, photo):
    reasoned = {**DRAW, "images": [photo], "reasoning": "A hat."}
    expected = model.generate(**reasoned, all_scale=3.5, partial_scale=1.5).latents
    assert torch.equal(model.generate(**reasoned).latents, expected)


def test_a_checkpoint_may_have_scales_of_its_own(model, tmp_path):
    changes = {MMDIT_JSON: {"guidance_scales": [2.0, 1.2], "guidance_scales_reasoned": [1.8, 1.1]}}
    own = load(copy_checkpoint(tmp_path / "own", changes))
    for reasoning, scales in ((None, (2.0, 1.2)), ("A hat.", (1.8, 1.1))):
        prompt = {**DRAW, "reasoning": reasoning}
        expected = model.generate(**prompt, all_scale=scales[0], partial_scale=scales[1]).latents
        assert torch.equal(own.generate(**prompt).latents, expected)


def test_scales_that_are_none(model):
    for scale in (float("nan"), float("inf"), 1e9, "4", True):
        with pytest.raises(ValueError, match="partial_scale is "):
            model.config.mmdit.guidance(False, partial_scale=scale)
    assert model.config.mmdit.guidance(True, all_scale=-2) == (-2, 1.5)  # the core has None for what is not given


# Sizes


@pytest.mark.parametrize("sides", [(512, 512), (1024, 1024), (1360, 768), (768, 1376), (1152, 1152), (512, 256)])
def test_sizes_that_the_released_checkpoint_was_made_for(model, sides):
    mmdit = replace(model.config.mmdit, image_height=512, image_width=512)
    assert not replace(model.config, mmdit=mmdit).is_far(*sides)


def test_sizes_that_the_toy_was_not_made_for(model):
    mmdit = replace(model.config.mmdit, image_height=64, image_width=64)
    config = replace(model.config, mmdit=mmdit)
    far = {side: config.is_far(side, side) for side in (16, 32, 64, 128, 256, 512, 1024)}
    assert far == {16: True, 32: False, 64: False, 128: False, 256: True, 512: True, 1024: True}


@pytest.mark.parametrize(
    "height, width, latent_size",
    [(64, 208, (8, 26)), (176, 16, (22, 2)), (100, 130, (12, 16)), (47, 31, (4, 2))],
)
def test_sizes(model, height, width, latent_size):
    """Sizes off the grid are drawn at the next lower one and resized."""
    result = model.generate("a cat", height=height, width=width, steps=1)
    assert result.images[0].size == (width, height)
    assert tuple(result.latents.shape) == (1, 16, *latent_size)


def test_default_sizes(model, photo, tall):
    """A drawing: the checkpoint's. An edit: the first image's, as the VAE reads it."""
    for images, size in (([], (128, 128)), ([photo], (192, 144)), ([tall], (96, 144)), ([tall, photo], (96, 144))):
        assert model.generate("a cat", images, steps=1).images[0].size == size
    assert model.generate("a cat", [photo], steps=1, width=64).images[0].size == (64, 144)


def test_wrong_latents_are_refused(model):
    for shape in ((1, 16, 10, 8), (2, 16, 8, 10), (1, 4, 8, 10)):
        with pytest.raises(InputError, match=rf"latents are \[{shape[0]}, {shape[1]}, "):
            model.generate(**DRAW, latents=noise(*shape))


# Callbacks


@pytest.mark.parametrize("steps, count", [(1, 1), (3, 2)])
def test_callback(model, steps, count):
    calls = []
    settings = DRAW | {"steps": steps}
    result = model.generate(
        **settings, num_images=count, callback=lambda step, steps, denoised: calls.append((step, steps, denoised))
    )
    assert [call[:2] for call in calls] == [(step, steps) for step in range(steps)]
    assert all(tuple(denoised.shape) == (count, 16, 8, 10) for *_, denoised in calls)
    assert torch.equal(calls[-1][2], result.latents)  # the last step goes all the way to its denoised value
    assert torch.equal(model.generate(**settings, num_images=count).latents, result.latents)


@pytest.mark.parametrize("images", [0, 2])
def test_what_a_run_computes_once_and_what_every_step(model, photo, tall, images):
    """Contexts and references once a run; in a step one pass for all branches."""
    context = model.encode("make it night", [photo, tall][:images])
    modules = {name: model.mmdit.get_submodule(name) for name in ("txt_in", "img_in", "time_text_embed", "proj_out")}
    calls = Counter()
    hooks = [m.register_forward_hook(lambda *_, name=name: calls.update([name])) for name, m in modules.items()]
    model.sample(context, torch.zeros(1, 16, 8, 8) + 0.1, flow_sigmas(4), 4.5, 2.0)
    for hook in hooks:
        hook.remove()
    branches, seeing = (3, 2) if images else (2, 0)
    assert calls == {"txt_in": branches, "img_in": seeing + 4, "time_text_embed": 4, "proj_out": 4}


def test_compiled(model, photo):
    """Without graph breaks, and not anew for every size or prompt, with the same numbers."""
    torch.compiler.reset()
    compiled, counter = load(CHECKPOINT), CompileCounter()
    compiled.compile(backend=counter, fullgraph=True)
    for prompt, images, size in (
        ("a cat", [], (64, 80)),
        ("a cat that sleeps", [], (96, 64)),
        ("make it night", [photo], (64, 64)),
        ("make it a warm night", [photo], (64, 96)),
    ):
        options = {"height": size[0], "width": size[1], "steps": 2}
        expected = model.generate(prompt, images, **options).latents
        assert relative(compiled.generate(prompt, images, **options).latents, expected) < 1e-5
    assert counter.frame_count == 4  # two kinds of pictures; the last block is another function


@pytest.mark.parametrize("at", [0, 1])
def test_cancelling_leaves_the_model_as_good(model, photo, at):
    expected = model.generate(**DRAW, images=[photo]).latents
    steps = []

    def cancel(step, *_):
        steps.append(step)
        if step == at:
            raise Cancelled

    with pytest.raises(Cancelled):
        model.generate(**DRAW, images=[photo], callback=cancel)
    assert steps == list(range(at + 1))
    assert torch.equal(model.generate(**DRAW, images=[photo]).latents, expected)


def test_nothing_asks_for_gradients(model, photo):
    """A user's graph would keep every activation of every step."""
    assert not any(p.requires_grad for net in (model.vlm, model.mmdit, model.vae) for p in net.parameters())
    context = model.encode("a cat", [photo])
    assert not context.full.hidden.requires_grad and not context.full.references[0].requires_grad


# bfloat16


@pytest.fixture(scope="module")
def bf16_model():
    return load(CHECKPOINT, torch.bfloat16)


def test_bf16_runs_all_modes(bf16_model, photo, tall):
    for network in (bf16_model.vlm, bf16_model.mmdit, bf16_model.vae):
        assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    run_all_modes(bf16_model, photo, tall)


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("branch", ["full", "partial", "unconditional"])
def test_bf16_first_velocity(model, bf16_model, photo, tall, images, branch):
    """Of the MMDiT on float32's conditioning, and end to end. bfloat16 rounds the first timestep, 999, to 1000 before
    anything else, as in training; what is compared is the arithmetic behind that.
    """
    pictures = [photo, tall][:images]
    x, first = noise(1, 16, 8, 10), torch.tensor(999.0)
    rounded = first.bfloat16().float()
    assert rounded == 1000
    conditioned = getattr(model.encode("a cat", pictures), branch)
    expected = model.velocity(conditioned, x, rounded)
    assert relative(bf16_model.velocity(conditioned, x, first), expected) < 3e-2
    own = getattr(bf16_model.encode("a cat", pictures), branch)
    assert own.hidden.dtype == torch.bfloat16
    assert relative(bf16_model.velocity(own, x, first), expected) < 3e-2


# Other checkpoints


MMDIT_JSON, VLM_JSON = "generation_decoder/config.json", "vlm/config.json"


def narrow_joint(tensors, size):
    """The MMDiT's context inputs cut to a joint size."""
    for name in ("decoder.txt_norm.weight", "decoder.txt_in.weight", "encoder_padding_token"):
        tensors[name] = tensors[name][..., :size]


@pytest.mark.parametrize("layer, channels", [(-1, slice(0, 64)), (-2, slice(64, 128))])
def test_one_select_layer(model, photo, tall, tmp_path, layer, channels):
    folder = copy_checkpoint(
        tmp_path / "checkpoint",
        {
            MMDIT_JSON: {
                "vlm_select_layer": [layer],
                "input_hidden_size": 64,
                "output_hidden_size": 64,
                "decoder_config": {"joint_attention_dim": 64},
            }
        },
        {"generation_decoder": lambda tensors: narrow_joint(tensors, 64)},
    )
    other = load(folder)
    run_all_modes(other, photo, tall)
    for one, both in zip(
        vars(other.encode("a cat", [photo])).values(), vars(model.encode("a cat", [photo])).values(), strict=True
    ):
        torch.testing.assert_close(one.hidden, both.hidden[:, channels])


def test_projector(model, photo, tall, tmp_path):
    """The velocity is the recorded checkpoint's on context that was projected by hand."""
    first, second = {"weight": noise(384, 128), "bias": noise(384)}, {"weight": noise(128, 384), "bias": noise(128)}

    def add(tensors):
        for index, layer in ((0, first), (2, second)):
            for name, tensor in layer.items():
                tensors[f"decoder_projector.{index}.{name}"] = tensor * 0.1

    folder = copy_checkpoint(
        tmp_path / "checkpoint", {MMDIT_JSON: {"decoder_projector_type": "mlp2x_gelu"}}, {"generation_decoder": add}
    )
    other = load(folder)
    run_all_modes(other, photo, tall)

    branch = model.encode("a cat", [photo]).full
    hidden = branch.hidden @ first["weight"].T * 0.1 + first["bias"] * 0.1
    hidden = hidden * torch.sigmoid(hidden)  # SiLU, the type's name notwithstanding
    hidden = hidden @ second["weight"].T * 0.1 + second["bias"] * 0.1
    projected = type(branch)(hidden, branch.image_mask, branch.image_grids, branch.references)
    x, timestep = noise(1, 16, 8, 10), torch.tensor(749.0)
    expected = model.velocity(projected, x, timestep)
    assert relative(other.velocity(branch, x, timestep), expected) < 1e-5
    assert relative(model.velocity(branch, x, timestep), expected) > 1e-2


@pytest.mark.parametrize("place", ["llm_config", "top"])
@pytest.mark.parametrize("stored", [False, True], ids=["absent", "stored"])
def test_tied_head(photo, tall, tmp_path, place, stored):
    """It writes what an untied checkpoint with a copy of the embedding as its head writes."""
    tied = {"tie_word_embeddings": True}

    def drop(tensors):
        if not stored:  # some writers store the head all the same; the embedding counts
            del tensors["language_model.lm_head.weight"]

    def copy(tensors):
        tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"].clone()

    changes = {VLM_JSON: {"llm_config": tied} if place == "llm_config" else tied}
    tied_model = load(copy_checkpoint(tmp_path / "tied", changes, {"vlm": drop}))
    untied_model = load(copy_checkpoint(tmp_path / "untied", {}, {"vlm": copy}))
    question = {"prompt": "What?", "images": [photo], "max_new_tokens": 8}
    for settings in ({}, {"num_beams": 3}, {"temperature": 1.0, "seed": 3}):
        assert tied_model.answer(**question, **settings) == untied_model.answer(**question, **settings)
    run_all_modes(tied_model, photo, tall)


OTHER_SIZES = {
    VLM_JSON: {
        "force_image_size": 84,
        "vision_config": {
            "hidden_size": 24,
            "num_attention_heads": 3,
            "num_hidden_layers": 3,
            "intermediate_size": 40,
            "image_size": 84,
            "qk_normalization": True,
            "qkv_bias": False,
            "norm_type": "rms_norm",
        },
        "llm_config": {
            "hidden_size": 40,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 10,
            "num_hidden_layers": 2,
            "intermediate_size": 56,
            "vocab_size": 320,
            "attention_bias": True,
        },
    },
    "processor/processor_config.json": {
        "image_seq_length": 9,
        "image_processor_kwargs": {"size": {"height": 84, "width": 84}},
        "image_gen_processor_kwargs": {"vae_downsample_factor": 4, "min_dynamic_patch": 16, "max_dynamic_patch": 256},
    },
    MMDIT_JSON: {
        "vlm_select_layer": [-2, -1, 0],
        "input_hidden_size": 120,
        "output_hidden_size": 72,
        "decoder_projector_type": "mlp2x_gelu",
        "vlm_cond_position_scale_factor": 0.5,
        "flow_shift": 2.0,
        "gen_image_height": 48,
        "gen_image_width": 64,
        "decoder_config": {
            "num_attention_heads": 3,
            "attention_head_dim": 24,
            "axes_dims_rope": [4, 8, 12],
            "joint_attention_dim": 72,
            "num_layers": 3,
            "in_channels": 20,
            "out_channels": 5,
        },
    },
    "vae/config.json": {
        "base_dim": 6,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 2,
        "z_dim": 5,
        "latents_mean": [0.1, -0.2, 0.3, 0.0, 1.0],
        "latents_std": [1.0, 2.0, 0.5, 1.5, 3.0],
    },
}


def test_other_sizes(photo, tall, tmp_path):
    folder = random_checkpoint(tmp_path / "checkpoint", OTHER_SIZES)
    model = load(folder)
    _, _, results = run_all_modes(model, photo, tall)
    assert results[0].latents.shape == (1, 5, 8, 10)
    context = model.encode("a cat", [photo, tall])
    assert context.full.hidden.shape[1] == 120
    assert context.full.image_grids == [(1, 3, 3)] * 2 and context.full.image_mask.sum() == 18
    # [-2, -1, 0] of two layers: input of the second, the normed output, the embeddings.
    ids = torch.tensor([[*model.conditioner.prompts.full("a cat", 0, None).ids, model.tokenizer.id("<img>")]])
    embeddings = model.vlm.embed(ids, model.tokenizer.special_ids)
    expected = torch.cat(model.vlm.language_model(embeddings, (1, 2, 0)), dim=-1)
    hidden = model.encode("a cat").full.hidden
    torch.testing.assert_close(hidden, expected[0, -len(hidden) :])
    torch.testing.assert_close(hidden[:, 80:], embeddings[0, -len(hidden) :])
    assert model.generate("a cat", steps=1).images[0].size == (64, 48)


def test_earlier_taps_and_the_padding_token_do_not_matter(tmp_path):
    """Pictures are single frames, and branches run without padding."""

    def change(tensors):
        for name, tensor in tensors.items():
            if tensor.ndim == 5:
                tensor[:, :, :-1] = noise(*tensor[:, :, :-1].shape)
            elif name == "encoder_padding_token" or "time_conv" in name:
                tensor.fill_(1e4)

    changed = copy_checkpoint(tmp_path / "changed", {}, {"vae": change, "generation_decoder": change})
    settings = {**DRAW, "steps": 1}
    assert torch.equal(load(changed).generate(**settings).latents, load(CHECKPOINT).generate(**settings).latents)
    assert torch.equal(load(changed).decode(noise(1, 16, 4, 4)), load(CHECKPOINT).decode(noise(1, 16, 4, 4)))


def test_fixed_context_length(model, photo, tmp_path):
    """pad_to_fix_length cuts contexts at max_sequence_length; a cut through a picture is refused."""
    changes = {MMDIT_JSON: {"pad_to_fix_length": True, "max_sequence_length": 90}}
    short = load(copy_checkpoint(tmp_path / "short", changes))
    words = "a cat and a hat and a mat " * 5
    whole, cut = model.encode(words, [photo]).full, short.encode(words, [photo]).full
    assert len(whole.hidden) > len(cut.hidden) == 90
    assert torch.equal(cut.hidden, whole.hidden[:90]) and torch.equal(cut.image_mask, whole.image_mask[:90])
    assert cut.image_grids == whole.image_grids
    with pytest.raises(InputError, match="90"):
        short.encode("a cat", [photo, photo])


def test_flow_shift_and_position_scales_are_read(model, tmp_path):
    """Each changes the picture; what the checkpoint's inner copies of the scales say does not."""
    plain = model.generate(**DRAW).latents
    changed = copy_checkpoint(tmp_path / "shift", {MMDIT_JSON: {"flow_shift": 1.5}})
    assert relative(load(changed).generate(**DRAW).latents, plain) > 1e-3
    changed = copy_checkpoint(tmp_path / "scale", {MMDIT_JSON: {"video_position_scale_factor": 2.0}})
    assert relative(load(changed).generate(**DRAW).latents, plain) > 1e-4
    inner = {"decoder_config": {"video_position_scale_factor": 2.0, "vlm_cond_position_scale_factor": 2.0}}
    changed = copy_checkpoint(tmp_path / "inner", {MMDIT_JSON: inner})
    assert torch.equal(load(changed).generate(**DRAW).latents, plain)


def test_latent_mean_and_std_are_read(model, tmp_path):
    """Normalised latents of a picture: (mode − mean) / std, per channel."""
    config = Config.read(CHECKPOINT).vae
    changes = {"vae/config.json": {"latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}}
    plain = load(copy_checkpoint(tmp_path / "plain", changes))
    pixels = noise(1, 3, 32, 48).clamp(-1, 1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.latents_mean, config.latents_std))
    torch.testing.assert_close(model.vae.encode(pixels), (plain.vae.encode(pixels) - mean) / std)
    latents = noise(1, 16, 4, 6)
    torch.testing.assert_close(model.decode(latents), plain.decode(latents * std + mean))


def test_vision_projector_by_hand(model):
    """LayerNorm with torch's epsilon, not the ViT's; then Linear, exact GELU, Linear."""
    stored = load_file(CHECKPOINT / "vlm" / "model.safetensors")
    pixels = noise(1, 3, 224, 224) * 1e-3
    folded = model.vlm.vision_model(pixels)
    hidden = F.layer_norm(folded, (256,), stored["mlp1.0.weight"], stored["mlp1.0.bias"], eps=1e-5)
    hidden = F.gelu(F.linear(hidden, stored["mlp1.1.weight"], stored["mlp1.1.bias"]))
    expected = F.linear(hidden, stored["mlp1.3.weight"], stored["mlp1.3.bias"])
    assert relative(model.vlm.image_features(pixels), expected) < 1e-6


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, "meta"], ids=str)
def test_the_defaults_of_a_host_change_nothing(model, photo, default):
    """Some programs set torch's default dtype or device for themselves."""

    def everything():
        drawn = model.generate("make it blue", [photo], height=64, width=64, steps=2, seed=3).latents
        found = [model.answer("what is it?", [photo], max_new_tokens=3, **options).token_ids for options in TEXTS]
        many = model.answer_many([{"prompt": prompt, "max_new_tokens": 2} for prompt in ("hi", "who are you?")])
        return drawn, found, [outcome.unwrap().token_ids for outcome in many]

    expected = everything()
    try:
        torch.set_default_device(default) if default == "meta" else torch.set_default_dtype(default)
        found = everything()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found[0], expected[0]) and found[1:] == expected[1:]


TEXTS = ({}, {"num_beams": 2}, {"temperature": 1.5, "top_p": 0.9, "seed": 1})
