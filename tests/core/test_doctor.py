"""The doctor: what it writes about a sound installation, and that it finds and names what is broken."""

import copy
import hashlib
import json
import math
import shutil
from pathlib import Path
from unittest import mock

import huggingface_hub.constants
import pytest
import torch
from PIL import Image

from benchmarks import counts
from internvlu_core import InternVLU
from internvlu_core.checkpoints.config import Config
from internvlu_core.checkpoints.convert import convert
from internvlu_core.cli import main
from internvlu_core.doctor import checkup, compare, measure, recording
from internvlu_core.doctor.checkup import Checkup, examine
from internvlu_core.doctor.compare import CHANCE, STAGES, Difference, summarise
from internvlu_core.doctor.files import check_files
from internvlu_core.doctor.recording import Recording, read_cases
from internvlu_core.errors import InputError
from support.checkpoints import CHECKPOINT, GOLDEN, copy_checkpoint
from support.fake_hub import FakeHub

FAKE = Path(__file__).resolve().parents[1] / "support" / "fake_official"
SMALL = {"side": 64, "steps": 2, "tokens": 4}
SHORT = "understand", "edit_other_size", "cot_t2i_short"  # runs; together they have all stages


@pytest.fixture(scope="module", autouse=True)
def quick():
    """The machine's speed is measured in less time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(measure.PROBES, "cpu", (128, 2**16))
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Some of the recorded runs."""
    folder = tmp_path_factory.mktemp("runs")
    cases = [case for case in read_cases(GOLDEN) if case["name"] in SHORT]
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    for name in ("photo.png", "tall.png"):
        shutil.copy(GOLDEN / name, folder)
    (folder / "recorded").mkdir()
    for name in SHORT:
        for file in (GOLDEN / "recorded").glob(f"{name}.*"):
            shutil.copy(file, folder / "recorded")
    shutil.copy(GOLDEN / recording.FREQUENCIES, folder / "recorded")
    return folder


@pytest.fixture(scope="module")
def healthy(tmp_path_factory, runs):
    """(report, its folder) of a sound checkpoint."""
    out = tmp_path_factory.mktemp("doctor") / "new"
    return examine(Checkup(CHECKPOINT, out, official=runs, dtype=torch.float32, **SMALL)), out


def test_nothing_is_wrong_with_what_is_sound(healthy):
    report, _ = healthy
    assert report.wrong == []


def test_the_report_fits_into_an_issue(healthy):
    report, out = healthy
    text = (out / "report.md").read_text(encoding="utf-8")
    assert len(text) < 65_536
    assert "Nothing is wrong." in text
    assert str(CHECKPOINT.parent) not in text, "private folders do not belong into an issue"
    values = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert values["wrong"] == [] and len(values["differences"]) == len(report.differences)


def test_every_file_has_its_hash(healthy):
    report, _ = healthy
    files = {p.relative_to(CHECKPOINT).as_posix(): p for p in CHECKPOINT.rglob("*") if p.is_file()}
    assert report.files.files.keys() == files.keys()
    for name, file in files.items():
        content = file.read_bytes()
        assert report.files.files[name]["sha256"] == hashlib.sha256(content).hexdigest()
        assert report.files.files[name]["bytes"] == len(content)


def test_every_task_runs_and_pictures_are_written(healthy):
    report, out = healthy
    assert len(report.outcomes) == 7
    pictures = [outcome.result for outcome in report.outcomes if outcome.result.endswith(".png")]
    assert len(pictures) == 4
    assert all(Image.open(out / name).size == (64, 64) for name in pictures)
    assert Image.open(out / "comparison.png").size == (4 * 128, 96 + 96)


def test_every_stage_is_timed_beside_its_floor(healthy):
    report, _ = healthy
    config = Config.read(CHECKPOINT)
    timings = {timing.stage.partition(",")[0] + timing.stage.partition(",")[2]: timing for timing in report.timings}
    assert len(timings) == len(report.timings) == 8
    assert all(t.seconds > 0 and t.weights > 0 for t in report.timings)
    assert all(t.flops > 0 and t.floor > 0 for t in report.timings if t.stage != "loading")
    # torch's counter and the formulas of the benchmarks agree, attention on the CPU included.
    assert timings["ViT one picture"].flops == counts.vision(config.vision, config.language.hidden_size)
    assert timings["VAE decoding"].flops == counts.vae_decode(config.vae, 64, 64)


def test_every_stage_is_compared_in_both_dtypes(healthy):
    report, _ = healthy
    for dtype in ("float32", "bfloat16"):
        stages = {difference.stage for difference in report.differences if difference.dtype == dtype}
        assert stages == {*STAGES, "tokens", "picture"}


