"""Downloading: what arrives is whole and checked, goes on where it was cut off, and every failure says what to do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from internvlu_core import InternVLU
from internvlu_core.checkpoints import hub
from internvlu_core.checkpoints.hub import DownloadError, download
from internvlu_core.cli import main
from support.checkpoints import CHECKPOINT
from support.fake_hub import FakeHub

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A hub with the recorded checkpoint, and with what a repository has besides."""
    folder = tmp_path / "repository"
    shutil.copytree(CHECKPOINT, folder)
    (folder / "README.md").write_text("# Model")
    (folder / "assets").mkdir()
    (folder / "assets/logo.json").write_text("{}")
    (folder / "vlm/modeling.py").write_text("raise SystemExit")
    (folder / "vlm/pytorch_model.bin").write_bytes(b"pickle")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 2**16)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with FakeHub(folder) as fake:
        yield fake


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "models" / "InternVL-U"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse(fake: FakeHub | str, target: Path, *said: str):
    """Nothing is at the target, and the error says how to do without."""
    with pytest.raises(DownloadError) as error:
        download(target, endpoint=fake if isinstance(fake, str) else fake.url)
    for part in (*said, str(target)):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert not target.exists()


def by_hand(target: Path) -> list[str]:
    return ["By hand", hub.REPOSITORY, hub.REVISION[:7], "vlm, generation_decoder, vae", str(target)]


def test_download(fake, target, model):
    """Weights, JSON and tokenizer, bit by bit, and nothing else; it loads."""
    calls = []
    assert download(target, lambda *call: calls.append(call), fake.url) == target
    assert files(target) == files(CHECKPOINT)
    assert not target.with_name("InternVL-U.partial").exists()
    loaded = InternVLU.from_pretrained(target, dtype=torch.float32)
    assert torch.equal(loaded.mmdit.proj_out.weight, model.mmdit.proj_out.weight)

    total = sum(len(content) for content in files(CHECKPOINT).values())
    assert {whole for _, whole in calls} == {total}
    done = [done for done, _ in calls]
    assert done == sorted(done)
    assert done[-1] == total
    assert len(set(done)) > total // 2**17


def test_token_stays_with_the_hub(fake, target):
    """The pinned revision is asked for with the token; where the hub redirects to, the token does not go."""
    download(target, endpoint=fake.url)
    for path, _, authorization in fake.requests:
        assert authorization == (None if path.startswith("/storage/") else "Bearer hf_secret"), path
        assert hub.REVISION in path or path.startswith("/storage/")
    assert any(path.startswith("/storage/") for path, *_ in fake.requests)


class Cancelled(Exception):
    pass


def test_cancelled_and_resumed(fake, target):
    """Only the rest is fetched."""

    def cancel(done, total):
        if done > 0.75 * total:
            raise Cancelled

    with pytest.raises(Cancelled):
        download(target, cancel, fake.url)
    assert not target.exists()
    partial = target.with_name("InternVL-U.partial")
    arrived = {name.removesuffix(".incomplete"): len(content) for name, content in files(partial).items()}
    total = sum(len(content) for content in files(CHECKPOINT).values())
    assert 0.7 * total < sum(arrived.values()) < total
    assert 0 < arrived[WEIGHTS] < len((CHECKPOINT / WEIGHTS).read_bytes())

    fake.sent.clear()
    calls = []
    download(target, lambda *call: calls.append(call), fake.url)
    assert files(target) == files(CHECKPOINT)
    assert not partial.exists()
    assert sum(fake.sent.values()) == total - sum(arrived.values())
    assert (f"/storage/{WEIGHTS}", f"bytes={arrived[WEIGHTS]}-", None) in fake.requests
    assert calls[0][0] < calls[-1][0] == total


def test_broken_connection(fake, target):
    """In the middle of a file: asked for again from there, without a word."""
    fake.cut[WEIGHTS] = 10**6
    download(target, endpoint=fake.url)
    assert files(target) == files(CHECKPOINT)
    again = fake.sent[WEIGHTS] - len((CHECKPOINT / WEIGHTS).read_bytes())
    assert 0 <= again < huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE  # of the piece that was under way


