"""The domains text and humour: words that can be read, edits that change nothing else, prompts that name the words."""

import re
import sys

import numpy as np
import pytest
from PIL import Image

from internvlu_core import InputError
from internvlu_train.synthesis import Resources, fonts, humour, layout, make, phrases, text
from internvlu_train.synthesis.colours import NAMES, colour, contrast, luminance, readable
from internvlu_train.synthesis.judge import distance, lines_of, plain, wrong
from internvlu_train.synthesis.media import MEDIA

SIZE = (512, 448)
DOMAINS = {"text": text, "humour": humour}
PAIRS = [
    (domain, task, kind) for domain, module in DOMAINS.items() for task in module.KINDS for kind in module.KINDS[task]
]


@pytest.mark.parametrize(("domain", "task", "kind"), PAIRS)
def test_samples_are_whole_and_deterministic(domain, task, kind):
    for seed in (2, 3):
        one, again = (make(domain, task, seed, SIZE, kind) for _ in range(2))
        assert (one.domain, one.task, one.prompt, one.words) == (domain, task, again.prompt, again.words)
        assert one.truth == again.truth and one.truth["kind"] == kind and one.prompt
        pictures = [*one.images, *([] if one.picture is None else [one.picture])]
        assert len(pictures) == 2 if task == "edit" else len(pictures) == 1
        for picture, other in zip(pictures, [*again.images, again.picture], strict=False):
            assert picture.shape == (SIZE[1], SIZE[0], 3) and picture.dtype == np.uint8
            assert np.array_equal(picture, other)
        assert bool(one.words) == (task == "ask") and (one.picture is None) == (task == "ask")
        for text_ in one.truth["texts"]:
            assert plain("".join(line["text"] for line in text_["lines"])) == plain(text_["text"])
            for line in text_["lines"]:
                assert all(0 <= x <= SIZE[0] and 0 <= y <= SIZE[1] for x, y in line["quad"]), line


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_prompts_are_in_their_language_and_name_all_words(domain, language):
    for seed in range(4):
        sample = make(domain, "draw", seed, SIZE, language=language)
        assert all(found["text"] in sample.prompt for found in sample.truth["texts"])
        rest = sample.prompt
        for found in sample.truth["texts"]:
            rest = rest.replace(found["text"], "")
        assert bool(re.search("[一-鿿]", rest)) == (language == "zh"), rest


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("kind", ["change", "add", "remove", "restyle"])
def test_an_edit_changes_the_words_that_it_names_and_nothing_else(domain, kind):
    for seed in range(3):
        sample = make(domain, "edit", seed, SIZE, kind)
        before, after = ([found["text"] for found in sample.truth[name]] for name in ("before", "texts"))
        gone, new = set(before) - set(after), set(after) - set(before)
        assert (len(gone), len(new)) == {"change": (1, 1), "add": (0, 1), "remove": (1, 0), "restyle": (0, 0)}[
            kind
        ] or (kind == "restyle" and {a.casefold() for a in gone} == {a.casefold() for a in new})
        left, top, right, bottom = sample.truth["changed"]
        outside = np.ones(SIZE[::-1], bool)
        outside[top:bottom, left:right] = False
        assert np.array_equal(sample.images[0][outside], sample.picture[outside])
        quads = [line["quad"] for name in ("before", "texts") for found in sample.truth[name] for line in found["lines"]
                 if kind == "restyle" or found["text"] in gone | new]  # fmt: skip
        corners = np.array(quads).reshape(-1, 2)
        edge = 0.06 * SIZE[0]  # of outlines, shadows and light
        low, high = corners.min(0) - edge, corners.max(0) + edge
        assert left >= low[0] and top >= low[1] and right <= high[0] and bottom <= high[1]


@pytest.mark.parametrize(("domain", "language"), [("text", "en"), ("text", "zh"), ("humour", "en"), ("humour", "zh")])
def test_the_judge_reads_what_is_written(domain, language):
    sample = make(domain, "draw", 4, SIZE, language=language)
    verdict = DOMAINS[domain].check(sample, sample.picture)
    assert verdict.right and verdict.read >= 0.98, verdict
    other = make(domain, "draw", 6, SIZE, language=language)
    assert not DOMAINS[domain].check(sample, other.picture).right


def test_the_judge_of_edits_sees_what_was_not_done_and_what_was_done_besides():
    sample = make("text", "edit", 0, SIZE, "change", "en")
    assert text.check(sample, sample.picture).right
    assert not text.check(sample, sample.images[0]).right
    darker = (sample.picture * 0.85).astype(np.uint8)
    verdict = text.check(sample, darker)
    assert not verdict.right and not verdict.parts["kept"]
    sample = make("text", "edit", 1, SIZE, "remove", "en")
    assert not text.check(sample, sample.images[0]).parts["gone"]


