"""A checkpoint that has learnt nothing: its tokenizer, its sizes, its random weights."""

import torch
from PIL import Image

from internvlu_core.imaging import reference_pixels
from internvlu_core.prompt import CHAT_SYSTEM, DRAW_SYSTEM, EDIT_SYSTEM, Tokenizer
from internvlu_train.storage import Networks
from internvlu_train.toy.presets import CPU
from support.tensors import relative


def test_tokenizer_reads_the_fixed_texts_in_few_tokens_and_words_to_draw_by_letters(fresh):
    tokenizer = Tokenizer(fresh / "processor")
    counts = [len(tokenizer.encode(text)) for text in (CHAT_SYSTEM, DRAW_SYSTEM, EDIT_SYSTEM)]
    assert all(count <= most for count, most in zip(counts, (6, 18, 24), strict=True)), counts
    for text in ("Draw a red star.", 'the word "CAT" in blue', "看，三个 stars: 12 <|im_end|>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    for word in ("QXZ", "VLO", "STA", "人工", "大人"):  # parts of the fixed texts among them
        tokens = [tokenizer.decode([token]).strip() for token in tokenizer.encode(f"the word {word} in blue")]
        assert [token for token in tokens if token and token in word] == list(word), tokens
    words = len(tokenizer.encode("draw a red star left of a blue circle"))
    assert words <= 10, "merges of the toy world's words are missing"


def test_small_pictures_are_edited_at_their_own_size(fresh):
    """The released minimum area would blow a 64 × 64 picture up to 512 × 512."""
    networks = Networks(fresh)
    for width, height in {side for stage in CPU.values() for side in stage.sides}:
        pixels = reference_pixels(Image.new("RGB", (width, height)), networks.config.processor)
        assert pixels.shape[-2:] == (height, width)


@torch.no_grad()
def test_a_fresh_models_hidden_states_are_still_its_words(fresh):
    """Where its layers drowned them, a drawing learnt what its prompt says several times more slowly."""
    networks = Networks(fresh)
    language = networks.vlm.language_model
    ids = torch.arange(40, 80)[None]
    words = networks.vlm.embed(ids, networks.conditioner.tokenizer.special_ids)
    (last,) = language(words, (language.config.num_layers - 1,))
    assert relative(last, words) < 0.25


def test_neighbouring_timesteps_look_alike_to_a_fresh_model(fresh):
    """Bfloat16 rounds 983 to 984; random weights on all of the embedding's sinusoids see no likeness in the two."""
    embedding = Networks(fresh).mmdit.time_text_embed
    near, at, far = embedding(torch.tensor([983.0, 984.0, 940.0]), torch.float32)
    assert relative(near, at) < 0.5 < relative(far, at)
