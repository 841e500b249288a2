"""Judge pictures with words by an OCR model: RapidOCR with PP-OCR's weights, which are in its package."""

import argparse
import logging
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from internvlu_core.batch.worker import read_size
from internvlu_core.errors import need

from ..sample import Sample
from . import LANGUAGES, make

READ = 0.9  # share of the characters that must be read; OCR itself errs in some, see docs/synthesis.md
KEPT = 6.0  # largest mean difference, in levels of 255, of what an edit must leave as it was
GONE = 0.5  # words of which less is still read are gone


@dataclass(frozen=True)
class Verdict:
    """right: the picture shows what was asked for. read: share of the characters that OCR finds. parts: each aspect on
    its own."""

    right: bool
    read: float
    parts: dict[str, bool]


@lru_cache(maxsize=1)
def engine():
    """The OCR model. Raises InputError if its package is not installed."""
    module = need("rapidocr", "synthesis")
    need("onnxruntime", "synthesis")
    made = module.RapidOCR(params={"Global.log_level": "error"})
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    return made


def read(picture: np.ndarray) -> list[str]:
    """The lines that OCR finds in a picture, uint8 [H, W, 3], from top to bottom."""
    found = engine()(np.ascontiguousarray(picture[..., ::-1]))
    if found.txts is None:
        return []
    return [text for _, text in sorted(zip((box.mean(0)[1] for box in found.boxes), found.txts, strict=True))]


def plain(text: str) -> str:
    """Letters and digits of a text, without the differences that OCR does not see."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if c.isalnum())


def distance(wanted: str, found: str, within: bool = False) -> int:
    """The edit distance of two texts. within: to the part of `found` that is nearest."""
    row = [0] * (len(found) + 1) if within else list(range(len(found) + 1))
    for i, a in enumerate(wanted, 1):
        previous, row = row, [i]
        for j, b in enumerate(found, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (a != b)))
    return min(row) if within else row[-1]


def wrong(texts: list[str], picture_lines: list[str]) -> tuple[int, int]:
    """(characters of the texts that were not read, all of them).

    A text may be in several lines, in any order of lines, but not in two places at once.
    """
    missed = count = 0
    whole = plain("".join(picture_lines))
    for text in texts:
        wanted = plain(text)
        missed, count = missed + distance(wanted, whole, within=True), count + len(wanted)
    return missed, count


def lines_of(texts: list[dict]) -> list[str]:
    """The lines of a truth's texts."""
    return [line["text"] for text in texts for line in text["lines"]]


def judge_texts(truth: dict, picture: np.ndarray) -> Verdict:
    """Whether all words of a truth are in a picture."""
    found = read(picture)
    missed, count = wrong(lines_of(truth["texts"]), found)
    share = 1 - missed / max(1, count)
    parts = {text["text"]: _share([line["text"] for line in text["lines"]], found) >= READ for text in truth["texts"]}
    return Verdict(share >= READ and all(parts.values()), share, parts)


def _share(lines: list[str], found: list[str]) -> float:
    missed, count = wrong(lines, found)
    return 1 - missed / max(1, count)


def judge_changes(sample: Sample, picture: np.ndarray, verdict: Verdict) -> Verdict:
    """Add to a verdict on the words of an edit: what it took away is gone, and all else is as it was."""
    truth = sample.truth
    # Capitals are no other words: a face may have no small letters.
    there, left, top, right, bottom = {plain(text["text"]) for text in truth["texts"]}, *truth["changed"]
    gone = [text["text"] for text in truth["before"] if plain(text["text"]) not in there]
    region = picture[max(0, top - 8) : bottom + 8, max(0, left - 8) : right + 8]
    kept = np.ones(picture.shape[:2], bool)
    kept[top:bottom, left:right] = False
    apart = np.abs(picture.astype(np.float32) - sample.images[0]).mean(-1)
    parts = dict(verdict.parts)
    if gone:
        lines = read(region)
        parts["gone"] = all(_gone(text, lines, there) for text in gone)
    else:
        old, new = (np.float32(image[top:bottom, left:right]) for image in (sample.images[0], sample.picture))
        shown = np.float32(picture[top:bottom, left:right])
        parts["restyled"] = bool(np.abs(shown - new).mean() < np.abs(shown - old).mean())
    parts["kept"] = not kept.any() or float(apart[kept].mean()) <= KEPT
    return Verdict(all(parts.values()), verdict.read, parts)


def _gone(text: str, lines: list[str], there: set[str]) -> bool:
    """Whether a text is not read any more, unless it is as near to one that must be there. there: as of plain()."""
    wanted, whole = plain(text), plain("".join(lines))
    still = 1 - distance(wanted, whole, within=True) / max(1, len(wanted))
    near = max((1 - distance(wanted, other, within=True) / max(1, len(wanted)) for other in there), default=0)
    return still < max(GONE, near + 0.01) or (still < 1 and near > GONE)


def main(arguments: list[str] | None = None):
    """Print how many of the characters that samples of drawing show are read back: what the judge itself misses."""
    parser = argparse.ArgumentParser(prog="python -m internvlu_train.synthesis.judge", description=main.__doc__)
    parser.add_argument("--domain", choices=("text", "humour"), default="text")
    parser.add_argument("--language", choices=LANGUAGES)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--size", nargs="+", default=["1024x1024", "1024x576", "768x1024", "640x640"])
    options = parser.parse_args(arguments)
    sizes, missed, total = [read_size(size) for size in options.size], 0, 0
    for seed in range(options.count):
        sample = make(options.domain, "draw", seed, sizes[seed % len(sizes)], language=options.language)
        new, count = wrong(lines_of(sample.truth["texts"]), read(sample.picture))
        missed, total = missed + new, total + count
    print(
        f"{missed} of {total} characters of {options.count} samples were not read: {1 - missed / total:.2%} are right"
    )


if __name__ == "__main__":
    main()
