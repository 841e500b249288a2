"""Files with layers as ComfyUI quantises them: what is written, and what is read, also of others."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from internvlu_core import CheckpointError, InputError, InternVLU
from internvlu_core.checkpoints.convert import convert
from internvlu_core.checkpoints.files import QUANT_METADATA, SPLIT_FILES, quantised_by
from internvlu_core.cli import main
from internvlu_core.quantization import FILE_FORMATS, QUANTS, formats, layer_formats, network_formats
from internvlu_core.quantization.float8 import quantise
from internvlu_core.quantization.mxfp8 import MXFP8, from_rows, to_rows
from support.checkpoints import CHECKPOINT, copy_checkpoint
from support.tensors import noise, relative

MMDIT, VLM = SPLIT_FILES["generation_decoder"], SPLIT_FILES["vlm"]
LAYER = "decoder.transformer_blocks.0.attn.to_q"

# Values of the codes 0 to 7 of a 4-bit float: two bits of exponent, one of mantissa.
FLOATS = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


@pytest.fixture(scope="module", params=QUANTS)
def quant(request):
    return request.param


@pytest.fixture(scope="module")
def split(tmp_path_factory, quant):
    folder = tmp_path_factory.mktemp(quant)
    convert(CHECKPOINT, folder, "split", quant=quant)
    return folder


def parts_of(file, layer) -> dict[str, torch.Tensor]:
    stored = {name: tensor for name, tensor in load_file(file).items() if name.startswith(f"{layer}.")}
    return {name.removeprefix(f"{layer}."): tensor for name, tensor in stored.items()}


# The formats, by slow twins


def slow_mxfp8(parts, shape):
    rows, columns = shape
    weight, scales = parts["weight"].float(), parts["weight_scale"].flatten()
    tiles = parts["weight_scale"].shape[1] // 4
    result = torch.empty(shape)
    for row in range(rows):
        for column in range(columns):
            block = column // 32
            tile = (row // 128) * tiles + block // 4
            exponent = scales[tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + block % 4].item()
            result[row, column] = weight[row, column] * 2.0 ** (exponent - 127)
    return result


def slow_nvfp4(parts, shape):
    rows, columns = shape
    scales, tiles = parts["weight_scale"].flatten().float(), parts["weight_scale"].shape[1] // 4
    result = torch.empty(shape)
    for row in range(rows):
        for column in range(columns):
            byte = parts["weight"][row, column // 2].item()
            code = byte >> 4 if column % 2 == 0 else byte & 15
            value = FLOATS[code & 7] * (-1 if code & 8 else 1)
            block = column // 16
            tile = (row // 128) * tiles + block // 4
            scale = scales[tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + block % 4]
            result[row, column] = value * (parts["weight_scale_2"] * scale)
    return result


@pytest.mark.parametrize(("name", "slow"), [("mxfp8", slow_mxfp8), ("nvfp4", slow_nvfp4)])
@pytest.mark.parametrize("shape", [(160, 192), (5, 40)])
def test_blocks_and_tiles(name, slow, shape):
    """Every value, where it lies and by what it is multiplied; sides that are padded included."""
    weight = noise(*shape) * torch.logspace(-2, 1, shape[0])[:, None]
    weight[1] = 0
    parts = FILE_FORMATS[name].quantise(weight)
    back = FILE_FORMATS[name].of_shape(shape).dequantise(parts, torch.float32)
    assert torch.equal(back, slow(parts, shape))
    assert relative(back, weight) < (0.04 if name == "mxfp8" else 0.15)
    assert torch.equal(back[1], torch.zeros(shape[1]))


def test_four_bits_round_to_the_nearest():
    """Ties go to the even code, as everywhere in floating point."""
    values = torch.tensor([0.2, 0.25, 0.3, 0.75, 1.25, 1.75, 2.5, 3.5, 4.9, 5.0, 5.1, 6.0, -0.75, -5.0, 0.0, 1.0])
    scaled = values * 448  # then the scales of the tensor and of the block are 1 and 448
    parts = FILE_FORMATS["nvfp4"].quantise(scaled[None])
    back = FILE_FORMATS["nvfp4"].of_shape((1, 16)).dequantise(parts, torch.float32)[0] / 448
    assert back.tolist() == [0, 0, 0.5, 1, 1, 2, 2, 4, 4, 4, 6, 6, -1, -4, 0, 1]


@pytest.mark.parametrize("name", ["int8_tensorwise", "convrot_w4a4"])
def test_rotation(name):
    """One large value a row costs a rotated format little."""
    weight = noise(6, 512)
    weight[:, 3] = 40
    rotated = FILE_FORMATS[name]
    if name == "int8_tensorwise":
        rotated = replace(rotated, convrot=True)
        assert rotated.metadata() == {"format": name, "convrot": True, "convrot_groupsize": 256}
    back = rotated.dequantise(rotated.quantise(weight), torch.float32)
    plain = FILE_FORMATS["int8_tensorwise"]
    assert relative(back, weight) < (0.01 if name == "int8_tensorwise" else 0.12)
    if name == "int8_tensorwise":
        error = relative(plain.dequantise(plain.quantise(weight), torch.float32)[:, 4:], weight[:, 4:])
        assert relative(back[:, 4:], weight[:, 4:]) < error / 2


def test_eight_bits_of_memory_are_mxfp8():
    """A power of two a row is one for each block of the row: no number changes, there and back."""
    weight = noise(40, 72) * torch.logspace(-4, 2, 40)[:, None]
    kept, scale = quantise(weight)
    parts = from_rows(kept, scale)
    back = MXFP8(shape=(40, 72)).dequantise(parts, torch.float32)
    assert torch.equal(back, kept.float() * scale[:, None])
    again = to_rows(parts, (40, 72))
    assert torch.equal(again[0].float(), kept.float()) and torch.equal(again[1], scale)
    assert to_rows(MXFP8().quantise(weight), (40, 72)) is None


# Files


def test_what_is_written(split, quant):
    """The large matrices of both networks, named in the file's metadata and beside each; all else as it was."""
    for file, component in ((MMDIT, "generation_decoder"), (VLM, "vlm")):
        with safe_open(split / file, "pt") as handle:
            layers = json.loads(handle.metadata()[QUANT_METADATA])["layers"]
        stored, before = load_file(split / file), load_file(CHECKPOINT / component / "model.safetensors")
        for layer, config in layers.items():
            assert json.loads(stored.pop(f"{layer}.comfy_quant").numpy().tobytes()) == config
            int8 = quant == "int8" or not ("layers." in layer or "_blocks." in layer)
            assert config["format"] == ("int8_tensorwise" if int8 else QUANTS[quant].name)
            assert stored.pop(f"{layer}.weight").element_size() == 1
            for name in [name for name in stored if name.startswith(f"{layer}.weight_")]:
                stored.pop(name)
            before.pop(f"{layer}.weight")
        assert stored.keys() == before.keys() and all(torch.equal(stored[name], before[name]) for name in before)


