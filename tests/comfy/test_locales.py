"""Node names, inputs, outputs, texts of the scripts, settings and help in four languages: none missing, none stale."""

import json
import re
from pathlib import Path

import pytest

from support.comfy_server import PACK_NAME

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("zh", "ko", "ja")
PAGES = sorted(page.stem for page in (ROOT / "js" / "docs").glob("*.md"))


def english(object_info: dict) -> dict:
    """What ComfyUI's nodeDefs.json would hold in English, from the schemas."""
    definitions = {}
    for name, node in object_info.items():
        if not name.startswith("InternVLU"):
            continue
        inputs = {
            socket: {"name": options.get("display_name", socket), "tooltip": options["tooltip"]}
            for section in ("required", "optional")
            for socket, (_, options) in node["input"].get(section, {}).items()
        }
        outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
        definitions[name] = {
            "display_name": node["display_name"],
            "description": node["description"],
            **({"inputs": inputs} if inputs else {}),
            "outputs": {str(i): {"name": label, "tooltip": tooltip} for i, (label, tooltip) in enumerate(outputs)},
        }
    return definitions


def leaves(tree: dict, path: tuple = ()) -> dict:
    """{path of keys: text}"""
    flat = {}
    for key, value in tree.items():
        flat |= leaves(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value}
    return flat


