"""A checkpoint's forms: each loads as the folder does and leads back to it bit by bit; none is left half written."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from internvlu_core import CheckpointError, InputError, InternVLU
from internvlu_core.checkpoints import convert
from internvlu_core.checkpoints import files as source
from internvlu_core.checkpoints import load as weights
from internvlu_core.checkpoints.config import Config
from internvlu_core.cli import main
from support.checkpoints import CHECKPOINT, WEIGHTS, change_json, copy_checkpoint, native_checkpoint

MMDIT, VLM_FILE, VAE_FILE = (source.SPLIT_FILES[name] for name in ("generation_decoder", "vlm", "vae"))


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> Path:
    return native_checkpoint(tmp_path_factory.mktemp("native") / "checkpoint")


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> Path:
    """The recorded checkpoint as three files in "split", and as "single.safetensors"."""
    folder = tmp_path_factory.mktemp("forms")
    convert.convert(CHECKPOINT, folder / "split", "split")
    convert.convert(CHECKPOINT, folder / "single.safetensors", "single")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change_header(file: Path, change):
    """Rewrite a safetensors file with change(tensors, metadata) applied."""
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(file)
    change(tensors, metadata)
    save_file(tensors, file, metadata)


# There and back


@pytest.mark.parametrize("form", ["split", "single.safetensors"])
def test_forms_load_as_the_folder(forms, form, model):
    """Same parameters, same words, same picture; nothing but the file is read."""
    loaded = InternVLU.from_pretrained(forms / form, dtype=torch.float32)
    for ours, theirs in ((loaded.vlm, model.vlm), (loaded.mmdit, model.mmdit), (loaded.vae, model.vae)):
        expected = theirs.state_dict()
        assert ours.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    assert loaded.config == model.config
    assert loaded.answer("Hi", max_new_tokens=4) == model.answer("Hi", max_new_tokens=4)
    pictures = [m.generate("a cat", height=32, width=32, steps=1).images[0] for m in (loaded, model)]
    assert pictures[0].tobytes() == pictures[1].tobytes()


@pytest.mark.parametrize("form", ["split", "single.safetensors"])
def test_back_to_the_folder(forms, form, tmp_path):
    """Every file comes back as it was: configs, tokenizer, and tensors that inference never reads."""
    convert.convert(forms / form, tmp_path / "back", "folder")
    assert files(tmp_path / "back").keys() == files(CHECKPOINT).keys()
    for name, content in files(CHECKPOINT).items():
        back = tmp_path / "back" / name
        if name.endswith(".safetensors"):
            expected, actual = load_file(CHECKPOINT / name), load_file(back)
            assert actual.keys() == expected.keys()
            assert all(torch.equal(actual[key], expected[key]) for key in expected)
            assert {key: t.dtype for key, t in actual.items()} == {key: t.dtype for key, t in expected.items()}
        else:
            assert back.read_bytes() == content, name
    assert "encoder_padding_token" in load_file(tmp_path / "back/generation_decoder/model.safetensors")


def test_between_files_and_from_shards(forms, tmp_path):
    """Three files → one → three gives the same bytes; shards are joined."""
    convert.convert(forms / "split", tmp_path, "single")
    assert (tmp_path / convert.SINGLE_FILE).read_bytes() == (forms / "single.safetensors").read_bytes()
    convert.convert(tmp_path / convert.SINGLE_FILE, tmp_path / "again", "split")
    assert files(tmp_path / "again") == files(forms / "split")

    sharded = copy_checkpoint(tmp_path / "sharded")
    tensors = load_file(sharded / "vlm" / "model.safetensors")
    (sharded / "vlm" / "model.safetensors").unlink()
    shards = {f"model-{i + 1:05d}-of-00003.safetensors": sorted(tensors)[i::3] for i in range(3)}
    for shard, names in shards.items():
        save_file({name: tensors[name] for name in names}, sharded / "vlm" / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    (sharded / "vlm/model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    convert.convert(sharded, tmp_path / "joined.safetensors", "single")
    assert (tmp_path / "joined.safetensors").read_bytes() == (forms / "single.safetensors").read_bytes()


def test_files_are_plain_safetensors(forms):
    """Other programs read them: aligned, in order, whatever their dtypes, with the JSON as it was."""
    with safe_open(forms / "split" / MMDIT, "pt") as handle:
        metadata = handle.metadata()
    assert metadata["internvl_u.version"] == "1"
    assert metadata["internvl_u.components"] == "generation_decoder"
    assert metadata["internvl_u/vae/config.json"] == (CHECKPOINT / "vae/config.json").read_text()
    assert "internvl_u/processor/tokenizer.json" not in metadata
    _, stored = source.read_header(forms / "single.safetensors")
    assert all(tensor.offset % 4 == 0 for tensor in stored.values())


def test_other_types_and_empty_tensors(tmp_path):
    """A checkpoint of mixed dtypes: each keeps its own, and each is aligned for it."""

    def mix(tensors):
        tensors["decoder.proj_out.bias"] = tensors["decoder.proj_out.bias"].half()
        tensors["decoder.img_in.weight"] = tensors["decoder.img_in.weight"].to(torch.float8_e4m3fn)
        tensors["encoder_padding_token"] = torch.arange(3, dtype=torch.int8)

    folder = copy_checkpoint(tmp_path / "mixed", tensors={"generation_decoder": mix})
    convert.convert(folder, tmp_path, "split")
    expected, actual = load_file(folder / "generation_decoder/model.safetensors"), load_file(tmp_path / MMDIT)
    assert {key: t.dtype for key, t in actual.items()} == {key: t.dtype for key, t in expected.items()}
    assert all(torch.equal(actual[key].view(torch.uint8), expected[key].view(torch.uint8)) for key in expected)
    _, stored = source.read_header(tmp_path / MMDIT)
    assert all(stored[key].offset % expected[key].element_size() == 0 for key in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype(tmp_path, dtype):
    def add_integers(tensors):
        tensors["encoder_padding_token"] = torch.arange(128, dtype=torch.int32)

    folder = copy_checkpoint(tmp_path / "checkpoint", tensors={"generation_decoder": add_integers})
    convert.convert(folder, tmp_path, "split", dtype=dtype)
    expected, actual = load_file(folder / "generation_decoder/model.safetensors"), load_file(tmp_path / MMDIT)
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor.to(dtype) if tensor.is_floating_point() else tensor), key
    assert {t.dtype for t in load_file(tmp_path / VLM_FILE).values()} == {dtype}


def test_dtype_in_pieces(tmp_path, monkeypatch):
    """Where a piece ends within a tensor."""
    monkeypatch.setattr(convert, "PIECE", 1000)
    convert.convert(CHECKPOINT, tmp_path, "split", dtype=torch.bfloat16)
    expected, actual = load_file(CHECKPOINT / "vlm/model.safetensors"), load_file(tmp_path / VLM_FILE)
    assert all(torch.equal(actual[key], expected[key].bfloat16()) for key in expected)


def test_dtype_that_overflows(tmp_path):
    def grow(tensors):
        tensors["mlp1.3.bias"][0] = 1e5

    folder = copy_checkpoint(tmp_path / "checkpoint", tensors={"vlm": grow})
    with pytest.raises(InputError, match=r"mlp1\.3\.bias has values beyond the range of torch\.float16"):
        convert.convert(folder, tmp_path / "out", "split", dtype=torch.float16)
    assert not (tmp_path / "out").exists()


# The VAE under Wan's names


def test_wan_names(native, tmp_path):
    """A VAE of the released shape gets the names of ComfyUI's own VAE; the other one gets names that nothing knows."""
    convert.convert(native, tmp_path / "native", "split")
    convert.convert(CHECKPOINT, tmp_path / "golden", "split")
    keys = load_file(tmp_path / "native" / VAE_FILE).keys()
    released = load_file(native / "vae" / WEIGHTS["vae"])
    assert len(keys) == len(released) == 194  # as in the released checkpoint
    assert {
        "conv1.weight", "conv2.bias", "encoder.conv1.weight", "encoder.downsamples.0.residual.0.gamma",
        "encoder.downsamples.5.time_conv.weight", "encoder.downsamples.10.residual.6.bias",
        "encoder.middle.1.to_qkv.weight", "decoder.middle.2.residual.3.gamma", "decoder.upsamples.4.shortcut.weight",
        "decoder.upsamples.7.time_conv.bias", "decoder.upsamples.11.resample.1.weight",
        "decoder.upsamples.14.residual.2.weight", "decoder.head.0.gamma", "decoder.head.2.bias",
    } <= keys  # fmt: skip
    assert not any("block" in key or "norm" in key.replace("middle.1.norm", "") for key in keys)
    for name in released:
        assert source.from_wan(source.to_wan(name)) == name
    assert all(key.startswith("vae.") for key in load_file(tmp_path / "golden" / VAE_FILE))

    config = Config.read(native)
    expected = weights.read_weights(native, config, "vae")
    actual = weights.read_weights(tmp_path / "native" / VAE_FILE, config, "vae")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    convert.convert(tmp_path / "native", tmp_path / "back", "folder")
    back = load_file(tmp_path / "back/vae" / WEIGHTS["vae"])
    assert back.keys() == released.keys()
    assert all(torch.equal(back[name], released[name]) for name in released)


