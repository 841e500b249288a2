"""What `comfy node pack` would pack, without comfy-cli: the files that git tracks, less those of .comfyignore."""

import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def packed_files() -> list[str]:
    """Paths with slashes, from the repository's root. Files that are new and not ignored by git count as tracked."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so nothing says what would be packed")
    files = _git_files("--exclude-standard") - _git_files("--ignored", "--exclude-from=.comfyignore")
    return sorted(file for file in files if (ROOT / file).is_file())


def write_pack(target: Path):
    """The zip file that the Registry would serve."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as pack:
        for file in packed_files():
            pack.write(ROOT / file, file)


def _git_files(*options: str) -> set[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", *options]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    return set(listed.decode("utf-8").split("\0")) - {""}
