"""Checkpoint folders: a broken one is refused with the name of what is broken, a sound one gives its numbers."""

import json
import logging
import shutil
import struct
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from internvlu_core import CheckpointError, InternVLU
from internvlu_core.checkpoints.config import Config
from support import scaled_checkpoints
from support.checkpoints import CHECKPOINT, WEIGHTS, change_json, copy_checkpoint, copy_json

VLM, MMDIT, VAE = WEIGHTS
NORM = "language_model.model.norm.weight"
HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


def load(folder, dtype=torch.float32) -> InternVLU:
    return InternVLU.from_pretrained(folder, "cpu", dtype)


def parameters(model: InternVLU) -> dict[str, torch.Tensor]:
    networks = {"vlm": model.vlm, "mmdit": model.mmdit, "vae": model.vae}
    return {f"{name}.{key}": t for name, network in networks.items() for key, t in network.state_dict().items()}


def assert_same(model: InternVLU, expected: InternVLU, change=lambda tensor: tensor):
    """All parameters equal, as numbers, those of expected after change."""
    expected = parameters(expected)
    actual = parameters(model)
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert torch.equal(tensor.float(), change(expected[name]).float()), name


def assert_refused(folder: Path, *named: str):
    with pytest.raises(CheckpointError) as error:
        load(folder)
    for name in named:
        assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def folder(tmp_path) -> Path:
    return copy_checkpoint(tmp_path / "checkpoint")


def write_shards(folder: Path, stem: str, count: int = 3) -> dict[str, str]:
    """Replace a component's weights by shards and an index. Returns the weight map."""
    tensors = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    weight_map = {}
    for i in range(count):
        shard = {name: tensors[name] for name in sorted(tensors)[i::count]}
        file = f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors"
        save_file(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    write_index(folder, stem, weight_map)
    return weight_map


def write_index(folder: Path, stem: str, weight_map: dict):
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


# Files


def test_missing_folder(tmp_path):
    assert_refused(tmp_path / "nowhere", "nowhere", "does not exist")


@pytest.mark.parametrize("component", ["vlm", "generation_decoder", "vae", "scheduler", "processor"])
def test_missing_component(folder, component):
    shutil.rmtree(folder / component)
    assert_refused(folder, f"{component}/", "missing")


JSON_FILES = [
    "vlm/config.json",
    "generation_decoder/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "processor/processor_config.json",
]


@pytest.mark.parametrize("file", JSON_FILES)
def test_missing_json(folder, file):
    (folder / file).unlink()
    assert_refused(folder, "missing", file)


@pytest.mark.parametrize("file", JSON_FILES)
@pytest.mark.parametrize(
    "content",
    [b"", b'{"hidden_size": 6', b"\xff\xfe{}", b"[]", b'"text"', b"[" * 100_000, b'{"z_dim": ' + b"1" * 5000 + b"}"],
    ids=["empty", "cut", "not UTF-8", "a list", "a string", "deep", "huge number"],
)
def test_broken_json(folder, file, content):
    (folder / file).write_bytes(content)
    assert_refused(folder, file)


@pytest.mark.parametrize("component", WEIGHTS)
@pytest.mark.parametrize("keep", [0, 4, 0.3, 0.999], ids=lambda keep: f"{keep} of it")
def test_truncated_weights(folder, component, keep):
    file = folder / component / WEIGHTS[component]
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep) if keep < 1 else keep])
    assert_refused(folder, str(file), "cut off")


@pytest.mark.parametrize("component", WEIGHTS)
def test_missing_weights(folder, component):
    (folder / component / WEIGHTS[component]).unlink()
    assert_refused(folder, "missing file", component, WEIGHTS[component])


@pytest.mark.parametrize("dtype", ["auto", torch.float32])
def test_weights_without_tensors(folder, dtype):
    save_file({}, folder / MMDIT / WEIGHTS[MMDIT])
    with pytest.raises(CheckpointError, match=r"77 missing: decoder\.img_in\.bias"):
        load(folder, dtype)