# Files that are refused


def refuse(path: Path, *said: str):
    with pytest.raises(CheckpointError) as error:
        InternVLU.from_pretrained(path)
    for part in said:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def single(forms, tmp_path) -> Path:
    return Path(shutil.copy(forms / "single.safetensors", tmp_path / "one.safetensors"))


def test_part_instead_of_the_whole(forms):
    refuse(forms / "split" / MMDIT, MMDIT, "no tokenizer", "VLM")
    refuse(forms / "split" / VLM_FILE, VLM_FILE, "holds no generation_decoder, but vlm")


def test_foreign_files(tmp_path):
    save_file({"txt_norm.weight": torch.ones(4)}, tmp_path / "other.safetensors")
    refuse(tmp_path / "other.safetensors", "other.safetensors", "is no InternVL-U file", "convert")
    (tmp_path / "text.safetensors").write_text("no tensors")
    refuse(tmp_path / "text.safetensors", "not a whole safetensors file")
    torch.save({"a": torch.ones(1)}, tmp_path / "pickle.ckpt")
    refuse(tmp_path / "pickle.ckpt", "not a whole safetensors file")


@pytest.mark.parametrize("keep", [4, 0.5, 0.999])
def test_cut_off(single, keep):
    content = single.read_bytes()
    single.write_bytes(content[: int(len(content) * keep) if keep < 1 else keep])
    refuse(single, str(single), "cut off")


