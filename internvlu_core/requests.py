"""What is asked of the model, as values that check themselves: TextRequest and DrawRequest.

Each method of InternVLU makes one of its arguments, or takes a ready one in their place. What depends on a checkpoint
(sizes, scales, the length of a prompt) is checked where the checkpoint is known.
"""

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from typing import TypeVar

from PIL import Image

from .conversation import Turn, as_history, as_images
from .decoding import TextResult, TextSettings
from .errors import MAX_SEED, MAX_SETTING, InputError, check_integer, check_number, check_text
from .sampling import MAX_STEPS

MAX_IMAGES = 4096  # pictures of one call; also the largest batch in ComfyUI

ANSWER_TOKENS, REASON_TOKENS = 1024, 200  # default max_new_tokens of an answer and of reasoning

# Settings of TextRequest that reasoning does not have, and of DrawRequest that its conditioning does not depend on.
ANSWER_ONLY = frozenset({"max_tiles", "history"})
DRAW_ONLY = frozenset(
    {"height", "width", "steps", "all_scale", "partial_scale", "seed", "num_images", "guidance_start", "guidance_end"}
)

Request = TypeVar("Request", "TextRequest", "DrawRequest")


@dataclass(frozen=True)
class TextRequest:
    """A text to write: an answer, or reasoning about a picture to draw.

    prompt: `<image>` in it says where a picture belongs; missing ones go in front. images: PIL pictures, one or a list.
    system_prompt: replaces the system text of the checkpoint's training. max_new_tokens, num_beams, temperature, top_p,
    top_k, seed: see TextSettings. Answers only: max_tiles, the most ViT tiles into which a picture is cut (for
    documents and charts), at most the checkpoint's own limit; history, the turns before this one, with their pictures.

    Raises InputError naming the value that cannot be used.
    """

    prompt: str
    images: Iterable[Image.Image] | Image.Image | None = None
    _: KW_ONLY
    system_prompt: str | None = None
    max_new_tokens: int = ANSWER_TOKENS
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tiles: int = 1
    history: Iterable[Turn] | None = None

    def __post_init__(self):
        self.settings  # noqa: B018 - checks them
        check_integer("max_tiles", self.max_tiles, 1, MAX_SETTING)
        _check(self, "prompt", optional=("system_prompt",))
        object.__setattr__(self, "images", tuple(as_images(self.images)))
        object.__setattr__(self, "history", as_history(self.history))

    @property
    def settings(self) -> TextSettings:
        """How the next token is chosen."""
        return TextSettings(self.max_new_tokens, self.num_beams, self.temperature, self.top_p, self.top_k, self.seed)


@dataclass(frozen=True)
class DrawRequest:
    """A picture to draw, or pictures to edit.

    prompt, images, system_prompt: as in TextRequest. height, width: pixels; by default those of the checkpoint, or, for
    an edit, those of the first picture, scaled to the size at which the model reads it. A size off the model's grid is
    drawn at the next lower one and resized. steps: of the sampler. all_scale, partial_scale: guidance; by default the
    checkpoint's. seed: of the noise. num_images: pictures drawn at once. guidance_start, guidance_end: the steps that
    are guided, as fractions of all; others follow the prompt alone, in a half or a third of the time.

    reasoning: a TextResult, whose tokens are cut and padded as in the official pipeline, or used whole with
    whole_reasoning; or a string, which is always used whole. negative: what the picture should not be, in place of the
    blank prompt of the unconditional branch. partial_negative (experimental): the same for the branch that sees the
    pictures, without effect where there are none.

    Raises InputError naming the value that cannot be used.
    """

    prompt: str
    images: Iterable[Image.Image] | Image.Image | None = None
    _: KW_ONLY
    height: int | None = None
    width: int | None = None
    steps: int = 20
    all_scale: float | None = None
    partial_scale: float | None = None
    seed: int = 0
    num_images: int = 1
    reasoning: TextResult | str | None = None
    whole_reasoning: bool = False
    system_prompt: str | None = None
    negative: str = ""
    partial_negative: str = ""
    guidance_start: float = 0.0
    guidance_end: float = 1.0

    def __post_init__(self):
        _check(self, "prompt", "negative", "partial_negative", optional=("system_prompt",))
        if isinstance(self.reasoning, str):
            check_text("reasoning", self.reasoning)
        elif self.reasoning is not None and not isinstance(self.reasoning, TextResult):
            raise InputError(f"reasoning must be a TextResult or a string, not {type(self.reasoning).__name__}")
        for name in ("guidance_start", "guidance_end"):
            check_number(name, getattr(self, name), lambda fraction: 0 <= fraction <= 1, "from 0 to 1")
        if self.guidance_start > self.guidance_end:
            raise InputError(f"guidance_start is {self.guidance_start}, behind guidance_end, {self.guidance_end}")
        check_integer("steps", self.steps, 1, MAX_STEPS)
        check_integer("num_images", self.num_images, 1, MAX_IMAGES)
        check_integer("seed", self.seed, 0, MAX_SEED)
        object.__setattr__(self, "images", tuple(as_images(self.images)))

    @property
    def guided(self) -> tuple[float, float]:
        """Where the guided steps begin and end, as fractions of all."""
        return self.guidance_start, self.guidance_end


def as_request(
    kind: type[Request], prompt: str | Request, images, settings: Mapping, without: frozenset[str] = frozenset()
) -> Request:
    """The request that a method's arguments mean. prompt: may be a ready request, then with nothing beside it.

    without: settings that the method has not. Raises TypeError naming unknown settings, InputError for bad values.
    """
    if isinstance(prompt, kind):
        if images is not None or settings:
            raise TypeError(f"a {kind.__name__} already holds its images and settings; give nothing beside it")
        return prompt
    unknown = settings.keys() - ({field.name for field in fields(kind)} - without)
    if unknown:
        raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
    return kind(prompt, images, **settings)


def from_settings(kind: type[Request], given: Request | Mapping, without: frozenset[str] = frozenset()) -> Request:
    """The request that an entry of answer_many's requests means: a ready one, or a mapping of its settings.

    Errors and without: as in as_request. Raises TypeError also for anything else, and for a mapping without a prompt.
    """
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(f"a request must be a {kind.__name__} or a mapping of its settings, not {type(given).__name__}")
    if "prompt" not in given:
        raise TypeError("the request has no prompt")
    settings = {name: value for name, value in given.items() if name not in ("prompt", "images")}
    return as_request(kind, given["prompt"], given.get("images"), settings, without)


def _check(request, *names: str, optional: tuple[str, ...] = ()):
    """The texts of these names."""
    for name in (*names, *(name for name in optional if getattr(request, name) is not None)):
        check_text(name, getattr(request, name))
