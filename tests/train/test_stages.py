"""What each stage learns: its own parameters and no others, down to a loss near zero on a few samples."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from internvlu_core import InputError, InternVLU
from internvlu_train import data
from internvlu_train.loop import Run, freeze
from internvlu_train.storage import Networks
from internvlu_train.toy.presets import CPU, PRESETS
from internvlu_train.toy.world import mixture
from support.training import OVERFIT, TINY, entries

# The MMDiT discards what its last block computes for text tokens, so these layers get no gradient.
UNUSED = tuple(
    f"mmdit.transformer_blocks.{TINY.mmdit_layers - 1}.{layer}."
    for layer in ("attn.add_q_proj", "attn.to_add_out", "attn.norm_added_q", "txt_mlp")
)


@pytest.mark.parametrize(
    ("name", "learning"),
    [
        ("vae", {"vae"}),
        ("vae-smooth", {"vae"}),
        ("vae-decoder", {"vae.decoder", "vae.post_quant_conv"}),
        ("mllm", {"vlm"}),
        ("search", {"vlm"}),
        ("stage0", {"mmdit"}),
        ("stage1", {"mmdit"}),
        ("words", {"mmdit"}),
        ("binding", {"mmdit"}),
        ("pairs", {"mmdit"}),
        ("wide", {"mmdit"}),
        ("sizes", {"mmdit"}),
        ("stage2", {"mmdit"}),
        ("stage3", {"vlm", "mmdit"}),
    ],
)
def test_a_stage_moves_its_own_parameters_and_no_others(awake_checkpoint, tmp_path, name, learning):
    for preset in PRESETS.values():
        assert {prefix.rstrip(".") for prefix in preset[name].trained} == learning
    settings = {"steps": 2, "samples": 12, "batch": 12, "warmup": 0, "autocast": False, "sides": ((64, 64),)}
    settings["weight_decay"] = 0.0  # which would move parameters without a gradient, too
    run = Run(replace(CPU[name], **settings), awake_checkpoint, tmp_path)
    before = {key: parameter.clone() for key, parameter in run.networks.named_parameters()}
    for _ in range(6 if name == "stage3" else 2):  # of one structure each
        run._take_step()
    moved = {key for key, parameter in run.networks.named_parameters() if not parameter.equal(before[key])}
    prefixes = tuple(prefix + "." for prefix in learning)
    assert moved == {key for key in before if key.startswith(prefixes) and not key.startswith(UNUSED)}


def test_an_unknown_prefix_is_refused(awake):
    with pytest.raises(InputError, match="mmdti"):
        freeze(awake, ("mmdti.",))


@pytest.mark.parametrize(
    ("name", "part", "least"), [("vae", "mse", 0.1), ("mllm", "text", 0.02), ("stage1", "flow", 0.4)]
)
def test_a_stage_overfits_a_handful(fresh, tmp_path, name, part, least):
    """least: the last losses over the first ones, at most."""
    Run(OVERFIT[name], fresh, tmp_path).train()
    values = [entry[part] for entry in entries(tmp_path)]
    assert np.mean(values[-10:]) < least * np.mean(values[:3])
    trained = InternVLU.from_pretrained(tmp_path / "checkpoint")
    if name == "mllm":
        known = list(mixture.samples(OVERFIT[name]))
        answers = [
            trained.answer(one.prompt, [Image.fromarray(i) for i in one.images], max_new_tokens=9) for one in known
        ]
        assert [answer.text for answer in answers] == [one.words for one in known]
    if name == "vae":  # latents are about standard normal
        latents = trained.vae.encode(data.to_pixels([one.picture for one in mixture.samples(OVERFIT[name])]))
        assert abs(float(latents.mean())) < 0.1 and abs(float(latents.std()) - 1) < 0.1


def test_another_decoder_leaves_the_latents_where_they_were(fresh, tmp_path):
    stage = replace(OVERFIT["vae"], trained=CPU["vae-decoder"].trained, steps=1)
    Run(stage, fresh, tmp_path).train()
    before, after = (Networks(folder).config.vae for folder in (fresh, tmp_path / "checkpoint"))
    assert (after.latents_mean, after.latents_std) == (before.latents_mean, before.latents_std)