def test_newer_version(single):
    change_header(single, lambda tensors, metadata: metadata.update({"internvl_u.version": "2"}))
    refuse(single, "version '2'", "reads 1")


@pytest.mark.parametrize("named", ["", "vlm tail", "../vlm"])
def test_unknown_components(single, named):
    change_header(single, lambda tensors, metadata: metadata.update({"internvl_u.components": named}))
    refuse(single, str(single), repr(named))


def test_missing_and_unknown_tensors(single):
    def rename(tensors, metadata):
        tensors["vae.decoder.extra"] = tensors.pop("vae.quant_conv.bias")

    change_header(single, rename)
    refuse(single, str(single), "1 missing: quant_conv.bias", "1 unknown: decoder.extra")
    change_header(single, lambda tensors, metadata: tensors.update({"stray": torch.ones(1)}))
    refuse(single, "tensors of no component: stray")


@pytest.mark.parametrize("name", ["vlm/config.json", "processor/processor_config.json"])
def test_missing_text(single, name):
    change_header(single, lambda tensors, metadata: metadata.pop(f"internvl_u/{name}"))
    refuse(single, str(single), name)


@pytest.mark.parametrize(
    "name", ["../evil.json", "processor/../../evil.json", "/evil.json", "processor/evil.py", "x/y.json"]
)
def test_text_that_leads_outside(single, name):
    change_header(single, lambda tensors, metadata: metadata.update({f"internvl_u/{name}": "{}"}))
    refuse(single, repr(name))


def test_three_files_of_two_checkpoints(forms, tmp_path):
    shutil.copytree(forms / "split", tmp_path / "split")
    other = copy_checkpoint(tmp_path / "other")
    change_json(other, {"generation_decoder/config.json": {"flow_shift": 2.0}})
    convert.convert(other, tmp_path / "more", "split")
    shutil.copy(tmp_path / "more" / MMDIT, tmp_path / "split" / MMDIT)
    refuse(tmp_path / "split", "different checkpoints", "generation_decoder/config.json differs")
    (tmp_path / "split" / VAE_FILE).unlink()
    refuse(tmp_path / "split", "missing file", VAE_FILE)


# Writing


def test_nothing_is_overwritten(forms, tmp_path, model):
    convert.convert(CHECKPOINT, tmp_path, "split", dtype=torch.bfloat16)
    before = files(tmp_path)
    (tmp_path / VLM_FILE).unlink()  # even if only some are there
    with pytest.raises(InputError, match=r"internvl_u_mmdit\.safetensors exists; --force"):
        convert.convert(CHECKPOINT, tmp_path, "split")
    assert files(tmp_path) == {name: content for name, content in before.items() if name != VLM_FILE}
    convert.convert(CHECKPOINT, tmp_path, "split", force=True)
    assert files(tmp_path) == files(forms / "split")


