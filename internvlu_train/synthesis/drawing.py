"""Figures in exact pixels with matplotlib's Agg renderer, without pyplot.

Figures are functions draw(paper, spec), where spec is a dict that JSON can hold. The same spec and size give the same
bytes: fonts are files of matplotlib and of a package, and matplotlib's settings are its own defaults, whatever a user's
matplotlibrc says.
"""

import functools
import math
import pathlib

import numpy as np
from PIL import ImageFont

from internvlu_core.errors import need

matplotlib = need("matplotlib", "synthesis")
Figure = need("matplotlib.figure", "synthesis").Figure
FigureCanvasAgg = need("matplotlib.backends.backend_agg", "synthesis").FigureCanvasAgg
FontProperties = need("matplotlib.font_manager", "synthesis").FontProperties
IdentityTransform = need("matplotlib.transforms", "synthesis").IdentityTransform
Text = need("matplotlib.text", "synthesis").Text
Path = need("matplotlib.path", "synthesis").Path
patches = need("matplotlib.patches", "synthesis")
chinese_fonts = need("pylopdf_fonts_zh_cn", "synthesis")

FONTS = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
# The Latin font, its bold, whether Chinese is set with serifs, matplotlib's set of mathematical fonts.
TYPEFACES = {
    "sans": ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", False, "dejavusans"),
    "serif": ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", True, "dejavuserif"),
    "times": ("STIXGeneral.ttf", "STIXGeneralBol.ttf", True, "stix"),
    "mono": ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf", False, "dejavusans"),
}
# (English, Chinese): RGB as hexadecimal digits. Told apart by a person and by a program.
COLOURS = {
    ("red", "红色"): "#d62728",
    ("blue", "蓝色"): "#1f5fd6",
    ("green", "绿色"): "#2ca02c",
    ("orange", "橙色"): "#ff8c1a",
    ("purple", "紫色"): "#8e44ad",
    ("teal", "青色"): "#16a3a3",
    ("pink", "粉色"): "#f06bb0",
    ("brown", "棕色"): "#8c5a3c",
}
COLOUR_NAMES = tuple(COLOURS)
HEX = {names[0]: rgb for names, rgb in COLOURS.items()}
# Backgrounds and the colour of text and lines on them.
PAPERS = (("#ffffff", "#111111"), ("#ffffff", "#222b45"), ("#faf6ec", "#2b2118"), ("#f2f6fa", "#1b2733"))
DARK = ("#1c2230", "#eef2f7")


def some_style(choices, dark: float = 0.1) -> dict:
    """Background, ink, typeface and width of lines. dark: how probable light lines on a dark background are."""
    paper, ink = choices.pick(PAPERS)
    if choices.flip(dark):
        paper, ink = DARK
    face = choices.pick(tuple(TYPEFACES))
    return {"paper": paper, "ink": ink, "face": face, "line": round(choices.uniform(0.8, 1.4), 2)}


def settings(face: str) -> dict:
    """matplotlib's own defaults, less the choice of a window system, with the mathematical fonts of a typeface."""
    kept = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
    return kept | {"mathtext.fontset": TYPEFACES[face][3]}


@functools.cache
def font_file(face: str, bold: bool, chinese: bool) -> str:
    latin, latin_bold, serif, _ = TYPEFACES[face]
    if chinese:
        return str(chinese_fonts.serif_path() if serif else chinese_fonts.sans_path())
    return str(FONTS / (latin_bold if bold else latin))


@functools.lru_cache(256)
def measured_font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


def is_chinese(words: str) -> bool:
    return any(ord(letter) >= 0x2E80 for letter in words)