# What is broken is found


@pytest.mark.parametrize(
    ("part", "weight", "named"),
    [
        ("vlm", "vision_model.encoder.layers.0.mlp.fc1.weight", {"ViT features"}),
        ("vlm", "language_model.model.layers.1.mlp.up_proj.weight", {"hidden states", "tokens"}),
        (
            "mmdit",
            "transformer_blocks.0.attn.to_q.weight",
            {"first velocity", "guided velocity", "final latents"},
        ),
        ("vae", "encoder.conv_in.weight", {"reference latents"}),
        ("vae", "decoder.conv_in.weight", {"decoded pixels"}),
    ],
)
def test_a_broken_network_is_named(model, runs, part, weight, named):
    broken = copy.copy(model)
    network = copy.deepcopy(getattr(model, part))
    with torch.no_grad():
        network.get_parameter(weight).mul_(1.1)
    setattr(broken, part, network)
    broken.conditioner = copy.copy(model.conditioner)
    broken.conditioner.vlm = broken.vlm
    with compare.recorded_frequencies(broken, runs):
        found = [d for case in read_cases(runs) for d in compare.compare(broken, Recording(runs, case))]
    wrong = {difference.stage for difference in summarise(found) if difference.wrong}
    assert wrong and wrong <= named and wrong >= named - {"tokens"}  # a small change need not change a token


def test_nan_is_named(tmp_path, capsys):
    def spoil(tensors):
        tensors["decoder.proj_out.bias"][0] = math.nan

    folder = copy_checkpoint(tmp_path / "nan", tensors={"generation_decoder": spoil})
    assert doctor(folder, tmp_path / "out") == 1
    said = capsys.readouterr().out
    assert "weights that are not finite: decoder.proj_out.bias" in said
    assert "draw: FloatingPointError" in said


def test_a_gguf_file_is_read_as_one(tmp_path):
    (file,) = convert(CHECKPOINT, tmp_path / "q8.gguf", "single", quant="Q8_0")
    assert check_files(file).problems == []


def test_a_cut_file_is_named(tmp_path):
    folder = copy_checkpoint(tmp_path / "cut")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (problem,) = check_files(folder).problems
    assert weights.name in problem and "not a whole safetensors file" in problem


def test_a_config_of_another_model_is_named(tmp_path, capsys):
    folder = copy_checkpoint(tmp_path / "other", {"vae/config.json": {"base_dim": 24}})
    assert doctor(folder, tmp_path / "out") == 1
    assert "tensors of a wrong shape" in capsys.readouterr().out


def test_a_missing_folder_is_named(tmp_path, capsys):
    folder = copy_checkpoint(tmp_path / "incomplete")
    shutil.rmtree(folder / "vae")
    assert doctor(folder, tmp_path / "out") == 1
    assert "its folder vae/ is missing" in capsys.readouterr().out
    assert (tmp_path / "out" / "report.md").exists()


def test_files_that_are_not_the_released_ones_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    folder = copy_checkpoint(tmp_path / "mine", {"vae/config.json": {"extra": 1}})
    (folder / "processor" / "vocab.json").unlink()
    with FakeHub(CHECKPOINT) as hub:
        released = checkup.hub.list_files(folder, hub.url)
    report = check_files(folder, released)
    assert report.files["vae/config.json"]["hub"] == "differs"
    assert report.files["vlm/model.safetensors"]["hub"] == "equal"
    assert sum("vae/config.json is not the released file" in problem for problem in report.problems) == 1
    assert "the released file processor/vocab.json is missing" in report.problems


def doctor(checkpoint: Path, out: Path, *options: str) -> int:
    arguments = ["doctor", checkpoint, "--out", out, "--device", "cpu", "--side", 64, "--steps", 1, "--tokens", 2]
    return main([*map(str, arguments), *options])


