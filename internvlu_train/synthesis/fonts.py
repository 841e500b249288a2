"""Fonts: those of the extra's packages, and a user's folder. A face is known by what it looks like and can write."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from internvlu_core.errors import InputError, need

from . import LANGUAGES

LOOKS = ("sans", "serif", "slab", "poster", "hand", "script")
SUFFIXES = (".ttf", ".otf", ".ttc")
PROBES = {"en": "aQg7", "zh": "永国语"}  # a face writes a language if it has these


@dataclass(frozen=True)
class Face:
    """A font file. look: one of LOOKS. languages: of LANGUAGES. package: where it is from, or "" for a user's file.

    weights: the lightest and the boldest, of a variable font. index: in a collection. capitals: it has only these.
    """

    name: str
    look: str
    languages: tuple[str, ...]
    package: str
    file: str
    weights: tuple[int, int] | None = None
    index: int = 0
    capitals: bool = False

    @property
    def path(self) -> Path:
        """Raises InputError if its package is not installed."""
        if not self.package:
            return Path(self.file)
        return Path(need(self.package, "synthesis").__file__).parent / self.file


EN, BOTH = ("en",), ("en", "zh")
FACES = (
    Face("Noto Sans", "sans", EN, "fontpkg_noto_sans", "files/NotoSans[wdth,wght].ttf", (300, 900)),
    Face("Noto Serif", "serif", EN, "fontpkg_noto_serif", "files/NotoSerif[wdth,wght].ttf", (300, 900)),
    Face("Playfair Display", "serif", EN, "fontpkg_playfair_display", "files/PlayfairDisplay[wght].ttf", (400, 900)),
    Face("Roboto Slab", "slab", EN, "fontpkg_roboto_slab", "files/RobotoSlab[wght].ttf", (300, 900)),
    Face("Oswald", "poster", EN, "fontpkg_oswald", "files/Oswald[wght].ttf", (300, 700)),
    Face("Anton", "poster", EN, "fontpkg_anton", "files/Anton-Regular.ttf"),
    Face("Bebas Neue", "poster", EN, "fontpkg_bebas_neue", "files/BebasNeue-Regular.ttf", capitals=True),
    Face("Caveat", "hand", EN, "fontpkg_caveat", "files/Caveat[wght].ttf", (400, 700)),
    Face("Kalam", "hand", EN, "fontpkg_kalam", "files/Kalam-Regular.ttf"),
    Face(
        "Permanent Marker", "hand", EN, "fontpkg_permanent_marker", "files/PermanentMarker-Regular.ttf", capitals=True
    ),
    Face("Pacifico", "script", EN, "fontpkg_pacifico", "files/Pacifico-Regular.ttf"),
    Face("Noto Sans CJK SC", "sans", BOTH, "manimgx_fonts_cjk", "NotoSansCJK-VF.otf.ttc", (300, 900), index=2),
    Face("Noto Serif SC", "serif", BOTH, "pylopdf_fonts_zh_cn", "NotoSerifSC-Regular.otf"),
)


@lru_cache(maxsize=256)
def load(face: Face, size: int, weight: int = 400) -> ImageFont.FreeTypeFont:
    """A face at so many pixels. weight: of a variable font, brought into its limits.

    Raises InputError if the file is no font.
    """
    try:
        font = ImageFont.truetype(str(face.path), size, face.index)
    except OSError as error:
        raise InputError(f"cannot read the font {face.file}: {error}") from error
    if face.weights:
        low, high = face.weights
        axes = font.get_variation_axes()
        font.set_variation_by_axes(
            [min(max(weight, low), high) if a["name"] in (b"Weight", "Weight") else a["default"] for a in axes]
        )
    return font


def missing(face: Face, text: str) -> set[str]:
    """The characters that a face cannot write."""
    font = load(face, 24)
    none = bytes(font.getmask("\uffff")), font.getlength("\uffff")
    return {c for c in set(text) if not c.isspace() and (bytes(font.getmask(c)), font.getlength(c)) == none}


@lru_cache(maxsize=8)
def user_faces(folder: Path) -> tuple[Face, ...]:
    """The fonts in a folder. Those in a folder within it that is called like a look, such as "hand", have that look.

    Raises InputError if there are none.
    """
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        look = file.parent.name if file.parent.name in LOOKS else "sans"
        face = Face(file.stem, look, (), "", str(file))
        languages = tuple(language for language in LANGUAGES if not missing(face, PROBES[language]))
        if languages:
            found.append(Face(file.stem, look, languages, "", str(file)))
    if not found:
        raise InputError(f"no fonts ({', '.join(SUFFIXES)}) in {folder} that write {' or '.join(LANGUAGES)}")
    return tuple(found)


@lru_cache(maxsize=1)
def _check_packages():
    """Raise InputError unless all are installed: with fewer the same seed would give other samples."""
    for face in FACES:
        need(face.package, "synthesis")


def faces(text: str, looks: tuple[str, ...] = LOOKS, folder: Path | None = None) -> list[Face]:
    """The faces of these looks that can write a text; of any look if there are none. folder: of a user's fonts.

    A face for Chinese writes Latin letters too, and is not used for a text without Chinese if another is there.
    """
    language = "zh" if any(ord(c) > 0x2E7F for c in text) else "en"
    _check_packages()
    there = [*FACES, *(user_faces(folder) if folder else ())]
    able = [face for face in there if language in face.languages and not (not face.package and missing(face, text))]
    own = [face for face in able if language == "zh" or "zh" not in face.languages]
    return [face for face in own if face.look in looks] or own or able