def test_read_again(split, quant, model):
    """The core loads the file, and computes nearly the same."""
    small = InternVLU.from_pretrained(split)
    layers = layer_formats(small.mmdit)
    assert layers == network_formats(model.mmdit, QUANTS[quant]) and small.dtype == torch.float32
    assert layer_formats(small.vlm) == network_formats(model.vlm, QUANTS[quant])
    context, x, step = model.encode("a boat"), noise(1, 16, 8, 8), torch.tensor([999.0])
    error = relative(small.velocity(context.full, x, step), model.velocity(context.full, x, step))
    assert 0 < error < (0.05 if quant == "nvfp4" else 0.02)
    hidden = relative(small.encode("a boat").full.hidden, context.full.hidden)
    assert 0 < hidden < {"int8": 0.05, "nvfp4": 0.5}.get(quant, 0.2)
    brief = InternVLU.from_pretrained(split, dtype=torch.bfloat16)
    assert brief.encode("a boat").full.hidden.dtype == torch.bfloat16


def test_between_forms(split, quant, tmp_path):
    """Copied bit by bit; as written from the start; and back to floats, which are what the layers stand for."""
    convert(split, tmp_path / "copied.safetensors", "single")
    convert(CHECKPOINT, tmp_path / "direct.safetensors", "single", quant=quant)
    assert (tmp_path / "copied.safetensors").read_bytes() == (tmp_path / "direct.safetensors").read_bytes()
    convert(tmp_path / "copied.safetensors", tmp_path / "floats", "folder", dtype=torch.float32)
    floats = load_file(tmp_path / "floats/generation_decoder/model.safetensors")
    config = json.loads(bytes(parts_of(split / MMDIT, LAYER)["comfy_quant"]))
    of_layer = QUANTS[quant].of_shape(floats[f"{LAYER}.weight"].shape)
    assert of_layer.name == config["format"]
    assert torch.equal(floats[f"{LAYER}.weight"], of_layer.dequantise(parts_of(split / MMDIT, LAYER), torch.float32))
    assert not any("scale" in name for name in floats)


