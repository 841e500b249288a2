"""What a person sees and does, in a real browser: templates, running, reasoning, sizes, help."""

import json
from pathlib import Path

from playwright.sync_api import expect

from support.saved_workflows import saved_graph, saved_prompt

ROOT = Path(__file__).resolve().parents[2]
RATIOS = ["1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "5:4", "4:5", "7:5", "5:7"]
ASK, REASON, LATENT, LOADER = "InternVLUAsk", "InternVLUReason", "InternVLUEmptyLatent", "InternVLULoader"

LONG = {"question": "Cancel me?", "max_new_tokens": 400, "temperature": 5.0, "seed": 63}
ANSWER = ".internvlu-panel textarea"
STATUS = ".internvlu-status"


def assert_is(ui, name: str):
    """The graph on the page is the shipped one, node for node, link for link, value for value."""
    assert ui.graph() == ui.graph(saved_graph(name))
    assert ui.api() == saved_prompt(name)


def assert_no_complaint(ui):
    """Neither a dialog nor a message, and no node or model missed."""
    assert ui.page.locator("[role=dialog]:visible, .p-toast-message:visible").all_inner_texts() == []
    assert ui.page.get_by_text("Missing", exact=False).filter(visible=True).count() == 0
    assert ui.js("() => app.graph.nodes.filter((node) => node.has_errors).map((node) => node.type)") == []


def test_preview_and_picture_appear(ui):
    ui.load(saved_graph("text_to_image"))
    ui.set(LATENT, width=256, height=192)
    ui.set("InternVLUSampler", steps=30)
    ui.look_at(LATENT)
    ui.start()
    ui.wait("() => seen.some(([kind]) => kind.startsWith('b_preview'))")
    ui.wait("() => app.graph.nodes.find((node) => node.type === 'InternVLUSampler').imgs?.[0]?.naturalWidth > 0")
    ui.shot("preview_while_drawing")
    assert ui.end() == "execution_success"
    ui.look_at("SaveImage")
    ui.wait("() => app.graph.nodes.find((node) => node.type === 'SaveImage').imgs?.[0]?.naturalWidth === 256")


def test_text_streams_into_its_node(ui):
    ui.load(saved_graph("ask"))
    ui.set(ASK, **LONG)
    ui.look_at(ASK)
    page = ui.page
    focus = ui.js("() => document.activeElement.tagName")
    ui.start()
    assert ui.js("() => document.activeElement.tagName") in (focus, "BUTTON")  # of the Run button
    assert ui.end() == "execution_success"
    answer = page.locator(ANSWER).input_value()
    (output,) = [data["output"] for kind, data in ui.seen() if kind == "executed"]
    assert [answer] == [text.replace("\r", "\n") for text in output["text"]]
    assert page.locator(STATUS).text_content().startswith(f"{output['tokens'][0]} tokens · ")
    panels = ui.js("() => panels")
    lengths = [len(text) for text, _ in panels]
    assert lengths == sorted(lengths) and len(set(lengths)) > 3
    assert "tokens/s" in panels[2][1]
    # It followed the text to its end.
    assert ui.js(
        f"() => {{ const a = document.querySelector('{ANSWER}');"
        " return a.scrollTop + a.clientHeight >= a.scrollHeight - 2; }"
    )
    page.locator(".internvlu-panel button").click()
    assert ui.copied() == answer
    shipped = json.loads((ROOT / "workflows" / "api" / "ask.json").read_text(encoding="utf-8"))
    assert "answer" not in json.dumps(ui.posted) and list(ui.api()["8"]["inputs"]) == list(shipped["8"]["inputs"])

    # A run that is cached as a whole shows it again, in a page that has forgotten it.
    ui.js("() => { const area = document.querySelector('.internvlu-panel textarea'); area.value = ''; }")
    ui.run()
    assert {"1", "8"} <= ui.cached()
    assert page.locator(ANSWER).input_value() == answer


def test_wheel_and_keys_in_the_answer_are_not_the_canvas(ui):
    ui.fresh(ASK)
    words = "word " * 2000
    ui.execute(text=[words], tokens=[2000])
    ui.settle()
    area = ui.page.locator(ANSWER)
    before = ui.js("() => [app.canvas.ds.scale, ...app.canvas.ds.offset]")
    area.hover()
    ui.js(f"() => {{ document.querySelector('{ANSWER}').scrollTop = 0; }}")
    ui.page.mouse.wheel(0, 300)
    ui.wait(f"() => document.querySelector('{ANSWER}').scrollTop > 0")
    area.click()
    ui.press("Control+a")
    ui.press("Delete")
    assert area.input_value() == words
    assert ui.js("() => [app.canvas.ds.scale, ...app.canvas.ds.offset]") == before
    assert ui.js("() => app.graph.nodes.length") == 1


def test_cancel(ui):
    ui.load(saved_graph("ask"))
    ui.set(ASK, **LONG | {"max_new_tokens": 4095})  # 791, if it is not cancelled
    ui.look_at(ASK)
    # The real button, at the third piece of the text.
    ui.js("""() => {
      let pieces = 0;
      app.api.addEventListener("internvlu.text", () => {
        if (++pieces === 3) document.querySelector("[aria-label='Cancel current run']").click();
      });
    }""")
    ui.start()
    assert ui.end() == "execution_interrupted"
    written = ui.page.locator(ANSWER).input_value()
    assert written
    assert ui.page.locator(STATUS).text_content().startswith("Stopped · ")
    ui.settle()
    assert ui.page.locator(ANSWER).input_value() == written


def test_a_failed_run_leaves_the_answer_and_a_question_is_sent_as_it_is_typed(ui):
    ui.load(saved_graph("ask"))
    ui.look_at(ASK)
    question = 'Answer as {"colour": …} | see http://example.com // not a comment'
    ui.set(ASK, question=question, max_new_tokens=5)
    ui.run()
    assert ui.posted[-1]["8"]["inputs"]["question"] == question
    answer = ui.page.locator(ANSWER).input_value()
    assert answer
    ui.set(ASK, question="<image> <image> <image>?")
    ui.start()
    assert ui.end() == "execution_error"
    ui.settle()
    assert ui.page.locator(ANSWER).input_value() == answer
    assert ui.page.locator(STATUS).text_content() == "Failed"
    ui.press("Escape")  # the frontend's own message


def reasoning_box(ui):
    return ui.page.get_by_placeholder("The reasoning appears here.", exact=False)


def test_pinned_reasoning(ui):
    ui.load(saved_graph("reason_then_draw"))
    ui.make_small()
    ui.set("InternVLUSampler", control_after_generate="fixed")
    ui.set(REASON, max_new_tokens=30)
    ui.look_at(REASON)
    ui.run()
    box = reasoning_box(ui)
    (output,) = [data["output"] for kind, data in ui.seen() if kind == "executed" and "tokens" in data["output"]]
    words = box.input_value()
    assert [words] == [text.replace("\r", "\n") for text in output["text"]]
    ui.shot("reasoning")

    # Not pinned, the words are in the workflow but not in the prompt; so the run again is a cached one.
    graph = ui.js("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    (node,) = [node for node in graph["nodes"] if node["type"] == REASON]
    assert words in node["widgets_values"]
    assert (ui.api()["8"]["inputs"]["text"], ui.api()["8"]["inputs"]["pinned"]) == ("", False)
    ui.run()
    assert ui.posted[-1] == ui.posted[-2] and "8" in ui.cached()
    assert box.input_value() == words

    # Editing pins.
    box.click()
    ui.press("Control+a")
    ui.type("a lighthouse at night")
    assert ui.get(REASON, "pinned") is True
    assert ui.api()["8"]["inputs"] | {"text": "a lighthouse at night", "pinned": True} == ui.api()["8"]["inputs"]
    assert ui.page.locator(STATUS).text_content() == "My own words: draws from these"
    assert ui.page.locator(".internvlu-pinned").is_visible()
    badge = "() => app.graph.nodes.find((n) => n.type === 'InternVLUReason').badges.at(-1)().text"
    assert ui.js(badge) == "My own words"
    ui.shot("pinned")
    ui.run()
    assert ui.posted[-1]["8"]["inputs"]["text"] == "a lighthouse at night"
    assert "internvlu.text" not in [kind for kind, _ in ui.seen()]
    assert box.input_value() == "a lighthouse at night"

    # Clones have words and pin of their own; both survive saving and loading.
    ui.js("""() => {
      const node = app.graph.nodes.find((node) => node.type === 'InternVLUReason');
      const copy = node.clone();
      app.graph.add(copy);
      copy.pos = [node.pos[0], node.pos[1] + 2000];
    }""")
    graph = ui.js("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    ui.load(graph)
    ui.look_at(REASON)
    reasons = "app.graph.nodes.filter((node) => node.type === 'InternVLUReason')"
    kept = ui.js(f"() => {reasons}.map((node) => node.widgets.find((w) => w.name === 'text').value)")
    assert kept == ["a lighthouse at night"] * 2
    assert ui.js(f"() => {reasons}.map((node) => node.badges.at(-1)().text)") == ["My own words"] * 2
    ui.js(f"() => app.graph.remove({reasons}[1])")

    # Unpinned, the model writes again.
    ui.set(REASON, pinned=False)
    assert ui.api()["8"]["inputs"]["text"] == ""
    ui.run()
    assert reasoning_box(ui).input_value() == words

    # Switched off in the settings, editing leaves it.
    ui.set_setting("InternVLU.Text.PinOnEdit", False)
    reasoning_box(ui).click()
    ui.type("!")
    assert ui.get(REASON, "pinned") is False
    ui.set_setting("InternVLU.Text.PinOnEdit", True)


def test_linked_text_and_pin(ui):
    """Over links come values that the page does not know."""
    ui.load(saved_graph("reason_then_draw"))
    ui.make_small()
    ui.js("""() => {
      const reason = app.graph.nodes.find((node) => node.type === 'InternVLUReason');
      for (const [type, name, value] of [["PrimitiveString", "text", "from afar"],
                                         ["PrimitiveBoolean", "pinned", true]]) {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        node.widgets[0].value = value;
        node.pos = [reason.pos[0], reason.pos[1] - 400];
        node.connect(0, reason, reason.inputs.findIndex((input) => input.name === name));
      }
    }""")
    ui.look_at(REASON)
    assert all(isinstance(ui.api()["8"]["inputs"][name], list) for name in ("text", "pinned"))
    ui.run()
    assert ui.get(REASON, "text") == "from afar"


def test_reasoning_in_a_subgraph(ui):
    ui.load(saved_graph("reason_then_draw"))
    ui.make_small()
    ui.js("""() => {
      const reason = app.graph.nodes.find((node) => node.type === 'InternVLUReason');
      app.graph.convertToSubgraph(new Set([reason]));
    }""")
    ui.settle()
    ui.run()
    streamed = [data for kind, data in ui.seen() if kind == "internvlu.text"]
    assert ":" in streamed[-1]["node"]
    inner = """() => {
      const outer = app.graph.nodes.find((node) => node.subgraph);
      const node = outer.subgraph.nodes.find((node) => node.type === 'InternVLUReason');
      return node.widgets.find((widget) => widget.name === 'text').value;
    }"""
    assert ui.js(inner) == next(
        d["output"]["text"][0] for k, d in ui.seen() if k == "executed" and "tokens" in d["output"]
    )


def test_two_instances_of_a_subgraph_with_reason(ui):
    """Each shows the words of its own, and the workflow has none of them before they are complete."""
    ui.load(saved_graph("reason_then_draw"))
    ui.make_small()
    ui.set(REASON, max_new_tokens=200, temperature=5.0, seed=63)
    ui.js("""() => {
      const reason = app.graph.nodes.find((node) => node.type === 'InternVLUReason');
      app.graph.convertToSubgraph(new Set([reason]));
      const first = app.graph.nodes.find((node) => node.subgraph);
      const inner = first.subgraph.nodes[0];
      for (const name of ["prompt", "text"]) {
        const input = inner.inputs.find((input) => input.name === name);
        if (input.link == null) first.subgraph.inputNode.emptySlot.connect(input, inner);
      }
      const second = LiteGraph.createNode(first.subgraph.id);
      app.graph.add(second);
      const loader = app.graph.nodes.find((node) => node.type === 'InternVLULoader');
      loader.connect(1, second, second.inputs.findIndex(({ name }) => name === "vlm"));
      second.widgets.find(({ name }) => name === "prompt").value = "Something else";
      window.words = () => app.graph.nodes.filter((node) => node.subgraph)
        .map((node) => node.widgets.find(({ name }) => name === "text").value);
      window.early = [];  // whether the workflow has what has come so far
      window.behind = [];  // how much stands in front of it in the box
      app.api.addEventListener("internvlu.text", ({ detail: { text } }) => {
        if (text.length < 9) return;
        early.push(JSON.stringify([words(), app.graph.serialize()]).includes(JSON.stringify(text).slice(1, -1)));
        const shown = text.replaceAll("\\r", "\\n");
        for (const { value } of document.querySelectorAll("textarea"))
          if (value.endsWith(shown)) behind.push(value.length - shown.length);
      });
    }""")
    ui.settle()
    ui.run()
    texts = [data["output"]["text"][0] for kind, data in ui.seen() if "tokens" in (data or {}).get("output", {})]
    early = ui.js("() => early")
    behind = ui.js("() => behind")
    assert len(early) > 3 and not any(early)
    assert not any(behind) and (behind or ui.frontend == "pinned")  # which takes boxes out of sight off the page
    assert len(set(texts)) == (2 if ui.frontend == "newest" else 1)  # older ones have one prompt for both
    assert sorted(ui.js("() => words()")) == sorted(text.replace("\r", "\n") for text in texts)


def test_text_survives_a_reload(ui):
    """Of the page: the frontend keeps the open workflow."""
    ui.load(saved_graph("ask"))
    ui.make_small()
    ui.run()
    answer = ui.page.locator(ANSWER).input_value()
    assert answer
    ui.look_at(ASK)
    ui.page.mouse.click(400, 900)  # on the canvas: after it the frontend takes note of what has changed
    ui.press("Escape")
    ui.reload()
    ui.look_at(ASK)
    ui.wait(f"(answer) => document.querySelector('{ANSWER}')?.value === answer", answer)


def test_several_answers(ui):
    ui.load(saved_graph("caption_batch"))
    ui.make_small()
    ui.run()
    (texts,) = [data["output"]["text"] for kind, data in ui.seen() if kind == "executed" and "tokens" in data["output"]]
    ui.look_at(ASK)
    assert len(texts) == 2
    assert ui.page.locator(ANSWER).input_value() == "\n\n———\n\n".join(texts).replace("\r", "\n")


def test_scripts_of_all_directions(ui):
    ui.fresh(ASK, REASON)
    for words, direction in [("שלום, זו תמונה של חתול.", "rtl"), ("这是一只猫。", "ltr"), ("A cat.", "ltr")]:
        ui.execute(text=[words], tokens=[3])
        ui.settle()
        for area in (ui.page.locator(ANSWER), reasoning_box(ui)):
            expect(area).to_have_count(1)
            expect(area).to_have_value(words)
            assert area.evaluate("(area) => getComputedStyle(area).direction") == direction
        ui.shot(f"direction_{direction}_{len(words)}")


def test_size_presets(ui):
    ui.fresh(LATENT)
    ratio, size_class = (ui.page.locator(".internvlu-size select").nth(i) for i in (0, 1))
    swap, lock = (ui.page.locator(".internvlu-size button").nth(i) for i in (0, 1))
    info = ui.page.locator(".internvlu-size output")

    def size():
        return ui.get(LATENT, "width"), ui.get(LATENT, "height")

    assert (ratio.input_value(), size_class.input_value(), size()) == ("1:1", "1024", (1024, 1024))
    assert info.text_content() == "1024 × 1024 · 1.05 MP · 4096 tokens"
    seen = set()
    for pixels in (512, 768, 1024):
        size_class.select_option(str(pixels))
        for name in RATIOS:
            ratio.select_option(name)
            width, height = size()
            across, down = map(int, name.split(":"))
            assert width % 16 == height % 16 == 0
            assert abs(width * height / pixels**2 - 1) < 0.04
            assert abs(width / height / (across / down) - 1) < 0.04
            assert (ratio.input_value(), size_class.input_value()) == (name, str(pixels))
            tokens = f"{width // 16 * (height // 16)} tokens"
            assert info.text_content() == f"{width} × {height} · {width * height / 1e6:.2f} MP · {tokens}"
            inputs = next(iter(ui.api().values()))["inputs"]
            assert inputs == {"width": width, "height": height, "batch_size": 1}
            seen.add((width, height))
    assert len(seen) == 33

    ratio.select_option("16:9")
    assert size() == (1360, 768)
    swap.click()
    assert (size(), ratio.input_value()) == ((768, 1360), "9:16")
    # Locked, one side follows the other; typed values snap to the grid.
    lock.click()
    ui.set(LATENT, width=449)
    assert size() == (448, 800)
    swap.click()
    ui.set(LATENT, height=256)
    assert size() == (448, 256)
    ui.shot("size_locked")
    lock.click()
    ui.set(LATENT, height=250)
    assert (size(), ratio.input_value()) == ((448, 256), "custom")
    ui.set(LATENT, width=600, batch_size=3)
    assert (size(), ratio.input_value()) == ((608, 256), "custom")
    # A class keeps a size's own ratio.
    size_class.select_option("1024")
    assert abs(size()[0] / size()[1] - 608 / 256) < 0.05 and abs(size()[0] * size()[1] / 1024**2 - 1) < 0.04

    # Saved are the node's three values in their old places, and what is shown follows from them.
    ratio.select_option("3:2")
    graph = ui.js("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    assert graph["nodes"][0]["widgets_values"] == [*size(), 3]
    ui.fresh(ASK)
    ui.load(graph)
    ui.look_at(LATENT, scale=1.0)
    assert (ratio.input_value(), size_class.input_value(), ui.get(LATENT, "batch_size")) == ("3:2", "1024", 3)

    ui.js("""() => {
      const number = LiteGraph.createNode("PrimitiveInt");
      app.graph.add(number);
      number.pos = [0, 400];
      const latent = app.graph.nodes.find((node) => node.type === "InternVLUEmptyLatent");
      number.connect(0, latent, latent.inputs.findIndex((input) => input.name === "width"));
    }""")
    ui.settle()
    assert ratio.is_disabled() and swap.is_disabled() and info.text_content() == "–"


def test_image_sockets_grow_and_keep_links(ui):
    ui.fresh(LOADER, REASON, "InternVLUEncode", "LoadImage", "LoadImage")
    connect = """([from, output, input]) => {
      const [source, encode] = [app.graph.nodes[from], app.graph.nodes[2]];
      source.connect(output, encode, encode.inputs.findIndex((socket) => socket.name === input));
    }"""
    for step in ([0, 2, "vae"], [1, 0, "reasoning"], [1, 1, "prompt"], [3, 0, "image1"], [4, 0, "image2"]):
        ui.js(connect, step)
        ui.settle()
    graph = ui.graph()
    node = "() => app.graph.nodes[2].inputs.map((input) => input.name).filter((name) => name.startsWith('image'))"
    assert ui.js(node) == [f"image{number}" for number in range(1, 9)]  # of which all but one free are only not drawn
    ids = ui.js("() => app.graph.nodes.map((node) => node.id)")
    wanted = [
        (0, "VAE", "vae"),
        (1, "reasoning", "reasoning"),
        (1, "text", "prompt"),
        (3, "IMAGE", "image1"),
        (4, "IMAGE", "image2"),
    ]
    assert graph["links"] == sorted(f"{ids[a]} {output} {ids[2]} {socket}" for a, output, socket in wanted)


def test_missing_checkpoint_offers_the_download(ui):
    ui.fresh(LOADER)
    button = "() => app.graph.nodes[0].widgets.find((widget) => widget.type === 'button')?.label"
    assert ui.js(button) is None
    # As on a machine without it.
    choice = "download: InternVL-U (8.5 GB)"
    ui.js("(choice) => { app.graph.nodes[0].widgets[0].options.values = ['InternVL-U-toy', choice]; }", choice)
    ui.set(LOADER, checkpoint="from a friend")
    ui.settle()
    assert ui.js(button) == "Download InternVL-U (8.5 GB) on the next run"
    ui.shot("missing_checkpoint_button")
    assert ui.js("() => app.graph.serialize().nodes[0].widgets_values") == ["from a friend", "auto"]
    assert next(iter(ui.api().values()))["inputs"] == {"checkpoint": "from a friend", "weight_dtype": "auto"}
    ui.js("() => { const b = app.graph.nodes[0].widgets.find((w) => w.type === 'button'); b.callback(); }")
    ui.settle()
    assert ui.get(LOADER, "checkpoint") == choice and ui.js(button) is None
    ui.set(LOADER, checkpoint="InternVL-U-toy")
    ui.settle()
    assert ui.js(button) is None


def test_help(ui):
    missing = []
    listen = lambda response: "/docs/" in response.url and not response.ok and missing.append(response.url)  # noqa: E731
    ui.page.on("response", listen)
    ui.fresh("InternVLUSampler")
    ui.js("() => { app.canvas.ds.offset = [500, 400]; app.canvas.setDirty(true, true); }")
    ui.js("() => app.canvas.selectNode(app.graph.nodes[0])")
    ui.page.get_by_test_id("info-button").first.click()
    page = (ROOT / "js" / "docs" / "InternVLUSampler.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith("- **"))
    word = line.split("**")[1]
    help_text = ui.page.locator(".node-help-content")
    help_text.get_by_role("heading", name="InternVL-U Sample").first.wait_for()
    assert word in help_text.inner_text()
    ui.wait("() => [...document.querySelectorAll('.node-help-content img')].every((image) => image.naturalWidth > 0)")
    ui.page.remove_listener("response", listen)
    assert not missing, "found at once"


def test_graphs_saved_before_there_was_text_to_pin(ui):
    graph = saved_graph("reason_then_draw")
    (reason,) = [node for node in graph["nodes"] if node["type"] == REASON]
    reason["widgets_values"] = reason["widgets_values"][:-2]
    reason["inputs"] = [socket for socket in reason["inputs"] if socket["name"] not in ("text", "pinned")]
    reason.pop("widgets_values_named", None)
    ui.load(graph)
    assert_no_complaint(ui)
    assert_is(ui, "reason_then_draw")


def test_settings_say_the_same_everywhere(ui):
    setting = ui.js(
        "() => { const { name, tooltip } = app.ui.settings.settingsLookup['InternVLU.Text.PinOnEdit'];"
        " return { name, tooltip }; }"
    )
    english = json.loads((ROOT / "locales" / "en" / "settings.json").read_text(encoding="utf-8"))
    assert english == {"InternVLU_Text_PinOnEdit": setting}


def test_vue_nodes(ui):
    """ComfyUI's "Nodes 2.0" show and do the same; in the pinned frontend they are an experiment, and draw less."""
    ui.set_setting("Comfy.VueNodes.Enabled", True)
    try:
        ui.load(saved_graph("reason_then_draw"))
        ui.make_small()
        ui.set(REASON, max_new_tokens=30)
        ui.look_at(REASON)
        ui.run()
        words = ui.get(REASON, "text")
        assert words
        assert ui.page.locator(STATUS).text_content().startswith("30 tokens")
        own = "[data-widget-name=text] textarea" if ui.frontend == "newest" else "textarea[aria-label=text]"
        node = ui.page.locator(".lg-node:has(.internvlu-bar)")
        box = node.locator(own)
        assert box.input_value() == words.replace("\r", "\n")
        assert box.get_attribute("placeholder") == "The reasoning appears here. Change it to draw from your own words."
        box.click()
        ui.press("Control+End")
        ui.type(" and a hat")
        if ui.frontend == "newest":
            node.get_by_text("My own words", exact=True).first.wait_for()
        assert ui.get(REASON, "pinned") is True
        assert ui.api()["8"]["inputs"]["text"] == f"{words} and a hat"
        ui.shot("vue_pinned")
        ui.fresh(LATENT, ASK)
        ui.page.locator(".internvlu-size select").first.select_option("4:3")
        assert (ui.get(LATENT, "width"), ui.get(LATENT, "height")) == (1184, 880)
        ui.execute(text=["An answer."], tokens=[4])
        assert ui.page.locator(ANSWER).input_value() == "An answer."
        ui.shot("vue_size_and_answer")
    finally:
        ui.set_setting("Comfy.VueNodes.Enabled", False)
