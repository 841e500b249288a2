"""What the Comfy Registry and ComfyUI-Manager read, and what they would pack and install."""

import importlib.util
import posixpath
import re
import zipfile
from importlib import metadata
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

from support.environment import COMFYUI
from support.pack import ROOT, packed_files, write_pack

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pytest brings it there
    import tomli as tomllib

CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, COMFY = CONFIG["project"], CONFIG["tool"]["comfy"]
PLACEHOLDER = "GITHUB_OWNER"

# Top-level names of an installed pack. Whatever is new is either named here or left out by .comfyignore.
NEEDED = {
    "__init__.py", "internvlu_core", "internvlu_train", "nodes", "js", "workflows", "subgraphs", "demo",
    "pyproject.toml", "requirements.txt", "README.md", "LICENSE", "BENCHMARKS.md", "CHANGELOG.md", "docs",
}  # fmt: skip
ONCE_THERE = {"locales"}
CODE = "internvlu_core", "internvlu_train", "nodes", "js", "workflows", "subgraphs", "locales"
# What nobody who installs the pack needs: making synthetic samples, scoring, training the toy model, and its logs.
REPOSITORY_ONLY = (
    "internvlu_train/synthesis/", "internvlu_train/evaluation/", "internvlu_train/toy/", "demo/training/", "tests/"
)  # fmt: skip
MEGABYTES, TOY_MEGABYTES = 6, 20  # without the toy checkpoint, and of it

# A classifier of these kinds that comfy-cli does not know makes it drop all the others of its kind.
SYSTEMS = "Microsoft", "POSIX", "MacOS", "OS Independent"
ACCELERATORS = {
    "GPU :: NVIDIA CUDA", "GPU :: AMD ROCm", "GPU :: Intel Arc", "NPU :: Huawei Ascend", "GPU :: Apple Metal",
}  # fmt: skip


@pytest.fixture(scope="module")
def packed():
    return packed_files()


# pyproject.toml


def test_name_follows_the_registry():
    name = PROJECT["name"]
    assert re.fullmatch(r"[a-z][a-z0-9]*([._-][a-z0-9]+)*", name) and len(name) < 100
    assert "comfy" not in name
    assert COMFY["DisplayName"] and PROJECT["description"]
    assert (ROOT / PROJECT["license"]["file"]).is_file() and (ROOT / PROJECT["readme"]).is_file()


def test_version_is_the_top_release_of_the_changelog():
    """Before the first release it is the version to come."""
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    releases = [heading.split()[0] for heading in headings if heading != "Unreleased"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", release) for release in releases), headings
    assert "Unreleased" not in headings[1:]
    assert PROJECT["version"] == (releases or ["0.1.0"])[0]


def test_one_owner_everywhere():
    """All links are of one GitHub account, and it is known exactly when the publisher is."""
    urls = [*PROJECT["urls"].values(), COMFY["Icon"], COMFY["Banner"]]
    assert {urlsplit(url).scheme for url in urls} == {"https"}
    assert {urlsplit(url).netloc for url in urls} == {"github.com", "raw.githubusercontent.com"}
    ((owner, repository),) = {tuple(urlsplit(url).path.split("/")[1:3]) for url in urls}
    assert repository == "ComfyUI-InternVL-U"
    assert (owner == PLACEHOLDER) == (COMFY["PublisherId"] == ""), "fill in PublisherId and the owner in all links"
    assert {"Repository", "Documentation", "Bug Tracker"} <= PROJECT["urls"].keys()
    badge = f"{PROJECT['urls']['Repository']}/actions/workflows/test.yml"
    assert f"[![Tests]({badge}/badge.svg)]({badge})\n" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_requirements_agree_and_have_floors_only():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    torch, *others = PROJECT["dependencies"]
    assert Requirement(torch).name == "torch"  # for `pip install .`; in ComfyUI it is there
    assert [line for line in lines if line and not line.startswith("#")] == others
    for requirement in map(Requirement, others):
        assert {specifier.operator for specifier in requirement.specifier} <= {">=", "!="}, requirement
        assert requirement.url is None and not requirement.name.startswith(("torch", "flash", "triton"))
        assert requirement.specifier.contains(metadata.version(requirement.name), prereleases=True), requirement


def test_extras_are_installed_from_the_folder():
    """No package index has this program: pip would refuse its name, or fetch a stranger's package of that name."""
    told = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("internvlu_*/**/*.py"), *ROOT.glob("nodes/**/*.py")]
    texts = [path.read_text(encoding="utf-8") for path in told]
    assert not any(f"{PROJECT['name']}[" in text for text in texts)
    extras = {name for text in texts for name in re.findall(r'pip install "\.\[(\w+)\]"', text)}
    assert {"batch", "synthesis"} <= extras <= PROJECT["optional-dependencies"].keys()