def test_in_pieces(tmp_path, monkeypatch):
    """Rows that are quantised apart are those of the whole matrix."""
    convert(CHECKPOINT, tmp_path / "whole", "split", quant="int8")
    monkeypatch.setattr(formats, "CHUNK", 1000)
    convert(CHECKPOINT, tmp_path / "pieces", "split", quant="int8")
    for file in (MMDIT, VLM):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "pieces" / file).read_bytes()


def test_command_line(tmp_path, capsys):
    assert main(["convert", str(CHECKPOINT), str(tmp_path), "--quant", "int8"]) == 0
    assert f"{LAYER}.comfy_quant" in load_file(tmp_path / MMDIT)
    with pytest.raises(InputError, match=r"quant is 'int3'; it must be one of fp8, int8,"):
        convert(CHECKPOINT, tmp_path / "other", quant="int3")


def test_values_that_are_not_finite(quant, tmp_path):
    def spoil(tensors):
        tensors[f"{LAYER}.weight"][3, 5] = torch.inf

    folder = copy_checkpoint(tmp_path / "spoilt", tensors={"generation_decoder": spoil})
    with pytest.raises(InputError, match=rf"{LAYER}\.weight has values that are not finite"):
        convert(folder, tmp_path / "made", "split", quant=quant)
    assert not (tmp_path / "made").exists()


def test_by_comfyuis_name(split, quant, tmp_path):
    """As the docs' table and a file's metadata have it."""
    convert(CHECKPOINT, tmp_path, "split", quant=QUANTS[quant].name)
    assert (tmp_path / MMDIT).read_bytes() == (split / MMDIT).read_bytes()


def test_a_gguf_file_of_such_a_file(split, tmp_path):
    for asked in (None, "Q8_0"):
        with pytest.raises(InputError, match=r"ComfyUI's formats.*--dtype bf16"):
            convert(split, tmp_path / "x.gguf", "single", quant=asked)


# Files of others