# Shards


@pytest.fixture
def sharded(folder) -> Path:
    write_shards(folder / "vlm", "model")
    return folder


def test_missing_shard(sharded):
    (sharded / "vlm" / "model-00002-of-00003.safetensors").unlink()
    assert_refused(sharded, "model-00002-of-00003.safetensors", "missing")


@pytest.mark.parametrize("place", ["../vae/diffusion_pytorch_model.safetensors", "{absolute}", "sub/a.safetensors", 7])
def test_index_names_a_path_outside(sharded, place, tmp_path):
    outside = tmp_path / "outside.safetensors"
    save_file({NORM: torch.zeros(64)}, outside)
    place = place.format(absolute=outside) if isinstance(place, str) else place
    index = json.loads((sharded / "vlm" / "model.safetensors.index.json").read_text())
    write_index(sharded / "vlm", "model", index["weight_map"] | {NORM: place})
    assert_refused(sharded, "model.safetensors.index.json", *([repr(place)] if isinstance(place, str) else []))


def test_index_names_a_pickle(sharded):
    index = json.loads((sharded / "vlm" / "model.safetensors.index.json").read_text())
    write_index(sharded / "vlm", "model", index["weight_map"] | {NORM: "pytorch_model.bin"})
    assert_refused(sharded, "'pytorch_model.bin'")


def test_index_promises_what_its_shard_lacks(sharded):
    index = json.loads((sharded / "vlm" / "model.safetensors.index.json").read_text())
    write_index(sharded / "vlm", "model", index["weight_map"] | {"mlp1.9.weight": "model-00001-of-00003.safetensors"})
    assert_refused(sharded, "model-00001-of-00003.safetensors", "lacks the tensor mlp1.9.weight")


def test_shard_has_what_its_index_does_not_name(sharded):
    index = json.loads((sharded / "vlm" / "model.safetensors.index.json").read_text())
    write_index(sharded / "vlm", "model", {k: v for k, v in index["weight_map"].items() if k != NORM})
    assert_refused(sharded, "does not name", NORM)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": null}}'])
def test_broken_index(sharded, content):
    index = sharded / "vlm" / "model.safetensors.index.json"
    index.write_text(content)
    assert_refused(sharded, str(index))


@pytest.mark.parametrize("dtype", ["auto", torch.float32])
def test_empty_index(folder, dtype):
    (folder / MMDIT / WEIGHTS[MMDIT]).unlink()
    write_index(folder / MMDIT, "model", {})
    with pytest.raises(CheckpointError, match=r"77 missing: decoder\.img_in\.bias"):
        load(folder, dtype)


# Tensors


def renamed(tensors):
    tensors["language_model.model.norm.wait"] = tensors.pop(NORM)


def doubled_rank(tensors):
    tensors["mlp1.1.weight"] = tensors["mlp1.1.weight"][None]


BAD_TENSORS = {
    "renamed": (VLM, renamed, ["1 missing: " + NORM, "1 unknown: language_model.model.norm.wait"]),
    "missing vlm": (VLM, lambda t: t.pop("mlp1.3.bias"), ["1 missing: mlp1.3.bias"]),
    "missing mmdit": (MMDIT, lambda t: t.pop("decoder.txt_norm.weight"), ["1 missing: decoder.txt_norm.weight"]),
    "missing vae": (VAE, lambda t: t.pop("quant_conv.bias"), ["1 missing: quant_conv.bias"]),
    "missing head": (VLM, lambda t: t.pop(HEAD), ["1 missing: " + HEAD]),
    "extra vlm": (VLM, lambda t: t.update(extra=torch.ones(1)), ["1 unknown: extra"]),
    "extra mmdit": (MMDIT, lambda t: t.update({"decoder.extra": torch.ones(1)}), ["1 unknown: decoder.extra"]),
    "extra vae": (VAE, lambda t: t.update({"encoder.extra": torch.ones(1)}), ["1 unknown: encoder.extra"]),
    "transposed": (VLM, lambda t: t.update({EMBEDDING: t[EMBEDDING].T}), [EMBEDDING, "[64, 313]", "[313, 64]"]),
    "too short": (VLM, lambda t: t.update({NORM: torch.ones(63)}), [NORM, "[63]", "[64]"]),
    "another rank": (VLM, doubled_rank, ["mlp1.1.weight", "[1, 64, 256]", "[64, 256]"]),
    "flat kernel": (VAE, lambda t: t.update({"conv": t.pop("quant_conv.weight")}), ["quant_conv.weight", "conv"]),
    "integers": (VLM, lambda t: t.update({NORM: torch.ones(64, dtype=torch.int32)}), [NORM, "floating point"]),
    "booleans": (VAE, lambda t: t.update({"quant_conv.bias": torch.ones(32).bool()}), ["quant_conv.bias"]),
}