def test_floors_are_those_that_are_tested():
    assert COMFY["requires-comfyui"] == f">={COMFYUI.name.removeprefix('ComfyUI-')}"
    assert PROJECT["requires-python"].replace(">=3.", "py3") == CONFIG["tool"]["ruff"]["target-version"]


def test_classifiers_are_known_to_comfy_cli():
    kinds = dict.fromkeys(("Operating System", "Environment"), ())
    for classifier in PROJECT["classifiers"]:
        kind, value = classifier.split(" :: ", 1)
        kinds[kind] += (value,)
    assert kinds["Operating System"] and all(value.startswith(SYSTEMS) for value in kinds["Operating System"])
    assert kinds["Environment"] and set(kinds["Environment"]) <= ACCELERATORS


# Icon and banner


@pytest.mark.parametrize("name", ["icon", "banner"])
def test_pictures_are_what_the_script_draws(name):
    spec = importlib.util.spec_from_file_location("draw_logo", ROOT / "scripts" / "draw_logo.py")
    draw_logo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_logo)
    drawn = getattr(draw_logo, name)()
    with Image.open(ROOT / "docs" / f"{name}.png") as stored:
        assert (stored.mode, stored.size) == (drawn.mode, drawn.size)
        assert stored.tobytes() == drawn.tobytes(), "run scripts/draw_logo.py"


def test_pictures_have_the_registrys_sizes():
    assert COMFY["Icon"].endswith("/docs/icon.png") and COMFY["Banner"].endswith("/docs/banner.png")
    with Image.open(ROOT / "docs" / "icon.png") as icon, Image.open(ROOT / "docs" / "banner.png") as banner:
        assert icon.width == icon.height <= 400
        assert banner.width * 9 == banner.height * 21


# What is packed


def test_pack_holds_what_it_needs_and_nothing_else(packed):
    names = {file.split("/")[0] for file in packed}
    assert names >= NEEDED, "left out of the pack"
    assert names <= NEEDED | ONCE_THERE, "new in the pack: add it to .comfyignore, or to NEEDED"
    # Whatever lies there on the disk, but for what Python and git leave behind.
    there = {path.relative_to(ROOT).as_posix() for name in CODE for path in (ROOT / name).rglob("*") if path.is_file()}
    expected = {path for path in there if "__pycache__" not in path and not path.endswith(".DS_Store")}
    missing = {path for path in expected if not path.startswith(REPOSITORY_ONLY)} - set(packed)
    assert not missing, f"git or .comfyignore ignores them: {missing}"


def test_pack_leaves_out_what_only_the_repository_needs(packed):
    assert all(any((ROOT / folder).rglob("*.*")) for folder in REPOSITORY_ONLY), "a folder of the list is gone"
    assert [path for path in packed if path.startswith(REPOSITORY_ONLY)] == []


def test_pack_is_small(tmp_path):
    write_pack(tmp_path / "node.zip")
    with zipfile.ZipFile(tmp_path / "node.zip") as archive:
        sizes = {info.filename: info.compress_size for info in archive.infolist()}
    toy = sum(size for name, size in sizes.items() if name.startswith("demo/"))
    assert sum(sizes.values()) - toy < MEGABYTES * 1e6
    assert toy < TOY_MEGABYTES * 1e6


