"""From a user's text to token ids: the chat template and the prompts of the three branches.

A prompt is a list of pieces: special tokens as ids, text as a string. The tokenizer encodes text without knowing
special tokens, so a user who types `<|im_end|>` gets ten ordinary characters and cannot end a turn.

Source: docs/model.md, "Prompt and chat template"; official code, commit 018a59c, `internvlu/vlm/conversation.py` and
`internvlu/processing_internvlu.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .conversation import History
from .errors import CheckpointError, InputError, check_text
from .models.vlm import SPECIAL_TOKENS

# Constants of the checkpoint's training, byte for byte.
CHAT_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
DRAW_SYSTEM = (
    CHAT_SYSTEM
    + "请通过详细描述图像中物体和背景的颜色、形状、大小、纹理、数量、文字内容以及空间位置关系等来对图像进行全面描述："
)
EDIT_SYSTEM = (
    CHAT_SYSTEM
    + "请描述输入图像的关键特征（颜色、形状、大小、纹理、物体、背景等），然后解释用户的文本指令应该如何改变或修改图像，"
    + "从而生成一个满足用户要求的新图像，并适当保持与原始输入的一致性。："
)
BLANK_WITH_IMAGES = "Generate an image based on reference images."

IMAGE = "<image>"  # the one placeholder a user may type
IM_START, IM_END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
IMG, IMG_END, IMG_CONTEXT, IMG_UNCOND = "<img>", "</img>", "<IMG_CONTEXT>", "<img_uncond>"


@dataclass(frozen=True)
class Prompt:
    """The tokens of one branch, up to and including `assistant\\n`.

    ids: [T]. image_mask: [T], which positions are ViT tokens. start: the index of the user turn's `<|im_start|>`, the
    first token whose hidden state conditions the MMDiT.
    """

    ids: tuple[int, ...]
    image_mask: tuple[bool, ...]
    start: int

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer:
    """The checkpoint's tokenizer, which keeps text and special tokens apart.

    size: one more than the largest id. special_ids: [10], those of SPECIAL_TOKENS. stop_ids: the tokens that end a
    generated text. Raises CheckpointError if the folder holds no tokenizer that can be used.
    """

    def __init__(self, folder: str | Path):
        from transformers import AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises whatever its parsers raise
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{folder} holds no readable tokenizer: {type(error).__name__}: {reason}") from error
        if not self.tokenizer.is_fast:
            raise CheckpointError(f"{folder} holds no tokenizer.json; the slow tokenizers are not supported")
        # From now on, special tokens in text are encoded as plain characters.
        self.tokenizer.backend_tokenizer.encode_special_tokens = True
        known = self.tokenizer.get_vocab()
        missing = [token for token in (*SPECIAL_TOKENS, IM_START, IM_END, PAD) if token not in known]
        if missing:
            raise CheckpointError(f"{folder}: the tokenizer lacks the special tokens {', '.join(missing)}")
        if self.tokenizer.eos_token_id is None:
            raise CheckpointError(f"{folder}: the tokenizer names no eos_token, at which generated text would stop")
        if not self.encode("a"):
            raise CheckpointError(f"{folder}: the tokenizer has no tokens; is tokenizer.json, or vocab.json, missing?")
        self._known = known
        self.size = max(known.values()) + 1
        self.special_ids = torch.tensor([known[token] for token in SPECIAL_TOKENS], device="cpu")
        self.stop_ids = (self.tokenizer.eos_token_id, known[IMG])

    def id(self, token: str) -> int:
        """The id of a special token, such as "<img>"."""
        return self._known[token]

    def encode(self, text: str) -> list[int]:
        """The ids of a text, in which special tokens are plain characters. Raises InputError if it is no valid text."""
        text = check_text("the text", text)
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids, keep: tuple[str, ...] = ()) -> str:
        """The text of generated ids, without special tokens, except those in keep."""
        kept = {self.id(token): token for token in keep}
        pieces, plain = [], []
        for token in ids:
            if token in kept:
                pieces += [self._plain(plain), kept[token]]
                plain = []
            else:
                plain.append(token)
        return "".join([*pieces, self._plain(plain)])

    def _plain(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def user_content(prompt: str, num_images: int, name: str = "the prompt") -> str:
    """The user turn: missing placeholders for images go in front, the first letter is capitalised, a mark ends it.

    Raises InputError if the prompt has more `<image>` placeholders than there are images. name: of it, in the error.
    """
    placeholders = prompt.count(IMAGE)
    if placeholders > num_images:
        raise InputError(f"{name} has {placeholders} {IMAGE} placeholders, but {num_images} images are given")
    text = (f"{IMAGE}\n" * (num_images - placeholders) + prompt).strip()
    if not text:
        return text
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?,:;" else text + "."


class PromptBuilder:
    """Builds prompts. tokens_per_tile: ViT tokens of one tile. max_tokens: the longest prompt, in tokens.

    Each method raises InputError if the prompt gets longer, or has more placeholders than there are images.
    system_prompt replaces the system text of the checkpoint's training; None keeps that.
    """

    def __init__(self, tokenizer: Tokenizer, tokens_per_tile: int, max_tokens: int):
        self.tokenizer, self.tokens_per_tile, self.max_tokens = tokenizer, tokens_per_tile, max_tokens

    def chat(self, prompt: str, tiles: list[int], system_prompt: str | None, history: History = ()) -> Prompt:
        """A question after the turns so far. tiles: the number of ViT tiles of each image, those of the turns first."""
        tiles, earlier = list(tiles), []
        for number, turn in enumerate(history, 1):
            seen, tiles = tiles[: len(turn.images)], tiles[len(turn.images) :]
            try:
                earlier.append((self._user(turn.question, seen), turn.answer))
            except InputError as error:
                raise InputError(f"turn {number} of the history: {error}") from error
        system = CHAT_SYSTEM if system_prompt is None else system_prompt
        return self._build(system, self._user(prompt, tiles), earlier)

    def full(self, prompt: str, num_images: int, system_prompt: str | None) -> Prompt:
        """The prompt with its images."""
        return self._build(self._draw_system(num_images, system_prompt), self._user(prompt, [1] * num_images))

    def partial(self, num_images: int, system_prompt: str | None, negative: str = "") -> Prompt:
        """The images without the prompt, or with a negative text in its place. num_images is at least 1."""
        if negative.strip():
            return self.full(negative, num_images, system_prompt)
        user = self._fill(f"{IMAGE}\n" * num_images + BLANK_WITH_IMAGES, [1] * num_images)
        return self._build(self._draw_system(num_images, system_prompt), user)

    def unconditional(self, num_images: int, system_prompt: str | None, negative: str = "") -> Prompt:
        """Neither images nor prompt, but a negative text if there is one. num_images only selects the system text."""
        user = ["Here is a random image ", [self.tokenizer.id(IMG_UNCOND)], ":"]
        if negative.strip():
            user = self._fill(user_content(negative, 0, "the negative prompt, which takes no images,"), [])
        return self._build(self._draw_system(num_images, system_prompt), user)

    def _draw_system(self, num_images: int, system_prompt: str | None) -> str:
        if system_prompt is not None:
            return system_prompt
        return EDIT_SYSTEM if num_images else DRAW_SYSTEM

    def _user(self, prompt: str, tiles: list[int]) -> list:
        return self._fill(user_content(prompt, len(tiles)), tiles)

    def _fill(self, text: str, tiles: list[int]) -> list:
        """The pieces of the user turn: its text cut at the placeholders, and the tokens of each image as ids."""
        first, *rest = text.split(IMAGE)
        pieces = [first]
        for count, following in zip(tiles, rest, strict=True):
            context = [self.tokenizer.id(IMG_CONTEXT)] * (self.tokens_per_tile * count)
            pieces += [[self.tokenizer.id(IMG)], context, [self.tokenizer.id(IMG_END)], following]
        return pieces

    def _build(self, system: str, user: list, earlier: Sequence[tuple[list, str]] = ()) -> Prompt:
        """user: the pieces of the question. earlier: those of each question before it, with its answer."""
        turn, end = [self.tokenizer.id(IM_START)], [self.tokenizer.id(IM_END)]
        before = [turn, "system\n" + system, end, "\n"]
        after = []
        for (first, *rest), answer in (*earlier, (user, None)):
            after += [turn, "user\n" + first, *rest, end, "\n", turn, "assistant\n" + (answer or "")]
            after += [] if answer is None else [end, "\n"]
        start = sum(len(self._ids(piece)) for piece in before)
        ids, image_mask = [], []
        context = self.tokenizer.id(IMG_CONTEXT)
        for piece in before + after:
            piece_ids = self._ids(piece)
            ids += piece_ids
            # No text encodes to <IMG_CONTEXT>, so each one here was put in by _fill.
            image_mask += [token == context for token in piece_ids]
        if len(ids) > self.max_tokens:
            what = "conversation, with its pictures and the new question," if earlier else "prompt"
            raise InputError(f"the {what} is {len(ids)} tokens long; this checkpoint reads at most {self.max_tokens}")
        return Prompt(tuple(ids), tuple(image_mask), start)

    def _ids(self, piece: str | list[int]) -> list[int]:
        return self.tokenizer.encode(piece) if isinstance(piece, str) else piece


def as_tensor(ids, device) -> Tensor:
    """[1, T] int64."""
    return torch.tensor([list(ids)], dtype=torch.long, device=device)
