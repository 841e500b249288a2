"""From words to tokens: the branches' texts, the user's placeholders and special tokens, reasoning as context."""

import pytest
import torch

from internvlu_core import InputError, TextResult
from internvlu_core.models.vlm import SPECIAL_TOKENS
from internvlu_core.prompt import CHAT_SYSTEM, DRAW_SYSTEM, EDIT_SYSTEM, Tokenizer, user_content
from support.tensors import noise

ALL_SPECIAL = (*SPECIAL_TOKENS, "<|im_start|>", "<|im_end|>", "<|endoftext|>")
SEEN = "<img>" + "<IMG_CONTEXT>" * 64 + "</img>"  # one picture of the recorded checkpoint


@pytest.fixture
def tokenizer(model) -> Tokenizer:
    return model.tokenizer


@pytest.fixture
def prompts(model):
    return model.conditioner.prompts


@pytest.fixture
def show(tokenizer):
    """Ids as text, special tokens spelled out."""
    return lambda ids: tokenizer.tokenizer.decode(list(ids), skip_special_tokens=False)


def turns(system, user):
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


BLANK = "Here is a random image <img_uncond>:"
IMAGES_ONLY = "Generate an image based on reference images."


# Texts


@pytest.mark.parametrize("images", [0, 1, 2])
def test_branches(prompts, show, images):
    system = EDIT_SYSTEM if images else DRAW_SYSTEM
    in_front = f"{SEEN}\n" * images
    words = "a red hat" if images else "A red hat"  # the first letter of the whole is upper-cased
    assert show(prompts.full("a red hat", images, None).ids) == turns(system, f"{in_front}{words}.")
    assert show(prompts.unconditional(images, None).ids) == turns(system, BLANK)
    if images:  # else it is the unconditional one (see below)
        assert show(prompts.partial(images, None).ids) == turns(system, f"{in_front}{IMAGES_ONLY}")
    assert show(prompts.chat("a red hat", [1] * images, None).ids) == turns(CHAT_SYSTEM, f"{in_front}{words}.")


@pytest.mark.parametrize("system", ["You are brief.", "", "  spaces stay  ", "line\nbreak"])
@pytest.mark.parametrize("images", [0, 2])
def test_own_system_prompt(prompts, show, images, system):
    """As typed, in every branch; the empty one is a system text, too."""
    in_front = f"{SEEN}\n" * images
    assert show(prompts.full("Draw.", images, system).ids) == turns(system, f"{in_front}Draw.")
    assert show(prompts.unconditional(images, system).ids) == turns(system, BLANK)
    if images:
        assert show(prompts.partial(images, system).ids) == turns(system, f"{in_front}{IMAGES_ONLY}")
    assert show(prompts.chat("Draw.", [1] * images, system).ids) == turns(system, f"{in_front}Draw.")


def test_own_system_prompt_reaches_the_model(model, read_ids, show, photo):
    for system in ("You are brief.", ""):
        read_ids.clear()
        model.encode("Draw.", [photo], system_prompt=system)
        assert len(read_ids) == 3
        assert all(show(row).startswith(f"<|im_start|>system\n{system}<|im_end|>") for row in read_ids)
        read_ids.clear()
        model.answer("What?", system_prompt=system, max_new_tokens=1)
        model.reason("Draw.", system_prompt=system, max_new_tokens=1)
        assert all(show(row).startswith(f"<|im_start|>system\n{system}<|im_end|>") for row in read_ids)
        assert len(read_ids) == 2


@pytest.mark.parametrize(
    "prompt, images, content",
    [
        ("a cat", 0, "A cat."),
        ("  a cat \n", 0, "A cat."),
        ("Éclair", 0, "Éclair."),
        ("éclair", 0, "Éclair."),
        ("生成一张", 0, "生成一张."),
        ("画。", 0, "画。."),
        ("7 cats", 0, "7 cats."),
        *((f"a cat{mark}", 0, f"A cat{mark}") for mark in ".!?,:;"),
        ("a cat)", 0, "A cat)."),
        ("a cat. ", 0, "A cat."),
        ("a CAT", 0, "A CAT."),
        ("ßharp", 0, "SSharp."),
        ("x", 0, "X."),
        ("", 0, ""),
        (" \n\t", 0, ""),
        # With a picture in front, the first character is its placeholder's.
        ("a cat", 1, "<image>\na cat."),
        ("a cat", 2, "<image>\n<image>\na cat."),
        ("a <image> cat", 1, "A <image> cat."),
        ("a <image> cat", 2, "<image>\na <image> cat."),
        ("<image>\nwhat is it?", 1, "<image>\nwhat is it?"),
        ("what is <image>", 1, "What is <image>."),
        ("<image><image>", 2, "<image><image>."),
        ("", 1, "<image>."),
        # Blanks between the placeholder and the words are the user's.
        ("  a cat", 1, "<image>\n  a cat."),
    ],
)
def test_user_content(prompt, images, content):
    assert user_content(prompt, images) == content


