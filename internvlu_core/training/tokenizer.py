"""A tokenizer for the toy world in the released layout: byte-level BPE, cut into words as Qwen's is."""

import json
import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ..prompt import (
    BLANK_WITH_IMAGES,
    CHAT_SYSTEM,
    DRAW_SYSTEM,
    EDIT_SYSTEM,
    IM_END,
    IM_START,
    IMG,
    IMG_CONTEXT,
    IMG_END,
    IMG_UNCOND,
    PAD,
)
from ..vlm import SPECIAL_TOKENS

# Qwen2's, by which the released checkpoint's text is cut before any merge.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The order of the released tokenizer's ids.
PAIRED = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
SPECIALS = (PAD, IM_START, IM_END, IMG, IMG_END, IMG_CONTEXT, *PAIRED, IMG_UNCOND)
TURNS = ("system\n", "user\n", "assistant\n")
FIXED = (CHAT_SYSTEM, DRAW_SYSTEM, EDIT_SYSTEM, BLANK_WITH_IMAGES, "Here is a random image :", *TURNS)
# Quoted words are there to be drawn letter by letter, and most of them are never seen in training.
QUOTED = re.compile(r"[\"“'‘「『][^\"”'’」』]*[\"”'’」』]")


def write_tokenizer(folder: Path, texts: list[str], vocabulary: int) -> int:
    """Train on texts and write the processor's tokenizer files. Returns the number of tokens (at most `vocabulary`)."""
    assert set(SPECIAL_TOKENS) < set(SPECIALS)
    tokenizer = _trained(texts, vocabulary - len(SPECIALS))
    size = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(list(SPECIALS))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    ids = {token: size + index for index, token in enumerate(SPECIALS)}
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    roles = {"eos_token": IM_END, "pad_token": PAD, "unk_token": PAD}
    details = {str(ids[token]): {"content": token, **plain, "special": True} for token in SPECIALS}
    config = {
        "added_tokens_decoder": details,
        "additional_special_tokens": list(SPECIALS),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 10**30,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        **roles,
    }
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "added_tokens.json", ids)
    named = {role: {"content": token, **plain} for role, token in roles.items()}
    listed = [{"content": token, **plain} for token in SPECIALS]
    _write(folder / "special_tokens_map.json", {"additional_special_tokens": listed, **named})
    return size + len(SPECIALS)


def _trained(texts: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=3,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Merges are learnt by frequency: the fixed texts, which are in front of every prompt, must win every one of theirs,
    # or their Chinese characters, three bytes each, cost more than all the rest.
    corpus = list(FIXED) * (len(texts) + 3) + [QUOTED.sub(" ", text) for text in texts]
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def _write(file: Path, values: dict):
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False), encoding="utf-8")
