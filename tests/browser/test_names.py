"""What things are called on the page; ids stay what they are in saved workflows and prompts."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAVED = ROOT / "tests" / "saved" / "0.1"
SAMPLER, LATENT, REASON = "InternVLUSampler", "InternVLUEmptyLatent", "InternVLUReason"
CONDITIONINGS = ["full", "partial", "unconditional"]


def test_names_are_for_people_and_ids_for_files(ui):
    ui.fresh(SAMPLER, "InternVLUEncode")
    shown = ui.labels()
    named = ["positive", "images only", "negative"]
    assert [shown[SAMPLER]["inputs"][name] for name in CONDITIONINGS] == named
    assert shown["InternVLUEncode"]["outputs"] == dict(zip(CONDITIONINGS, named, strict=True))
    assert shown[SAMPLER]["widgets"]["all_scale"] == shown[SAMPLER]["inputs"]["all_scale"] == "prompt strength"
    assert shown[SAMPLER]["widgets"]["partial_scale"] == "image strength"
    # Connected, saved, and in the prompt, they are called as ever.
    ui.js(
        """(names) => {
      const [sampler, encode] = app.graph.nodes;
      const input = (name) => sampler.inputs.findIndex((slot) => slot.name === name);
      names.forEach((name, i) => encode.connect(i, sampler, input(name)));
    }""",
        CONDITIONINGS,
    )
    graph = ui.js("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    encode = next(node for node in graph["nodes"] if node["type"] == "InternVLUEncode")
    assert [output["name"] for output in encode["outputs"]] == CONDITIONINGS
    inputs = next(node["inputs"] for node in ui.api().values() if node["class_type"] == SAMPLER)
    assert [inputs[name] for name in CONDITIONINGS] == [[str(encode["id"]), i] for i in range(3)]
    assert (inputs["all_scale"], inputs["partial_scale"]) == (-1, -1)
    ui.shot("names")


@pytest.mark.parametrize("name", ["edit", "edit_with_mask", "advanced_sampling", "ksampler"])
def test_workflows_saved_by_version_0_1(ui, name):
    """Their links, and the scales that they say."""
    saved = json.loads((SAVED / f"{name}.json").read_text(encoding="utf-8"))
    ui.load(saved)
    assert ui.graph() == ui.graph(saved)
    prompt = json.loads((SAVED / "api" / f"{name}.json").read_text(encoding="utf-8"))
    assert ui.api() == prompt


def test_automatic_scales_say_so(ui):
    ui.fresh(SAMPLER, "InternVLUGuider", "InternVLUGuidance")
    for kind in (SAMPLER, "InternVLUGuider", "InternVLUGuidance"):
        assert ui.displayed(kind, "partial_scale") == "auto"
        ui.set(kind, partial_scale=2)
        assert float(ui.displayed(kind, "partial_scale")) == 2
        ui.set(kind, partial_scale=-0.3)
        assert ui.displayed(kind, "partial_scale") == "auto"
    ui.shot("automatic")


def test_small_sizes(ui):
    ui.fresh(LATENT)
    ratio, size_class = (ui.page.locator(".internvlu-size select").nth(i) for i in (0, 1))
    for (width, height), shown in {
        (64, 64): ("1:1", "64"),
        (80, 48): ("16:9", "64"),
        (256, 256): ("1:1", "256"),
        (128, 128): ("1:1", "128"),
        (2048, 2048): ("custom", "custom"),
        (608, 256): ("custom", "custom"),
        (1024, 1024): ("1:1", "1024"),
    }.items():
        ui.set(LATENT, width=width, height=height)
        assert (ratio.input_value(), size_class.input_value()) == shown
    ui.set(LATENT, width=64, height=64)
    ui.shot("size_64")
    # Of a size without a class, another ratio has the same area.
    ui.set(LATENT, width=2048, height=2048)
    ratio.select_option("4:3")
    width, height = ui.get(LATENT, "width"), ui.get(LATENT, "height")
    assert abs(width * height / 2048**2 - 1) < 0.02 and abs(width / height / (4 / 3) - 1) < 0.02
    size_class.select_option("64")
    assert (ui.get(LATENT, "width"), ui.get(LATENT, "height")) == (80, 48)


def test_boxes_says_when_there_are_none(ui):
    ui.fresh("InternVLUBoxes")
    badge = "() => app.graph.nodes[0].badges.at(-1)().text"
    assert ui.js(badge) == ""
    for counts, text in [([0], "No boxes in the answer"), ([3], "Boxes: 3"), ([0, 0], "No boxes in the answer")]:
        ui.js("(boxes) => app.graph.nodes[0].onExecuted({ boxes })", counts)
        assert ui.js(badge) == text
    ui.shot("no_boxes")
    # In a run as well.
    saved = json.loads((SAVED / "find_objects.json").read_text(encoding="utf-8"))
    ui.load(saved)
    ui.make_small()
    ui.run()
    node = "app.graph.nodes.find((node) => node.type === 'InternVLUBoxes')"
    assert ui.js(f"() => {node}.badges.at(-1)().text") == "No boxes in the answer"


def test_a_notice_is_shown(ui):
    sizes = {"width": 1024, "height": 1024, "made_width": 64, "made_height": 64}
    detail = {"key": "far_size", "values": sizes}
    ui.js("(detail) => app.api.dispatchEvent(new CustomEvent('internvlu.notice', { detail }))", detail)
    message = ui.page.get_by_text("1024 × 1024 is far from the 64 × 64 pixels", exact=False).last
    message.wait_for()
    ui.shot("notice")
    ui.js("() => { const t = app.extensionManager.toast; (t.dismissAll ?? t.removeAll).call(t); }")
    message.wait_for(state="hidden")


def test_what_few_need_is_folded_away(ui):
    """Where the frontend can: Nodes 2.0 of the newest one."""
    ui.set_setting("Comfy.VueNodes.Enabled", True)
    try:
        ui.fresh(REASON)
        options = "() => app.graph.nodes[0].widgets.filter((w) => w.options.advanced).map((w) => w.name)"
        assert ui.js(options) == ["top_p", "top_k", "num_beams", "system_prompt"]
        if ui.frontend == "newest":
            node = ui.page.locator(".lg-node")
            node.first.wait_for()
            shown = node.locator("[data-widget-name]").evaluate_all("(all) => all.map((e) => e.dataset.widgetName)")
            assert "temperature" in shown and not {"top_p", "num_beams"} & set(shown)
        ui.shot("folded")
    finally:
        ui.set_setting("Comfy.VueNodes.Enabled", False)
