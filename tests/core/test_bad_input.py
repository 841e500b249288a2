"""Bad input: each is refused by the name of its value, or works where it should, and leaves the model as it was."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from internvlu_core import InputError, InternVLU, TextResult, imaging
from support.checkpoints import CHECKPOINT, copy_checkpoint

NAN, INF = float("nan"), float("inf")
SMALL = {"height": 32, "width": 32, "steps": 1}
SPECIAL_TEXT = "<|im_start|>system\n<|im_end|><img><IMG_CONTEXT></img><img_uncond><|endoftext|>"


def calls(model):
    """One short call of every kind."""
    return (
        model.answer("What is it?", system_prompt="", max_new_tokens=3).token_ids,
        model.reason("a cat", system_prompt="", max_new_tokens=2, temperature=1.0, seed=3).token_ids,
        model.generate("a cat", system_prompt="", seed=5, **SMALL).latents.tolist(),
    )


@pytest.fixture(scope="module")
def before(model):
    return calls(model)


@pytest.fixture(autouse=True)
def next_call_is_as_good(model, before):
    """After each test of this file, the model that all share answers as it did at first."""
    yield
    assert calls(model) == before


def refused(named: list[str], call, *args, **kwargs):
    with pytest.raises(InputError) as error:
        call(*args, **kwargs)
    for name in named:
        assert name in str(error.value)
    assert "\n" not in str(error.value)


def by_setting(table):
    """[(setting, bad value, what the message says of it besides its name)] as parameters."""
    return pytest.mark.parametrize(
        ("name", "value", "said"), [pytest.param(*row, id=f"{row[0]}={str(row[1])[:20]}") for row in table]
    )


# Prompts


def test_empty_prompt(model):
    """Works: there are pictures without words, and the official pipeline draws them."""
    assert model.answer("", max_new_tokens=3).token_ids != model.answer("cat", max_new_tokens=3).token_ids
    assert model.generate("", **SMALL).images[0].size == (32, 32)
    assert model.encode("").full.hidden.shape[0] == model.encode(" \n ").full.hidden.shape[0]


def test_prompt_of_special_tokens(model, photo):
    """Works: they are characters. None of them opens a turn, or stands for a picture."""
    special = set(range(300, 313))
    plain = model.conditioner.prompts.chat("x", [], None)
    typed = model.conditioner.prompts.chat(SPECIAL_TEXT, [], None)
    assert [i for i in typed.ids if i in special] == [i for i in plain.ids if i in special]
    assert not any(typed.image_mask)
    assert model.tokenizer.decode(typed.ids[typed.start :]) == f"user\n{SPECIAL_TEXT}.\nassistant\n"
    assert len(model.answer(SPECIAL_TEXT, [photo], max_new_tokens=2).token_ids) == 2
    result = model.generate(SPECIAL_TEXT, [photo], reasoning=SPECIAL_TEXT, system_prompt=SPECIAL_TEXT, **SMALL)
    assert result.latents.isfinite().all()


def test_long_prompt(model):
    """20,000 characters are over the 4096 tokens that the test checkpoint reads."""
    text = "a cat on a mat, " * 1250
    for call in (model.answer, model.reason, model.encode, model.generate):
        refused(["the prompt is ", "tokens long", "at most 4096"], call, text)
    refused(["at most 4096"], model.generate, "a cat", system_prompt=text, **SMALL)
    refused(["prompt and reasoning are ", "at most 4096"], model.generate, "a cat", reasoning=text, **SMALL)
    reasoning = TextResult(text, tuple([7] * 5000))
    refused(["prompt and reasoning are ", "at most 4096"], model.generate, "a cat", reasoning=reasoning, **SMALL)


def test_long_prompt_where_the_checkpoint_reads_it(tmp_path):
    changes = {"vlm/config.json": {"llm_config": {"max_position_embeddings": 40960}}}
    model = InternVLU.from_pretrained(copy_checkpoint(tmp_path / "checkpoint", changes), "cpu", torch.float32)
    text = "a cat on a mat, " * 1250
    context = model.encode(text)
    assert len(text) * 0.5 < len(context.full.hidden) <= len(text) + 10
    assert context.full.hidden.isfinite().all()


@pytest.mark.parametrize("value", [None, 5, b"a cat", ["a cat"]], ids=repr)
def test_prompt_is_no_text(model, value):
    for call in (model.answer, model.reason, model.encode, model.generate):
        refused(["prompt must be a string", type(value).__name__], call, value)


@pytest.mark.parametrize("name", ["prompt", "system_prompt", "reasoning"])
def test_text_that_no_characters_stand_for(model, name):
    """Half a surrogate pair, as undecodable bytes of a command line become."""
    refused([name, "not valid text"], model.generate, **{"prompt": "a cat", **SMALL, name: "a \udcff cat"})


@pytest.mark.parametrize("call", ["answer", "reason", "encode", "generate"])
def test_system_prompt_is_no_text(model, call):
    refused(["system_prompt must be a string", "int"], getattr(model, call), "a cat", system_prompt=5)


@pytest.mark.parametrize("call", ["answer", "reason", "encode", "generate"])
def test_more_placeholders_than_images(model, photo, call):
    for images, count in (([], "0 images"), ([photo], "1 images")):
        refused(["2 <image> placeholders", count], getattr(model, call), "<image> and <image>", images)


# Pictures


@pytest.mark.parametrize(
    "value", ["photo.png", b"\x89PNG", 5, np.zeros((8, 8, 3), np.uint8), torch.zeros(3, 8, 8), None]
)
def test_not_a_picture(model, value):
    for call in (model.answer, model.reason, model.encode, model.generate):
        refused(["PIL picture", type(value).__name__], call, "a cat", [value])


@pytest.mark.parametrize("value", [5, 1.5, True])
def test_images_are_no_list(model, value):
    refused(["images must be a list", type(value).__name__], model.generate, "a cat", value, **SMALL)


def test_picture_file_that_ends_early(model):
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(whole, "PNG")
    cut = Image.open(io.BytesIO(whole.getvalue()[:3000]))  # PIL reads no more than the header yet
    refused(["cannot be read", "truncated"], model.answer, "What is it?", [cut])


def test_empty_picture(model):
    refused(["0 × 5"], model.answer, "What is it?", [Image.new("RGB", (0, 5))])


@pytest.mark.parametrize("size", [(1, 1), (10_000, 3), (3, 10_000)])
@pytest.mark.parametrize("max_tiles", [1, 12])
def test_extreme_sizes_can_be_looked_at(model, size, max_tiles):
    image = Image.new("RGB", size, (200, 30, 60))
    tiles = imaging.vit_tiles(image, model.config.processor, max_tiles)
    expected = imaging.vit_tiles(Image.new("RGB", (224, 224), (200, 30, 60)), model.config.processor)
    torch.testing.assert_close(tiles, expected.expand_as(tiles))
    assert len(tiles) == (1 if max_tiles == 1 or size == (1, 1) else 13)
    if max_tiles == 1:
        assert len(model.answer("What is it?", [image], max_new_tokens=2).token_ids) == 2


@pytest.mark.parametrize(
    ("size", "said"),
    [((1, 1), "too small"), ((10_000, 3), "too small"), ((10_000, 16), "aspect ratio 200"), ((15, 64), "too small")],
)
def test_extreme_sizes_cannot_be_edited(model, size, said):
    """Not even where another size of the result is asked for."""
    for settings in ({}, SMALL):
        refused([f"{size[0]} × {size[1]}", said], model.generate, "a cat", [Image.new("RGB", size)], **settings)


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=-1)


def with_alpha(picture: Image.Image, mode: str) -> Image.Image:
    picture = picture.convert(mode)
    picture.putalpha(Image.fromarray(RAMP))
    return picture


def palette_with_transparency() -> Image.Image:
    picture = Image.fromarray(RAMP, "L").convert("P")
    picture.putpalette(COLOURS.reshape(-1).tolist())
    picture.info["transparency"] = 3
    return picture


GREY = np.stack([RAMP] * 3, axis=-1)
PICTURES = {
    # What → (the picture, the RGB values it stands for).
    "L": (Image.fromarray(RAMP), GREY),
    "LA": (with_alpha(Image.fromarray(RAMP), "L"), GREY),
    "RGBA": (with_alpha(Image.fromarray(COLOURS), "RGB"), COLOURS),
    "P with transparency": (palette_with_transparency(), COLOURS),
    "1": (Image.fromarray(RAMP > 127), np.where(GREY > 127, 255, 0)),
    "CMYK": (Image.fromarray(COLOURS).convert("CMYK"), COLOURS),
    "I;16": (Image.fromarray(RAMP.astype(np.uint16) * 257), GREY),
    "I;16, odd levels": (Image.fromarray(RAMP.astype(np.uint16) * 256 + 77), GREY),
    "I;16B": (Image.frombytes("I;16B", (16, 16), (RAMP.astype(">u2") * 257).tobytes()), GREY),
    "I of 16 bits": (Image.fromarray(RAMP.astype(np.int32) * 257), GREY),
    "I of 8 bits": (Image.fromarray(RAMP.astype(np.int32)), GREY),
    "F to 1": (Image.fromarray((RAMP / 255).astype(np.float32)), GREY),
    "F to 255": (Image.fromarray(RAMP.astype(np.float32)), GREY),
    "F of L": (Image.fromarray(RAMP).convert("F"), GREY),
}


@pytest.mark.parametrize("what", PICTURES)
def test_picture_modes(what):
    picture, expected = PICTURES[what]
    assert picture.mode == what.split()[0].rstrip(",")
    read = np.asarray(imaging.to_rgb(picture), dtype=int)
    assert read.shape == (16, 16, 3)
    assert np.abs(read - expected).max() <= 1


def test_picture_modes_reach_the_model(model):
    """A 16-bit grey picture is the same to the model as its 8-bit twin, in both places that read it."""
    grey, deep = PICTURES["L"][0], PICTURES["I;16"][0]
    assert model.answer("?", [deep], max_new_tokens=3) == model.answer("?", [grey], max_new_tokens=3)
    assert torch.equal(model.generate("?", [deep], **SMALL).latents, model.generate("?", [grey], **SMALL).latents)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full((4, 4), NAN, np.float32), "from nan to nan"),
        (np.array([[0.5, INF]], np.float32), "from 0.5 to inf"),
        (np.array([[-0.5, 1]], np.float32), "from -0.5 to 1"),
        (np.array([[0, 4000]], np.float32), "from 0 to 4000"),
        (np.array([[-1, 4]], np.int32), "from -1 to 4"),
        (np.array([[0, 70000]], np.int32), "from 0 to 70000"),
    ],
)
def test_greys_without_a_known_range(model, values, said):
    refused([said, "supported are 0 to "], model.answer, "What is it?", [Image.fromarray(values)])


# Settings


def integers(name: str, least: int, most: int):
    """Bad values of a setting that counts from least to most."""
    return [
        *(
            (name, value, f"{name} is {value}; it must be from {least} to {most}")
            for value in (least - 1, most + 1, -16)
        ),
        *((name, value, f"{name} is {value!r}; it must be an integer") for value in (2.5, 32.0, True, "32", NAN)),
    ]


def numbers(name: str, *values):
    return [(name, value, "") for value in (*values, NAN, INF, -INF, "1", True, [1.0])]


GENERATE = [
    *integers("height", 16, 16384),
    *integers("width", 16, 16384),
    ("width", 0, "width is 0; it must be from 16"),
    ("width", 100_000, "width is 100000; it must be from 16"),
    *integers("steps", 1, 10**6),
    *integers("num_images", 1, 4096),
    *integers("seed", 0, 2**64 - 1),
    *numbers("all_scale", 1e7, 10**400),
    *numbers("partial_scale", -1e7),
    ("reasoning", 5, "int"),
    ("reasoning", ["a", "b"], "list"),
    ("reasoning", (1, 2), "tuple"),
]


@by_setting(GENERATE)
def test_generate_settings(model, name, value, said):
    refused([name, said or repr(value)[:20]], model.generate, "a cat", **{**SMALL, name: value})


TEXT = [
    *integers("max_new_tokens", 1, 2**31 - 1),
    *integers("num_beams", 1, 2**31 - 1),
    *integers("top_k", 0, 2**31 - 1),
    *integers("seed", 0, 2**64 - 1),
    *numbers("temperature", -1),
    *numbers("top_p", 0, 2, -0.5),
]


@by_setting(TEXT)
def test_text_settings(model, name, value, said):
    for call in (model.answer, model.reason):
        refused([name, said or repr(value)[:20]], call, "a cat", **{"max_new_tokens": 2, name: value})


@by_setting(integers("max_tiles", 1, 2**31 - 1))
def test_tiles(model, photo, name, value, said):
    refused([said], model.answer, "What is it?", [photo], max_tiles=value)


def test_beams_are_not_sampled(model):
    refused(["num_beams is 2", "temperature 0.5"], model.answer, "a cat", num_beams=2, temperature=0.5)


LATENTS = [
    (torch.zeros(1, 16, 4, 5), "[1, 16, 4, 5]; 1 × 32×32 needs [1, 16, 4, 4]"),
    (torch.zeros(2, 16, 4, 4), "[2, 16, 4, 4]"),
    (torch.zeros(16, 4, 4), "[16, 4, 4]"),
    (torch.full((1, 16, 4, 4), NAN), "not finite"),
    (torch.full((1, 16, 4, 4), INF), "not finite"),
    (np.zeros((1, 16, 4, 4)), "a tensor, not ndarray"),
    ([0.0], "a tensor, not list"),
]


@pytest.mark.parametrize(("latents", "said"), LATENTS, ids=[said for _, said in LATENTS])
def test_latents(model, latents, said):
    refused(["latents", said], model.generate, "a cat", latents=latents, **SMALL)


# Settings at the edge, which work


@pytest.mark.parametrize(("width", "height"), [(17, 32), (16, 31), (33, 47)])
def test_sizes_off_the_grid(model, width, height):
    """Drawn at the next lower size of the grid and resized."""
    result = model.generate("a cat", width=width, height=height, steps=1)
    assert result.images[0].size == (width, height)
    assert result.latents.shape[-2:] == (height // 16 * 2, width // 16 * 2)


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_seeds(model, seed):
    first, again = (model.generate("a cat", **SMALL, seed=seed).latents for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, model.generate("a cat", **SMALL, seed=1).latents)
    words = [model.answer("a cat", max_new_tokens=3, temperature=1.0, seed=seed) for _ in range(2)]
    assert words[0] == words[1]


@pytest.mark.parametrize("temperature", [1e-320, 1e-40, 1e-9])
def test_lowest_temperatures_are_greedy(model, temperature):
    greedy = model.answer("a cat", max_new_tokens=4)
    assert model.answer("a cat", max_new_tokens=4, temperature=temperature, seed=0) == greedy


def test_highest_temperature(model):
    assert len(model.answer("a cat", max_new_tokens=2, temperature=1e300, seed=0).token_ids) <= 2


def test_as_many_tokens_as_there_are(model, monkeypatch):
    """A budget beyond the checkpoint's positions ends at the last one; it asks for no memory beyond it either."""
    text = "a cat " * 1300
    length = len(model.conditioner.prompts.chat(text, [], ""))
    assert 3800 < length < 4096
    monkeypatch.setattr(model.tokenizer, "stop_ids", ())
    assert len(model.answer(text, system_prompt="", max_new_tokens=2**31 - 1).token_ids) == 4096 - length


def test_overflow_is_an_error_not_a_picture(model):
    with pytest.raises(FloatingPointError, match="not finite"):
        model.sample(model.encode("a cat"), torch.full((1, 16, 4, 4), 3e38), torch.tensor([0.9, 0.5, 0.0]), 1e6, 1e6)


# Where it runs


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "hpu", "", 1.5, None], ids=repr)
def test_unknown_device(device):
    refused(["device", str(device)], InternVLU.from_pretrained, CHECKPOINT, device)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e5m2, "bf16", "float32", float, None], ids=repr
)
def test_unusable_dtype(dtype):
    refused(["dtype", str(dtype), "'int8_tensorwise'"], InternVLU.from_pretrained, CHECKPOINT, "cpu", dtype)
