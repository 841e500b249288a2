"""What the documents refer to exists: sections, links, files, modules, commands."""

import re
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from internvlu_core import cli
from support.pack import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "demo/README.md"]
DOCUMENTS += [ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "BENCHMARKS")]
FOLDERS = "internvlu_core|internvlu_train|nodes|scripts|tests|docs|js|benchmarks|workflows|subgraphs|locales|demo"


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(params=DOCUMENTS, ids=short)
def document(request) -> Path:
    return request.param


def tracked(pattern: str) -> list[Path]:
    """Files that git tracks, or would if they were added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", pattern]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def sections(document: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def anchor(title: str) -> str:
    """GitHub's link target of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_cited_sections_exist():
    """Code and tests cite docs/model.md by title, so that a section can move."""
    titles, cited = set(sections(ROOT / "docs/model.md")), []
    for file in tracked("*.py"):
        if file == Path(__file__).resolve():
            continue
        text = re.sub(r"\s*\n\s*(?:# ?)?", " ", file.read_text(encoding="utf-8"))
        assert "model.md section" not in text, f"{short(file)} cites a section by number"
        for citation in re.findall(r'(\S*)model\.md((?:,? (?:and )?"[^"]+")*)', text):
            where = f"{short(file)}: {''.join(citation)}"
            assert citation[0].endswith("docs/"), where
            for title in re.findall(r'"([^"]+)"', citation[1]):
                cited.append(title)
                assert title in titles, where
    assert len(cited) >= 10


def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(<?([^)>]+)>?\)", document.read_text(encoding="utf-8")):
        link = urlsplit(target)
        if link.scheme:
            continue
        file = document.parent / unquote(link.path) if link.path else document
        assert file.exists(), target
        if link.fragment:
            assert link.fragment in map(anchor, sections(file)), target


def test_named_files_exist(document):
    """Paths in code spans, with the wildcards * and {a,b}."""
    for span in re.findall(r"`([^`\n]+)`", document.read_text(encoding="utf-8")):
        for path in re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w*{{}},./-]*", span):
            pattern = re.sub(r"\{[^}]*\}", "*", path.rstrip(".,"))
            assert list(ROOT.glob(pattern.rstrip("/"))), f"{short(document)} names {path}"


def test_commands_exist(document):
    text = document.read_text(encoding="utf-8")
    for module in re.findall(r"-m ((?:internvlu_core|internvlu_train|benchmarks)[\w.]*)", text):
        place = ROOT.joinpath(*module.rstrip(".").split("."))
        assert (place / "__main__.py").is_file() or place.with_suffix(".py").is_file(), module
    for script in re.findall(r"python3? (scripts/\S+\.py)", text):
        assert (ROOT / script).is_file(), script
    parser = cli.parser()
    (commands,) = (action for action in parser._actions if action.dest == "command")
    for names in re.findall(r"-m internvlu_core ([a-z|]+)", text):
        assert set(names.split("|")) <= set(commands.choices), names


def test_readme_counts_the_stock_nodes():
    rows = re.findall(r"^\| (?!stock nodes)\w", (ROOT / "docs/interop.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"Each of {len(rows)} stock nodes" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_file_map_is_complete():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    mapped = re.findall(r"^\| `((?:internvlu_core|nodes)/[\w/]+\.py)` \|", text, re.MULTILINE)
    there = {short(file) for folder in ("internvlu_core", "nodes") for file in tracked(f"{folder}/*.py")}
    assert there - set(mapped) == set(), "not in CONTRIBUTING's table of files"
    assert set(mapped) - there == set(), "in CONTRIBUTING's table of files, but gone"
    assert len(mapped) == len(set(mapped))


def test_explained_messages_are_raised():
    """README's table of errors quotes messages; what stands between the ellipses is in the code."""
    code = " ".join(
        file.read_text(encoding="utf-8") for top in ("internvlu_core", "nodes") for file in tracked(f"{top}/*.py")
    )
    code = re.sub(r'"\s*f?"', "", code)
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("## Troubleshooting")[1].split("\n## ")[0]
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(messages) >= 5
    for message in messages:
        for part in re.split(r"…|\d+", message):
            assert part.strip() in code, message