@pytest.mark.parametrize("bad", BAD_TENSORS)
def test_bad_tensors(tmp_path, bad):
    component, change, named = BAD_TENSORS[bad]
    assert_refused(copy_checkpoint(tmp_path / "checkpoint", tensors={component: change}), component, *named)


@pytest.mark.parametrize("dtype", ["auto", torch.float32])
def test_integers_alone(tmp_path, dtype):
    def to_integers(tensors):
        tensors.update({name: tensor.to(torch.int8) for name, tensor in tensors.items()})

    folder = copy_checkpoint(tmp_path / "checkpoint", tensors={MMDIT: to_integers})
    with pytest.raises(CheckpointError, match=r"not floating point: decoder\."):
        load(folder, dtype)


def test_unsupported_tensor_type(folder):
    """A type that torch has and the loader does not know: complex numbers."""
    file = folder / VLM / WEIGHTS[VLM]
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    header[NORM] |= {"dtype": "C64", "shape": [32]}
    encoded = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + size :])
    assert_refused(folder, NORM, "C64")


# JSON against tensors, against other JSON, and against what is implemented


def llm(**values):
    return {"vlm/config.json": {"llm_config": values}}


def vision(**values):
    return {"vlm/config.json": {"vision_config": values}}


def vlm(**values):
    return {"vlm/config.json": values}


def decoder(**values):
    return {"generation_decoder/config.json": {"decoder_config": values}}


def generation(**values):
    return {"generation_decoder/config.json": values}


def vae(**values):
    return {"vae/config.json": values}


def scheduler(**values):
    return {"scheduler/scheduler_config.json": values}


def tiles(**values):
    return {"processor/processor_config.json": {"image_processor_kwargs": values}}


def references(**values):
    return {"processor/processor_config.json": {"image_gen_processor_kwargs": values}}


LLM_LAYER, VIT_LAYER = "language_model.model.layers", "vision_model.encoder.layers"