class Paper:
    """A picture that is drawn on in pixels, y upwards. size: (width, height).

    unit: the height of ordinary text in pixels. line: the width of ordinary lines in pixels. What is drawn later
    covers what was drawn before. left, bottom, right, top: the part that is free, which title() and others reduce.
    """

    def __init__(self, size: tuple[int, int], style: dict):
        self.width, self.height = size
        self.style, self.ink, self.back = style, style["ink"], style["paper"]
        self.unit = 0.021 * min(size) + 0.012 * math.sqrt(self.width * self.height)
        self.line = self.unit / 9 * style["line"]
        self.figure = Figure(figsize=(self.width / 72, self.height / 72), dpi=72, facecolor=self.back)
        self.canvas = FigureCanvasAgg(self.figure)
        self.as_pixels = IdentityTransform()  # at 72 dots per inch a point is a pixel
        self.order, self.texts = 1, []
        margin = 1.2 * self.unit
        self.left, self.bottom, self.right, self.top = margin, margin, self.width - margin, self.height - margin

    def above(self) -> int:
        self.order += 1
        return self.order

    def put(self, artist):
        artist.set_transform(self.as_pixels)
        return self.figure.add_artist(artist)

    def bright(self, colour: str) -> str:
        """A colour for text and thin lines: lighter on a dark background."""
        return blend(colour, "#ffffff", 0.4) if self.style["paper"] == DARK[0] else colour

    def font(self, words: str, size: float = 1.0, bold: bool = False) -> FontProperties:
        file = font_file(self.style["face"], bold, is_chinese(words))
        return FontProperties(fname=file, size=size * self.unit)

    def measure(self, words: str, size: float = 1.0, bold: bool = False) -> float:
        """The width of a text in pixels; of mathematics a guess."""
        plain = words.replace("$", "").replace("\\", "")
        file = font_file(self.style["face"], bold, is_chinese(words))
        return max(measured_font(file, 100).getlength(line) for line in plain.split("\n")) * size * self.unit / 100

    def fit(self, words: str, width: float, size: float = 1.0, bold: bool = False) -> float:
        """The size at which a text is at most so wide, at most `size`."""
        return size * min(1.0, width / max(1e-6, self.measure(words, size, bold)))

    def text(self, x, y, words, size=1.0, bold=False, colour=None, ha="center", va="center", turn=0.0, halo=False):
        """halo: whether the text's surroundings are cleared of lines."""
        box = {"facecolor": self.back, "edgecolor": "none", "pad": 0.15 * self.unit} if halo else None
        text = Text(x, y, words, color=colour or self.ink, ha=ha, va=va, rotation=turn, zorder=self.above())
        text.set_fontproperties(self.font(words, size, bold))
        text.set_bbox(box)
        self.texts.append(text)
        return self.put(text)

    def title(self, words: str, size: float = 1.35, bold: bool = True):
        """A title at the top of what is free."""
        size = self.fit(words, self.width - 2.4 * self.unit, size, bold)
        self.text(self.width / 2, self.top, words, size, bold, va="top")
        self.top -= (size + 0.9) * self.unit

    def caption(self, words: str, size: float = 1.0):
        """Words at the bottom of what is free."""
        size = self.fit(words, self.width - 2.4 * self.unit, size)
        self.text(self.width / 2, self.bottom, words, size, va="bottom")
        self.bottom += (size + 0.9) * self.unit

    def path(self, points, colour=None, width=1.0, dash=None, fill=None, closed=False, alpha=1.0):
        """A line through points [(x, y), …]. width: in ordinary widths. dash: lengths in ordinary widths."""
        style = {"linewidth": width * self.line, "zorder": self.above(), "alpha": alpha, "joinstyle": "round"}
        dashes = "solid" if dash is None else (0, tuple(length / width for length in dash))
        points, closed = np.asarray(points, float), closed or fill is not None
        shape = patches.PathPatch(Path(np.concatenate([points, points[:1]]) if closed else points, closed=closed))
        shape.set(
            **style,
            edgecolor=colour or self.ink,
            facecolor=fill or "none",
            fill=fill is not None,
            linestyle=dashes,
            capstyle="butt",
        )
        return self.put(shape)

    def disc(self, x, y, radius, fill=None, colour=None, width=1.0):
        shape = patches.Circle((x, y), radius, zorder=self.above(), linewidth=width * self.line)
        shape.set(facecolor=fill or "none", edgecolor=colour or self.ink)
        return self.put(shape)

    def box(self, x, y, width, height, fill=None, colour=None, line=1.0):
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
        return self.path(corners, colour, line, fill=fill, closed=True)

    def arc(self, x, y, radius, start, end, colour=None, width=1.0, fill=None):
        """Part of a circle from one angle to another in degrees, anticlockwise."""
        angles = np.radians(np.linspace(start, end, max(8, int(abs(end - start) / 2))))
        points = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
        if fill:
            self.path([(x, y), *points], "none", fill=fill, alpha=0.35)
        return self.path(points, colour, width)

    def arrow(self, tail, head, colour=None, width=1.0, size=1.0, bend=0.0, cut=0.0):
        """bend: curvature, positive to the left of the way. cut: pixels left out at both ends. size: of the head."""
        shape = patches.FancyArrowPatch(
            tail,
            head,
            connectionstyle=f"arc3,rad={bend}",
            arrowstyle=patches.ArrowStyle("-|>", head_length=0.5, head_width=0.22),
            mutation_scale=size * self.unit,
            shrinkA=cut,
            shrinkB=cut,
            linewidth=width * self.line,
            color=colour or self.ink,
            zorder=self.above(),
            joinstyle="miter",
            capstyle="butt",
        )
        return self.put(shape)

    def plane(self, x0, x1, y0, y1):
        """A map from coordinates of the same scale on both axes to the free part's middle."""
        return Plane(self, x0, x1, y0, y1)

    def words(self) -> list[tuple[str, tuple[float, float, float, float]]]:
        """Each text with the box that it takes: (left, bottom, right, top) in pixels. After pixels()."""
        renderer, found = self.canvas.get_renderer(), []
        for text in self.figure.findobj(Text):
            if text.get_visible() and text.get_text().strip():
                box = text.get_window_extent(renderer)
                found.append((text.get_text(), (box.x0, box.y0, box.x1, box.y1)))
        return found

    def pixels(self) -> np.ndarray:
        """The picture, uint8 [H, W, 3]."""
        self.canvas.draw()
        return np.ascontiguousarray(np.asarray(self.canvas.buffer_rgba())[..., :3])


