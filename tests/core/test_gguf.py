"""GGUF: every block type as the package `gguf` has it, files that it reads, files of others, and damaged ones."""

import random
import struct
from pathlib import Path

import gguf as package
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file
from torch import nn

from internvlu_core import InternVLU
from internvlu_core.checkpoints import convert, convert_gguf, gguf
from internvlu_core.checkpoints import load as weights
from internvlu_core.checkpoints.config import Config
from internvlu_core.checkpoints.files import COMPONENTS, File, Stored, components_of, open_source, to_gguf
from internvlu_core.cli import main
from internvlu_core.errors import CheckpointError, InputError
from internvlu_core.quantization import Gguf, QuantisedLinear, formats, gguf_blocks, layer_formats
from internvlu_core.quantization.formats import QuantisedEmbedding
from internvlu_core.quantization.gguf import TYPES
from support.checkpoints import CHECKPOINT, copy_checkpoint, copy_json
from support.scaled_checkpoints import SCALES, stored_shapes
from support.tensors import noise, relative

# Largest relative error of a random matrix, by type that is written.
ERRORS = {"Q8_0": 0.006, "Q5_1": 0.05, "Q5_0": 0.06, "Q4_1": 0.09, "Q4_0": 0.1, "MXFP4": 0.13}
HEAD = "language_model.lm_head.weight"
PROJECTION = "decoder.transformer_blocks.0.attn.to_q.weight"


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """The recorded checkpoint in one file, in Q4_0."""
    path = tmp_path_factory.mktemp("gguf") / "one.gguf"
    assert convert.convert(CHECKPOINT, path, "single", quant="Q4_0") == [path]
    return path


def random_blocks(name: str, rows: int, blocks: int) -> np.ndarray:
    """Random bytes as rows of blocks: scales of any size, zeros and infinities among them."""
    size = gguf.BLOCKS[name][1]
    return np.random.default_rng(7).integers(0, 256, (rows, blocks * size), dtype=np.uint8)


def as_array(tensor: torch.Tensor, qtype=package.GGMLQuantizationType.F32) -> np.ndarray:
    return quantize(tensor.numpy(), qtype)


# Blocks


def test_types_are_the_packages():
    """All that the package can unpack, with its sizes and numbers."""
    known = {kind.name for kind in package.quants._type_traits} - {"BF16"}
    assert set(gguf.BLOCKS) == set(gguf_blocks.UNPACK) == known
    for name, number in gguf.NUMBERS.items():
        kind = package.GGMLQuantizationType[name]
        assert number == kind
        assert package.GGML_QUANT_SIZES[kind] == gguf.BLOCKS.get(name, (1, gguf.PLAIN.get(name)))


@pytest.mark.parametrize("name", gguf.BLOCKS)
@pytest.mark.parametrize("chunk", [gguf_blocks.CHUNK, 1024])
def test_values_are_the_packages(name, chunk, monkeypatch):
    monkeypatch.setattr(gguf_blocks, "CHUNK", chunk)
    blocks = random_blocks(name, 60, 3)
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(dequantize(blocks, package.GGMLQuantizationType[name]).copy())
    actual = gguf_blocks.dequantise(torch.from_numpy(blocks), name, torch.float32)
    known = ~expected.isnan()
    assert known.float().mean() > 0.9
    assert torch.equal(actual.isnan(), ~known)
    # By bits: a zero has its sign.
    assert torch.equal(actual[known].view(torch.int32), expected[known].view(torch.int32))
    half = gguf_blocks.dequantise(torch.from_numpy(blocks), name, torch.bfloat16)
    assert torch.equal(half[known], expected.bfloat16()[known])
    none = gguf_blocks.dequantise(torch.from_numpy(blocks[:0]), name, torch.float32)
    assert none.shape == (0, actual.shape[1])


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_as_the_package_does(name, dtype):
    weight = noise(48, 96).to(dtype)
    stored = Gguf(name).quantise(weight)
    expected = quantize(weight.float().numpy(), package.GGMLQuantizationType[name])
    assert np.array_equal(stored["weight"].numpy(), expected)
    assert 0 < relative(Gguf(name).dequantise(stored, torch.float32), weight.float()) < ERRORS[name]


def test_our_quantiser_is_the_packages():
    """Patched weights are packed in torch, on their device; halves are rounded away from zero."""
    weight = torch.cat([noise(40, 96), torch.zeros(2, 96), torch.arange(-127.0, 65, 2)[None], noise(2, 96) * 1e-9])
    expected = quantize(weight.numpy(), package.GGMLQuantizationType.Q8_0)
    assert np.array_equal(gguf_blocks.quantise_q8_0(weight).numpy(), expected)