def test_onto_itself(single):
    """The source is read whole before its place is taken."""
    before = single.read_bytes()
    convert.convert(single, single, "single", force=True)
    assert single.read_bytes() == before


class Cancelled(BaseException):
    pass


@pytest.mark.parametrize("error", [Cancelled(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("form", convert.CHECKPOINT_FORMATS)
def test_interrupted(tmp_path, form, error):
    """In the last file, when others are whole already: none is left, and no folder that was not there."""

    def fail(done, total):
        if done > 0.9 * total:
            raise error

    (tmp_path / "kept").mkdir()
    target = tmp_path / "kept" / "new" / ("one.safetensors" if form == "single" else "")
    expected = Cancelled if isinstance(error, Cancelled) else InputError
    with pytest.raises(expected) as caught:
        convert.convert(CHECKPOINT, target, form, progress=fail)
    if expected is InputError:
        assert "no space is left" in str(caught.value)
        assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]


def test_too_little_space(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(InputError, match=r"0\.0 GB of disk space left; 0\.0 GB are needed"):
        convert.convert(CHECKPOINT, tmp_path / "out", "split")
    assert not (tmp_path / "out").exists()


def test_progress(tmp_path):
    calls = []
    convert.convert(CHECKPOINT, tmp_path, "split", dtype=torch.bfloat16, progress=lambda *call: calls.append(call))
    done = [done for done, _ in calls]
    assert done == sorted(done)
    total = sum(t.nbytes for file in source.SPLIT_FILES.values() for t in load_file(tmp_path / file).values())
    assert {call[1] for call in calls} == {total}
    assert done[-1] == total


# The command


def command(capfd, *arguments):
    code = main(["convert", *map(str, arguments)])
    return code, *capfd.readouterr()


def test_command(capfd, tmp_path, native):
    code, out, err = command(capfd, CHECKPOINT, tmp_path)
    assert (code, out.splitlines()) == (0, [str(tmp_path / source.SPLIT_FILES[name]) for name in source.COMPONENTS])
    assert "100%" in err
    assert "VAELoader cannot build" in err
    assert "VAELoader" not in command(capfd, native, tmp_path / "native")[2]
    code, out, _ = command(capfd, tmp_path, tmp_path / "x.safetensors", "--to", "single", "--dtype", "bf16")
    assert (code, out) == (0, f"{tmp_path / 'x.safetensors'}\n")
    assert {t.dtype for t in load_file(tmp_path / "x.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{tmp}/nowhere", "{tmp}/out"), "'{tmp}/nowhere' does not exist"),
        ((CHECKPOINT, "{tmp}/out.bin", "--to", "single"), "out.bin: the file's name must end in .safetensors"),
        ((CHECKPOINT, "{tmp}/file"), "{tmp}/file is a file; three files need a folder"),
        ((CHECKPOINT, "{tmp}/file", "--to", "folder"), "cannot write {tmp}/file/vlm: "),
        (("{tmp}/file", "{tmp}/out"), "{tmp}/file is not a whole safetensors file"),
    ],
)
def test_command_refuses(capfd, tmp_path, arguments, said):
    (tmp_path / "file").write_text("in the way")
    code, out, err = command(capfd, *(str(argument).format(tmp=tmp_path) for argument in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("internvlu_core: ")
    assert said.format(tmp=tmp_path) in err
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_as_wan(native):
    """The network's own weights, back under all 194 names and shapes; what a picture meets is as it was stored."""
    config = Config.read(native)
    wan = convert.as_wan(config.vae, weights.read_weights(native, config, "vae"))
    released = load_file(native / "vae" / WEIGHTS["vae"])
    assert {key: tensor.shape for key, tensor in wan.items()} == {
        source.to_wan(name): tensor.shape for name, tensor in released.items()
    }
    for name, stored in released.items():
        tensor = wan[source.to_wan(name)]
        if "time_conv" in name:
            assert not tensor.any()
        elif stored.ndim == 5:
            assert torch.equal(tensor[:, :, -1], stored[:, :, -1])
            assert not tensor[:, :, :-1].any()
        else:
            assert torch.equal(tensor, stored)
    golden = Config.read(CHECKPOINT).vae
    assert convert.as_wan(golden, {}) is None
