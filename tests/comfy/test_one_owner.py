"""What the core decides, the nodes do not decide again: equal results on a checkpoint whose values are not the released
ones. Guidance scales through every node: test_guidance.py; weights in 8 bits: test_dtypes.py."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from internvlu_core import InternVLU, imaging
from internvlu_core.checkpoints.config import Config
from internvlu_core.grounding import MARKERS
from internvlu_core.sampling import flow_sigmas
from support.checkpoints import CHECKPOINT, copy_checkpoint
from support.inprocess import PACK, load_pack
from support.tensors import relative

MAX_POSITIONS = 777
CHANGES = {
    "processor/processor_config.json": {
        "image_gen_processor_kwargs": {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.25, 0.4, 0.7]}
    },
    "generation_decoder/config.json": {"guidance_scales": [2.5, 1.25], "guidance_scales_reasoned": [1.75, 0.5]},
    "vlm/config.json": {"llm_config": {"max_position_embeddings": MAX_POSITIONS}},
}
PIECES = ("<ref>", "the cat 猫", "</ref>", "<box>", "[[100, 200, 500, 600]]", "</box>")


@pytest.fixture(scope="module")
def photo():
    levels = np.random.default_rng(0).integers(0, 256, (208, 272, 3))
    return Image.fromarray(levels.astype(np.uint8)).resize((272, 208), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return copy_checkpoint(tmp_path_factory.mktemp("other") / "InternVL-U", CHANGES)


@pytest.fixture(scope="module")
def core(folder):
    return InternVLU.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def pack(folder):
    """The nodes in this process, with what their loader gives."""
    load_pack()

    def module(name):
        return importlib.import_module(f"{PACK}.nodes.{name}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module("comfy.folders"), "checkpoints", lambda: {"other": folder})
        model, vlm, vae = module("loader").InternVLULoader.execute("other", "fp32").result
    return SimpleNamespace(module=module, model=model, vlm=vlm, vae=vae)


def as_image(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).float()[None] / 255


def stock_vae(vae):
    """Encodes as ComfyUI's own VAE does with the same weights: it knows one mean and one deviation, of 0.5."""

    def encode(pixels):
        return vae.first_stage_model.encode((pixels.movedim(-1, 1) * 2 - 1).unsqueeze(2))

    return SimpleNamespace(encode=torch.inference_mode()(encode))


@torch.inference_mode()
def expected_latent(core, photo) -> torch.Tensor:
    """The reference latent [1, z, h, w] as InternVLU.encode gives it, normalised."""
    return core.encode("a cat", [photo]).full.references[0]


def normalised(pack, latent: torch.Tensor) -> torch.Tensor:
    return pack.model.model.process_latent_in(latent)[:, :, 0]


def test_the_values_are_not_the_released_ones(core, photo):
    """Or the tests below would not tell the checkpoint's values from constants."""
    released = Config.read(CHECKPOINT).processor
    pixels = [imaging.reference_pixels(photo, config) for config in (core.config.processor, released)]
    assert relative(*pixels) > 0.1
    assert core.config.mmdit.guidance(False) != Config.read(CHECKPOINT).mmdit.guidance(False)


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_encode_reads_references_as_the_core_does(core, pack, photo, kind):
    vae = pack.vae if kind == "ours" else stock_vae(pack.vae)
    full, partial, _ = (
        pack.module("encode").InternVLUEncode.execute(pack.vlm, "a cat", vae=vae, image1=as_image(photo)).result
    )
    for conditioning in (full, partial):
        (latent,) = conditioning[0][1]["reference_latents"]
        assert relative(normalised(pack, latent), expected_latent(core, photo)) < 1e-5


def test_the_fitted_picture_of_an_edit_is_read_as_the_core_does(core, pack, photo):
    picture, latent, *_ = (
        pack.module("edit")
        .InternVLUEdit.execute(pack.vlm, pack.vae, as_image(photo), mask=torch.ones(1, photo.height, photo.width))
        .result
    )
    assert relative(normalised(pack, latent["samples"]), expected_latent(core, photo)) < 1e-5
    # And stock nodes: VAEEncode of the fitted picture, whole and in tiles (their seams differ a little).
    for encode, tolerance in ((pack.vae.encode, 1e-5), (pack.vae.encode_tiled, 0.2)):
        assert relative(normalised(pack, encode(picture)), expected_latent(core, photo)) < tolerance


@pytest.mark.parametrize("reasoned", [False, True])
def test_automatic_scales_of_every_guider(core, pack, reasoned):
    """The guider, the patch for stock samplers, and the nodes' own default of an input."""
    guider = pack.module("comfy.guider")
    values = [{"reasoned": True}] if reasoned else [{}]
    expected = core.config.mmdit.guidance(reasoned)
    assert expected == ((1.75, 0.5) if reasoned else (2.5, 1.25))
    defaults = [socket.default for socket in pack.module("sampling").scale_inputs()]
    assert guider.scales_for(pack.model, values, *defaults) == expected
    assert guider.scales_for(pack.model, values, 3.0, -0.5) == (3.0, expected[1])


def test_answers_and_their_caps(core, pack, monkeypatch):
    """Ask's text is that of InternVLU.answer, boxes and all; both stop where the checkpoint's context ends."""
    ids = [token for piece in PIECES for token in pieces_of(core.tokenizer, piece)]
    settings = []

    def written(session, stop_ids, used, on_tokens=None):
        settings.append(used)
        return ids

    for module in ("internvlu_core.conditioning", f"{PACK}.internvlu_core.conditioning"):
        monkeypatch.setattr(importlib.import_module(module), "continue_text", written)
    ask = pack.module("ask").InternVLUAsk
    monkeypatch.setattr(ask, "hidden", SimpleNamespace(unique_id=None), raising=False)
    by_core = core.answer("Where is it?", max_new_tokens=8000, seed=1).text
    by_node = ask.execute(vlm=[pack.vlm], question=["Where is it?"], max_new_tokens=[8000], seed=[1]).result[0][0]
    assert by_node == by_core == "".join(PIECES)
    assert settings[0].max_new_tokens == settings[1].max_new_tokens < MAX_POSITIONS


def pieces_of(tokenizer, piece: str) -> list[int]:
    return [tokenizer.id(piece)] if piece in MARKERS else tokenizer.encode(piece)


@torch.inference_mode()
@pytest.mark.parametrize("system", ["", "Draw in black and white."])
def test_system_prompts_and_branches_that_are_one(core, pack, system):
    """An empty field keeps the system prompt of the training. Without pictures two branches are one object, by which
    the guider knows that it has to evaluate two, not three."""
    full, partial, unconditional = (
        pack.module("encode").InternVLUEncode.execute(pack.vlm, "a cat", system_prompt=system).result
    )
    expected = core.encode("a cat", system_prompt=system or None)
    assert relative(full[0][0][0], expected.full.hidden) < 1e-5
    assert partial is unconditional and expected.partial is expected.unconditional
    guider = pack.module("comfy.guider").DualGuider(pack.model)
    guider.set_conds(full, partial, unconditional, -1, -1)
    assert guider.original_conds.keys() == {"positive", "negative"}


def test_a_part_of_the_schedule(pack):
    """denoise 0.5 is the second half of a schedule of twice the steps."""
    part = pack.module("comfy.sampler").denoise_sigmas(4, 3.0, 0.5)
    assert torch.equal(part, flow_sigmas(8, 3.0)[-5:])