CONTRADICTIONS = [
    (llm(num_hidden_layers=2), [f"unknown: {LLM_LAYER}.2."]),
    (llm(num_hidden_layers=4), [f"missing: {LLM_LAYER}.3."]),
    (llm(intermediate_size=96), [f"{LLM_LAYER}.0.mlp.gate_proj.weight is [128, 64]", "[96, 64]"]),
    (llm(num_attention_heads=8), [f"{LLM_LAYER}.0.self_attn.q_proj.weight is [64, 64]", "[128, 64]"]),
    (llm(num_key_value_heads=1), [f"{LLM_LAYER}.0.self_attn.k_proj.weight is [32, 64]", "[16, 64]"]),
    (llm(num_key_value_heads=3), ["4 heads cannot share 3 key/value heads"]),
    (llm(head_dim=8), ["self_attn.q_norm.weight is [16]", "[8]"]),
    (llm(num_attention_heads=8, num_key_value_heads=4, head_dim=8), ["self_attn.q_norm.weight is [16]", "[8]"]),
    (llm(vocab_size=400), ["embed_tokens.weight is [313, 64]", "[400, 64]"]),
    (llm(hidden_size=128), ["input_hidden_size is 128", "2 hidden states of 128"]),
    (llm(attention_bias=True), [f"missing: {LLM_LAYER}.0.self_attn.k_proj.bias"]),
    (vision(num_hidden_layers=1), [f"unknown: {VIT_LAYER}.1."]),
    (vision(num_hidden_layers=3), [f"missing: {VIT_LAYER}.2."]),
    (vision(hidden_size=32), ["class_embedding is [1, 1, 64]", "[1, 32]"]),
    (vision(intermediate_size=64), ["mlp.fc1.weight is [128, 64]", "[64, 64]"]),
    (vision(num_attention_heads=3), ["hidden_size 64", "num_attention_heads 3"]),
    (vision(patch_size=16), ["position_embedding is [1, 257, 64]", "[197, 64]"]),
    (vision(image_size=448), ["position_embedding is [1, 257, 64]", "[1025, 64]"]),
    (vision(qkv_bias=False), [f"unknown: {VIT_LAYER}.0.attn.qkv.bias"]),
    (vision(qk_normalization=True), [f"missing: {VIT_LAYER}.0.attn.k_norm.weight"]),
    (vision(norm_type="rms_norm"), [f"unknown: {VIT_LAYER}.0.norm1.bias"]),
    (vlm(downsample_ratio=0.25), ["mlp1.0.weight is [256]", "[1024]"]),
    (vlm(downsample_ratio=1 / 3), ["16 patches a side", "fold by 3"]),
    (decoder(num_layers=1), ["unknown: decoder.transformer_blocks.1."]),
    (decoder(num_layers=3), ["missing: decoder.transformer_blocks.2."]),
    (decoder(num_attention_heads=4), ["decoder.txt_in.weight is [64, 128]", "[128, 128]"]),
    (decoder(num_attention_heads=4, attention_head_dim=16, axes_dims_rope=[4, 6, 6]), ["norm_q.weight is [32]"]),
    (decoder(axes_dims_rope=[8, 12, 16]), ["axes_dims_rope [8, 12, 16]", "attention_head_dim 32"]),
    (decoder(axes_dims_rope=[10, 11, 11]), ["axes_dims_rope [10, 11, 11]"]),
    (decoder(axes_dims_rope=[8, 24]), ["axes_dims_rope is [8, 24]", "3 numbers"]),
    (decoder(joint_attention_dim=64), ["128 channels", "joint_attention_dim is 64"]),
    (decoder(in_channels=128), ["in_channels 128", "out_channels 16"]),
    (decoder(in_channels=32, out_channels=8), ["16 latent channels", "the MMDiT 8"]),
    (generation(decoder_projector_type="mlp2x_gelu"), ["missing: decoder_projector.0.bias"]),
    (generation(vlm_select_layer=[-1]), ["input_hidden_size is 128", "1 hidden states of 64"]),
    (generation(vlm_select_layer=[-1, -5]), ["vlm_select_layer names layer -5", "3 layers"]),
    (generation(vlm_select_layer=[-1, 4]), ["vlm_select_layer names layer 4"]),
    (vlm(select_layer=-4), ["select_layer names layer -4", "2 layers"]),
    (vae(base_dim=16), ["encoder.conv_in.weight is [8, 3, 3, 3, 3]", "[16, 3, 3, 3]"]),
    (vae(num_res_blocks=2), ["missing: decoder.up_blocks.0.resnets.2."]),
    (vae(dim_mult=[1, 2, 4]), ["unknown: decoder.up_blocks.", "decoder.up_blocks.3.resnets.0.conv1.weight"]),
    (vae(z_dim=8), ["latents_mean", "8 numbers"]),
    (vae(latents_mean=[0.0] * 15), ["latents_mean", "16 numbers"]),
    (tiles(size={"height": 225}), ["supported are square tiles", "225"]),
    (tiles(size={"height": 210, "width": 210}), ["210 pixels has 15 patches", "fold by 2"]),
    (tiles(size={"height": 8, "width": 8}), ["8 pixels has 0 patches"]),
    (references(vae_downsample_factor=4), ["multiples of 8 pixels", "multiples of 16"]),
]