def test_large_matrices_are_multiplied_in_parts(monkeypatch):
    """The head of the language model never stands in memory as a whole."""
    weight, x, bias = noise(100, 64), noise(2, 3, 64), noise(100)
    layer = QuantisedLinear(Gguf("Q4_0"), Gguf("Q4_0").quantise(weight), bias)
    expected, unpacked, unpack = layer(x), [], gguf_blocks.dequantise
    monkeypatch.setattr(formats, "CHUNK", 64 * 33)
    monkeypatch.setattr(gguf_blocks, "dequantise", lambda *a: unpacked.append(unpack(*a)) or unpacked[-1])
    assert relative(layer(x), expected) < 1e-6
    assert [len(part) for part in unpacked] == [33, 33, 33, 1]
    table = QuantisedEmbedding(layer.format, layer.stored, torch.bfloat16)
    ids = torch.tensor([[5, 99], [0, 5]])
    unpacked.clear()
    assert torch.equal(table(ids), unpack(layer.weight, "Q4_0", torch.bfloat16)[ids])
    assert unpacked[0].numel() == 4 * 64


# Files


def test_the_package_reads_our_files(file):
    """Names, sizes, types and values are where others look for them."""
    reader = package.GGUFReader(file)
    assert reader.get_field("general.architecture").contents() == "internvl_u"
    assert reader.get_field("internvl_u.components").contents() == "vlm generation_decoder vae"
    text = (CHECKPOINT / "processor/tokenizer.json").read_text()
    assert reader.get_field("internvl_u/processor/tokenizer.json").contents() == text
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    head = load_file(CHECKPOINT / "vlm/model.safetensors")[HEAD]
    assert tuple(tensors[HEAD].shape) == tuple(reversed(head.shape))
    assert np.array_equal(tensors[HEAD].data, as_array(head, package.GGMLQuantizationType.Q8_0))
    matrix = load_file(CHECKPOINT / "generation_decoder/model.safetensors")[PROJECTION]
    assert np.array_equal(tensors[PROJECTION].data, as_array(matrix, package.GGMLQuantizationType.Q4_0))
    kernel = load_file(CHECKPOINT / "vae/diffusion_pytorch_model.safetensors")["decoder.conv_in.weight"]
    assert kernel.ndim == 5
    assert np.array_equal(tensors["vae.decoder.conv_in.weight"].data, kernel[:, :, -1].numpy())
    entries = gguf.read(file.open("rb"))[1]
    assert entries.keys() == tensors.keys()
    for name, entry in entries.items():
        assert (entry.offset, entry.nbytes) == (tensors[name].data_offset, tensors[name].n_bytes)


def test_what_is_quantised(file):
    """Matrices of repeated layers in the type that is asked for, embedding and head in Q8_0; the rest as it was."""
    config, source = Config.read(CHECKPOINT), open_source(file)
    found = {}
    for component in COMPONENTS:
        names, network = weights.tensor_names(config, component), weights.build_on_meta(config, component)
        stored = source.tensors(component)
        for name, tensor in network.state_dict().items():
            owner = network.get_submodule(name.rpartition(".")[0])
            inside = ".layers." in name or "transformer_blocks." in name
            expected = "F32"
            if isinstance(owner, nn.Linear) and tensor.ndim == 2 and inside:
                expected = "Q4_0"
            elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
                expected = "Q8_0"
            assert stored[names.file_name(name)].dtype == expected, name
            found[expected] = found.get(expected, 0) + 1
    assert found.keys() == {"F32", "Q4_0", "Q8_0"} and found["Q8_0"] == 2


def test_rows_that_are_no_whole_blocks_stay():
    assert Gguf("Q4_0").for_layer("layers.0.proj.weight", torch.empty(64, 48)) is None
    assert Gguf("Q4_0").for_layer("layers.0.proj.weight", torch.empty(48, 64)) == Gguf("Q4_0")