def test_words_that_are_wrong_are_counted():
    assert wrong(["Summer Night", "June 14"], ["JUNE 14", "Summer  Nigth"]) == (1, 17)
    assert wrong(["生日快乐"], ["生日快了"]) == (1, 4)
    assert wrong(["cat"], []) == (3, 3)
    assert distance("kitten", "sitting") == 3 and distance("cat", "the cat sat", within=True) == 0


def test_lines_are_broken_between_words_and_characters():
    font = fonts.load(fonts.FACES[0], 20)
    assert layout.wrap("one two three", font, font.getlength("one two")) == ["one two", "three"]
    chinese = next(face for face in fonts.FACES if "zh" in face.languages)
    font = fonts.load(chinese, 20)
    assert layout.wrap("春夏秋冬，好", font, 4 * 20 + 1) == ["春夏秋", "冬，好"]


def test_a_text_that_does_not_fit_is_an_error_and_not_cut_off():
    style = layout.Style(fonts.FACES[0], (0, 0, 0))
    with pytest.raises(ValueError, match="does not fit 40 x 20 pixels"):
        layout.fit(layout.Block("title", "an endless sentence", (0, 0, 40, 20), style))
    size, lines = layout.fit(layout.Block("title", "an endless sentence", (0, 0, 200, 100), style))
    across, down = layout.measure(lines, style, size)
    assert across <= 200 and down <= 100 and "".join(lines).replace(" ", "") == "anendlesssentence"


def test_inks_can_be_read():
    assert float(contrast(luminance((255, 255, 255)), luminance((0, 0, 0)))) == pytest.approx(21)
    for ground in NAMES:
        below = np.full((20, 20, 3), colour(ground), np.uint8)
        best = [float(contrast(luminance(colour(ink)), luminance(colour(ground)))) for ink in readable(below)]
        assert min(best) >= 4.5 or len(best) == 1


def test_each_face_writes_its_languages():
    for face in fonts.FACES:
        for language in face.languages:
            assert not fonts.missing(face, fonts.PROBES[language]), face
    assert fonts.missing(fonts.FACES[0], "永") == {"永"}
    for language in ("en", "zh"):
        listed = phrases.WORDS[language]
        words = {c for kind in listed for entry in listed[kind] for c in "".join(entry)}
        for face in fonts.FACES:
            if language in face.languages:
                assert not fonts.missing(face, "".join(words)), face


def test_what_must_say_the_same_in_both_languages_is_paired():
    for kind in (
        "sign",
        "note",
        "meme",
        "prefer",
        "expect",
        "job",
        "shop",
        "wish",
        "genre",
        "slogan",
        "place",
        "event",
    ):
        assert len(phrases.WORDS["en"][kind]) == len(phrases.WORDS["zh"][kind]), kind


def test_a_users_fonts_and_pictures_are_used(tmp_path):
    (tmp_path / "fonts" / "hand").mkdir(parents=True)
    (tmp_path / "fonts" / "hand" / "mine.ttf").write_bytes(fonts.FACES[0].path.read_bytes())
    (face,) = fonts.user_faces(tmp_path / "fonts")
    assert (face.look, face.languages) == ("hand", ("en",))
    assert face in fonts.faces("abc", ("hand",), tmp_path / "fonts")
    assert face not in fonts.faces("永远", ("hand",), tmp_path / "fonts")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (80, 60), (10, 200, 30)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "a.txt").write_text("a green square")
    resources = Resources(tmp_path / "fonts", tmp_path / "pictures")
    sample = make("humour", "draw", 2, SIZE, "strip", "en", resources)
    assert "a green square" in sample.prompt
    assert np.abs(sample.picture[-40:].reshape(-1, 3).mean(0) - (10, 200, 30)).max() < 25


def test_a_folder_without_fonts_or_pictures_says_so(tmp_path):
    with pytest.raises(InputError, match="no fonts"):
        make("text", "draw", 2, SIZE, resources=Resources(fonts=tmp_path))
    with pytest.raises(InputError, match="there are no pictures"):
        make("humour", "draw", 2, SIZE, resources=Resources(pictures=tmp_path))


@pytest.mark.parametrize("package", ["fontpkg_kalam", "cv2"])
def test_a_missing_library_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    fonts._check_packages.cache_clear()
    with pytest.raises(InputError, match=r'pip install "\.\[synthesis\]"'):
        make("text", "draw", 2, SIZE, "card", "en")


def test_every_medium_is_drawn_at_every_shape():
    for kind in MEDIA:
        for seed, size in enumerate(((512, 512), (896, 512), (512, 896))):
            assert make("text", "draw", seed, size, kind).picture.shape == (size[1], size[0], 3)


def test_lines_of_a_truth():
    assert lines_of([{"lines": [{"text": "a"}, {"text": "b"}]}, {"lines": []}]) == ["a", "b"]
