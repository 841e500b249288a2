"""Conversations in InternVL-U Ask's panel, and seeds, in a real browser."""

import json

from support.saved_workflows import saved_graph

ASK, REASON = "InternVLUAsk", "InternVLUReason"
ANSWER = ".internvlu-panel textarea"
LONG = {"question": "Cancel me?", "max_new_tokens": 400, "temperature": 5.0, "seed": 63}
TALK = ".internvlu-talk"


def ask_next(ui, question: str, **values):
    ui.set(ASK, question=question, **values)
    ui.run()


def shown(ui) -> list[tuple[str, str]]:
    """(who, words) of each bubble in the panel."""
    bubbles = ui.page.locator(f"{TALK} > div")
    return [
        (bubble.get_attribute("class").removeprefix("internvlu-"), bubble.locator("p").text_content())
        for bubble in bubbles.all()
    ]


def conversation(ui) -> str:
    """Of the prompt."""
    return ui.api()["8"]["inputs"]["conversation"]


def turns(*pairs) -> list[tuple[str, str]]:
    return [bubble for question, answer in pairs for bubble in (("question", question), ("answer", answer))]


def answered(ui) -> str:
    (output,) = [data["output"] for kind, data in ui.seen() if kind == "executed" and str(data["node"]) == "8"]
    return output["text"][0]


def note_changes(ui):
    """A click on the canvas: after it the frontend takes note of what has changed, for undo."""
    ui.page.mouse.click(400, 900)
    ui.press("Escape")


def begin_conversation(ui) -> list[str]:
    """Two turns in a fresh graph; returns their answers."""
    ui.load(saved_graph("ask"))
    ui.make_small()
    ui.look_at(ASK)
    note_changes(ui)
    ask_next(ui, "What is this?", go_on=True)
    answers = [answered(ui)]
    note_changes(ui)
    ask_next(ui, "Why?")
    answers.append(answered(ui))
    note_changes(ui)
    return answers


def test_a_conversation(ui):
    ui.load(saved_graph("ask"))
    ui.make_small()
    ui.look_at(ASK)
    assert ui.page.locator(ANSWER).is_visible() and not ui.page.locator(TALK).is_visible()
    assert "conversation" not in ui.page.locator(".lg-node-widgets, .dom-widget").all_inner_texts()
    ui.set(ASK, go_on=True)
    assert ui.page.locator(TALK).is_visible() and not ui.page.locator(ANSWER).is_visible()
    ask_next(ui, "What is this?")
    first = answered(ui)
    assert shown(ui) == turns(("What is this?", first))
    assert ui.posted[-1]["8"]["inputs"]["conversation"] == ""
    # The question unchanged, it is the same turn.
    ui.run()
    assert ui.posted[-1] == ui.posted[-2] and "8" in ui.cached()
    assert shown(ui) == turns(("What is this?", first))

    ui.set(ASK, question="Why?")
    ui.run()
    second = answered(ui)
    assert shown(ui) == turns(("What is this?", first), ("Why?", second))
    (said,) = json.loads(ui.posted[-1]["8"]["inputs"]["conversation"])
    assert said["question"] == "What is this?" and said["answer"] == first
    ui.shot("conversation")
    # Copied is the answer.
    ui.page.locator(".internvlu-panel button", has_text="Copy").click()
    assert ui.copied() == second.replace("\r", "\n")

    # For screen readers: a log with names, told when it is complete.
    log = ui.page.get_by_role("log", name="Conversation")
    assert log.get_attribute("aria-busy") == "false"
    assert log.inner_text().count("Question") == 2 and log.inner_text().count("Answer") == 2

    ui.page.get_by_role("button", name="New conversation").click()
    assert shown(ui) == [] and conversation(ui) == ""
    ui.run()
    assert shown(ui)[0] == ("question", "Why?") and len(shown(ui)) == 2
    # Off, the panel shows the answer alone.
    ui.set(ASK, go_on=False)
    assert conversation(ui) == "" and ui.page.locator(ANSWER).is_visible()


def test_going_on_from_an_answer(ui):
    """Who asks first and then wants to go on."""
    ui.load(saved_graph("ask"))
    ui.make_small()
    ui.look_at(ASK)
    ui.run()
    question, first = ui.get(ASK, "question"), answered(ui)
    ui.set(ASK, go_on=True)
    assert shown(ui) == turns((question, first))
    ask_next(ui, "Why?")
    assert shown(ui) == turns((question, first), ("Why?", answered(ui)))


