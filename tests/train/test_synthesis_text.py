"""The domains text and humour: words that can be read, edits that change nothing else, prompts that name the words."""

import re
import sys

import numpy as np
import pytest
from PIL import Image

from internvlu_core import InputError
from internvlu_train.sample import Sample
from internvlu_train.synthesis import (
    LanguageChoices,
    Resources,
    fonts,
    humour,
    layout,
    make,
    media,
    phrases,
    scenes,
    text,
    text_prompts,
)
from internvlu_train.synthesis.colours import NAMES, colour, contrast, luminance, readable
from internvlu_train.synthesis.judge import Verdict, distance, judge_changes, lines_of, plain, wrong
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


def chances(count, language=None, size=SIZE):
    """So many LanguageChoices."""
    return (LanguageChoices("test", seed, size, language) for seed in range(count))


def said(function, *arguments, language="en", count=60):
    """All that a function of text_prompts says in so many tries."""
    return {function(choices, *arguments) for choices in chances(count, language)}


def test_the_light_of_neon_is_called_by_its_name():
    shown = {
        (text_prompts.ink_name(block, "en"), block.style.second)
        for choices in chances(12)
        for block in media.tried(media.neon)(choices).blocks
    }
    assert len(shown) > 4 and all(colour(name) == light for name, light in shown)


@pytest.mark.parametrize(
    ("make_piece", "wanted"),
    [
        (media.road, r".+ \d+( km|公里)"),
        (media.warning, "|".join(map(re.escape, phrases.WORDS["en"]["sign"] + phrases.WORDS["zh"]["sign"]))),
        (lambda choices: humour.panels(choices).piece(), "(Expectation|Reality|期待|现实)[:：].+"),
    ],
)
def test_other_words_of_a_line_are_of_its_kind(make_piece, wanted):
    for choices in chances(12):
        piece = media.tried(make_piece)(choices)
        for block in piece.blocks:
            new, words = text.another(choices, piece, block)
            assert words or re.fullmatch(wanted, new, re.IGNORECASE), new


def test_a_single_word_is_replaced_where_it_is_unique_and_by_its_like():
    pieces = [*MEDIA.values(), *(lambda choices, f=f: f(choices).piece() for f in humour.LAYOUTS.values())]
    found = 0
    for number, choices in enumerate(chances(80, "en")):
        piece = pieces[number % len(pieces)](choices)
        block = choices.pick(piece.blocks)
        new, words = text.another(choices, piece, block)
        if words:
            every = re.findall(r"\w+", " ".join(other.text for other in piece.blocks).casefold())
            assert every.count(words[0].casefold()) == 1 and words[1].casefold() not in every, (words, every)
            assert new == block.text.replace(*words)
            found += 1
    assert found > 8
    assert set(phrases.swaps(phrases.date, "April")) == set(phrases.WORDS["en"]["month"]) - {"April"}
    assert phrases.swaps(phrases.of("note"), "dog") == ["cat", "rabbit", "parrot"]
    assert "CAT" in phrases.swaps(phrases.of("note"), "DOG") and "Cat" in phrases.swaps(phrases.of("sign"), "Dog")
    assert not phrases.swaps(phrases.of("slogan"), "difference") and not phrases.swaps(phrases.event, "Market")


def test_a_word_that_is_there_twice_is_not_replaced_alone():
    style, make_note = layout.Style(fonts.FACES[0], (0, 0, 0)), phrases.of("note")
    texts = "Walk the dog at seven", "Feed the dog tonight"
    blocks = tuple(layout.Block("line 1", words, (0, 0, 300, 40), style, make=make_note) for words in texts)
    piece = media.Piece(("note", "纸条"), Image.new("RGBA", (300, 80)), blocks, "white", "", 0)
    found = {text.another(choices, piece, blocks[0])[1] for choices in chances(40)} - {None}
    assert {old for old, _ in found} == {"seven"}


def test_words_without_room_are_left_out_unless_they_are_needed():
    (choices,) = chances(1)
    for low, wanted in ((0.5, ["title"]), (1.0, ["title", "genre"])):
        builder = media.Builder(choices, Image.new("RGB", (300, 60), "white"))
        builder.write("title", "One", (0, 0, 1, 0.8))
        builder.write("genre", "Two", (0, low - 0.4, 1, low - 0.4 + 0.8 * (low - 0.4)))
        assert [block.role for block in builder.piece(("a", "b"), "white", "", 0).blocks] == wanted
    builder.write("name", "Three", (0, 0, 1, 0.1))
    with pytest.raises(layout.NoRoom):
        builder.piece(("a", "b"), "white", "", 0)


def test_what_is_added_is_said_to_be_where_it_is():
    for size, places in (
        ((512, 288), ("left of", "right of", "左边", "右边")),
        ((288, 512), ("above", "below", "上方", "下方")),
    ):
        for language, (first, second) in (("en", places[:2]), ("zh", places[2:])):
            (choices,) = chances(1, language, size)
            piece = humour.LAYOUTS["panels"](choices).piece()
            assert first in text_prompts.beside(choices, piece, 0) and second in text_prompts.beside(choices, piece, 1)