def test_paths_survive_packing(packed):
    """comfy-cli reads git's list of files, in which git quotes names like these, and then does not find them."""
    assert [path for path in packed if not re.fullmatch(r"[A-Za-z0-9 ._/-]+", path)] == []
    assert len({path.lower() for path in packed}) == len(packed), "one file on Windows"
    assert max(map(len, packed)) < 100


def test_pictures_of_documents_are_packed(packed):
    for document in [file for file in packed if file.endswith(".md") and "/docs/" not in file]:
        text = (ROOT / document).read_text(encoding="utf-8")
        pictures = re.findall(r"!\[[^]]*\]\(<?([^)>]+)>?\)", text) + re.findall(r'<img[^>]*\bsrc="([^"]+)"', text)
        local = {
            posixpath.normpath(PurePosixPath(document).parent / picture)
            for picture in pictures
            if not urlsplit(picture).scheme
        }
        assert local <= set(packed), f"{document}: {sorted(local - set(packed))}"
        assert document != "README.md" or len(local) > 5


def test_nothing_includes_what_git_ignores():
    """`includes` would bring along untracked files, such as __pycache__."""
    assert COMFY["includes"] == []


# For whoever helps


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:scripts|tests|docs|js)/[\w/]+\.(?:py|md|png)\b", text))
    assert len(named) > 5 and [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def test_bug_template_asks_for_what_is_needed():
    template = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8"))
    fields = {field["id"]: field for field in template["body"] if "id" in field}
    required = {name for name, field in fields.items() if field.get("validations", {}).get("required")}
    assert required >= {"comfyui", "pack", "device", "dtype", "workflow", "log"}
    dtypes = (ROOT / "nodes/comfy/dtypes.py").read_text(encoding="utf-8")
    offered = re.search(r"^DTYPES = {(.+?)^}", dtypes, re.M | re.S)
    assert fields["dtype"]["attributes"]["options"] == re.findall(r'^ +"(\w+)":', offered[1], re.M)


# Continuous integration


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))


def test_ci_runs_the_two_commands(workflow):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    python3 (scripts/dev\.py \w+)  ", text, re.MULTILINE)
    assert [command.split()[-1] for command in commands] == ["test", "demo"]
    (job,) = workflow["jobs"].values()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert {f"python {commands[0]} ${{{{ matrix.flags }}}}", f"python {commands[1]}"} <= set(runs)
    assert "COMFYUI_PATH=" in "".join(runs) and "comfyanonymous/ComfyUI" in "".join(runs)


def test_ci_has_every_system_python_and_comfyui(workflow):
    (job,) = workflow["jobs"].values()
    cells = job["strategy"]["matrix"]["include"]
    oldest = COMFY["requires-comfyui"].removeprefix(">=")
    both = {oldest, "newest"}
    assert {cell["os"] for cell in cells} == {"ubuntu", "windows", "macos"}
    assert {cell["python"] for cell in cells} == {f"3.{minor}" for minor in range(10, 14)}  # texts: 3.10 is not 3.1
    assert all({cell["comfyui"] for cell in cells if cell["os"] == os} == both for os in ("ubuntu", "windows", "macos"))
    assert PROJECT["requires-python"] == ">=" + min((cell["python"] for cell in cells), key=lambda v: int(v[2:]))


def test_one_job_of_ci_leaves_no_test_out(workflow, request):
    (job,) = workflow["jobs"].values()
    flags = {flag for cell in job["strategy"]["matrix"]["include"] for flag in cell.get("flags", "").split()}
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert flags == set(re.findall(r"^\| `(--[\w-]+)` \|", contributing, re.MULTILINE))
    assert all(request.config.getoption(flag) in (True, False) for flag in flags)


def test_ci_may_read_only_and_ends(workflow):
    (job,) = workflow["jobs"].values()
    assert workflow["permissions"] == {"contents": "read"} and "permissions" not in job
    assert workflow["concurrency"]["cancel-in-progress"] is True
    assert 0 < job["timeout-minutes"] <= 180