UNSUPPORTED = [
    (llm(architectures=["LlamaForCausalLM"]), ["architectures is ['LlamaForCausalLM']", "Qwen3ForCausalLM"]),
    (llm(hidden_act="relu"), ["hidden_act is 'relu'", "'silu'"]),
    (llm(use_sliding_window=True), ["use_sliding_window is True"]),
    (llm(rope_scaling="yarn"), ["rope_scaling is", "yarn"]),
    (llm(rope_parameters={"rope_type": "yarn", "rope_theta": 1e6}), ["rope_type is 'yarn'"]),
    (llm(head_dim=15), ["head_dim is 15", "even"]),
    (llm(rope_theta=0), ["rope_theta is 0", "a positive number"]),
    (llm(rope_theta=float("nan")), ["rope_theta is nan"]),
    (llm(rope_theta=float("inf")), ["rope_theta is inf"]),
    (llm(num_hidden_layers=0), ["num_hidden_layers is 0"]),
    (llm(num_hidden_layers=3.0), ["num_hidden_layers is 3.0"]),
    (llm(num_hidden_layers=True), ["num_hidden_layers is True"]),
    (llm(num_hidden_layers="3"), ["num_hidden_layers is '3'"]),
    (llm(num_hidden_layers=10**9), ["num_hidden_layers is 1000000000", "1024"]),
    (llm(num_hidden_layers=None), ["vlm/config.json: llm_config", "'num_hidden_layers' is missing"]),
    (llm(tie_word_embeddings="no"), ["tie_word_embeddings is 'no'"]),
    (vlm(llm_config=[]), ["vlm/config.json: llm_config", "list"]),
    (vlm(ps_version="v1"), ["ps_version is 'v1'"]),
    (vlm(template="internlm2-chat"), ["template is 'internlm2-chat'", "qwen2_5-chat-v3"]),
    (vlm(downsample_ratio=0.4), ["downsample_ratio is 0.4"]),
    (vlm(thumbnail_pos="middle"), ["thumbnail_pos is 'middle'"]),
    (vision(hidden_act="gelu_new"), ["hidden_act is 'gelu_new'"]),
    (vision(norm_type="batch_norm"), ["norm_type is 'batch_norm'"]),
    (generation(decoder_projector_type="mlp9x"), ["decoder_projector_type is 'mlp9x'"]),
    (generation(flow_shift=-3), ["flow_shift is -3"]),
    (generation(vlm_select_layer="last"), ["vlm_select_layer is 'last'"]),
    (vae(attn_scales=[1.0]), ["attn_scales is [1.0]"]),
    (vae(dim_mult=[]), ["dim_mult is []"]),
    (vae(dim_mult=[1, 2, 0.5, 4]), ["dim_mult is [1, 2, 0.5, 4]"]),
    (vae(latents_std=[1.0] * 15 + [0.0]), ["latents_std is", "0.0"]),
    (vae(latent_preview={"red": [1.0]}), ["latent_preview: red is", "16 numbers"]),
    (vae(latent_preview=[1.0]), ["latent_preview", "JSON object"]),
    (scheduler(algorithm_type="sde-dpmsolver++"), ["algorithm_type is 'sde-dpmsolver++'"]),
    (scheduler(solver_order=3), ["solver_order is 3"]),
    (scheduler(prediction_type="epsilon"), ["prediction_type is 'epsilon'"]),
    (tiles(resample=2), ["resample is 2"]),
    (tiles(image_std=[0.2, 0.0, 0.2]), ["image_std is [0.2, 0.0, 0.2]"]),
    (references(max_length="256"), ["max_length is '256'"]),
    (references(gen_down_sample_ratio=3), ["gen_down_sample_ratio is 3"]),
    (
        {"processor/processor_config.json": {"image_gen_processor_class": "Other"}},
        ["image_gen_processor_class is 'Other'"],
    ),
]