@pytest.mark.parametrize("images", [0, 1])
def test_more_placeholders_than_images(prompts, images):
    with pytest.raises(InputError, match=rf"2 <image> placeholders.*{images} images"):
        prompts.full("<image> and <image>", images, None)


def test_stretches_between_special_tokens_are_encoded_whole(prompts, tokenizer, monkeypatch):
    """The turn's name with the text behind it, in one piece: a tokenizer may join characters across the seam. (The
    recorded one does not, so what it is given is looked at, too.)
    """
    stretches, encode = [], tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: stretches.append(text) or encode(text))
    prompt = prompts.full("Ab <image> c", 1, "D e")
    assert set(stretches) == {"system\nD e", "\n", "user\nAb ", " c.", "assistant\n"}

    im_start, im_end = tokenizer.id("<|im_start|>"), tokenizer.id("<|im_end|>")
    image = tokenizer.tokenizer.convert_tokens_to_ids(["<img>", *["<IMG_CONTEXT>"] * 64, "</img>"])
    system = [im_start, *encode("system\nD e"), im_end, *encode("\n")]
    user = [im_start, *encode("user\nAb "), *image, *encode(" c."), im_end, *encode("\n")]
    assert list(prompt.ids) == [*system, *user, im_start, *encode("assistant\n")]
    assert prompt.start == len(system)


# Special tokens typed by a user


@pytest.mark.parametrize("token", ALL_SPECIAL)
@pytest.mark.parametrize("template", ["{}", "{} a cat", "a {}{} cat", "A cat {}"])
def test_special_tokens_in_text_are_characters(prompts, tokenizer, show, token, template):
    text = template.format(token, token)
    special = {tokenizer.id(name) for name in ALL_SPECIAL}
    assert not special & set(tokenizer.encode(text))
    for images in (0, 1):
        for build in (
            lambda prompt, system, images=images: prompts.full(prompt, images, system),
            lambda prompt, system, images=images: prompts.chat(prompt, [1] * images, system),
        ):
            plain, typed = build("Plain.", "Plain."), build(text, text)
            assert [t for t in typed.ids if t in special] == [t for t in plain.ids if t in special]
            assert sum(typed.image_mask) == sum(plain.image_mask) == 64 * images
            content = user_content(text, images).replace("<image>", SEEN)
            assert show(typed.ids) == turns(text, content)
            assert typed.ids[typed.start] == tokenizer.id("<|im_start|>")
            assert show(typed.ids[typed.start :]).startswith("<|im_start|>user\n")


def test_prompt_of_special_tokens_only(model, tokenizer, photo):
    prompt = "".join(ALL_SPECIAL)
    assert len(model.answer(prompt, [photo], max_new_tokens=3).token_ids) >= 1
    context = model.encode(prompt, [photo])
    assert int(context.full.image_mask.sum()) == 64
    assert context.full.hidden.isfinite().all()
    assert len(context.full.hidden) > len(context.partial.hidden)


def test_special_tokens_in_written_reasoning_are_characters(model, read_ids, tokenizer):
    model.encode("Draw.", reasoning="<|im_end|><img>")
    special = {tokenizer.id(name) for name in ALL_SPECIAL}
    full = max(read_ids, key=len)
    written = tokenizer.encode("<|im_end|><img>")
    assert not special & set(written)
    assert full[-len(written) - 1 :] == [*written, tokenizer.id("<img>")]


# Pictures


@pytest.mark.parametrize(
    "prompt, tiles",
    [
        ("Compare <image> with <image>!", [1, 1]),
        ("Compare with <image>!", [1, 1]),
        ("Compare!", [1, 3]),
        ("First <image><image> last <image>?", [2, 1, 4]),
    ],
)
def test_placeholders_become_image_tokens(prompts, tokenizer, show, prompt, tiles):
    built = prompts.chat(prompt, tiles, None)
    context = tokenizer.id("<IMG_CONTEXT>")
    assert [token == context for token in built.ids] == list(built.image_mask)
    content = user_content(prompt, len(tiles))
    for count in tiles:
        content = content.replace("<image>", "<img>" + "<IMG_CONTEXT>" * 64 * count + "</img>", 1)
    assert show(built.ids) == turns(CHAT_SYSTEM, content)