@pytest.mark.parametrize("quant", TYPES)
def test_drawn_as_unpacked(tmp_path, quant):
    """A model from a GGUF file computes as one whose weights were unpacked; its memory is that of the file."""
    convert.convert(CHECKPOINT, tmp_path / "x.gguf", "single", quant=quant)
    convert.convert(tmp_path / "x.gguf", tmp_path / "folder", "folder", dtype=torch.float32)
    packed, unpacked = (InternVLU.from_pretrained(tmp_path / name) for name in ("x.gguf", "folder"))
    assert packed.dtype == torch.float32
    networks = packed.vlm, packed.mmdit, packed.vae
    assert sum(p.nbytes for network in networks for p in network.parameters()) < (tmp_path / "x.gguf").stat().st_size
    assert {format.type for format in layer_formats(packed.mmdit).values()} == {quant}
    x, step = noise(1, 16, 8, 8), torch.tensor([999.0])
    expected = unpacked.velocity(unpacked.encode("a boat").full, x, step)
    assert relative(packed.velocity(packed.encode("a boat").full, x, step), expected) < 1e-5
    settings = {"max_new_tokens": 4}
    assert packed.answer("Who?", **settings).token_ids == unpacked.answer("Who?", **settings).token_ids


def test_weights_stay_mapped(file):
    """Loaded in its own dtype, nothing is copied: parameters are bytes of the mapped file."""
    config = Config.read(CHECKPOINT)
    state = weights.read_weights(file, config, "generation_decoder")
    mapped = {
        tensor.untyped_storage().data_ptr()
        for weight in state.values()
        for tensor in (weight.stored.values() if hasattr(weight, "stored") else [weight])
    }
    assert len(mapped) == 1


def test_dtypes_and_offloading(file):
    """The rest is converted as ever; weights that wait in main memory stay packed there."""
    model = InternVLU.from_pretrained(file, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.mmdit.parameters()} == {torch.bfloat16, torch.uint8}
    assert model.encode("a boat").full.hidden.dtype == torch.bfloat16
    whole = InternVLU.from_pretrained(file)
    waiting = InternVLU.from_pretrained(file, device_map="auto", max_memory=1_000_000)
    assert waiting.dtype == whole.dtype == torch.float32
    assert torch.equal(waiting.encode("a boat").full.hidden, whole.encode("a boat").full.hidden)


