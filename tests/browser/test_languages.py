"""The page in another language: nothing that is ours is English there."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ASK, REASON, SAMPLER = "InternVLUAsk", "InternVLUReason", "InternVLUSampler"


@pytest.fixture(scope="module", params=["zh", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ko", "ja"))])
def language(request, host):
    host.server.post("/settings", {"Comfy.Locale": request.param})
    yield request.param
    host.server.post("/settings", {"Comfy.Locale": "en"})


@pytest.fixture(scope="module")
def shared_page(host, language):
    """The module's page, opened in the language."""
    ui = host.open()
    yield ui
    ui.close()


def names_of(language: str) -> dict:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def words_of(language: str) -> dict:
    return json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))["internvlu"]


def test_nothing_is_english(ui, language):
    names, words = names_of(language), words_of(language)
    ui.fresh(*names)
    shown = ui.labels()
    for kind, named in names.items():
        assert shown[kind]["title"] == named["display_name"]
        for name, texts in named.get("inputs", {}).items():
            for part in ("inputs", "widgets"):
                assert shown[kind][part].get(name, texts["name"]) == texts["name"], (kind, name)
        outputs = [texts["name"] for texts in named["outputs"].values()]
        assert len(shown[kind]["outputs"]) == len(outputs)
    # Stock types have the frontend's own words; what is ours has ours.
    assert list(shown["InternVLUEncode"]["outputs"].values()) == [
        texts["name"] for texts in names["InternVLUEncode"]["outputs"].values()
    ]
    assert ui.displayed(SAMPLER, "all_scale") == words["automatic"]
    texts = ui.js("""() => [...document.querySelectorAll(
        ".internvlu-bar button, .internvlu-size option, .internvlu-size select, .internvlu-size button"
      )].flatMap((each) => [each.title, each.tagName === "SELECT" ? "" : each.textContent])""")
    english = set(words_of("en").values())
    assert not english & set(texts)
    setting = json.loads((ROOT / "locales" / language / "settings.json").read_text(encoding="utf-8"))
    ui.js("() => app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
    search = ui.page.locator("[role=dialog] input").first
    search.fill("InternVL")
    ui.page.get_by_text(setting["InternVLU_Text_PinOnEdit"]["name"]).first.wait_for()
    ui.shot(f"settings_{language}")
    ui.press("Escape")
    ui.page.locator("[role=dialog]").first.wait_for(state="hidden")
    for kind in (SAMPLER, REASON, "InternVLUEdit"):
        ui.look_at(kind, scale=0.8)
        ui.shot(f"language_{language}_{kind}")


def test_what_boxes_and_panels_say(ui, language):
    words = words_of(language)
    ui.fresh(REASON, ASK, "InternVLUEmptyLatent")
    answer = ui.page.locator(".internvlu-panel textarea")
    assert answer.get_attribute("placeholder") == words["answer_appears_here"]
    assert words["tokens"] in ui.page.locator(".internvlu-size output").text_content()
    ui.set(REASON, text="一只猫", pinned=True)
    ui.settle()
    assert words["pinned_status"] in ui.page.locator(".internvlu-status").all_text_contents()


def test_help_is_found_at_once(ui, language):
    """test_frontend.py reads the English page."""
    missing = []
    listen = lambda response: "/docs/" in response.url and not response.ok and missing.append(response.url)  # noqa: E731
    ui.page.on("response", listen)
    try:
        ui.fresh(SAMPLER)
        ui.js("() => { app.canvas.ds.offset = [500, 400]; app.canvas.setDirty(true, true); }")
        ui.js("() => app.canvas.selectNode(app.graph.nodes[0])")
        ui.page.get_by_test_id("info-button").first.click()
        help_text = ui.page.locator(".node-help-content")
        help_text.get_by_role("heading", name=names_of(language)[SAMPLER]["display_name"]).first.wait_for()
        ui.shot(f"help_{language}")
        assert not missing
    finally:
        ui.page.remove_listener("response", listen)