def test_signs_say_the_same_and_hours_have_their_time_of_day():
    signs = dict(zip(*(phrases.WORDS[language]["sign"] for language in ("en", "zh")), strict=True))
    assert (signs["Mind the Gap"], signs["Caution: Steps"], signs["Fire Exit"]) == ("小心空隙", "小心台阶", "紧急出口")
    seen = set()
    for english, chinese in zip(chances(150), chances(150), strict=True):
        one, other = phrases.date(english, "en"), phrases.date(chinese, "zh")
        if time := re.search(r" (\d+) (am|pm)$", one):
            hour = int(time[1]) % 12 + 12 * (time[2] == "pm")
            word = "上午" if 5 < hour < 12 else "中午" if hour == 12 else "下午" if 12 < hour < 18 else "晚上"
            assert 6 <= hour <= 23 and other.endswith(f" {word}{time[1]}点"), (one, other)
            seen.add(word)
    assert len(seen) == 4


def test_an_edit_that_cannot_be_made_ends():
    with pytest.raises(layout.NoRoom, match="does not fit"):
        make("text", "edit", 0, (64, 64), "change", "en")
    (choices,) = chances(1)
    piece = MEDIA["card"](choices)
    words = piece.blocks[0].text
    blocks = tuple(layout.replace(block, make=lambda *_: words) for block in piece.blocks)
    with pytest.raises(layout.NoRoom, match="no other words fit"):
        text.change(LanguageChoices("test", 0, SIZE, "zh"), media.replace(piece, blocks=blocks[-1:] + blocks[:-1]))


@pytest.mark.parametrize("name", MEDIA)
def test_flat_pictures_have_room_for_the_words_that_are_needed(name):
    for choices in chances(6, size=(1000, 333)):
        piece = MEDIA[name](choices)
        assert all(layout.fit(block) for block in piece.blocks)
        lines = [int(block.role[5:]) for block in piece.blocks if block.role.startswith("line ")]
        assert lines == list(range(1 + len(piece.blocks) - len(lines), 1 + len(piece.blocks)))


def test_lines_are_counted_from_the_heading_and_are_not_broken():
    roles = ["heading", "line 7", "line 9"]
    blocks = [layout.Block(role, "a", (0, 0, 9, 9), layout.Style(fonts.FACES[0], (0, 0, 0))) for role in roles]
    assert [block.role for block in media.numbered(blocks)] == ["heading", "line 2", "line 3"]
    assert [block.role for block in media.numbered(blocks[2:])] == ["sign"]
    assert all(block.single for block in media.numbered(blocks)[1:])
    line = layout.Block("line 1", "one two three", (0, 0, 140, 90), blocks[0].style)
    assert len(layout.fit(line)[1]) > 1 and len(layout.fit(layout.replace(line, single=True))[1]) == 1


def test_the_judge_takes_no_unchanged_picture_for_another_face():
    """Also if the new face has capitals only, so that the text is written otherwise."""
    old, new = np.zeros((20, 30, 3), np.uint8), np.full((20, 30, 3), 90, np.uint8)
    truth = {"texts": [{"text": "GOOD LUCK"}], "before": [{"text": "Good Luck"}], "changed": [0, 0, 30, 20]}
    sample = Sample("edit", "text", "", (old,), new, "", truth)
    for picture, right in ((new, True), (old, False)):
        assert judge_changes(sample, picture, Verdict(True, 1, {})).parts["restyled"] is right


def test_wood_and_bricks_are_brown():
    for name in ("wood", "brick"):
        for seed in range(40):
            red, green, blue = scenes.SCENES[name](np.random.default_rng(seed), (40, 30)).mean((0, 1))
            assert red > 1.1 * green > 1.1 * blue, (name, seed)


def test_prompts_are_grammatical_where_their_parts_depend_on_each_other():
    (choices,) = chances(1)
    card = next(p for p in (media.card(c) for c in chances(9)) if p.blocks[-1].role == "address")
    forms = said(text_prompts.add, card, len(card.blocks) - 1)
    assert any("Add an address" in form for form in forms) and not any(" a address" in form for form in forms)
    assert text_prompts.counted("横线纸") == "张" and text_prompts.counted("霓虹灯招牌") == "块"
    for piece in (MEDIA[name](one) for one in chances(4, "zh") for name in MEDIA):
        one, wrong_ones = text_prompts.counted(piece.name[1]), "个张块"
        for form in text_prompts.requests(LanguageChoices("test", 0, SIZE, "zh"), piece):
            measures = set(re.findall(f"一([{wrong_ones}])[^的，。]{{0,4}}{piece.name[1]}(?!的照片)", form))
            assert measures <= {one} and "背景，" not in form, form
    alone = layout.replace(card, blocks=card.blocks[:1])
    forms = text_prompts.requests(choices, alone)
    assert not any("top to bottom" in form or "one below the other" in form or "从上到下" in form for form in forms)