def foreign(path: Path, types: dict[str, str]):
    """A file of the VLM as another program might write it: with the package's writer, in types of its own choice."""
    writer = package.GGUFWriter(path, "internvl_u")
    source = open_source(CHECKPOINT)
    writer.add_string("internvl_u.version", "1")
    writer.add_string("internvl_u.components", "vlm")
    writer.add_uint32("internvl_u.block_count", 2)
    writer.add_array("some.words", ["a", "b"])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_custom_alignment(64)
    for name in source.text_names():
        writer.add_string(f"internvl_u/{name}", source.text(name))
    for name, tensor in load_file(CHECKPOINT / "vlm/model.safetensors").items():
        kind = next((kind for part, kind in types.items() if part in name), None)
        if kind in gguf.BLOCKS:
            values, size = gguf.BLOCKS[kind]
            blocks = random_blocks(kind, len(tensor), tensor.shape[1] // values)
            blocks[:, 1::size] = 0x20  # the scale's high byte in most types: no infinities
            writer.add_tensor(name, blocks, raw_dtype=package.GGMLQuantizationType[kind])
        elif kind:
            kind = package.GGMLQuantizationType[kind]
            writer.add_tensor(name, as_array(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_files_of_other_programs(tmp_path):
    """Types that we do not write, arrays among the values, another alignment, packed tensors that are no layers'."""
    types = {
        "q_proj": "IQ4_NL",
        "embed_tokens": "Q5_0",
        "special_token": "Q4_1",
        "mlp1.3.weight": "Q8_0",
        "k_norm": "F16",
    }
    foreign(tmp_path / "x.gguf", types | {"layers.0.mlp.up_proj.weight": "BF16"})
    reader = package.GGUFReader(tmp_path / "x.gguf")
    assert reader.alignment == 64
    config = Config.read(File(tmp_path / "x.gguf"))
    state = weights.read_weights(tmp_path / "x.gguf", config, "vlm")
    seen = set()
    for tensor in reader.tensors:
        name = tensor.name
        value = state.get(name, state.get(f"{name}.weight"))
        expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if hasattr(value, "stored"):
            seen.add(tensor.tensor_type.name)
            value = value.format.dequantise(value.stored, torch.float32)
        assert torch.equal(value.float().flatten(), expected.flatten()), name
    assert {"IQ4_NL", "Q5_0", "Q4_1", "Q8_0"} <= seen


def test_three_files(tmp_path):
    written = convert.convert(CHECKPOINT, tmp_path, quant="Q5_1")
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "text_encoders/internvl_u_vlm.gguf",
        "diffusion_models/internvl_u_mmdit.gguf",
        "vae/internvl_u_vae.safetensors",
    ]
    assert File(written[1]).components == ("generation_decoder",)
    assert "processor/tokenizer.json" not in File(written[1]).text_names()
    InternVLU.from_pretrained(tmp_path)
    convert.convert(tmp_path, tmp_path / "one.gguf", "single")  # the packed ones are copied
    again = gguf.read((tmp_path / "one.gguf").open("rb"))[1]
    assert {entry.dtype for entry in again.values()} == {"F32", "Q5_1", "Q8_0"}
    InternVLU.from_pretrained(tmp_path / "one.gguf")
    convert.convert(CHECKPOINT, tmp_path, force=True)
    with pytest.raises(CheckpointError, match=r"both internvl_u_vlm\.safetensors and internvl_u_vlm\.gguf"):
        InternVLU.from_pretrained(tmp_path)


def test_from_one_type_to_another(file, tmp_path):
    convert.convert(file, tmp_path / "same.gguf", "single", quant="Q4_0")
    assert (tmp_path / "same.gguf").read_bytes() == file.read_bytes()
    convert.convert(file, tmp_path / "other.gguf", "single", quant="Q8_0")
    assert open_source(tmp_path / "other.gguf").tensors("generation_decoder")[PROJECTION].dtype == "Q8_0"
    convert.convert(file, tmp_path / "x.safetensors", "single")
    dtype = load_file(tmp_path / "x.safetensors")[f"generation_decoder.{PROJECTION}"].dtype
    assert dtype == torch.bfloat16


def test_without_quantisation(tmp_path):
    """All in 16 bits; 8-bit floats, which GGUF lacks, are exact in bfloat16."""

    def mix(tensors):
        tensors["decoder.img_in.weight"] = tensors["decoder.img_in.weight"].to(torch.float8_e4m3fn)

    folder = copy_checkpoint(tmp_path / "mixed", tensors={"generation_decoder": mix})
    convert.convert(folder, tmp_path / "x.gguf", "single", dtype=torch.float16)
    assert {t.dtype for name in COMPONENTS for t in open_source(tmp_path / "x.gguf").tensors(name).values()} == {"F16"}
    convert.convert(folder, tmp_path / "y.gguf", "single")
    assert open_source(tmp_path / "y.gguf").tensors("generation_decoder")["decoder.img_in.weight"].dtype == "BF16"
    original = load_file(folder / "generation_decoder/model.safetensors")["decoder.img_in.weight"].float()
    state = weights.read_weights(tmp_path / "y.gguf", Config.read(folder), "generation_decoder")
    assert torch.equal(state["img_in.weight"].float(), original)


def test_values_beyond_the_range(tmp_path):
    def grow(tensors):
        tensors[PROJECTION][0, 0] = torch.inf

    folder = copy_checkpoint(tmp_path / "checkpoint", tensors={"generation_decoder": grow})
    with pytest.raises(InputError, match=r"to_q\.weight has values beyond the range of Q4_0"):
        convert.convert(folder, tmp_path / "x.gguf", "single", quant="Q4_0")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(("quant", "most"), [("Q4_0", 2.9e9), ("Q8_0", 4.6e9)])
def test_released_sizes(tmp_path, quant, most):
    """The whole model on disk, by its shapes; names and dimensions within what ggml's own programs take."""
    copy_json(tmp_path / "released", SCALES["released"])
    config, names = Config.read(tmp_path / "released"), []
    components = {}
    for tensor_names, shapes in stored_shapes(tmp_path / "released"):
        components[tensor_names.folder] = {
            name: Stored(tmp_path, name, "BF16", tuple(shape), 0, 0) for name, shape in shapes.items()
        }
    planned = convert_gguf.plan(config, components, quant, None)
    for component, tensors in planned.items():
        for name, tensor in tensors.items():
            names.append(to_gguf(component, name))
            assert len(tensor.shape) <= gguf.MAX_DIMS
    assert max(map(len, names)) <= gguf.MAX_NAME and len(set(names)) == len(names)
    texts = 20e6  # the released tokenizer and settings, generously
    total = sum(tensor.nbytes for tensors in planned.values() for tensor in tensors.values()) + texts
    assert 0.85 * most < total < most


# Files that are refused


def refuse(path: Path, *said: str):
    with pytest.raises(CheckpointError) as error:
        InternVLU.from_pretrained(path)
    for part in (path.name, *said):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_another_architecture(tmp_path):
    writer = package.GGUFWriter(tmp_path / "x.gguf", "qwen3vl")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refuse(tmp_path / "x.gguf", "architecture 'qwen3vl'", "'internvl_u'")
    assert components_of(tmp_path / "x.gguf") == ()


@pytest.mark.parametrize("keep", [0, 3, 4, 20, 100, 5000, -1])
def test_cut_off(file, tmp_path, keep):
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:keep])
    refuse(tmp_path / "cut.gguf", "not a whole GGUF file")
    assert components_of(tmp_path / "cut.gguf") == (COMPONENTS if keep == -1 else ())


