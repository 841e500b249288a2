"""LoRA training from a folder of pictures."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from internvlu_core import InputError
from internvlu_core.checkpoints.convert import convert
from internvlu_train import __main__ as command
from internvlu_train import objectives
from internvlu_train.feed import Feed
from internvlu_train.folder import read_folder
from internvlu_train.loop import Run, assign
from internvlu_train.settings import LoraStage
from internvlu_train.storage import Networks
from support.training import LEARN


def test_a_folder_of_pictures(awake, pictures):
    Image.new("RGB", (700, 400)).save(pictures / "c.png")
    found = read_folder(pictures, awake.config.processor)
    assert [(one.task, one.prompt) for one in found] == [
        ("draw", "a red star"),
        ("draw", "a ring"),
        ("edit", "make it blue"),
    ]
    assert [one.picture.shape for one in found] == [(48, 48, 3), (48, 64, 3), (80, 96, 3)]
    assert [len(one.images) for one in found] == [0, 0, 1]


def test_pictures_are_upright(awake, pictures):
    """A camera stores a picture as its sensor lay, and says in EXIF how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    Image.new("RGB", (64, 48)).save(pictures / "b.jpg", exif=exif)
    (pictures / "b.png").unlink()
    assert read_folder(pictures, awake.config.processor)[1].picture.shape == (64, 48, 3)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda folder: (folder / "a.png").unlink(), "a.txt needs one picture a.png"),
        (lambda folder: (folder / "b.txt").write_text(" "), "b.txt is empty"),
        (lambda folder: (folder / "b.txt").write_text("naïve", encoding="latin-1"), "b.txt is not in UTF-8"),
        (lambda folder: (folder / "c.png").write_text("no picture"), r"cannot read the image .*c\.png"),
        (lambda folder: [file.unlink() for file in folder.glob("*.txt")], "has no NAME.txt"),
    ],
)
def test_a_folder_that_cannot_be_learnt_from(awake, pictures, spoil, words):
    spoil(pictures)
    with pytest.raises(InputError, match=words):
        read_folder(pictures, awake.config.processor)


def test_pictures_before_an_edit_are_taken_by_their_numbers(awake, pictures):
    for number, grey in ((10, 40), (2, 30)):
        Image.new("RGB", (48, 48), (grey,) * 3).save(pictures / f"c.before{number}.png")
    Image.new("RGB", (48, 48)).save(pictures / "c.beforehand.png")
    (pictures / "c.beforehand.txt").write_text("night", encoding="utf-8-sig")
    other, edit = read_folder(pictures, awake.config.processor)[2:]
    assert [image.mean() for image in edit.images[1:]] == [30, 40]
    assert (other.task, other.prompt) == ("draw", "night")


@pytest.mark.parametrize("network", ["mmdit", "vlm"])
def test_an_adapter_learns_and_its_file_says_all_of_it(awake_checkpoint, pictures, tmp_path, network):
    base = awake_checkpoint
    prefix = {"mmdit": "mmdit.", "vlm": "vlm.language_model."}[network]
    rank, alpha = 8, 16.0
    stage = LoraStage(
        trained=(prefix,),
        pictures=str(pictures),
        rank=rank,
        alpha=alpha,
        steps=90,
        batch=1,
        learning_rate=1e-2,
        **LEARN,
    )
    run = Run(stage, base, tmp_path / "run")
    before = {name: parameter.clone() for name, parameter in run.networks.named_parameters()}
    start = run.feed.batch(0)
    run.train()
    assert all(parameter.equal(before[name]) for name, parameter in run.networks.named_parameters())

    tensors = load_file(tmp_path / "run" / "lora.safetensors")
    merged, socket = Networks(base), {"mmdit": "diffusion_model.", "vlm": "text_encoders."}[network]
    layers = {name.removesuffix(".alpha") for name in tensors if name.endswith(".alpha")}
    assert len(tensors) == 3 * len(layers)
    for layer in layers:
        assert tensors[f"{layer}.alpha"] == alpha and len(tensors[f"{layer}.lora_down.weight"]) == rank
        delta = tensors[f"{layer}.lora_up.weight"] @ tensors[f"{layer}.lora_down.weight"]
        weight = merged.get_submodule(f"{network}.{layer.removeprefix(socket)}").weight
        weight.data += alpha / rank * delta
    assign(run.trained, run.ema)
    with torch.no_grad():
        values = []
        for networks in (run.networks, merged, Networks(base)):
            start.generator.manual_seed(0)
            batch = start if network == "mmdit" else Feed(networks, stage, torch.device("cpu")).batch(0)
            batch.generator.manual_seed(0)
            values.append(float(objectives.flow_loss(networks, batch, stage)))
    adapted, from_file, untaught = values
    assert abs(adapted / from_file - 1) < 1e-5
    # A random MMDiT makes little of what it is told.
    assert adapted < untaught * (0.8 if network == "mmdit" else 0.999)


def test_one_command_teaches_an_adapter(fresh, pictures, tmp_path, capsys):
    arguments = ["lora", str(tmp_path), "--base", str(fresh)]
    tiny = ["--set", "steps=2", "--set", "batch=2"]
    assert command.main([*arguments, "--pictures", str(pictures), *tiny]) == 0
    assert (tmp_path / "lora" / "lora.safetensors").stat().st_size > 1000
    assert command.main(arguments) == 2
    assert "--pictures" in capsys.readouterr().err
    assert command.main([*arguments, "--pictures", str(pictures), *tiny, "--set", 'layers=["nothing"]']) == 2
    Image.new("RGB", (48, 48)).save(pictures / "a.png")  # latents of other pictures are of no use
    assert command.main([*arguments, "--pictures", str(pictures), *tiny]) == 2
    assert "other settings (pictures)" in capsys.readouterr().err


def test_adapters_of_two_single_files_are_two_runs(fresh, awake_checkpoint, pictures, tmp_path):
    stage = LoraStage(trained=("mmdit.",), pictures=str(pictures), batch=1, **LEARN)
    folders = {"fresh": fresh, "awake": awake_checkpoint}
    bases = [convert(folder, tmp_path / f"{name}.safetensors", "single")[0] for name, folder in folders.items()]
    Run(stage, bases[0], tmp_path / "run")
    with pytest.raises(InputError, match="base"):
        Run(stage, bases[1], tmp_path / "run")