def test_a_conversation_in_a_subgraph(ui):
    """Its node holds the question and the switch."""
    ui.load(saved_graph("ask"))
    ui.make_small()
    ui.set(ASK, go_on=True)
    ui.js("""() => {
      const ask = app.graph.nodes.find((node) => node.type === 'InternVLUAsk');
      app.graph.convertToSubgraph(new Set([ask]));
      const { subgraph } = app.graph.nodes.find((node) => node.subgraph);
      for (const name of ["question", "go_on"]) {
        const input = subgraph.nodes[0].inputs.find((input) => input.name === name);
        if (input.link == null) subgraph.inputNode.emptySlot.connect(input, subgraph.nodes[0]);
      }
    }""")
    ui.settle()

    def inputs() -> dict:
        return next(node["inputs"] for node in ui.api().values() if node["class_type"] == ASK)

    ui.run()
    ui.run()  # the question unchanged, it is the same turn
    assert ui.posted[-1] == ui.posted[-2]
    assert (inputs()["go_on"], inputs()["conversation"]) == (True, "")
    set_host = """([name, value]) => {
      app.graph.nodes.find((node) => node.subgraph).widgets.find((widget) => widget.name === name).value = value;
    }"""
    ui.js(set_host, ["question", "Why?"])
    assert len(json.loads(inputs()["conversation"])) == 1
    ui.js(set_host, ["go_on", False])
    assert (inputs()["go_on"], inputs()["conversation"]) == (False, "")


def test_a_conversation_streams_at_its_end(ui):
    ui.load(saved_graph("ask"))
    ui.look_at(ASK)
    ui.set(ASK, go_on=True, question="First?", max_new_tokens=8)
    ui.run()
    first = answered(ui)
    ui.set(ASK, **LONG)
    ui.js(f"""() => {{
      window.log = [];
      app.api.addEventListener("internvlu.text", () => requestAnimationFrame(() => {{
        const talk = document.querySelector("{TALK}");
        log.push([talk.ariaBusy, [...talk.querySelectorAll("p")].map((p) => p.textContent)]);
      }}));
    }}""")
    ui.start()
    assert ui.end() == "execution_success"
    seen = ui.js("() => log")
    streamed = [texts for busy, texts in seen if busy == "true"]  # the last pieces may be drawn after the end
    assert len(streamed) > 3 and all(texts[:3] == ["First?", first, LONG["question"]] for texts in streamed)
    lengths = [len(texts[3]) for _, texts in seen]
    assert lengths == sorted(lengths) and len(set(lengths)) > 3
    assert shown(ui)[-1] == ("answer", answered(ui))
    assert ui.js(
        f"() => {{ const a = document.querySelector('{TALK}');"
        " return a.scrollHeight > a.clientHeight && a.scrollTop + a.clientHeight >= a.scrollHeight - 2; }"
    )


def test_wheel_and_keys_in_the_conversation_are_not_the_canvas(ui):
    ui.fresh(ASK)
    words = json.dumps([{"question": "Q?", "answer": "word " * 3000}])
    ui.set(ASK, go_on=True)
    ui.execute(text=["word"], tokens=[1], conversation=[words])
    ui.settle()
    log = ui.page.locator(TALK)
    before = ui.js("() => [app.canvas.ds.scale, ...app.canvas.ds.offset]")
    log.hover()
    ui.js(f"() => {{ document.querySelector('{TALK}').scrollTop = 0; }}")
    ui.page.mouse.wheel(0, 300)
    ui.wait(f"() => document.querySelector('{TALK}').scrollTop > 0")
    log.click()
    ui.press("Control+a")
    ui.press("Delete")
    assert ui.js("() => app.graph.nodes.length") == 1
    ui.press("Control+c")
    assert ui.copied().count("word") == 3000
    assert ui.js("() => [app.canvas.ds.scale, ...app.canvas.ds.offset]") == before


def test_undo_and_copy_of_a_conversation(ui):
    first, second = begin_conversation(ui)
    both = turns(("What is this?", first), ("Why?", second))

    # A copy goes on from here on its own.
    ui.js("""() => {
      const node = app.graph.nodes.find((node) => node.type === 'InternVLUAsk');
      app.canvas.selectNode(node);
      app.canvas.copyToClipboard();
      app.canvas.pasteFromClipboard();
    }""")
    ui.settle()
    texts = ui.js(f"""() => [...document.querySelectorAll("{TALK}")]
      .map((log) => [...log.querySelectorAll("p")].map((p) => p.textContent))""")
    assert texts == [[words for _, words in both]] * 2
    ui.js("() => app.graph.remove(app.graph.nodes.filter((node) => node.type === 'InternVLUAsk')[1])")
    note_changes(ui)

    # Undo of New conversation brings it back, redo takes it away.
    ui.page.get_by_role("button", name="New conversation").click()
    note_changes(ui)
    assert shown(ui) == []
    ui.press("Control+z")
    assert shown(ui) == both
    ui.press("Control+y")
    assert shown(ui) == []
    ui.press("Control+z")
    ui.set(ASK, question="Really?")
    assert [turn["question"] for turn in json.loads(conversation(ui))] == ["What is this?", "Why?"]


