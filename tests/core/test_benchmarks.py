"""The pieces of benchmarks/: what they count, fit and say, on the recorded checkpoint."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import batches, comparisons, counts, quantisation, tables
from benchmarks.__main__ import main
from benchmarks.harness import BenchmarkError, Case, Run, Side, fit, side_by_side
from internvlu_core.checkpoints.config import Config
from internvlu_core.doctor.speed import ON_CPU
from internvlu_core.models.language import Qwen3
from internvlu_core.models.mmdit import MMDiT
from internvlu_core.models.vae import VAE
from internvlu_core.models.vlm import VLM
from internvlu_core.quantization import WEIGHT_FORMATS, Gguf
from internvlu_core.quantization.gguf import TYPES
from support.checkpoints import CHECKPOINT
from support.comfy_server import link_folder
from support.tensors import noise


@pytest.fixture(scope="module")
def config():
    return Config.read(CHECKPOINT)


def counted(run, device="meta") -> int:
    """By torch."""
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter, torch.device(device), torch.inference_mode():
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(("batch", "references", "context"), [(1, 0, 7), (2, 1, 24)])
def test_flops_of_the_mmdit(config, batch, references, context):
    def run():
        # In two products, since torch does not count its fused kernel on the CPU.
        network = MMDiT(config.mmdit, attention=lambda q, k, v: (q @ k.mT).softmax(-1) @ v)
        pictures = [torch.empty(1, 16, 8, 10)] * references
        mask = torch.zeros(context, dtype=torch.bool)
        states = torch.empty(1, context, config.mmdit.context_size)
        network(torch.empty(batch, 16, 12, 16), torch.empty(batch), states, mask, [], pictures)

    tokens = 6 * 8, references * 4 * 5, context
    least = counts.mmdit(config.mmdit, *tokens, batch)
    # What the last block may still compute although nothing reads it.
    size = config.mmdit.hidden_size
    unread = batch * (counts._block(sum(tokens), sum(tokens), size) - counts._block(6 * 8, sum(tokens), size))
    # References may be embedded for each picture of a batch. Positions are values, so not on the meta device.
    again = (batch - 1) * counts.linear(tokens[1], config.mmdit.in_channels, size)
    assert counted(run, "cpu") in (least, least + unread + again)


@pytest.mark.parametrize("tokens", [1, 9])
def test_flops_of_the_language_model(config, tokens):
    def run():
        network = Qwen3(config.language)
        (hidden,) = network(torch.empty(1, tokens, config.language.hidden_size), (config.language.num_layers,))
        network.logits(hidden[:, -1])

    assert counted(run) == counts.language(config.language, tokens)


def test_flops_of_the_vit(config):
    side = config.vision.image_size

    def run():
        VLM(config).image_features(torch.empty(2, 3, side, side))

    assert counted(run) == counts.vision(config.vision, config.language.hidden_size, tiles=2)


def test_flops_of_the_vae(config):
    network = {}

    def decode():
        network["vae"] = VAE(config.vae)
        network["vae"].decode_raw(torch.empty(1, 16, 6, 8))

    assert counted(decode) == counts.vae_decode(config.vae, 48, 64)
    assert counted(lambda: network["vae"].encode_raw(torch.empty(1, 3, 48, 64))) == counts.vae_encode(
        config.vae, 48, 64
    )


def test_bytes_of_a_token_are_the_matrices_and_the_cache(config):
    language = config.language
    with torch.device("meta"):
        network = Qwen3(language)
    matrices = {name: p for name, p in network.named_parameters() if p.ndim == 2}
    del matrices["model.embed_tokens.weight"]  # of which one row is read
    weights = 4 * sum(p.numel() for p in matrices.values())
    cache = 4 * 2 * language.num_layers * language.num_kv_heads * language.head_dim * 100
    assert counts.language_bytes(language, 100, 4) == weights + cache


class Fake:
    """A worker that computes what it is told, in the time it is told."""

    def __init__(self, value: torch.Tensor, seconds: list[float]):
        self.value, self.seconds, self.calls = value, iter(seconds), 0

    def call(self, op: str, out: str, **arguments) -> dict:
        self.calls += 1
        save_file({"value": self.value}, out)
        return {"seconds": next(self.seconds), "peak": 1000 * self.calls}


def make_run(folder) -> Run:
    run = Run(folder, folder / "results.jsonl", "cpu", "float32", "small", "python -m benchmarks …")
    run.floor = {"flops_per_second": 100.0, "bytes_per_second": 10.0}
    return run


def compare(run: Run, other: torch.Tensor) -> list[dict]:
    about = {"machine": "a machine", "versions": {"torch": "2"}}
    pairs = ("core", noise(3, 4), [9, 1, 2, 4]), ("official", other, [99, 10, 30, 20])
    sides = [Side(name, Fake(value, seconds), about=about) for name, value, seconds in pairs]
    return side_by_side(run, sides, Case("official", "a stage", "op", {}, 3, flops=150, nbytes=5))


def test_sides_are_timed_in_turns_after_a_warm_up(tmp_path):
    run = make_run(tmp_path)
    ours, other = compare(run, noise(3, 4) * (1 + 1e-6))
    assert (ours["seconds"], ours["spread"], ours["repeats"], ours["warm_up"]) == (2, [1, 4], 3, 1)
    assert (other["seconds"], other["peak"], other["floor_seconds"]) == (20, 4000, 1.5)
    assert [json.loads(line) for line in run.results.read_text(encoding="utf-8").splitlines()] == [ours, other]
    table = tables.render(run.lines)
    assert "| a stage | 2 s (1…4, 3×) | 20 s (10…30, 3×) | **10.00** | 75% |" in table


def test_a_wrong_twin_is_not_timed(tmp_path):
    run = make_run(tmp_path)
    for wrong in (noise(3, 4) * 1.01, noise(3, 4) * torch.nan, noise(4, 3)):
        with pytest.raises(BenchmarkError, match="differ"):
            compare(run, wrong)
    assert not run.results.exists()


def test_the_table_of_savings(tmp_path):
    run, plain = make_run(tmp_path), float("inf")
    for stage, rows, level in (("neither", 360, plain), ("EasyCache", 270, 41.26)):
        found = {"rows": rows, "pictures": 8, "right": 7, "psnr": level, "least": level}
        run.record(comparison="savings", side="ComfyUI", machine="a CPU", stage=stage, **found)
    rendered = tables.render(tables.read(tmp_path))
    assert "| neither | 360 |  |  |  | 7 of 8 |\n" in rendered
    assert "| EasyCache | 270 | 25% | 41.3 dB | 41.3 dB | 7 of 8 |" in rendered


def test_fits():
    found = fit([(n, 2 + 3 * n + 0.5 * n**2) for n in (1, 2, 4, 8)])
    assert found["polynomial"] == pytest.approx([2, 3, 0.5])
    assert fit([(n, 7 * n**1.5) for n in (1, 2, 4)])["power"] == pytest.approx(1.5)
    assert fit([(n, 1 + n**0.5) for n in (0, 1, 4, 9)])["polynomial"][2] == 0, "cost does not curve down"


@pytest.fixture
def options(tmp_path):
    """For main: a work folder with weights in it, and the results beside it."""
    link_folder(CHECKPOINT, tmp_path / "small")
    given = {"work": tmp_path, "results": tmp_path / "results", "scale": "small", "repeats": 1, "device": "cpu"}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def test_a_comparison_from_the_command_line(tmp_path, options, monkeypatch, capsys):
    """One that needs no other environment, on the small scale and not far, into a table."""
    monkeypatch.setattr(comparisons, "AXES", {axis: cases[:2] for axis, cases in comparisons.AXES.items()})
    assert main(["scaling", *options]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    grown = {line["stage"]: line for line in lines if line["comparison"] == "scaling"}
    assert list(grown) == ["image tokens", "pictures", "references", "context tokens"]
    assert [point["x"] for point in grown["image tokens"]["points"]] == [256, 576]
    assert all(point["floor_seconds"] > 0 for line in grown.values() for point in line["points"])

    document = tmp_path / "BENCHMARKS.md"
    document.write_text(f"before\n{tables.START}\nold\n{tables.END}\nafter\n", encoding="utf-8")
    tables.update(document, tables.read(tmp_path / "results"))
    text = document.read_text(encoding="utf-8")
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "| image tokens | 256: " in text and str(tmp_path) not in text


@pytest.mark.slow
def test_a_batch_run_beside_a_loop(tmp_path, options, monkeypatch):
    """In this process; Ray's workers are tests/core/test_batch.py's."""
    monkeypatch.setattr(batches, "ROW_SECONDS", 0.02)
    monkeypatch.setattr(batches, "WORKERS", (0,))
    assert main(["batch", *options, "--rows", "6", "--dtype", "float32"]) == 0
    loop, alone = [line for line in tables.read(tmp_path / "results") if line["comparison"] == "batch"]
    assert (loop["stage"], alone["stage"]) == ("plain loop", "0 workers")
    assert loop["overhead"] == 0
    assert alone["overhead"] == alone["per_row"] / loop["per_row"] - 1
    assert f"| 0 workers | {1 / alone['per_row']:.3g} | {alone['overhead']:+.1%} |" in tables.render([loop, alone])


@pytest.fixture
def few(tmp_path, options, monkeypatch):
    """few(comparison): its lines for 1 and 3 requests, with weights made in memory, not those of the folder."""
    monkeypatch.setattr(comparisons, "BATCHES", (1, 3))
    (tmp_path / "small").unlink()

    def compare(name: str) -> list[dict]:
        assert main([name, *options, "--tokens", "4", "--dtype", "float32", "--size", "64", "--steps", "1"]) == 0
        return tables.read(tmp_path / "results")

    return compare


def test_texts_together_and_one_by_one(few, capsys):
    lines = few("many")
    found = {(line["side"], line["stage"]): line["seconds"] for line in lines if line.get("texts") == 3}
    sides = "together", "one by one"
    together, alone = (9 / (found[side, "text, all"] - found[side, "text, reading"]) for side in sides)
    assert f"| 3 | {together:.3g} | {alone:.3g} | **{together / alone:.2f}** |" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_together_and_one_by_one(few):
    drawn = [line for line in few("many-pictures") if line["comparison"] == "many-pictures"]
    assert [line["stage"] for line in drawn[::2]] == ["1 × 64×64, 1 steps", "3 × 64×64, 1 steps"]
    assert "| 3 × 64×64, 1 steps | " in tables.render(drawn)


def test_what_is_missing_is_told(tmp_path, options, capsys, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert main(["stages", *options, "--official", str(tmp_path)]) == 1
    assert "python -m benchmarks setup" in capsys.readouterr().err
    for name in ("comfyui", "savings", "cards"):  # in a worker, and in this process
        for given in ([], ["--comfyui", str(tmp_path)]):
            assert main([name, *options, *given]) == 1
            assert "must name a ComfyUI folder" in capsys.readouterr().err


@pytest.mark.slow
def test_weights_in_fewer_bits(tmp_path, options, monkeypatch):
    """The table of formats, with two of them; and the sizes of the released networks, which have aims."""
    sizes = quantisation.released_sizes()
    assert all(sizes[name] <= 4.6e9 for name in ("float8_e4m3fn", "int8_tensorwise", "mxfp8"))
    assert sizes["nvfp4"] <= 2.9e9 < sizes["fp8"] < sizes["bf16"]
    assert sizes["MXFP4"] <= 2.9e9 < sizes["Q4_0"] < sizes["Q8_0"] <= 4.8e9  # three files; less in one (test_gguf.py)
    assert {"float32", "bf16", *WEIGHT_FORMATS, *TYPES} == set(quantisation.formats())
    some = {"float32": torch.float32, "nvfp4": "nvfp4", "Q4_0": Gguf("Q4_0")}
    monkeypatch.setattr(quantisation, "formats", lambda: some)
    monkeypatch.setattr(quantisation, "released_sizes", lambda: sizes)
    assert main(["quantisation", *options, "--quick"]) == 0
    (file,) = (tmp_path / "results").glob("quantisation-*.jsonl")
    exact, *both = (json.loads(line) for line in file.read_text().splitlines())
    assert exact["velocity"] == 0 and exact["psnr"] is None and exact["distance"] < 1e-6
    for rounded in both:
        assert 0 < rounded["velocity"] < 0.2 and 0 < rounded["recorded"] < 0.2 and 10 < rounded["psnr"] < 60
    table = tables.render([exact, *both])
    assert "| nvfp4 | 2.90 GB |" in table and "| Q4_0 | 2.95 GB |" in table
