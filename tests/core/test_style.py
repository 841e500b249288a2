"""The shape of internvlu_core: its size, its functions, its docstrings, and the direction of its imports."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "internvlu_core"
FILES = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}

# Not counted below: GGUF, conversion, download, offloading, weight formats, checks of an installation, batch runs,
# command line.
APART = (
    "checkpoints/convert",
    "checkpoints/gguf",
    "checkpoints/quantised",
    "checkpoints/hub",
    "offload",
    "quantization/",
    "doctor/",
    "batch/",
    "to_transformers",
    "cli",
    "__main__",
)
CORE = [name for name in FILES if not name.startswith(APART)]
SHORT = [*CORE, *(name for name in FILES if name.startswith(("doctor/", "batch/")))]

# Who imports whom: each layer only what stands above it, or in its own line (but see NETWORKS).
LAYERS = (
    ("errors",),
    ("checkpoints/gguf", "checkpoints/files", "checkpoints/config", "checkpoints/hub"),
    ("models/attention", "models/float16", "models/operations", "models/rope"),
    ("models/vision", "models/language", "models/mmdit", "models/vae"),
    ("models/vlm",),
    ("quantization/exact", "quantization/packing", "quantization/formats"),
    ("quantization/float8", "quantization/int8"),
    ("quantization/gguf_blocks", "quantization/gguf"),
    ("quantization/scaled_float8", "quantization/mxfp8", "quantization/nvfp4", "quantization/rotated4"),
    ("quantization/__init__",),
    ("checkpoints/quantised", "checkpoints/load", "checkpoints/convert_gguf", "checkpoints/convert"),
    (
        "conversation",
        "prompt",
        "imaging",
        "grounding",
        "replay",
        "decoding",
        "batching",
        "many",
        "guidance",
        "sampling",
        "requests",
        "conditioning",
        "offload",
    ),
    ("pipeline", "to_transformers"),
    (
        "batch/requests_file",
        "batch/pictures",
        "batch/results",
        "batch/worker",
        "batch/engines",
        "batch/comfyui",
        "batch/__init__",
    ),
    ("doctor/measure", "doctor/record_official", "doctor/recording", "doctor/files"),
    ("doctor/official", "doctor/smoke", "doctor/speed", "doctor/compare"),
    ("doctor/report", "doctor/checkup"),
    ("__init__", "cli"),
    ("__main__",),
)
NETWORKS = LAYERS[3]
EMPTY = ("checkpoints/__init__", "models/__init__", "doctor/__init__")


def functions(tree: ast.AST):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def docstring_lines(node: ast.AST) -> set[int]:
    """The lines of a function's, class's or module's docstring."""
    if ast.get_docstring(node) is None:
        return set()
    return set(range(node.body[0].lineno, node.body[0].end_lineno + 1))


def statements(name: str) -> int:
    """Lines of code: comments, blank lines and docstrings are none, and a statement is one however it is wrapped."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = set().union(*(docstring_lines(n) for n in ast.walk(TREES[name]) if isinstance(n, documented)))
    tokens = tokenize.generate_tokens(io.StringIO(FILES[name].read_text(encoding="utf-8")).readline)
    return sum(token.type == tokenize.NEWLINE and token.start[0] not in docstrings for token in tokens)


def test_size_of_the_core():
    """In statements; wrapped as they are, these are a fifth more lines."""
    assert sum(map(statements, CORE)) <= 3210


@pytest.mark.parametrize("name", FILES)
def test_functions_are_short(name):
    """From the line of `def` to the last, less the docstring; self and cls are no parameters."""
    for function in functions(TREES[name]):
        lines = function.end_lineno - function.lineno + 1 - len(docstring_lines(function))
        assert lines <= 40, f"{name}: {function.name} has {lines} lines"
        arguments = function.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        count = len([argument for argument in names if argument not in ("self", "cls")])
        assert count <= 8, f"{name}: {function.name} has {count} parameters"


def public(body: list[ast.stmt]):
    """Public functions and classes."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [node for node in body if isinstance(node, kinds) and not node.name.startswith("_")]


CLASSES = {node.name: node for tree in TREES.values() for node in tree.body if isinstance(node, ast.ClassDef)}


def undocumented(body: list[ast.stmt], bases: list[ast.expr] = ()) -> list[str]:
    """Public names without a docstring. Their classes explain `forward`; a base class explains what overrides it."""
    explained, left = {"forward"}, list(bases)
    while left:
        base = left.pop()
        if isinstance(base, ast.Name) and base.id in CLASSES:
            explained |= {node.name for node in public(CLASSES[base.id].body)}
            left += CLASSES[base.id].bases
    found = [node.name for node in public(body) if not ast.get_docstring(node) and node.name not in explained]
    for node in public(body):
        if isinstance(node, ast.ClassDef):
            found += [f"{node.name}.{name}" for name in undocumented(node.body, node.bases)]
    return found


@pytest.mark.parametrize("name", FILES)
def test_public_names_have_docstrings(name):
    assert ast.get_docstring(TREES[name]) and undocumented(TREES[name].body) == []


def imports(name: str) -> set[str]:
    """Modules of the core that a module imports, at its top or in a function."""
    found, package = set(), name.split("/")[:-1]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) + 1 - node.level], *(node.module or "").split(".")]
            base = "/".join(part for part in base if part)
            for alias in node.names:
                inner = f"{base}/{alias.name}".lstrip("/")
                found.add(inner if inner in FILES else base if base in FILES else f"{base}/__init__".lstrip("/"))
        absolute = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
        assert not (absolute or "").startswith("internvlu_core"), f"{name}: imports inside the pack are relative"
    return found


def test_every_module_has_a_layer():
    assert sorted(sum(LAYERS, EMPTY)) == sorted(FILES)


@pytest.mark.parametrize("level", range(len(LAYERS)))
def test_imports_run_one_way(level):
    for name in LAYERS[level]:
        allowed = {module for layer in LAYERS[: level + 1] for module in layer} - {name}
        if name in NETWORKS:
            allowed -= set(NETWORKS)
        assert imports(name) <= allowed, f"{name} imports {imports(name) - allowed}"


def test_imports_have_no_circle():
    """Within a layer too."""
    order, left = [], set(FILES)
    while left:
        free = {name for name in left if not imports(name) & left - {name}}
        assert free, f"in a circle: {sorted(left)}"
        order += sorted(free)
        left -= free
    assert order.index("models/vlm") < order.index("conditioning") < order.index("pipeline")
