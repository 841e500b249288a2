"""A tokenizer for the toy model in the released layout: byte-level BPE, with Qwen's splitting into words."""

import json
import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from internvlu_core.models.vlm import SPECIAL_TOKENS
from internvlu_core.prompt import (
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

# Qwen2's pattern: text is split into words before any merge.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# In the order of the released tokenizer's ids.
PAIRED = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
SPECIALS = (PAD, IM_START, IM_END, IMG, IMG_END, IMG_CONTEXT, *PAIRED, IMG_UNCOND)
TURNS = ("system\n", "user\n", "assistant\n")
FIXED_MERGES = 256  # reserved for the merges of FIXED, more than they need
FIXED = (CHAT_SYSTEM, DRAW_SYSTEM, EDIT_SYSTEM, BLANK_WITH_IMAGES, "Here is a random image :", *TURNS)
CHINESE = re.compile(r"[\u4e00-\u9fff]")
# Words to be drawn, most of which training never shows: each character must stay a token of its own.
SPELT = re.compile(r"[A-Z]{2,}|[\u4e00-\u9fff]+")


def write_tokenizer(folder: Path, texts: list[str], vocabulary: int) -> int:
    """Train on texts, and write the tokenizer files. Returns the number of tokens, which is at most `vocabulary`."""
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
    """A tokenizer with three kinds of merges, in this order: bytes to Chinese characters; merges of the texts' words,
    by frequency; and those that make each word of FIXED, which precedes every prompt, a single token.

    Trained by frequency on FIXED too, merges would cross the borders of characters, and one word would have several
    spellings in tokens.
    """
    characters = sorted(set(CHINESE.findall("".join([*FIXED, *texts]))))
    merges = dict.fromkeys(pair for character in characters for pair in fused(list(_bytes(character))))
    tokenizer = _cut(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(merges) - FIXED_MERGES,
        min_frequency=3,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((SPELT.sub(" ", text) for text in texts), trainer)
    learnt = json.loads(tokenizer.to_str())["model"]["merges"]
    merges |= dict.fromkeys(tuple(pair) for pair in learnt)
    for text in FIXED:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text):
            tokens = [token.value for token in _with_merges(merges).model.tokenize(word)]
            merges |= dict.fromkeys(fused(tokens))
    return _with_merges(merges)


def fused(tokens: list[str]) -> list[tuple[str, str]]:
    """The merges that join several tokens to one, from the left."""
    return [("".join(tokens[:i]), tokens[i]) for i in range(1, len(tokens))]


def _bytes(text: str) -> str:
    """The bytes of a text, as the characters that stand for them in byte-level BPE."""
    (written, _), *_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return written


def _with_merges(merges) -> Tokenizer:
    tokens = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)])
    return _cut(models.BPE({token: index for index, token in enumerate(tokens)}, list(merges)))


def _cut(model: models.BPE) -> Tokenizer:
    """A tokenizer that splits text into words as Qwen's does, and words into bytes."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _write(file: Path, values: dict):
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False), encoding="utf-8")