@pytest.mark.parametrize(("changes", "named"), CONTRADICTIONS + UNSUPPORTED, ids=lambda value: json.dumps(value)[:90])
def test_bad_values(folder, changes, named):
    change_json(folder, changes)
    assert_refused(folder, *named)


def leaves(values, path=()):
    if isinstance(values, dict):
        for key, value in values.items():
            yield path, key
            yield from leaves(value, (*path, key))


@pytest.mark.parametrize("file", JSON_FILES)
def test_junk_values(folder, file):
    """Whatever stands in a JSON file, it is refused as CheckpointError or means something."""
    original = json.loads((folder / file).read_text())
    for path, key in leaves(original):
        for junk in ("x", -1, 0, 1.5, True, [], {}, [None], ["x"], 10**400, float("nan"), -float("inf")):
            values = json.loads(json.dumps(original))
            section = values
            for step in path:
                section = section[step]
            section[key] = junk
            (folder / file).write_text(json.dumps(values))
            try:
                Config.read(folder)
            except CheckpointError:
                pass
            except Exception as error:
                pytest.fail(f"{'.'.join((*path, key))} = {junk!r}: {type(error).__name__}: {error}")


# Code in place of data


class Payload:
    """Writes a file if it is ever unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def pickle_to(file: Path, trace: Path, zipped: bool):
    torch.save({NORM: Payload(trace)}, file, _use_new_zipfile_serialization=zipped)
    assert not trace.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("component", WEIGHTS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt", None])
def test_pickle_is_never_opened(folder, tmp_path, component, name, zipped):
    """name None: the pickle is named as the safetensors file it replaces."""
    trace = tmp_path / "trace"
    weights = folder / component / WEIGHTS[component]
    weights.unlink()
    pickle_to(weights.with_name(name or weights.name), trace, zipped)
    assert_refused(folder, str(weights), *([name, "will not be opened"] if name else ["not a whole safetensors file"]))
    assert not trace.exists()


def test_code_beside_the_tokenizer_is_never_run(folder, tmp_path):
    trace = tmp_path / "trace"
    (folder / "processor" / "evil.py").write_text(
        f"import pathlib; pathlib.Path({str(trace)!r}).touch()\nclass Evil: ...\n"
    )
    change_json(
        folder,
        {
            "processor/tokenizer_config.json": {
                "tokenizer_class": "Evil",
                "auto_map": {"AutoTokenizer": ["evil.Evil", None]},
            }
        },
    )
    with pytest.raises(CheckpointError, match="no readable tokenizer"):
        load(folder)
    assert not trace.exists()


# The tokenizer


def test_no_tokenizer(folder, capfd):
    for file in (folder / "processor").iterdir():
        if file.name != "processor_config.json":
            file.unlink()
    assert_refused(folder, str(folder / "processor"), "tokenizer")
    assert capfd.readouterr() == ("", "")


def test_tokenizer_without_its_vocabulary(folder):
    """transformers makes an empty one of what is left."""
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / "processor" / name).unlink(missing_ok=True)
    assert_refused(folder, str(folder / "processor"), "tokenizer")


def test_broken_tokenizer(folder):
    (folder / "processor" / "tokenizer.json").write_text('{"version": "1.0", "model')
    assert_refused(folder, str(folder / "processor"), "tokenizer")


@pytest.mark.parametrize("token", ["<img_uncond>", "<|im_start|>", "</box>"])
def test_tokenizer_lacks_a_special_token(folder, token):
    for file in (folder / "processor").iterdir():
        file.write_text(file.read_text(encoding="utf-8").replace(token, "<other>"), encoding="utf-8")
    assert_refused(folder, f"lacks the special tokens {token}")


def test_tokenizer_of_a_larger_vocabulary(tmp_path):
    def cut(tensors):
        for name in (EMBEDDING, HEAD):
            tensors[name] = tensors[name][:310].contiguous()

    folder = copy_checkpoint(tmp_path / "checkpoint", llm(vocab_size=310), {VLM: cut})
    assert_refused(folder, "ids up to 312", "vocab_size is 310")


def test_larger_vocabulary_than_the_tokenizer(tmp_path, model):
    """Released vocabularies are padded."""

    def pad(tensors):
        for name in (EMBEDDING, HEAD):
            tensors[name] = torch.cat([tensors[name], torch.zeros(7, 64)])

    padded = load(copy_checkpoint(tmp_path / "checkpoint", llm(vocab_size=320), {VLM: pad}))
    assert padded.answer("What is a cat?", max_new_tokens=8) == model.answer("What is a cat?", max_new_tokens=8)


# Sound checkpoints


@pytest.mark.parametrize("count", [1, 3, 70])
def test_sharded(folder, model, count):
    for component, file in WEIGHTS.items():
        write_shards(folder / component, file.removesuffix(".safetensors"), count)
    assert_same(load(folder), model)


def test_tied_head(tmp_path):
    """A tied head is the embedding, whether the file has one or not."""

    def tie(tensors):
        tensors[HEAD] = tensors[EMBEDDING].clone()

    untied = load(copy_checkpoint(tmp_path / "untied", tensors={VLM: tie}))
    expected = untied.answer("What is a cat?", max_new_tokens=12)
    for name, head in (("without", lambda tensors: tensors.pop(HEAD)), ("with", tie)):
        tied = load(copy_checkpoint(tmp_path / name, llm(tie_word_embeddings=True), {VLM: head}))
        assert tied.answer("What is a cat?", max_new_tokens=12) == expected
        assert sum(parameter.shape[0] == 313 for parameter in tied.vlm.parameters()) == 1


def every(dtype):
    def change(tensors):
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})

    return dict.fromkeys(WEIGHTS, change)


STORED = {
    # On the disk → what dtype="auto" computes in on the CPU.
    torch.float32: torch.float32,
    torch.float64: torch.float32,
    torch.bfloat16: torch.bfloat16,
    torch.float16: torch.float32,
    torch.float8_e4m3fn: torch.bfloat16,
}


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_dtypes_on_disk(tmp_path, model, stored):
    folder = copy_checkpoint(tmp_path / "checkpoint", tensors=every(stored))
    assert_same(load(folder), model, lambda tensor: tensor.to(stored))
    automatic = load(folder, "auto")
    assert {tensor.dtype for tensor in parameters(automatic).values()} == {automatic.dtype} == {STORED[stored]}
    assert_same(automatic, model, lambda tensor: tensor.to(stored).to(STORED[stored]))


def test_mixed_dtypes_on_disk(tmp_path, model):
    """Large kernels in bfloat16, the rest in float32 and float16: "auto" goes with the most values."""

    def stored(tensor):
        return tensor.bfloat16() if tensor.numel() > 4096 else tensor.half() if tensor.numel() % 3 else tensor

    def change(tensors):
        tensors.update({name: stored(tensor) for name, tensor in tensors.items()})

    folder = copy_checkpoint(tmp_path / "checkpoint", tensors={VLM: change, MMDIT: change})
    mixed = load(folder)
    for name, tensor in parameters(model).items():
        expected = tensor if name.startswith("vae.") else stored(tensor).float()
        assert torch.equal(parameters(mixed)[name], expected), name
    assert {tensor.dtype for tensor in parameters(load(folder, "auto")).values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_asked_dtype(model, dtype):
    loaded = load(CHECKPOINT, dtype)
    assert {tensor.dtype for tensor in parameters(loaded).values()} == {loaded.dtype} == {dtype}
    assert_same(loaded, model, lambda tensor: tensor.to(dtype))


def file_offsets(file: Path) -> dict[str, int]:
    """{stored name: where its values start in the file}."""
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    return {name: 8 + size + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def test_own_dtype_on_the_cpu_is_mapped_not_copied(folder):
    """Every tensor lies as far from the others in memory as in the file; copies would not."""
    model = load(folder)
    offsets = file_offsets(folder / MMDIT / WEIGHTS[MMDIT])
    assert len({p.data_ptr() - offsets[f"decoder.{name}"] for name, p in model.mmdit.named_parameters()}) == 1
    offsets = file_offsets(folder / VLM / WEIGHTS[VLM])
    language = [(p, f"language_model.{name}") for name, p in model.vlm.language_model.named_parameters()]
    assert len({p.data_ptr() - offsets[name] for p, name in language}) == 1
    # And privately: who changes a weight in place changes no file.
    before = (folder / MMDIT / WEIGHTS[MMDIT]).read_bytes()
    for parameter in model.mmdit.parameters():
        parameter.add_(1)
    assert (folder / MMDIT / WEIGHTS[MMDIT]).read_bytes() == before


def test_kernels_do_not_keep_their_earlier_taps(model):
    """A view of the last tap would hold, and walk, three times the memory."""
    for name, parameter in model.vae.named_parameters():
        assert parameter.is_contiguous(), name


def test_weights_are_real_and_frozen(model):
    for name, tensor in parameters(model).items():
        assert tensor.device.type == "cpu", name
    for network in (model.vlm, model.mmdit, model.vae):  # a state dict's tensors are detached
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not network.training


class RandomFills(TorchDispatchMode):
    """Records the kind of device of every tensor that is filled with random numbers, as initialisation does."""

    def __init__(self):
        super().__init__()
        self.devices = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default):
            self.devices.append(args[0].device.type)
        return function(*args, **kwargs or {})


def test_nothing_is_initialised():
    """Values come from the file alone: only meta tensors are initialised, which costs nothing."""
    with RandomFills() as fills:
        load(CHECKPOINT)
    assert set(fills.devices) == {"meta"}


def test_no_traces(photo, capfd):
    """Loading and running print nothing and leave the process's own settings alone."""

    def state():
        root = logging.getLogger()
        return (
            torch.get_rng_state().tolist(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            (root.level, list(root.handlers)),
            list(warnings.filters),
        )

    before = state()
    model = load(CHECKPOINT, "auto")
    reasoning = model.reason("a cat", [photo], max_new_tokens=2, temperature=1.0)
    model.generate("a cat", [photo], height=32, width=32, steps=1, reasoning=reasoning)
    assert state() == before
    assert capfd.readouterr() == ("", "")


# What scripts/random_checkpoint.py writes: checkpoints of the released sizes


def test_written_checkpoint(tmp_path, monkeypatch):
    """It stores what the official checkpoint stores, and in shards if need be; a step gives finite numbers."""
    monkeypatch.setattr(scaled_checkpoints, "SHARD_BYTES", 2**18)
    scaled_checkpoints.write_checkpoint(tmp_path / "small", "small")
    for component, file in WEIGHTS.items():
        shards = sorted((tmp_path / "small" / component).glob("*.safetensors"))
        assert len(shards) > 1
        written = {name: tensor.shape for shard in shards for name, tensor in load_file(shard).items()}
        assert written == {name: tensor.shape for name, tensor in load_file(CHECKPOINT / component / file).items()}
    result = load(tmp_path / "small", "auto").generate("a cat", height=32, width=32, steps=1)
    assert result.latents.isfinite().all()


def test_released_sizes(tmp_path):
    """Counts and bytes of docs/model.md, "Checkpoint files"."""
    copy_json(tmp_path / "released", scaled_checkpoints.SCALES["released"])
    shapes = [shapes for _, shapes in scaled_checkpoints.stored_shapes(tmp_path / "released")]
    assert [len(component) for component in shapes] == [658, 654, 194]
    values = [sum(torch.Size(shape).numel() for shape in component.values()) for component in shapes]
    assert [round(count / 1e9, 1) for count in values] == [2.3, 1.8, 0.1]
    assert sum(values) * 2 / 1e9 == pytest.approx(8.5, abs=0.1)