@pytest.mark.parametrize("name", [WEIGHTS, "vlm/config.json"])
def test_wrong_hash(fake, target, name):
    """Named, deleted, and fetched again the next time; what was right stays."""
    fake.published[name] = "0" * (64 if name == WEIGHTS else 40)
    refuse(fake, target, name, "its hash differs", "deleted", *by_hand(target))
    partial = target.with_name("InternVL-U.partial")
    assert not list(partial.glob(f"{name}*"))
    fake.published.clear()
    fake.sent.clear()
    download(target, endpoint=fake.url)
    assert files(target) == files(CHECKPOINT)
    assert name in fake.sent
    assert "generation_decoder/model.safetensors" not in fake.sent


def test_damaged_rest(fake, target):
    """What lay there from before is checked too."""
    partial = target.with_name("InternVL-U.partial")
    (partial / "vae").mkdir(parents=True)
    (partial / f"{WEIGHTS}.incomplete").write_bytes(bytes(1000))
    refuse(fake, target, WEIGHTS, "its hash differs")
    download(target, endpoint=fake.url)
    assert files(target) == files(CHECKPOINT)


def test_no_space(fake, target, monkeypatch):
    """Found out before a byte of the files is fetched."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 5 * 10**6))
    refuse(fake, target, "0.01 GB of disk space left", "0.07 GB are needed", "extra_model_paths.yaml")
    assert not fake.sent


def test_connection_that_brings_nothing(fake, target, monkeypatch):
    """Given up on, but not before every byte that came was used."""
    import huggingface_hub.file_download

    def broken(url, output, *, resume_size, **settings):
        if resume_size < 200:
            output.write(bytes(100))
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", broken)
    refuse(fake, target, "cut off (ConnectionResetError: reset by peer)", "goes on from where it was")
    sizes = [len(content) for content in files(target.with_name("InternVL-U.partial")).values()]
    assert sizes == [200]


def test_disk_full_meanwhile(fake, target, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub._Counted, "write", full)
    refuse(fake, target, "the disk is full", "goes on from where it was")


def test_target_exists(fake, target):
    target.mkdir(parents=True)
    with pytest.raises(DownloadError, match="exists already"):
        download(target, endpoint=fake.url)
    assert not fake.requests


def test_no_network(target):
    refuse("http://127.0.0.1:9", target, "cut off", "Try again", *by_hand(target))


def test_offline(fake, target, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refuse(fake, target, "offline mode (HF_HUB_OFFLINE)", *by_hand(target))
    assert not fake.requests


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, ["refuses access", "HTTP 401", "HF_TOKEN may not read it"]),
        (403, ["refuses access", "HTTP 403"]),
        (404, [f"no {hub.REPOSITORY}", hub.REVISION, "HTTP 404"]),
        (500, ["HTTP 500"]),
    ],
)
def test_refused(fake, target, status, said):
    fake.status = status
    refuse(fake, target, *said, *by_hand(target))


def test_refused_without_token(fake, target, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    fake.status = 401
    refuse(fake, target, "it may need HF_TOKEN")


def test_repository_without_weights(fake, target):
    for file in fake.folder.rglob("*.safetensors"):
        file.unlink()
    refuse(fake, target, "has no weights")


def test_names_that_lead_outside(fake, target, monkeypatch):
    listing = fake.listing()
    for name in ("../evil.json", "vlm/../../evil.json", "/evil.json", "vlm/.hidden.json", "vlm\\..\\evil.json"):
        listing["siblings"].append({"rfilename": name, "size": 2, "blobId": "0" * 40})
    monkeypatch.setattr(fake, "listing", lambda: listing)
    download(target, endpoint=fake.url)
    assert files(target) == files(CHECKPOINT)


def test_command(fake, target, capfd):
    """HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are read from the environment, in a process of its own."""

    def run(**environment):
        command = [sys.executable, "-m", "internvlu_core", "download", str(target)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": fake.url} | environment
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)

    offline = run(HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout, offline.stderr.count("\n")) == (2, "", 1)
    assert "internvlu_core: huggingface_hub is in offline mode (HF_HUB_OFFLINE), so nothing" in offline.stderr
    assert fake.url in offline.stderr
    result = run(HF_TOKEN="hf_other")
    assert (result.returncode, result.stdout) == (0, f"{target}\n"), result.stderr
    assert files(target) == files(CHECKPOINT)
    assert {authorization for *_, authorization in fake.requests} == {None, "Bearer hf_other"}
    assert main(["download", str(target)]) == 2
    assert "exists already" in capfd.readouterr().err