def changed(folder, file, change):
    """A converted file with change(tensors, metadata) applied."""
    convert(CHECKPOINT, folder, "split")
    with safe_open(folder / file, "pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(folder / file)
    change(tensors, metadata)
    save_file(tensors, folder / file, metadata)
    return folder


def weight_of(network) -> torch.Tensor:
    layer = network.transformer_blocks[0].attn.to_q
    return layer.format.dequantise({name: getattr(layer, name) for name in layer.names}, torch.float32)


def oldest(tensors, metadata):
    """Scaled fp8: a mark, and names of their own."""
    tensors["scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)
    tensors[f"{LAYER}.scale_weight"] = torch.tensor([0.25])
    tensors[f"{LAYER}.scale_input"] = torch.tensor(1.0)
    tensors[f"{LAYER}.weight"] = (tensors[f"{LAYER}.weight"] * 4).to(torch.float8_e4m3fn)


def by_metadata(tensors, metadata):
    """ComfyUI of late 2025, with a scale in bfloat16 and one for the inputs."""
    metadata[QUANT_METADATA] = json.dumps({"format_version": "1.0", "layers": {LAYER: {"format": "float8_e4m3fn"}}})
    tensors[f"{LAYER}.weight_scale"] = torch.tensor(0.25, dtype=torch.bfloat16)
    tensors[f"{LAYER}.input_scale"] = torch.tensor(1.0)
    tensors[f"{LAYER}.weight"] = (tensors[f"{LAYER}.weight"] * 4).to(torch.float8_e4m3fn)


def by_tensor(tensors, metadata):
    """ComfyUI of 2026, in the other float of 8 bits."""
    tensors[f"{LAYER}.comfy_quant"] = torch.tensor(list(b'{"format": "float8_e5m2"}'), dtype=torch.uint8)
    tensors[f"{LAYER}.weight_scale"] = torch.tensor(0.25)
    tensors[f"{LAYER}.weight"] = (tensors[f"{LAYER}.weight"] * 4).to(torch.float8_e5m2)


def test_a_part_is_missing(split, quant, tmp_path):
    """The message says what the layer has, and in which format."""
    for file in SPLIT_FILES.values():
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).symlink_to(split / file)
    with safe_open(split / MMDIT, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(split / MMDIT)
    del tensors[f"{LAYER}.weight_scale"]
    (tmp_path / MMDIT).unlink()
    save_file(tensors, tmp_path / MMDIT, metadata)
    with pytest.raises(CheckpointError, match=rf"{LAYER}\.weight is stored in {QUANTS[quant].name} as weight \["):
        InternVLU.from_pretrained(tmp_path)


@pytest.mark.parametrize("form", [oldest, by_metadata, by_tensor])
def test_three_ways_to_say_so(tmp_path, form):
    folder = changed(tmp_path, MMDIT, form)
    read = InternVLU.from_pretrained(folder)
    assert list(layer_formats(read.mmdit)) == [LAYER.removeprefix("decoder.")] and read.dtype == torch.float32
    stored = load_file(folder / MMDIT)[f"{LAYER}.weight"].float() / 4
    assert torch.equal(weight_of(read.mmdit), stored)
    convert(folder, tmp_path / "copied", "folder")
    assert torch.equal(weight_of(InternVLU.from_pretrained(tmp_path / "copied").mmdit), stored)
    assert f"{LAYER}.comfy_quant" in load_file(tmp_path / "copied/generation_decoder/model.safetensors")


def put_config(config: bytes):
    def change(tensors, metadata):
        by_tensor(tensors, metadata)
        tensors[f"{LAYER}.comfy_quant"] = torch.tensor(list(config), dtype=torch.uint8)

    return change


STORED_IN = rf"{LAYER}.weight is stored in \w+ as weight .* config.json asks for"


def put(**parts):
    def change(tensors, metadata):
        by_tensor(tensors, metadata)
        tensors.update({f"{LAYER}.{name}": tensor for name, tensor in parts.items()})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put_config(b'{"format": "int3"}'), rf"the layer {LAYER} cannot be read: the format 'int3' is unknown"),
        (put_config(b"[]"), rf"the tensor {LAYER}.comfy_quant does not say a layer's format"),
        (put_config(b"{"), rf"the tensor {LAYER}.comfy_quant does not say a layer's format"),
        (put_config(b'{"format": ["nvfp4"]}'), rf"the layer {LAYER} cannot be read"),
        (put_config(b'{"format": "nvfp4"}'), STORED_IN),
        (put(weight_scale=torch.ones(3)), STORED_IN),
        (put(weight=torch.ones(2, 2).to(torch.float8_e5m2)), STORED_IN),
        (put(pre_quant_scale=torch.ones(3)), rf"the layer {LAYER} scales its inputs"),
    ],
)
def test_what_cannot_be_read(tmp_path, change, message):
    folder = changed(tmp_path, MMDIT, change)
    with pytest.raises(CheckpointError, match=message):
        InternVLU.from_pretrained(folder)


def test_tied_embedding_stays_a_matrix(tmp_path):
    """Without a head, the model multiplies by the embedding."""

    def tie(tensors):
        tensors.pop("language_model.lm_head.weight")

    changes = {"vlm/config.json": {"llm_config": {"tie_word_embeddings": True}}}
    folder = copy_checkpoint(tmp_path / "tied", changes, {"vlm": tie})
    convert(folder, tmp_path / "small", "split", quant="nvfp4")
    read = InternVLU.from_pretrained(tmp_path / "small")
    assert not any("embed" in path for path in layer_formats(read.vlm))
    assert len(read.answer("Hi", max_new_tokens=2).token_ids) == 2


def test_metadata_of_a_stranger():
    """What does not describe layers is passed over."""
    for text in ("{", "[]", '{"layers": 3}', '{"layers": {"x": 3}}', "null"):
        assert quantised_by({QUANT_METADATA: text}) == {}