def test_tiles_are_read(model, photo, read_ids, tokenizer):
    """A document of 2 × 1 tiles and its thumbnail, if tiles are asked for."""
    wide = photo.resize((448, 224))
    for max_tiles, tiles in ((1, 1), (2, 3), (12, 3)):
        model.answer("Read.", [wide], max_tiles=max_tiles, max_new_tokens=1)
        assert read_ids.pop().count(tokenizer.id("<IMG_CONTEXT>")) == 64 * tiles


def test_masks_and_grids_of_several_images(model, photo, tall):
    context = model.encode("Put <image> beside <image>", [photo, tall, photo])
    for branch in (context.full, context.partial):
        assert branch.image_mask.shape == branch.hidden.shape[:1]
        assert branch.image_mask.sum() == 3 * 64
        assert branch.image_grids == [(1, 8, 8)] * 3
        assert [tuple(r.shape) for r in branch.references] == [(1, 16, 18, 24), (1, 16, 18, 12), (1, 16, 18, 24)]
    assert all(a is b for a, b in zip(context.full.references, context.partial.references, strict=True))
    blank = context.unconditional
    assert not blank.image_mask.any() and blank.image_grids == [] and blank.references == []


def test_without_images_partial_is_unconditional(model, photo):
    context = model.encode("A cat.")
    assert context.partial is context.unconditional  # the very object, so that it is run once
    assert context.full is not context.unconditional
    context = model.encode("A cat.", [photo])
    assert context.partial is not context.unconditional


def test_context_runs_from_the_user_turn_to_img(model, prompts):
    """Rows of the pass over the whole text: from the second <|im_start|> on, the appended <img> included."""
    context = model.encode("A cat.")
    prompt = prompts.full("A cat.", 0, None)
    ids = [*prompt.ids, model.tokenizer.id("<img>")]
    second = [i for i, token in enumerate(ids) if token == model.tokenizer.id("<|im_start|>")][1]
    embeddings = model.vlm.embed(torch.tensor([ids]), model.tokenizer.special_ids)
    # -1 is the normed output, -2 the input of the last of the three layers.
    last, input_of_last = model.vlm.language_model(embeddings, (3, 2))
    assert torch.equal(context.full.hidden, torch.cat([last, input_of_last], dim=-1)[0, second:])


def test_embeddings(model, tokenizer):
    """Plain table, special rows, features in order; a token that is being generated has its plain row."""
    plain = model.vlm.language_model.model["embed_tokens"].weight
    rows = ["</box>", "<box>", "<IMG_CONTEXT>", "</img>", "<img>", "</quad>", "<quad>", "</ref>", "<ref>"]
    rows.append("<img_uncond>")
    ids = [5, *(tokenizer.id(row) for row in rows), tokenizer.id("<|im_end|>"), 7]
    expected = torch.stack([plain[5], *model.vlm.special_token_embedding.weight, plain[ids[-2]], plain[7]])
    tensor = torch.tensor([ids])
    assert torch.equal(model.vlm.embed(tensor, tokenizer.special_ids)[0], expected)
    assert torch.equal(model.vlm.embed_generated(tensor)[0], plain[ids])

    mask = torch.tensor([True, *[False] * 11, True])
    features = noise(2, plain.shape[1])
    seen = model.vlm.embed(tensor, tokenizer.special_ids, mask, features)[0]
    assert torch.equal(seen[mask], features) and torch.equal(seen[~mask], expected[~mask])


# Reasoning as context


END, IMG, IMG_CONTEXT, IM_START = 302, 303, 305, 301


def blanks(prompts, images):
    """The prompts of the other branches."""
    unconditional = prompts.unconditional(images, None)
    return [unconditional, prompts.partial(images, None)] if images else [unconditional]


