"""Download of the released checkpoint with huggingface_hub, whose settings for endpoint, token and offline mode apply.

Files are fetched by huggingface_hub's http_get, not by its snapshot_download. That one deletes an unfinished file when
it fails or is cancelled (seen in version 2.4), so that gigabytes are fetched again; before it stops, its other threads
finish their files; versions from 0.26 report bytes in different ways; and none compares hashes.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .files import FOLDERS, file_names

REPOSITORY = "InternVL-U/InternVL-U"
REVISION = "f012d760e69712bb47f7d3d09a24280f346cee01"
SIZE = "8.5 GB"

# Weights, JSON and tokenizer; no pictures, no code, no path that leads out of the folder.
WANTED = file_names("safetensors", "json", "txt")
PARTIAL = ".partial"  # ending of the name of a folder that is not complete yet
INCOMPLETE = ".incomplete"  # ending of the name of an unfinished file in it
SPARE = 2**26  # bytes to leave free on the disk
PIECE = 2**22  # bytes that are read at once to compute a hash

OnBytes = Callable[[int, int], None]  # (bytes that have arrived, bytes in all); may raise to cancel


class DownloadError(RuntimeError):
    """A download that failed. The message says why, and what the user can do."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub. size: in bytes. digest: SHA-256 for large file storage, otherwise git's blob hash (SHA-1)."""

    name: str
    size: int
    digest: str

    def matches(self, file: Path, on_piece: Callable[[], None]) -> bool:
        """Whether a file on the disk has this digest. on_piece: called after each PIECE; may raise to cancel."""
        if len(self.digest) == 64:
            digest = hashlib.sha256()
        else:
            digest = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        with file.open("rb") as stream:
            while piece := stream.read(PIECE):
                digest.update(piece)
                on_piece()
        return digest.hexdigest() == self.digest


def download(folder: str | Path, progress: OnBytes | None = None, endpoint: str | None = None) -> Path:
    """Download REPOSITORY at REVISION into a new folder. Returns the folder.

    Files are collected in a folder beside it, whose name ends in PARTIAL, until all have arrived and their hashes are
    right: a download that failed or was cancelled continues from there. endpoint: address of the hub, by default that
    of huggingface_hub. Raises DownloadError, and whatever progress raises.
    """
    folder = Path(folder)
    if folder.exists():
        raise DownloadError(f"{folder} exists already")
    partial = folder.with_name(folder.name + PARTIAL)
    progress = progress or (lambda done, total: None)
    files = list_files(folder, endpoint)
    total = sum(file.size for file in files)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        left = sum(file.size - _arrived(partial, file) for file in files)
        free = shutil.disk_usage(partial).free
    except OSError as error:
        raise DownloadError(f"cannot write {partial}: {error.strerror or error}") from error
    if left and free < left + SPARE:
        raise DownloadError(
            f"{partial} has {free / 1e9:.2f} GB of disk space left; {(left + SPARE) / 1e9:.2f} GB are needed. "
            "Make room, or put models/internvl_u elsewhere with extra_model_paths.yaml"
        )
    done = 0
    for file in files:
        _fetch(partial, folder, file, lambda count, before=done: progress(before + count, total), endpoint)
        done += file.size
    try:
        partial.rename(folder)
    except OSError as error:
        raise DownloadError(f"cannot rename {partial} to {folder}: {error.strerror or error}") from error
    return folder


def list_files(folder: Path, endpoint: str | None = None) -> list[RemoteFile]:
    """The checkpoint's files in the repository. folder: the target, for error messages. Raises DownloadError."""
    from huggingface_hub import HfApi

    with _Explained(folder):
        info = HfApi(endpoint=endpoint).model_info(REPOSITORY, revision=REVISION, files_metadata=True, timeout=30)
    files = []
    for sibling in info.siblings or ():
        if WANTED.fullmatch(sibling.rfilename):
            digest = sibling.lfs["sha256"] if sibling.lfs else sibling.blob_id
            if sibling.size is None or not digest:
                raise DownloadError(f"the hub gives no size and hash of {sibling.rfilename}. {_by_hand(folder)}")
            files.append(RemoteFile(sibling.rfilename, sibling.size, digest))
    if not any(file.name.endswith(".safetensors") for file in files):
        raise DownloadError(f"{REPOSITORY} has no weights at revision {REVISION}. {_by_hand(folder)}")
    return files