class Plane:
    """Coordinates that fill the free part of a paper, with the same scale in both directions. scale: pixels per one."""

    def __init__(self, paper: Paper, x0, x1, y0, y1):
        width, height = paper.right - paper.left, paper.top - paper.bottom
        self.scale = min(width / (x1 - x0), height / (y1 - y0))
        self.x = (paper.left + paper.right - self.scale * (x0 + x1)) / 2
        self.y = (paper.bottom + paper.top - self.scale * (y0 + y1)) / 2

    def at(self, x, y) -> tuple[float, float]:
        return self.x + self.scale * x, self.y + self.scale * y

    def all(self, points) -> list[tuple[float, float]]:
        return [self.at(x, y) for x, y in points]


def render(draw, spec: dict, size: tuple[int, int]) -> np.ndarray:
    """The picture of a spec, uint8 [H, W, 3]. spec["style"]: see some_style()."""
    return drawn(draw, spec, size)[0]


def drawn(draw, spec: dict, size: tuple[int, int]) -> tuple[np.ndarray, Paper]:
    """The picture, and the paper that it was drawn on."""
    with matplotlib.rc_context(settings(spec["style"]["face"])):
        paper = Paper(size, spec["style"])
        draw(paper, spec)
        return paper.pixels(), paper


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def blend(colour: str, other: str, share: float) -> str:
    """A colour with so much of another."""
    mixed = (1 - share) * rgb(colour) + share * rgb(other)
    return "#" + "".join(f"{round(value):02x}" for value in mixed)
