"""Training an adapter in ComfyUI as docs/training.md tells it: from a folder of pictures and texts to a used file."""

import re

import torch
from PIL import Image
from safetensors import safe_open

from support.bench import SHAPE, difference
from support.pack import ROOT

SIDE = 64
TRAINING = {
    "batch_size": 1,
    "grad_accumulation_steps": 1,
    "steps": 4,
    "learning_rate": 0.003,
    "rank": 4,
    "optimizer": "AdamW",
    "loss_function": "MSE",
    "seed": 0,
    "training_dtype": "fp32",
    "lora_dtype": "fp32",
    "algorithm": "LoRA",
    "gradient_checkpointing": True,
    "existing_lora": "[None]",
}


def test_from_a_folder_of_pictures_to_a_used_adapter(bench):
    folder = bench.server.base_dir / "input" / "ten"
    folder.mkdir()
    for number, size in enumerate(((80, 64), (64, 90), (100, 100))):
        Image.new("RGB", size, (80 * number, 40, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a photo of zorbl {number}", encoding="utf-8")
    s = bench.graph()
    data = s.g.LoadImageTextDataSetFromFolder(folder="ten")
    shorter = s.g.ResizeImagesByShorterEdge(images=data[0], shorter_edge=SIDE)
    cut = s.g.CenterCropImages(images=shorter, width=SIDE, height=SIDE)
    latents = s.g.VAEEncode(pixels=cut, vae=s.vae)
    texts = s.g.InternVLUEncode(vlm=s.vlm, prompt=data[1])
    trained = s.g.TrainLoraNode(model=s.model, latents=latents, positive=texts[0], **TRAINING)
    outputs = bench.info["TrainLoraNode"]["output"]  # newer ones have no MODEL before it
    lora = trained[outputs.index("LORA_MODEL")]
    s.g.SaveLoRA(lora=lora, prefix="loras/zorbl", steps=TRAINING["steps"])
    taught, _ = bench.sampled(s, model=s.g.LoraModelLoader(model=s.model, lora=lora, strength_model=1.0))
    plain, _ = bench.sampled(s)
    out = bench.run(s.g, taught=taught, plain=plain)
    assert out.taught["samples"].shape == torch.Size(SHAPE)
    assert difference(out.taught["samples"], out.plain["samples"]) > 1e-4
    (file,) = (bench.server.base_dir / "output" / "loras").glob("zorbl*.safetensors")
    # The saved file, by the loader that a person uses.
    target = bench.server.base_dir / "models" / "loras" / "zorbl.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(file.read_bytes())
    with safe_open(target, "pt") as stored:
        assert len(stored.keys()) > 10
    s = bench.graph()
    loaded = s.g.LoraLoaderModelOnly(model=s.model, lora_name=target.name, strength_model=1.0)
    again, _ = bench.ksample(s, model=loaded)
    assert difference(again, out.taught["samples"]) < 1e-4


def test_nodes_have_the_names_that_the_document_says(bench):
    """Of stock nodes: those for all ComfyUIs, and of one column of the table all, without (DEPRECATED) and the like."""
    shown = {node["display_name"] for node in bench.info.values()}
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    text = text.split("### In ComfyUI")[1].split("\n## ")[0]
    steps, table = text.split("Newer ComfyUIs")
    columns = zip(*re.findall(r"^\| \*([^*]+)\* \| \*([^*]+)\*", table, re.MULTILINE), strict=True)
    older, newer = map(set, columns)
    assert len(older) == len(newer) == 4 and (older <= shown or newer <= shown)
    # What is left are names of our sockets and of what is typed.
    stock = {name for name in re.findall(r"\*([^*\n]+)\*", steps) if name[0].isupper()} - {"Sample"}
    assert len(stock) > 8 and stock - older <= shown