def _arrived(partial: Path, file: RemoteFile) -> int:
    """Bytes of a file that have arrived."""
    if (partial / file.name).exists():
        return file.size
    incomplete = partial / (file.name + INCOMPLETE)
    return min(incomplete.stat().st_size, file.size) if incomplete.exists() else 0


def _fetch(partial: Path, folder: Path, file: RemoteFile, progress: Callable[[int], None], endpoint: str | None):
    """Download a file, or the rest of it, and rename it to its own name once its hash is right."""
    path, incomplete = partial / file.name, partial / (file.name + INCOMPLETE)
    if path.exists():
        return progress(file.size)
    with _Explained(folder) as explained:
        path.parent.mkdir(parents=True, exist_ok=True)
        incomplete.touch()
        while (arrived := _arrived(partial, file)) < file.size:
            try:
                _fetch_rest(incomplete, arrived, file, lambda count: explained.callback(progress, count), endpoint)
            except Exception as error:
                # Only some versions of huggingface_hub resume by themselves. Try again as long as bytes arrive.
                if not explained.is_cut(error) or _arrived(partial, file) == arrived:
                    raise
    if not file.matches(incomplete, lambda: progress(file.size)):
        incomplete.unlink()
        raise DownloadError(
            f"{file.name} arrived, but is not the published file: its hash differs. It was deleted; download again to "
            f"fetch it anew. {_by_hand(folder)}"
        )
    incomplete.rename(path)


def _fetch_rest(path: Path, arrived: int, file: RemoteFile, progress: Callable[[int], None], endpoint: str | None):
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(REPOSITORY, file.name, revision=REVISION, endpoint=endpoint)
    # Of a compressed response, one cannot request the rest.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    with path.open("ab") as stream:
        stream.truncate(arrived)
        output = _Counted(stream, lambda: progress(stream.tell()))
        http_get(url, output, resume_size=arrived, headers=headers, expected_size=file.size)


class _Counted:
    """A file for huggingface_hub to write to, which calls after_write after every piece."""

    def __init__(self, stream, after_write: Callable[[], None]):
        self.stream, self.after_write = stream, after_write

    def write(self, piece: bytes) -> int:
        count = self.stream.write(piece)
        self.after_write()
        return count

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


class _Explained:
    """Turns errors of huggingface_hub and its HTTP library into DownloadErrors, but not what a callback raises."""

    # Versions of huggingface_hub use different HTTP libraries, whose errors have no common base class.
    NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")

    def __init__(self, folder: Path):
        self.folder, self.from_callback = folder, None

    def __enter__(self):
        return self

    def callback(self, function: Callable, *args):
        try:
            function(*args)
        except BaseException as error:
            self.from_callback = error
            raise

    def is_cut(self, error: BaseException) -> bool:
        """Whether the connection ended early, rather than the hub refusing or the disk failing."""
        if error is self.from_callback or _reason(error) is not None:
            return False
        return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in self.NETWORK

    def __exit__(self, kind, error, traceback):
        if error is None or error is self.from_callback:
            return
        reason = _reason(error)
        if self.is_cut(error):
            reason = f"the connection failed or was cut off ({_line(error)}). Try again: it goes on from where it was"
        if reason is not None:
            raise DownloadError(f"{reason}. {_by_hand(self.folder)}") from error


def _reason(error: BaseException) -> str | None:
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "huggingface_hub is in offline mode (HF_HUB_OFFLINE), so nothing was downloaded"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status in (401, 403):
        token = "the token in HF_TOKEN may not read it" if os.environ.get("HF_TOKEN") else "it may need HF_TOKEN"
        return f"the hub refuses access to {REPOSITORY} (HTTP {status}); {token}, or HF_ENDPOINT lacks the repository"
    if status == 404:
        return f"the hub has no {REPOSITORY} at revision {REVISION} (HTTP 404); HF_ENDPOINT may name another hub"
    if status is not None:
        return f"the hub answered with HTTP {status}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full. Make room and download again: it goes on from where it was"
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"cannot write {error.filename}: {error.strerror}"
    return None


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _by_hand(folder: Path) -> str:
    from huggingface_hub import constants

    return (
        f"By hand: fetch {constants.ENDPOINT}/{REPOSITORY}, revision {REVISION[:7]}, with another program and put its "
        f"folders {', '.join(FOLDERS[:-1])} and {FOLDERS[-1]} into {folder}"
    )