@pytest.mark.parametrize(
    "tokens, cut, whole",
    [
        # cut: how many tokens stay behind the prompt by the official cut; -1 takes the prompt's own last token.
        ((5, 6, 7, END), 2, (5, 6, 7)),
        ((5, 6, 7, IMG), 2, (5, 6, 7)),
        ((5, 6, END, 7, IMG, 8), 1, (5, 6)),
        ((5, IMG, 6, END), 0, (5,)),
        ((5, END), 0, (5,)),
        ((END,), -1, ()),
        ((IMG,), -1, ()),
        # No stop: the index of the last token counts.
        ((5, 6, 7, 8), 2, (5, 6, 7, 8)),
        ((5, 6), 0, (5, 6)),
        ((5,), -1, (5,)),
        # Other special tokens are no stops, and open no turn and no picture.
        ((5, IMG_CONTEXT, 6, 304, 7, END), 4, (5, IMG_CONTEXT, 6, 304, 7)),
        ((5, IM_START, 6, 7, END), 3, (5, IM_START, 6, 7)),
        ((IM_START, IM_START, IMG_CONTEXT, IMG_CONTEXT, 300), 3, (IM_START, IM_START, IMG_CONTEXT, IMG_CONTEXT, 300)),
    ],
)
@pytest.mark.parametrize("images", [0, 1])
def test_reasoning_cut(model, prompts, tokenizer, photo, read_ids, tokens, cut, whole, images):
    words = "A long instruction, so that nothing needs padding, about a cat in a hat that sits upon a wall, and more."
    full = prompts.full(words, images, None)
    prompt = list(full.ids)
    assert all(len(prompt) >= len(blank) for blank in blanks(prompts, images))
    pictures, reasoning = [photo] * images, TextResult("", tokens)

    context = model.encode(words, pictures, reasoning=reasoning)
    expected = prompt[:cut] if cut < 0 else prompt + list(tokens[:cut])
    assert [*expected, IMG] in read_ids
    assert len(context.full.hidden) == len(expected) + 1 - full.start
    assert context.full.image_mask.sum() == 64 * images
    assert context.full.image_grids == [(1, 8, 8)] * images
    seen = torch.tensor(full.image_mask[full.start :])
    shared = min(len(seen), len(context.full.image_mask))
    assert torch.equal(context.full.image_mask[:shared], seen[:shared])  # not shifted

    read_ids.clear()
    context = model.encode(words, pictures, reasoning=reasoning, whole_reasoning=True)
    assert [*prompt, *whole, IMG] in read_ids
    assert len(context.full.hidden) == len(prompt) + len(whole) + 1 - full.start


@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("words", ["Hat", "A hat for a cat and one more", "x" * 100])
def test_reasoning_pads(model, prompts, tokenizer, photo, read_ids, words, images):
    """As many as the full prompt is shorter than the longer one of the other two; none with the switch, or a string."""
    prompt = prompts.full(words, images, None)
    pads = max(0, max(map(len, blanks(prompts, images))) - len(prompt))
    assert (pads > 0) == (words == "Hat" or (images > 0 and len(words) < 40))
    pictures, reasoning = [photo] * images, TextResult("", (5, 6, 7, END))

    context = model.encode(words, pictures, reasoning=reasoning)
    assert [tokenizer.id("<|endoftext|>")] * pads + [*prompt.ids, 5, 6, IMG] in read_ids
    assert len(context.full.hidden) == len(prompt) - prompt.start + 3  # the pads lie before the user turn
    others = sorted(row for row in read_ids if row[-2:] == [*prompt.ids[-1:], IMG])
    assert others == sorted([*blank.ids, IMG] for blank in blanks(prompts, images))  # unchanged

    unpadded = model.encode(words, pictures, reasoning=TextResult("", (5, 6, END)), whole_reasoning=True)
    assert unpadded.full.hidden.shape == context.full.hidden.shape
    assert torch.allclose(unpadded.full.hidden, context.full.hidden, atol=1e-5) == (pads == 0)


def test_written_reasoning_is_used_whole(model, prompts, tokenizer, read_ids):
    for whole in (False, True):
        read_ids.clear()
        model.encode("Hat", reasoning=" First a hat.", whole_reasoning=whole)
        assert [*prompts.full("Hat", 0, None).ids, *tokenizer.encode(" First a hat."), IMG] in read_ids


def test_empty_written_reasoning_is_none(model):
    assert torch.equal(model.encode("Hat", reasoning="").full.hidden, model.encode("Hat").full.hidden)


@pytest.mark.parametrize("reasoning", [7, ["a"], b"a"])
def test_reasoning_of_another_type(model, reasoning):
    with pytest.raises(InputError, match=type(reasoning).__name__):
        model.encode("Hat", reasoning=reasoning)
