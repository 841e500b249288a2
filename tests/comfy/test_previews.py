"""Previews while sampling: a checkpoint with a VAE of its own brings the colours for them; and notices of a run."""

import importlib

import numpy as np
import pytest
import torch

from internvlu_core import InternVLU
from internvlu_core.checkpoints.config import Config
from scripts import fit_preview
from support import toy
from support.checkpoints import CHECKPOINT, copy_checkpoint
from support.inprocess import PACK, load_pack
from support.workflows import workflow


@pytest.fixture(scope="module")
def formats():
    """ComfyUI's latent formats: of the toy, of the recorded checkpoint, and Wan 2.1's."""
    load_pack()
    model_config = importlib.import_module(f"{PACK}.nodes.comfy.model").ModelConfig
    import comfy.latent_formats

    own = {
        name: model_config(Config.read(path)).latent_format
        for name, path in {"toy": toy.CHECKPOINT, "recorded": CHECKPOINT}.items()
    }
    return {**own, "wan": comfy.latent_formats.Wan21()}


def test_previews_of_the_toy_are_in_its_own_colours(formats):
    """Of pictures that the numbers were not fitted on. Measured: mean errors of 14.3 and, with Wan's numbers, 134.7 of
    255; correlations of 0.90 and -0.01."""
    import latent_preview

    model = InternVLU.from_pretrained(toy.CHECKPOINT, device="cpu", dtype=torch.float32)
    pixels = fit_preview.pictures(64, odd=1)[::10]
    latents, colours = fit_preview.latents_and_colours(model, pixels)
    expected = ((colours + 1) * 127.5).clamp(0, 255)
    errors, likeness = {}, {}
    for name in ("toy", "wan"):
        form = formats[name]
        previewer = latent_preview.Latent2RGBPreviewer(form.latent_rgb_factors, form.latent_rgb_factors_bias)
        picture = previewer.decode_latent_to_preview(latents.T[None, :, None, None])  # one row of all latent pixels
        shown = torch.from_numpy(np.asarray(picture).reshape(-1, 3).copy()).float()
        errors[name] = (shown - expected).abs().mean().item()
        likeness[name] = np.corrcoef(shown.flatten(), expected.flatten())[0, 1]
    assert errors["toy"] < 20 < 100 < errors["wan"]
    assert likeness["toy"] > 0.85 > 0.3 > likeness["wan"]
    assert formats["toy"].taesd_decoder_name is None  # the small decoder that ComfyUI knows is Wan's


def test_other_checkpoints_have_wan_s(formats):
    for name in ("latent_rgb_factors", "latent_rgb_factors_bias", "taesd_decoder_name"):
        assert getattr(formats["recorded"], name) == getattr(formats["wan"], name)


def test_a_size_that_is_far_from_the_checkpoint_s_is_said_once(server):
    """By whatever sampler: in the log, and to the browser that queued the run."""
    copy_checkpoint(server.base_dir / "models" / "internvl_u" / "far")
    said = "InternVL-U: 48 × 48 is far from the 128 × 128 pixels"
    before = server.log.read_text(encoding="utf-8", errors="replace").count(said)

    def notices(name, seed, side):
        prompt = workflow(name, checkpoint="far", width=side, height=side, steps=1, seed=seed)
        events = server.run(prompt).events
        return [data for kind, data in events if kind == "internvlu.notice"]

    assert notices("text_to_image", 1, 64) == []
    (notice,) = notices("ksampler", 2, 48)
    assert notice["key"] == "far_size"
    assert notice["values"] == {"width": 48, "height": 48, "made_width": 128, "made_height": 128}
    assert notices("ksampler", 3, 48) == notices("text_to_image", 4, 48) == []
    assert server.log.read_text(encoding="utf-8", errors="replace").count(said) == before + 1
