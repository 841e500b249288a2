"""The domain reasoning: words between an abstract request and a picture; and rewriting them by a model."""

import hashlib
import http.server
import json
import threading

import numpy as np
import pytest
from PIL import Image

from internvlu_core.batch import ModelOptions
from internvlu_train import synthesis
from internvlu_train.synthesis import LanguageChoices, Resources, fonts, humour, layout, make, media, reasoning, rewrite
from internvlu_train.synthesis import __main__ as command
from internvlu_train.synthesis.media import Piece
from support.checkpoints import CHECKPOINT

SIZE = (448, 384)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", reasoning.KINDS["reason"])
def test_words_take_the_request_apart(kind, language):
    for seed in range(3):
        sample = make("reasoning", "reason", seed, SIZE, kind, language)
        again = make("reasoning", "reason", seed, SIZE, kind, language)
        assert (sample.prompt, sample.words) == (again.prompt, again.words)
        assert np.array_equal(sample.picture, again.picture)
        assert sample.task == "reason" and sample.domain == "reasoning" and not sample.images
        assert len(sample.words) > 1.5 * len(sample.prompt) and "{" not in sample.prompt + sample.words
        stop = "。" if language == "zh" else ". "
        assert sample.words.count(stop) >= 3 and ".." not in sample.words and "。。" not in sample.words
        for found in sample.truth.get("texts", ()):
            assert found["text"] in sample.words


def test_what_is_drawn_is_judged_by_its_own_domain():
    sample = make("reasoning", "reason", 2, SIZE, "humour", "en")
    assert reasoning.check(sample, sample.picture).right
    assert not reasoning.check(sample, np.full_like(sample.picture, 255)).right
    with pytest.raises(ValueError, match="no judge"):
        scene = make("reasoning", "reason", 2, SIZE, "scene")
        reasoning.check(scene, scene.picture)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_users_own_picture_is_no_cartoon(tmp_path, language):
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "a_red_wall.png")
    choices = LanguageChoices("test", 2, SIZE, language, Resources(pictures=tmp_path))
    made = humour.LAYOUTS["strip"](choices)
    said = [reasoning.joke(choices).words, *humour.requests(choices, made, "strip")]
    word, other = (("picture", "cartoon"), ("图片", "卡通"))[language == "zh"]
    assert word in said[0] and not any(other in text.lower() for text in said)
    drawn = LanguageChoices("test", 2, SIZE, language)
    assert other in reasoning.joke(drawn).words


def test_what_is_in_the_same_part_of_a_thing_is_below_what_is_before():
    style = layout.Style(fonts.FACES[0], (0, 0, 0))
    blocks = tuple(layout.Block("title", "a", (0, y, 100, y + 9), style) for y in (0, 40, 50))
    piece = Piece(("poster", "海报"), Image.new("RGBA", (100, 100)), blocks, "white", "", 0)
    assert reasoning.where(piece, False) == ["at the top", "in the middle", "below it"]
    assert reasoning.where(piece, True) == ["在上方", "在中间", "在它下面"]
    cover = media.replace(piece, name=("book cover", "书籍封面"), blocks=blocks[:1])
    for seed in range(8):  # without an author
        assert '"a"' in reasoning.wanted(LanguageChoices("test", seed, SIZE, "en"), cover).translate(
            {8220: 34, 8221: 34}
        )


def sample(language="en"):
    return make("reasoning", "reason", 2, SIZE, "humour", language)


def test_other_words_are_taken_only_if_they_keep_what_matters():
    made = sample()
    one, two = (found["text"] for found in made.truth["texts"])
    good = (
        f'We want people to smile. The picture shows a cartoon that first says "{one}" and afterwards "{two}", in bold.'
    )
    taken = rewrite.Rewriter(lambda text: good)(made)
    assert taken.words == good and taken.truth["rewritten"] and taken.picture is made.picture
    for bad in ("", good.replace(two, "something else"), good + " and more" * 300, "好" * len(made.words)):
        kept = rewrite.Rewriter(lambda text, bad=bad: bad)(made)
        assert kept.words == made.words and not kept.truth["rewritten"]
    drawing = make("text", "draw", 2, SIZE)
    assert rewrite.Rewriter(lambda text: 1 / 0)(drawing) is drawing