def test_a_hub_that_cannot_be_asked_is_told_and_not_how_to_download(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert doctor(CHECKPOINT, tmp_path / "out", "--ask-hub") == 2
    said = capsys.readouterr().err
    assert "the hub cannot be asked (" in said and "offline" in said and "By hand" not in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_missing_is_told(tmp_path, capsys):
    assert doctor(CHECKPOINT, tmp_path / "out", "--device", "cuda") == 2
    assert "device 'cuda' cannot be used here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_or_official_folder_that_is_none_is_told(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        examine(Checkup(tmp_path / "nowhere", tmp_path / "out"))
    with pytest.raises(InputError, match="neither a checkout of the official code"):
        examine(Checkup(CHECKPOINT, tmp_path / "out", official=tmp_path))


# Judging


def test_in_16_bits_the_official_codes_error_is_the_bound():
    def judged(ours: float, apart: float = 0.01) -> bool:
        (summary,) = summarise(
            [Difference("a", "first velocity", "bfloat16", error, 0.02, apart) for error in (ours, ours)]
        )
        return summary.wrong

    assert not judged(0.02 * CHANCE * 0.99)
    assert judged(0.02 * CHANCE * 1.01)
    assert judged(math.nan)
    assert judged(0.02, apart=0.2), "as far from float32 as the official code, but elsewhere"
    assert judged(0.02, apart=math.nan)


def test_a_nan_in_one_branch_is_not_overlooked():
    good, bad = torch.ones(2), torch.tensor([1.0, math.nan])
    for made in ([good, bad], [bad, good]):
        assert math.isnan(compare._worst(made, [good, good]))


# The official code


@pytest.fixture
def untried(monkeypatch):
    """Tasks and speed are left out."""
    monkeypatch.setattr(checkup, "_try_model", lambda *arguments: None)


@pytest.fixture
def golden_cases(monkeypatch, runs, untried):
    """The doctor records the runs of the fake official code in place of its own cases."""

    def write_cases(folder, *settings):
        shutil.copytree(runs, folder, ignore=shutil.ignore_patterns("recorded"))

    monkeypatch.setattr(recording, "write_cases", write_cases)


def test_the_official_code_is_recorded_and_compared(tmp_path, golden_cases, runs):
    report = examine(Checkup(CHECKPOINT, tmp_path / "out", official=FAKE, dtype=torch.float32, **SMALL))
    made = tmp_path / "out" / "official"
    for name in SHORT:
        recorded, known = Recording(made, case(runs, name)), Recording(runs, case(runs, name))
        assert recorded.record == known.record
        assert recorded.tensors.keys() == known.tensors.keys()
        assert all(torch.equal(recorded[key], known[key]) for key in known.tensors if "sampler.latents" not in key)
    assert (made / "recorded-bfloat16" / "understand.safetensors").exists()
    network = InternVLU.from_pretrained(CHECKPOINT, "cpu", torch.float32).mmdit
    assert torch.equal(recording.frequencies(made), network.time_text_embed.frequencies())
    judged = {(d.stage, d.dtype): d for d in summarise(report.differences)}
    assert not judged["hidden states", "float32"].wrong
    # The fake only rounds, so that its error is smaller than any computation's.
    assert judged["hidden states", "bfloat16"].wrong and judged["hidden states", "bfloat16"].official > 1e-4


def case(folder: Path, name: str) -> dict:
    return next(case for case in read_cases(folder) if case["name"] == name)


def test_official_code_that_fails_is_told(tmp_path, capsys, untried):
    official = tmp_path / "official"
    (official / "internvlu").mkdir(parents=True)
    (official / "internvlu" / "__init__.py").write_text("raise ImportError('no diffusers here')")
    assert doctor(CHECKPOINT, tmp_path / "out", "--official", str(official)) == 1
    said = capsys.readouterr().out
    assert "ImportError: no diffusers here" in said and "--official-python" in said


def test_the_doctors_own_cases_have_their_picture(tmp_path):
    recording.write_cases(tmp_path, 64, 2, 4)
    cases = read_cases(tmp_path)
    assert {case["mode"] for case in cases} == {"text", "image", "text_image"}
    assert all((tmp_path / name).exists() for case in cases for name in case.get("images", []))


@torch.inference_mode()
def test_a_run_is_compared_with_the_frequencies_of_its_machine(tmp_path):
    """A machine that differs in their last bit, as a GPU does, gives the recorded velocity all the same."""
    model = InternVLU.from_pretrained(CHECKPOINT, "cpu", torch.float32)
    run, kind = Recording(GOLDEN, read_cases(GOLDEN)[-1]), type(model.mmdit.time_text_embed)
    other = lambda self, device=None: torch.nextafter(recording.frequencies(GOLDEN), torch.zeros(()))  # noqa: E731

    def error(folder):
        with compare.recorded_frequencies(model, folder):
            return next(found.error for found in compare.compare(model, run, None) if found.stage == "first velocity")

    with mock.patch.object(kind, "frequencies", other):
        assert error(GOLDEN) < 1e-5
        assert error(tmp_path) > 1e-3, "a folder without them"
    assert "frequencies" not in vars(model.mmdit.time_text_embed)
