"""What the documents refer to exists: sections, links, files, modules, commands."""

import ast
import builtins
import inspect
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from benchmarks.comparisons import NAMES
from internvlu_core import cli
from internvlu_train.__main__ import RELEASED, STAGES, TOY, stage_names
from support.pack import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "demo/README.md"]
DOCUMENTS += [ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "BENCHMARKS")]
FOLDERS = "internvlu_core|internvlu_train|nodes|scripts|tests|docs|js|benchmarks|workflows|subgraphs|locales|demo"


# Where a person reads what to type: the documents, help pages, and what --help and the first lines of a file say.
TOLD = [*DOCUMENTS, *sorted((ROOT / "js/docs").glob("*.md")), *sorted((ROOT / ".github").glob("ISSUE_TEMPLATE/*.yml"))]
TOLD += [ROOT / f"{name}/__main__.py" for name in ("benchmarks", "internvlu_train", "internvlu_train/synthesis")]
TOLD += sorted((ROOT / "scripts").glob("*.py"))
COMMAND = re.compile(r"-m (internvlu_core|internvlu_train|benchmarks)([\w.]*)|(scripts/\w+\.py)|^(internvlu) (?=\w)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
# Of ComfyUI, git, pip, Ray, torchrun, pytest.
OTHERS = {"--use-sage-attention", "--use-flash-attention", "--disable-all-custom-nodes", "--whitelist-custom-nodes"}
OTHERS |= {"--disable-gpu-memory", "--head", "--nproc-per-node", "--standalone", "--cov", "--help", "--cpu"}


# Names of the official code, of pandas, Ray and the portable build for Windows.
THEIRS = {"callback_on_step_end", "read_parquet", "RAY_AUTH_TOKEN", "python_embeded"}


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


@pytest.fixture(scope="module")
def words() -> set[str]:
    """All that stand in our code and configuration, and the names of its files."""
    endings = "py", "js", "json", "toml", "yml", "jinja"
    files = [file for ending in endings for file in tracked(f"*.{ending}")]
    return {word for file in files for word in (file.stem, *re.findall(r"\w+", file.read_text(encoding="utf-8")))}


def test_names_exist(document, words):
    """What looks like a name of our code or of a setting. docs/model.md has many of the official code's."""
    if document.name == "model.md":
        return
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`\n]+)`", text):
        for name in re.findall(r"[A-Za-z_]\w*", span):
            if "_" in name.strip("_") or re.search("[a-z][A-Z]", name):
                assert name in words | THEIRS, f"{short(document)} names {name}"


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


def code(file: Path) -> list[str]:
    """What stands in backticks, or in an indented line, each in one line."""
    text = re.sub(r"\\\n\s*", " ", file.read_text(encoding="utf-8"))
    if file.suffix == ".py":
        text = text.split('"""')[1]
    spans = re.findall(r"`([^`]+)`|^ {4,}(.+)$|\"(python -m [^\"]+)\"", text, re.MULTILINE)
    return [re.sub(r"\s+", " ", "".join(span)) for span in spans]


def options_in(*sources: str) -> set[str]:
    """Those that a parser gets in a file, or in the text of a function."""
    texts = ((ROOT / source).read_text(encoding="utf-8") if source.endswith(".py") else source for source in sources)
    return set(re.findall(r"\(\s*\"(--[\w-]+)\"", " ".join(texts)))


def options_of(command: re.Match, rest: str) -> set[str]:
    """The options of a command. rest: what follows its name."""
    module, deeper, script, installed = command.groups()
    if module == "internvlu_core" or installed:
        (commands,) = (action for action in cli.parser()._actions if action.dest == "command")
        names = re.match(r"[a-z|]*", rest)[0].split("|")
        parsers = [commands.choices[name] for name in names if name]
        return set().union(*(parser._option_string_actions for parser in parsers))
    if script:
        return options_in(script)
    place = f"{module}{deeper}".rstrip(".").replace(".", "/")
    more = inspect.getsource(cli.worker_arguments) if place.endswith("evaluation") else ""
    return options_in(f"{place}.py" if (ROOT / f"{place}.py").is_file() else f"{place}/__main__.py", more)


@pytest.mark.parametrize("file", TOLD, ids=short)
def test_options_exist(file):
    """Those behind a command are that command's; others are of some command."""
    folders = "internvlu_core", "internvlu_train", "benchmarks", "scripts"
    ours = [short(name) for folder in folders for name in tracked(f"{folder}/*.py")]
    known = options_in(*ours, "tests/conftest.py") | OTHERS
    for text in code(file):
        command = COMMAND.search(text)
        if not command:
            assert set(OPTION.findall(text)) <= known or text.startswith(("git ", "ray ", "pip ")), text
            continue
        rest = text[command.end() :].strip()
        assert set(OPTION.findall(rest)) <= options_of(command, rest) | {"--help"}, text
        first = re.match(r"[a-z][\w-]*", rest)
        if first and command[0] == "-m benchmarks":
            assert first[0] in (*NAMES, "all", "setup", "tables"), text
        if first and command[0] == "-m internvlu_train":
            assert first[0] in (*stage_names(), *STAGES, TOY, RELEASED), text


def test_python_can_be_run_as_it_stands(document):
    """Every name is imported or made before, and what is imported from us is there."""
    text = document.read_text(encoding="utf-8")
    known = {*dir(builtins), "TARGET", "pictures"}  # the reader's own
    for block in re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE):
        try:
            tree = ast.parse("".join(line[4:] for line in block.splitlines(keepends=True)))
        except SyntaxError:
            continue
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        ours = [node for node in imports if "internvlu" in ast.unparse(node)]
        exec(ast.unparse(ast.Module(ours, [])), {})
        known |= {name.asname or name.name for node in imports for name in node.names}
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        known |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
        if any(isinstance(node, ast.Call) for node in ast.walk(tree)):
            assert {name.id for name in names} <= known, block


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
