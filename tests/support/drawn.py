"""What the tests of drawn figures share."""

import io
import json

import numpy as np
from PIL import Image

from internvlu_train.synthesis import kinds, make

SIZES = ((512, 512), (1024, 576), (576, 1024))


def every(domain: str) -> list[tuple[str, str]]:
    """(task, kind) of a domain."""
    return [(task, kind) for task, found in kinds(domain).items() for kind in found]


def pictures_of(sample) -> list[np.ndarray]:
    return [*sample.images, *([] if sample.picture is None else [sample.picture])]


def is_whole(domain: str, task: str, kind: str, seed: int, size=(512, 512)):
    """A sample with what its task needs, which another call makes again to the byte and JSON can hold."""
    one, again = (make(domain, task, seed, size, kind) for _ in range(2))
    assert (one.domain, one.task, one.prompt, one.words) == (domain, task, again.prompt, again.words)
    assert one.truth["kind"] == kind and json.loads(json.dumps(one.truth)) == one.truth == again.truth
    for picture, other in zip(pictures_of(one), pictures_of(again), strict=True):
        assert picture.shape == (size[1], size[0], 3) and picture.dtype == np.uint8
        assert np.array_equal(picture, other)
        assert picture.std() > 1
    assert (one.picture is None) == (task == "ask")
    assert bool(one.words) == (task in ("ask", "reason"))
    assert (task in ("edit", "ask")) <= bool(one.images) <= (task != "draw")
    if one.images and one.picture is not None:
        assert not np.array_equal(one.images[0], one.picture)
    assert one.prompt and not set("{}[]|") & set(one.prompt.replace("|x", "").split("$")[0].split("SMILES")[0]), (
        one.prompt
    )
    return one


def texts_collide(paper) -> list:
    """Texts that leave the picture, and pairs that overlap by more than a tenth of a letter."""
    words, edge = paper.words(), 0.12 * paper.unit
    outside = [text for text, b in words if b[0] < 0 or b[1] < 0 or b[2] > paper.width or b[3] > paper.height]
    pairs = [(one, other) for i, one in enumerate(words) for other in words[:i]]
    return outside + [(a, b) for (a, p), (b, q) in pairs if overlap(p, q, edge)]


def overlap(p, q, edge) -> bool:
    return min(p[2], q[2]) - max(p[0], q[0]) > edge and min(p[3], q[3]) - max(p[1], q[1]) > edge


def jpeg(picture: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=70)
    return np.array(Image.open(file))


def in_chinese(text: str) -> bool:
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)
