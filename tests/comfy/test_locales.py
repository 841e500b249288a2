"""Node names, inputs, outputs, texts of the scripts, settings and help in four languages: none missing, none stale."""

import json
import re
from pathlib import Path

import pytest

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
            socket: {"name": socket, "tooltip": options["tooltip"]}
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
    names = [name for name in re.findall(r"\*\*([^*]+)\*\*", rest) if re.fullmatch(r"[a-z0-9_ …]+", name)]
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


def test_no_translation_is_left_over():
    assert {path.parent.name for path in (ROOT / "js" / "docs").glob("*/*.md")} == set(PAGES)
    assert {path.name for path in (ROOT / "locales").iterdir()} == {"en", *LANGUAGES}
    pictures = {path.name for path in (ROOT / "js" / "docs" / "images").iterdir()}
    assert pictures == {f"{page}.jpg" for page in PAGES}
