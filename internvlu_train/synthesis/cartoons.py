"""Free pictures for memes: animals' faces in a mood, drawn here; or a user's folder of pictures."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from internvlu_core.errors import InputError
from internvlu_core.imaging import open_image

from . import LanguageChoices

ANIMALS = {"cat": "猫", "dog": "狗", "bear": "熊", "rabbit": "兔子", "frog": "青蛙", "robot": "机器人"}
MOODS = {"happy": "开心", "sad": "难过", "surprised": "惊讶", "angry": "生气", "smug": "得意", "tired": "疲惫"}
FURS = ((214, 140, 62), (120, 84, 58), (232, 212, 184), (128, 130, 138), (92, 172, 84), (240, 236, 230), (88, 140, 190))
WALLS = (
    (250, 204, 96),
    (126, 196, 226),
    (244, 160, 160),
    (172, 214, 150),
    (196, 176, 232),
    (90, 110, 150),
    (60, 64, 80),
)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
DARK, LIGHT = (36, 30, 34), (252, 250, 246)


@dataclass(frozen=True)
class Scene:
    """What is in a picture. animal: one of ANIMALS, or "" for a user's file. words: of it, in the prompt's language."""

    animal: str
    fur: tuple[int, int, int]
    wall: tuple[int, int, int]
    words: str
    file: Path | None = None


def choose(choices: LanguageChoices) -> Scene:
    """An animal, or one of the user's pictures."""
    animal, fur, wall = choices.pick(list(ANIMALS)), choices.pick(FURS), choices.pick(WALLS)
    folder = choices.resources.pictures
    if folder:
        file = choices.pick(files(folder))
        note = file.with_suffix(".txt")
        words = note.read_text(encoding="utf-8").strip() if note.exists() else file.stem.replace("_", " ")
        return Scene("", fur, wall, words, file)
    return Scene(animal, fur, wall, ANIMALS[animal] if choices.language == "zh" else animal)