@pytest.mark.parametrize(
    ("offset", "value", "said"),
    [(0, b"GGML", "no GGUF file"), (4, struct.pack("<I", 1), "version 1"), (4, struct.pack(">I", 3), "little-endian")],
)
def test_other_formats(file, tmp_path, offset, value, said):
    content = bytearray(file.read_bytes())
    content[offset : offset + 4] = value
    (tmp_path / "x.gguf").write_bytes(content)
    refuse(tmp_path / "x.gguf", said)


def test_damaged_headers(file, tmp_path):
    """Whatever byte of the header is wrong: a file is read, or refused as what it is; nothing else is raised."""
    content, path = file.read_bytes(), tmp_path / "x.gguf"
    start = min(entry.offset for entry in gguf.read(file.open("rb"))[1].values())
    generator, refused = random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(content[: start + 1000])
        for _ in range(generator.choice([1, 8])):
            damaged[generator.randrange(start)] = generator.choice([0, 1, 255, generator.randrange(256)])
        path.write_bytes(damaged)
        try:
            with path.open("rb") as opened:
                gguf.read_file(path, opened, whole=False)
        except CheckpointError:
            refused += 1
    assert refused > 10


def test_a_file_without_our_values(file, tmp_path):
    tensors = {"a": ("F32", (4,))}
    (tmp_path / "x.gguf").write_bytes(gguf.header({}, tensors) + bytes(16))
    refuse(tmp_path / "x.gguf", "no InternVL-U file")
    values = {"internvl_u.version": "1", "internvl_u.components": "vae"}
    (tmp_path / "x.gguf").write_bytes(gguf.header(values, tensors) + bytes(16))
    refuse(tmp_path / "x.gguf", "tensors of no component: a")


# The package is an extra


def test_without_the_package(file, tmp_path, monkeypatch):
    """Reading needs it for the IQ types alone; writing says how to get it, before anything is written."""
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    assert InternVLU.from_pretrained(file).answer("Who?", max_new_tokens=1).token_ids
    gguf_blocks._table.cache_clear()
    for call in (
        lambda: convert.convert(CHECKPOINT, tmp_path, quant="Q4_0"),
        lambda: gguf_blocks.dequantise(torch.zeros(1, 66, dtype=torch.uint8), "IQ2_XXS", torch.float32),
    ):
        with pytest.raises(InputError, match="pip install gguf"):
            call()
    assert list(tmp_path.iterdir()) == []
    convert.convert(CHECKPOINT, tmp_path / "x.gguf", "single", dtype=torch.bfloat16)


# The command


@pytest.mark.parametrize(
    ("target", "arguments", "said"),
    [
        ("x.gguf", ["--quant", "Q4_K", "--to", "single"], "quant is 'Q4_K'; in a GGUF file it must be Q8_0, Q5_1"),
        ("x.gguf", ["--quant", "Q4_0"], "'split'"),
        ("x.gguf", ["--to", "folder"], "'folder'"),
        ("x", ["--quant", "Q4_0", "--to", "folder"], "'folder'"),
        ("x.safetensors", ["--quant", "Q4_0", "--to", "single"], "must end in .gguf"),
    ],
)
def test_command_refuses(capsys, tmp_path, target, arguments, said):
    assert main(["convert", str(CHECKPOINT), str(tmp_path / target), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_command(capsys, tmp_path):
    arguments = ["--to", "single", "--quant", "MXFP4", "--dtype", "bf16"]
    assert main(["convert", str(CHECKPOINT), str(tmp_path), *arguments]) == 0
    path = tmp_path / "internvl_u.gguf"
    assert capsys.readouterr().out == f"{path}\n"
    types = {entry.dtype for entry in gguf.read(path.open("rb"))[1].values()}
    assert types == {"MXFP4", "Q8_0", "BF16"}