def read(language: str, name: str) -> dict:
    return leaves(json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_text_is_translated(server, language):
    source, translated = leaves(english(server.object_info())), read(language, "nodeDefs")
    assert translated.keys() == source.keys()
    assert all(text.strip() for text in translated.values())
    # Names of types and proper names may stay; what is explained in words may not.
    untouched = {path for path, text in source.items() if path[-1] != "name" and translated[path] == text}
    assert not untouched
    # A node keeps its name's beginning, by which it is found.
    assert all(translated[name, "display_name"].startswith("InternVL-U") for name, *_ in source)


def test_english_names_are_those_of_the_schemas(server):
    """locales/en/nodeDefs.json has them for frontends that know no display_name of an input; and those of outputs, as
    an output's display_name would be its id in saved workflows."""
    source, named = leaves(english(server.object_info())), read("en", "nodeDefs")
    inputs = {path: text for path, text in source.items() if path[1] == "inputs" and path[-1] == "name"}
    others = {path: text for path, text in inputs.items() if path[2] != text}
    assert {path: text for path, text in named.items() if path[1] == "inputs"} == others
    outputs = {path: text for path, text in named.items() if path[1] == "outputs"}
    assert named.keys() == others.keys() | outputs.keys() and outputs.keys() <= source.keys()
    # An output and an input that belong together have one name.
    by_id = {path[2]: text for path, text in others.items()}
    pairs = [(by_id[source[path]], text) for path, text in outputs.items() if source[path] in by_id]
    assert pairs and all(of_input == of_output for of_input, of_output in pairs)


def test_what_an_id_calls_cryptic_has_a_name_in_every_language(server):
    named = read("en", "nodeDefs")
    for path in [
        ("InternVLUSampler", "inputs", "full", "name"),
        ("InternVLUSampler", "inputs", "all_scale", "name"),
        ("InternVLUGuidance", "inputs", "partial_scale", "name"),
        ("InternVLUEncode", "outputs", "2", "name"),
        ("InternVLUReason", "inputs", "pinned", "name"),
    ]:
        names = [named[path], *(read(language, "nodeDefs")[path] for language in LANGUAGES)]
        assert len(set(names)) == len(names) and not {path[2], "unconditional"} & set(names)


def test_few_people_s_inputs_are_advanced(server):
    info = server.object_info()
    advanced = {
        (node, name)
        for node in info
        if node.startswith("InternVLU")
        for section in ("required", "optional")
        for name, (_, options) in info[node]["input"].get(section, {}).items()
        if options.get("advanced")
    }
    text = ("top_p", "top_k", "num_beams", "system_prompt")
    encode = ("whole_reasoning", "partial_negative", "system_prompt")
    expected = {(node, name) for node in ("InternVLUReason", "InternVLUAsk") for name in text}
    assert advanced == expected | {("InternVLUEncode", name) for name in encode}


@pytest.mark.parametrize("name", ["main", "settings"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_of_the_scripts_is_translated(language, name):
    source, translated = read("en", name), read(language, name)
    assert translated.keys() == source.keys()
    for path, text in source.items():
        assert translated[path].strip()
        assert sorted(re.findall(r"\{\w+\}", translated[path])) == sorted(re.findall(r"\{\w+\}", text)), path


def test_translations_are_served(server):
    served = server.http.get(f"{server.url}/i18n", timeout=60).json()
    assert {"en", *LANGUAGES} <= served.keys()
    assert (
        served["zh"]["nodeDefs"]["InternVLULoader"]["display_name"]
        == read("zh", "nodeDefs")["InternVLULoader", "display_name"]
    )


def facts(page: str) -> list[str]:
    """What a translation must say as well: pictures, values, names of settings, numbers."""
    code = re.findall(r"`([^`]+)`", page)
    rest = re.sub(r"`[^`]+`|!\[[^\]]*\]\([^)]*\)", "", page)
    # Before an id stands the name that people see, which is translated.
    bold = re.findall(r"\*\*([^*]+)\*\*(\s*[(（]`)?", page)
    names = [name for name, code in bold if not code and re.fullmatch(r"[a-z0-9_ …]+", name)]
    pictures = re.findall(r"\]\(([^)]+)\)", page)
    numbers = re.findall(r"\d+(?:\.\d+)?", rest)
    graphs = {text for text in code if "→" in text}  # node names in them are translated
    kept = sorted([*(text for text in code if text not in graphs), *names, *pictures])
    return [*kept, f"{len(graphs)} graphs", *sorted(numbers)]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_help_page_is_translated(language, page):
    source = (ROOT / "js" / "docs" / f"{page}.md").read_text(encoding="utf-8")
    translated = (ROOT / "js" / "docs" / page / f"{language}.md").read_text(encoding="utf-8")
    assert facts(translated) == facts(source)
    title = read(language, "nodeDefs")[page, "display_name"]
    assert translated.startswith(f"# {title}\n")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_help_pages_call_things_as_the_nodes_do(server, language, page):
    """Where a name stands before an id, it is the one on the node; an id that the node does not show has one."""
    named = read(language, "nodeDefs")
    shown = {}
    for (node, part, *key), text in leaves(english(server.object_info())).items():
        if node == page and key[1:] == ["name"]:
            socket = key[0] if part == "inputs" else text
            shown.setdefault(socket, named.get((node, part, *key), text))
    text = (ROOT / "js" / "docs" / page / f"{language}.md").read_text(encoding="utf-8")
    for name, socket in re.findall(r"\*\*([^*]+)\*\*\s*[(（]`(\w+)`", text):
        assert name == shown.get(socket, name)
    for socket in re.findall(r"\*\*(\w+)\*\*(?!\s*[(（]`)", text):
        assert shown.get(socket, socket) == socket


def test_help_pages_call_stock_nodes_as_this_comfyui_does(server):
    shown, found = {node["display_name"] for node in server.object_info().values()}, 0
    for page in PAGES:
        text = " ".join((ROOT / "js" / "docs" / f"{page}.md").read_text(encoding="utf-8").split())
        for names in re.findall(r"\*([A-Z][^*]*)\*[^*]{0,15}\(in (?:older|newer) ComfyUIs \*([^*]+)\*\)", text):
            assert shown & set(names), page
            found += 1
    assert found == 2


@pytest.mark.parametrize("page", PAGES)
def test_help_is_where_frontends_look_first(server, page):
    """They ask for NODE/LANGUAGE.md, English too, and for NODE.md in languages that we do not have."""
    english = (ROOT / "js" / "docs" / f"{page}.md").read_bytes()
    hint = f"copy js/docs/{page}.md to js/docs/{page}/en.md"
    assert (ROOT / "js" / "docs" / page / "en.md").read_bytes() == english, hint
    for file in (page, *(f"{page}/{language}" for language in ("en", *LANGUAGES))):
        assert server.http.get(f"{server.url}/extensions/{PACK_NAME}/docs/{file}.md", timeout=60).status_code == 200


def test_no_translation_is_left_over():
    assert {path.parent.name for path in (ROOT / "js" / "docs").glob("*/*.md")} == set(PAGES)
    assert {path.name for path in (ROOT / "locales").iterdir()} == {"en", *LANGUAGES}
    pictures = {path.name for path in (ROOT / "js" / "docs" / "images").iterdir()}
    assert pictures == {f"{page}.jpg" for page in PAGES}