def test_numbers_are_kept():
    assert rewrite.keeps("Three bars of 4, 5.5 and 6 units.", "The bars are 4 and 5.5 and 6 units high.")
    assert not rewrite.keeps("Three bars of 4, 5.5 and 6 units.", "The bars are 4 and 55 and 6 units high.")


class Server(http.server.BaseHTTPRequestHandler):
    failures, seen = 0, []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, body, self.headers.get("Authorization")))
        if type(self).failures:
            type(self).failures -= 1
            self.send_error(503)
            return
        notes = body["messages"][0]["content"].split("artist: ")[-1].split("\nSay")[0]
        answer = json.dumps({"choices": [{"message": {"content": "In other words, " + notes}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(rewrite.time, "sleep", lambda seconds: None)
    Server.seen.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}/v1"
        made.shutdown()


def test_a_server_rewrites(server, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", "abc")
    Server.failures = 2
    options = [
        "--rewrite-url",
        server + "/",
        "--rewrite-model",
        "tiny",
        "--rewrite-key",
        "MY_KEY",
        "--format",
        "folder",
    ]
    arguments = ["--domain", "reasoning", "--count", "2", "--size", "448x384", "--language", "en", "--kind", "humour"]
    assert command.main([str(tmp_path / "out"), *arguments, *options]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert all(row["words"].startswith("In other words, ") and row["truth"]["rewritten"] for row in rows)
    path, body, key = Server.seen[-1]
    assert path == "/v1/chat/completions" and key == "Bearer abc" and len(Server.seen) == 4
    assert body["model"] == "tiny" and body["temperature"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--rewrite-url", "http://127.0.0.1:9/v1", "--rewrite-model", "m"],
            "http://127.0.0.1:9/v1/chat/completions does not",
        ),
        (["--rewrite-url", "http://127.0.0.1:9/v1"], "--rewrite-url and --rewrite-model belong together"),
        (["--rewrite", "x", "--rewrite-url", "y", "--rewrite-model", "m"], "give either --rewrite or --rewrite-url"),
        (["--rewrite-url", "y", "--rewrite-model", "m", "--rewrite-key", "NO_KEY_"], "no environment variable NO_KEY_"),
        (["--rewrite", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_rewrite_ends_the_run(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(rewrite.time, "sleep", lambda seconds: None)
    given = ["--domain", "reasoning", "--count", "1", "--size", "448x384", "--kind", "humour", "--skip-bad", *arguments]
    assert command.main([str(tmp_path / "out"), *given]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.rglob("*.tar"))


def test_the_model_itself_is_asked(monkeypatch):
    """The tiny checkpoint's words keep nothing, so that the template stays."""
    monkeypatch.setattr(rewrite, "TOKENS", 8)
    rewriter = rewrite.by_model(ModelOptions(str(CHECKPOINT), "cpu"))
    assert isinstance(rewriter.ask("hello"), str)
    made = sample()
    kept = rewriter(made)
    assert kept.words == made.words and kept.truth["rewritten"] is False


def test_other_samples_are_another_version():
    """After a change of what a seed gives: raise VERSION, and write down the new digest beside it."""
    said = [
        (sample.prompt, sample.words)
        for domain in ("humour", "reasoning")  # whose words are ours alone, and no library's
        for task in sorted(synthesis.kinds(domain))
        for sample in (make(domain, task, seed, (256, 256)) for seed in range(4))
    ]
    digest = hashlib.sha256(repr(said).encode()).hexdigest()[:16]
    assert {synthesis.VERSION: digest} == {2: "e66fd289ffb9bf32"}