def test_a_conversation_over_a_reload(ui):
    """This tab keeps it, and another one has what the file has: all of it, if it is saved with the workflow."""
    first, second = begin_conversation(ui)
    both = turns(("What is this?", first), ("Why?", second))
    graph = "() => JSON.parse(JSON.stringify(app.graph.serialize()))"
    bare = ui.js(graph)
    said = json.dumps(json.dumps("Why?"))[1:-1]  # in a conversation, which is JSON in a value
    assert said not in json.dumps(bare)
    ui.load(bare)
    assert shown(ui) == both
    ui.open()
    ui.load(bare)
    assert shown(ui) == both
    ui.page.get_by_role("checkbox", name="Save with the workflow").check()
    note_changes(ui)
    saved = ui.js(graph)
    assert said in json.dumps(saved)
    ui.js("() => sessionStorage.removeItem('InternVLU.Kept')")
    ui.open()
    for one, kept in ((bare, []), (saved, both)):
        ui.load(one)
        assert shown(ui) == kept


def test_a_broken_conversation(ui):
    """As from a file that was edited by hand: the server says what is wrong, and a new conversation mends it."""
    ui.load(saved_graph("ask"))
    ui.make_small()
    ui.look_at(ASK)
    ui.set(ASK, go_on=True, conversation='[{"question": "a"')
    assert conversation(ui) == '[{"question": "a"'
    assert shown(ui) == []
    ui.page.get_by_role("button", name="New conversation").click()
    assert conversation(ui) == ""
    ui.run()
    assert len(shown(ui)) == 2


def test_seeds(ui):
    """Fixed on a new node; on a saved one as it was saved. At temperature 0 none asks for a new run."""
    ui.fresh(ASK, REASON, "InternVLUSampler")
    control = "() => app.graph.nodes.map((node) => node.widgets.find((w) => w.name === 'control_after_generate').value)"
    assert ui.js(control) == ["fixed", "fixed", "randomize"]
    graph = saved_graph("ask")
    (node,) = [node for node in graph["nodes"] if node["type"] == ASK]
    node["widgets_values"][2:4] = [5, "randomize"]
    ui.load(graph)
    ui.make_small()
    assert ui.get(ASK, "control_after_generate") == "randomize" and ui.get(ASK, "seed") == 5
    ui.run()
    assert ui.get(ASK, "seed") != 5
    ui.run()
    assert ui.posted[-1] == ui.posted[-2] and ui.posted[-1]["8"]["inputs"]["seed"] == 0 and "8" in ui.cached()
    ui.set(ASK, temperature=1.0, seed=6, control_after_generate="fixed")
    assert ui.api()["8"]["inputs"]["seed"] == 6


def test_a_conversation_in_vue_nodes(ui):
    ui.set_setting("Comfy.VueNodes.Enabled", True)
    try:
        ui.load(saved_graph("ask"))
        ui.make_small()
        ui.look_at(ASK)
        assert not ui.page.locator(TALK).is_visible()
        assert ui.page.locator("[data-widget-name=conversation]").count() == 0
        ui.look_at(ASK, scale=0.6)
        ui.set(ASK, go_on=True)
        ask_next(ui, "What is this?")
        first = answered(ui)
        ask_next(ui, "Why?")
        assert shown(ui) == turns(("What is this?", first), ("Why?", answered(ui)))
        ui.shot("vue_conversation")
        position = ui.js("() => [...app.graph.nodes.find((node) => node.type === 'InternVLUAsk').pos]")
        # Words can be marked: dragging over them does not move the node.
        box = ui.page.locator(f"{TALK} .internvlu-answer p").last.bounding_box()
        ui.page.mouse.move(box["x"] + 1, box["y"] + 5)
        ui.page.mouse.down()
        ui.page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 3, steps=4)
        ui.page.mouse.up()
        assert ui.js("() => getSelection().toString().length") > 0
        assert ui.js("() => [...app.graph.nodes.find((node) => node.type === 'InternVLUAsk').pos]") == position
        ui.page.get_by_role("button", name="New conversation").click()
        assert shown(ui) == []
        assert conversation(ui) == ""
    finally:
        ui.set_setting("Comfy.VueNodes.Enabled", False)