@lru_cache(maxsize=8)
def files(folder: Path) -> list[Path]:
    """The pictures in a folder, in the order of their names. Raises InputError if there are none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"there are no pictures ({', '.join(SUFFIXES)}) in {folder}")
    return found


def paint(scene: Scene, mood: str, size: tuple[int, int]) -> Image.Image:
    """A picture of a scene, RGB, of this size. mood: one of MOODS, of a drawn animal.

    Raises ValueError for a user's picture that cannot be read: other samples can be made without it.
    """
    if scene.file:
        try:
            return ImageOps.fit(open_image(scene.file).convert("RGB"), size, Image.Resampling.LANCZOS)
        except InputError as error:
            raise ValueError(str(error)) from error
    width, height = 2 * size[0], 2 * size[1]
    down = np.linspace(1.06, 0.78, height)[:, None, None]
    wall = np.broadcast_to((np.float64(scene.wall) * down).clip(0, 255).astype(np.uint8), (height, width, 3))
    image = Image.fromarray(np.ascontiguousarray(wall))
    Face(ImageDraw.Draw(image), (width / 2, 0.55 * height), 0.3 * min(width, height), scene).paint(mood)
    return image.resize(size, Image.Resampling.BOX)


class Face:
    """A face on a drawing. middle, radius: of the head, in pixels."""

    def __init__(self, draw: ImageDraw.ImageDraw, middle: tuple[float, float], radius: float, scene: Scene):
        self.draw, self.middle, self.radius, self.scene = draw, middle, radius, scene
        self.shade = tuple(int(0.78 * level) for level in scene.fur)
        self.line = max(2, round(0.035 * radius))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point, in radii from the middle."""
        return self.middle[0] + x * self.radius, self.middle[1] + y * self.radius

    def oval(self, x: float, y: float, across: float, down: float, fill, outline=None):
        (left, top), (right, bottom) = self.at(x - across, y - down), self.at(x + across, y + down)
        self.draw.ellipse((left, top, right, bottom), fill, outline, self.line)

    def polygon(self, *points, fill):
        self.draw.polygon([self.at(*point) for point in points], fill, DARK, self.line)

    def curve(self, x: float, y: float, across: float, down: float, begin: int, end: int, width: float = 1.6):
        (left, top), (right, bottom) = self.at(x - across, y - down), self.at(x + across, y + down)
        self.draw.arc((left, top, right, bottom), begin, end, DARK, round(width * self.line))

    def paint(self, mood: str):
        """All of it."""
        fur, animal = self.scene.fur, self.scene.animal
        self.oval(0, 1.55, 0.95, 0.75, self.shade, DARK)  # shoulders
        self.ears(animal)
        if animal == "robot":
            (left, top), (right, bottom) = self.at(-0.95, -0.8), self.at(0.95, 0.85)
            self.draw.rounded_rectangle((left, top, right, bottom), 0.2 * self.radius, (170, 178, 190), DARK, self.line)
        else:
            self.oval(0, 0, 1, 0.9, fur, DARK)
        for side in (-1, 1):
            self.eye(side, mood)
        if animal not in ("robot", "frog"):
            self.oval(0, 0.34, 0.42, 0.3, LIGHT)
            self.oval(0, 0.2, 0.11, 0.08, DARK)
        self.mouth(mood)

    def ears(self, animal: str):
        """What is above the head."""
        for s in (-1, 1):
            if animal == "cat":
                self.polygon((s * 0.92, -0.2), (s * 0.85, -1.15), (s * 0.25, -0.8), fill=self.scene.fur)
            elif animal == "dog":
                self.oval(s * 0.95, -0.1, 0.26, 0.62, self.shade, DARK)
            elif animal == "bear":
                self.oval(s * 0.72, -0.72, 0.3, 0.3, self.shade, DARK)
            elif animal == "rabbit":
                self.oval(s * 0.42, -1.15, 0.2, 0.62, self.scene.fur, DARK)
            elif animal == "frog":
                self.oval(s * 0.5, -0.72, 0.36, 0.36, self.scene.fur, DARK)
        if animal == "robot":
            self.draw.line((*self.at(0, -0.8), *self.at(0, -1.2)), DARK, 2 * self.line)
            self.oval(0, -1.25, 0.11, 0.11, (226, 60, 60), DARK)

    def eye(self, s: int, mood: str):
        """The eye and the brow of a side: -1 left, 1 right."""
        x, y = s * 0.42, -0.68 if self.scene.animal == "frog" else -0.22
        size = 0.26 if mood == "surprised" else 0.2
        if mood == "tired" or (mood == "happy" and self.scene.animal == "cat"):
            begin, end = (20, 160) if mood == "tired" else (200, 340)
            self.curve(x, y, 0.2, 0.14, begin, end)
        else:
            self.oval(x, y, size, size, LIGHT, DARK)
            away = 0.09 if mood == "smug" else 0
            self.oval(x + away, y + (0.05 if mood == "sad" else 0), 0.1, 0.1, DARK)
        if mood == "smug":  # half closed
            (left, top), (right, bottom) = self.at(x - size, y - size), self.at(x + size, y + size)
            lid = (170, 178, 190) if self.scene.animal == "robot" else self.scene.fur
            self.draw.pieslice((left, top, right, bottom), 180, 360, lid, DARK, self.line)
        inner, outer = {"angry": (0.16, -0.12), "sad": (-0.14, 0.1), "surprised": (-0.12, -0.12)}.get(mood, (0, 0))
        if inner or outer:
            points = (*self.at(x - s * 0.22, y - 0.32 + inner), *self.at(x + s * 0.22, y - 0.32 + outer))
            self.draw.line(points, DARK, 2 * self.line)

    def mouth(self, mood: str):
        """The mouth."""
        y = 0.42
        if mood == "happy":
            (left, top), (right, bottom) = self.at(-0.3, y - 0.2), self.at(0.3, y + 0.24)
            self.draw.chord((left, top, right, bottom), 0, 180, (150, 40, 50), DARK, self.line)
        elif mood == "surprised":
            self.oval(0, y + 0.06, 0.13, 0.17, (150, 40, 50), DARK)
        elif mood == "smug":
            self.curve(0.08, y - 0.1, 0.3, 0.2, 10, 120)
        elif mood in ("sad", "angry"):
            self.curve(0, y + 0.2, 0.26, 0.16, 190, 350)
        else:
            self.draw.line((*self.at(-0.2, y + 0.06), *self.at(0.2, y + 0.06)), DARK, round(1.6 * self.line))
