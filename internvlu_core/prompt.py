"""From a user's words to token ids: the chat template, the three branches, and nothing a user can inject.

A prompt is built as a list of stretches: special tokens by id, text as plain characters. Text never passes through a
parser that knows special tokens, so `<|im_end|>` typed by a user is ten ordinary characters.
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
    """Tokens of one branch, up to and including `assistant\\n`.

    ids: [T]. image_mask [T] marks the ViT positions. start: index of the user turn's `<|im_start|>`, from which on
    hidden states condition the generator.
    """

    ids: tuple[int, ...]
    image_mask: tuple[bool, ...]
    start: int

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer:
    """The checkpoint's tokenizer, with text and special tokens kept apart."""

    def __init__(self, folder: str | Path):
        from transformers import AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises whatever its parsers raise
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{folder} holds no readable tokenizer: {type(error).__name__}: {reason}") from error
        if not self.tokenizer.is_fast:
            raise CheckpointError(f"{folder} holds no tokenizer.json; the slow tokenizers are not supported")
        # From here on, special tokens in text are plain characters.
        self.tokenizer.backend_tokenizer.encode_special_tokens = True
        known = self.tokenizer.get_vocab()
        missing = [token for token in (*SPECIAL_TOKENS, IM_START, IM_END, PAD) if token not in known]
        if missing:
            raise CheckpointError(f"{folder}: the tokenizer lacks the special tokens {', '.join(missing)}")
        if self.tokenizer.eos_token_id is None:
            raise CheckpointError(f"{folder}: the tokenizer names no eos_token, at which generated text would stop")
        self._known = known
        self.size = max(known.values()) + 1
        self.special_ids = torch.tensor([known[token] for token in SPECIAL_TOKENS])
        self.stop_ids = (self.tokenizer.eos_token_id, known[IMG])

    def id(self, token: str) -> int:
        return self._known[token]

    def encode(self, text: str) -> list[int]:
        """Ids of a stretch of plain text."""
        text = check_text("the text", text)
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids, keep: tuple[str, ...] = ()) -> str:
        """Text of generated ids, without special tokens other than those named."""
        kept = {self.id(token): token for token in keep}
        stretches, plain = [], []
        for token in ids:
            if token in kept:
                stretches += [self._plain(plain), kept[token]]
                plain = []
            else:
                plain.append(token)
        return "".join([*stretches, self._plain(plain)])

    def _plain(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def user_content(prompt: str, num_images: int) -> str:
    """The user turn: placeholders for the images in front where they are lacking, first letter and last mark tidied.

    Raises InputError if the prompt has more `<image>` placeholders than there are images.
    """
    placeholders = prompt.count(IMAGE)
    if placeholders > num_images:
        raise InputError(f"the prompt has {placeholders} {IMAGE} placeholders, but {num_images} images are given")
    text = (f"{IMAGE}\n" * (num_images - placeholders) + prompt).strip()
    if not text:
        return text
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?,:;" else text + "."


class PromptBuilder:
    """Builds Prompts. tokens_per_tile: ViT tokens of one tile."""

    def __init__(self, tokenizer: Tokenizer, tokens_per_tile: int, max_tokens: int):
        self.tokenizer, self.tokens_per_tile, self.max_tokens = tokenizer, tokens_per_tile, max_tokens

    def chat(self, prompt: str, tiles: list[int], system_prompt: str | None, history: History = ()) -> Prompt:
        """A question, behind the turns so far. tiles: how many ViT tiles each image has, those of the turns first."""
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
        return self._build(self._draw_system(num_images, system_prompt), self._user(prompt, [1] * num_images))

    def partial(self, num_images: int, system_prompt: str | None, negative: str = "") -> Prompt:
        """Images without the prompt, or with a negative text in its place. num_images is at least 1."""
        if negative.strip():
            return self.full(negative, num_images, system_prompt)
        user = self._fill(f"{IMAGE}\n" * num_images + BLANK_WITH_IMAGES, [1] * num_images)
        return self._build(self._draw_system(num_images, system_prompt), user)

    def unconditional(self, num_images: int, system_prompt: str | None, negative: str = "") -> Prompt:
        """Neither images nor prompt; num_images only selects the system text."""
        user = ["Here is a random image ", [self.tokenizer.id(IMG_UNCOND)], ":"]
        if negative.strip():
            user = self._user(negative, [])
        return self._build(self._draw_system(num_images, system_prompt), user)

    def _draw_system(self, num_images: int, system_prompt: str | None) -> str:
        if system_prompt is not None:
            return system_prompt
        return EDIT_SYSTEM if num_images else DRAW_SYSTEM

    def _user(self, prompt: str, tiles: list[int]) -> list:
        return self._fill(user_content(prompt, len(tiles)), tiles)

    def _fill(self, text: str, tiles: list[int]) -> list:
        """Stretches of the user turn: its text cut at the placeholders, and each image's tokens as ids."""
        first, *rest = text.split(IMAGE)
        stretches = [first]
        for count, following in zip(tiles, rest, strict=True):
            context = [self.tokenizer.id(IMG_CONTEXT)] * (self.tokens_per_tile * count)
            stretches += [[self.tokenizer.id(IMG)], context, [self.tokenizer.id(IMG_END)], following]
        return stretches

    def _build(self, system: str, user: list, earlier: Sequence[tuple[list, str]] = ()) -> Prompt:
        """user: stretches of the question; earlier: those of each question before it, and its answer."""
        turn, end = [self.tokenizer.id(IM_START)], [self.tokenizer.id(IM_END)]
        before = [turn, "system\n" + system, end, "\n"]
        after = []
        for (first, *rest), answer in (*earlier, (user, None)):
            after += [turn, "user\n" + first, *rest, end, "\n", turn, "assistant\n" + (answer or "")]
            after += [] if answer is None else [end, "\n"]
        start = sum(len(self._ids(stretch)) for stretch in before)
        ids, image_mask = [], []
        context = self.tokenizer.id(IMG_CONTEXT)
        for stretch in before + after:
            stretch_ids = self._ids(stretch)
            ids += stretch_ids
            # Text cannot yield the id of <IMG_CONTEXT>, so where it stands the builder put it.
            image_mask += [token == context for token in stretch_ids]
        if len(ids) > self.max_tokens:
            what = "conversation, with its pictures and the new question," if earlier else "prompt"
            raise InputError(f"the {what} is {len(ids)} tokens long; this checkpoint reads at most {self.max_tokens}")
        return Prompt(tuple(ids), tuple(image_mask), start)

    def _ids(self, stretch: str | list[int]) -> list[int]:
        return self.tokenizer.encode(stretch) if isinstance(stretch, str) else stretch


def as_tensor(ids, device) -> Tensor:
    """[1, T] int64."""
    return torch.tensor([list(ids)], dtype=torch.long, device=device)
