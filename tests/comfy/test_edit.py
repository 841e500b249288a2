"""InternVL-U Edit and Edit Restore: size, no shift, untouched pixels; and what the negative texts of Encode change."""

import importlib
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from internvlu_core.imaging import reference_size
from support.bench import EDIT_PROMPT, PROMPT, assert_differs, assert_equal
from support.comfy_server import ComfyError
from support.inprocess import PACK, load_pack

SIZES = [(150, 200), (97, 131), (131, 97), (40, 48), (64, 64), (333, 205), (48, 500), (511, 767)]  # height, width


@pytest.fixture(scope="module")
def nodes():
    """The pack's edit module in this process."""
    load_pack()
    return importlib.import_module(f"{PACK}.nodes.edit")


def picture(height: int, width: int, phase: float = 0.0) -> torch.Tensor:
    """A smooth picture [1, H, W, 3] of a few waves along each side."""
    y, x = (torch.arange(n).add(0.5) / n for n in (height, width))
    waves = torch.sin(2 * torch.pi * (3 * y[:, None] + phase)) + torch.sin(2 * torch.pi * (2 * x + phase))
    return (0.5 + 0.2 * torch.stack([waves, -waves, 0.5 * waves], dim=-1))[None]


def edit_nodes(bench, image: torch.Tensor, mask: torch.Tensor | None = None):
    """A graph with an InternVL-U Edit of a picture: (graph, its node)."""
    s = bench.graph()
    masks = {} if mask is None else {"mask": bench.tensor(s.g, "edit_mask.safetensors", mask)[2]}
    source = bench.tensor(s.g, "edit.safetensors", image)[1]
    return s, s.g.InternVLUEdit(vlm=s.vlm, vae=s.vae, image=source, **masks)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_size_and_shift(bench, size):
    """The size is the core's, width and height are told, and neither way nor way back moves anything."""
    image = picture(*size)
    s, edit = edit_nodes(bench, image)
    restored = s.g.InternVLUEditRestore(edit=edit[2], image=edit[0])
    blank = s.g.InternVLUEmptyLatent(width=edit[3], height=edit[4])
    out = bench.run(s.g, image=edit[0], latent=edit[1], told=blank, restored=restored)
    height, width = reference_size(*size, bench.core.config.processor)
    assert out.image["value"].shape == (1, height, width, 3)
    assert out.latent["samples"].shape == out.told["samples"].shape == (1, 16, height // 8, width // 8)
    assert not out.latent["samples"].any() and "noise_mask" not in out.latent
    back = out.restored["value"]
    assert back.shape == image.shape
    for axis in (1, 2):
        assert abs(shift(image, back, axis)) < 0.05
        assert abs(shift(image, out.image["value"], axis)) < 0.05
    if min(size) >= 64:
        assert (back - image).abs().max() < 0.02


def shift(before: torch.Tensor, after: torch.Tensor, axis: int) -> float:
    """By how many pixels of `after` the waves along an axis have moved."""
    waves = {1: 3, 2: 2}[axis]
    phases = []
    for image in (before, after):
        profile = image[..., 0].mean(dim=3 - axis)[0].double()
        grid = (torch.arange(len(profile)) + 0.5) / len(profile)
        phases.append(torch.angle(((profile - profile.mean()) * torch.exp(-2j * torch.pi * waves * grid)).sum()))
    turn = torch.remainder(phases[1] - phases[0] + torch.pi, 2 * torch.pi) - torch.pi
    return -(turn / (2 * torch.pi) / waves * after.shape[axis]).item()


def test_shift_is_measured():
    """The instrument: a picture moved by a quarter of a pixel."""
    moved = picture(96, 128, phase=0.25 * 2 / 128)
    assert shift(picture(96, 128), moved, 2) == pytest.approx(-0.25, abs=1e-4)


def box(height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : height // 2, width // 3 : 2 * width // 3] = 1
    return mask


@pytest.mark.parametrize("mask_size", [(97, 131), (48, 64), (300, 402)], ids=["same size", "smaller", "larger"])
def test_untouched_pixels_stay(bench, mask_size):
    """As floats and in the saved PNG, also when the model's picture is garbage; masked ones change."""
    image = (picture(97, 131) * 255).round() / 255
    mask = box(*mask_size)
    s, edit = edit_nodes(bench, image, mask)
    encode = s.g.InternVLUEncode(vlm=s.vlm, prompt=EDIT_PROMPT, image1=edit[0], vae=s.vae)
    sampled = s.g.InternVLUSampler(
        model=s.model,
        full=encode[0],
        partial=encode[1],
        unconditional=encode[2],
        latent_image=edit[1],
        steps=2,
        seed=1,
    )
    decoded = s.g.VAEDecode(samples=sampled, vae=s.vae)
    restored = s.g.InternVLUEditRestore(edit=edit[2], image=decoded)
    saved = s.g.SaveImage(images=restored, filename_prefix="edit")
    out = bench.run(s.g, restored=restored, latent=edit[1], encoded=s.g.VAEEncode(pixels=edit[0], vae=s.vae))
    assert torch.equal(out.latent["samples"], out.encoded["samples"])
    assert out.latent["noise_mask"].shape == (1, *out.latent["samples"].shape[-2:])

    file = bench.result.outputs[saved.id]["images"][0]
    png = np.asarray(Image.open(io.BytesIO(bench.server.view(file["filename"], file["subfolder"]))).convert("RGB"))
    untouched = F.interpolate(mask[None], (97, 131), mode="area")[0, 0] == 0
    # Where the mask has another size, its edge may reach into the next pixels.
    untouched = -F.max_pool2d(-untouched[None].float(), 5, stride=1, padding=2)[0] == 1
    assert untouched.float().mean() > 0.7
    assert torch.equal(out.restored["value"][0][untouched], image[0][untouched])
    assert np.array_equal(png[untouched.numpy()], (image[0] * 255).round().byte().numpy()[untouched.numpy()])
    inside = (slice(30, 45), slice(50, 80))
    assert_differs(out.restored["value"][0][inside], image[0][inside], 0.02)


def test_a_thin_stroke_reaches_the_sampler(bench):
    """ComfyUI shrinks a mask of another size than the latent's by interpolation, which loses strokes of 4 pixels."""
    mask = torch.zeros(1, 128, 192)
    mask[:, 66:68] = 1
    s, edit = edit_nodes(bench, picture(128, 192), mask)
    latent = bench.run(s.g, latent=edit[1]).latent
    load_pack()  # ComfyUI's modules are found from then on
    seen = importlib.import_module("comfy.utils").reshape_mask(latent["noise_mask"], latent["samples"].shape)
    rows = seen.flatten(0, -3)[0].amax(1)  # [latent rows]
    assert rows.max() == 1 and rows.sum() <= 2
    assert abs(rows.argmax() / len(rows) - 67 / 128) <= 1 / len(rows)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_garbage_stays_inside_the_mask(nodes, garbage):
    image, mask = torch.rand(1, 97, 131, 3), box(97, 131)
    edit = nodes.Edit(image, mask)
    result = nodes.InternVLUEditRestore.execute(edit, torch.full((1, 96, 128, 3), garbage)).args[0]
    assert torch.equal(result[0][mask[0] == 0], image[0][mask[0] == 0])
    assert not torch.equal(result[0][mask[0] == 1], image[0][mask[0] == 1])


def test_soft_masks_blend(nodes):
    image, other = torch.rand(2, 1, 64, 80, 3).unbind()
    mask = torch.linspace(0, 1, 80).expand(1, 64, 80)
    result = nodes.InternVLUEditRestore.execute(nodes.Edit(image, mask), other).args[0]
    assert_equal(result, image + mask[..., None] * (other - image))
    assert torch.equal(result[:, :, 0], image[:, :, 0])


def test_batches_of_results_and_alpha(nodes):
    """Several drawings of one edit are all put back; an alpha channel is left out."""
    image, results = torch.rand(1, 64, 80, 4), torch.rand(3, 64, 80, 3)
    mask = box(64, 80)
    restored = nodes.InternVLUEditRestore.execute(nodes.Edit(image[..., :3], mask), results).args[0]
    assert restored.shape == (3, 64, 80, 3)
    for one, result in zip(restored, results, strict=True):
        assert torch.equal(one[mask[0] == 0], image[0, ..., :3][mask[0] == 0])
        assert torch.equal(one[mask[0] == 1], result[mask[0] == 1])


@pytest.mark.parametrize("size", [(10, 10), (100, 37)])
def test_shrinking_a_mask_loses_no_pixel(nodes, size):
    """A single masked pixel stays masked at the model's size."""
    for y, x in ((0, 0), (120, 77), (199, 149)):
        mask = torch.zeros(1, 200, 150)
        mask[0, y, x] = 1
        assert nodes.fit_mask(mask, size).max() == 1
    assert torch.equal(nodes.fit_mask(mask, (200, 150)), mask)


@pytest.mark.parametrize(
    ("image", "mask", "words"),
    [
        (torch.rand(2, 64, 80, 3), None, "2 pictures are connected to InternVL-U Fit Picture for Editing"),
        (torch.rand(1, 64, 80, 3), torch.ones(3, 64, 80), "3 masks are connected for one picture"),
        (torch.rand(1, 8, 80, 3), None, "80 × 8 pixels is too small"),
        (torch.rand(1, 16, 4000, 3), None, "aspect ratio"),
    ],
    ids=["pictures", "masks", "small", "narrow"],
)
def test_errors(bench, image, mask, words):
    s, edit = edit_nodes(bench, image, mask)
    with pytest.raises(ComfyError) as caught:
        bench.run(s.g, image=edit[0])
    assert words in str(caught.value)


# Negative texts

NAMES = ("full", "partial", "unconditional")


def encoded(bench, edit: bool, **texts) -> dict:
    """{branch: tensors of its CONDITIONING} of Encode."""
    s = bench.graph()
    pictures = {"image1": s.photo, "vae": s.vae} if edit else {}
    encode = s.g.InternVLUEncode(vlm=s.vlm, prompt=EDIT_PROMPT if edit else PROMPT, **pictures, **texts)
    out = bench.run(s.g, **{name: encode[i] for i, name in enumerate(NAMES)})
    return {name: getattr(out, name) for name in NAMES}


@pytest.mark.parametrize(
    ("edit", "texts", "changed"),
    [
        (True, {}, set()),
        (True, {"negative": ""}, set()),
        (True, {"negative": "blurry"}, {"unconditional"}),
        (True, {"partial_negative": "blurry"}, {"partial"}),
        (True, {"negative": "dark", "partial_negative": "blurry"}, {"partial", "unconditional"}),
        (False, {"negative": ""}, set()),
        (False, {"negative": "blurry"}, {"partial", "unconditional"}),
        (False, {"partial_negative": "blurry"}, set()),
    ],
)
def test_negative_texts(bench, edit, texts, changed):
    """Each changes its own branch only; without pictures the partial branch is the unconditional one."""
    plain, other = encoded(bench, edit), encoded(bench, edit, **texts)
    for name in NAMES:
        same = plain[name].keys() == other[name].keys() and all(
            torch.equal(tensor, other[name][key]) for key, tensor in plain[name].items()
        )
        assert same == (name not in changed), name
    context = bench.context(edit, **texts)
    for name in NAMES:
        assert_equal(other[name]["0.cond"][0], getattr(context, name).hidden)
    if not edit:
        assert torch.equal(other["partial"]["0.cond"], other["unconditional"]["0.cond"])


def test_a_negative_text_changes_the_picture_as_in_the_core(bench):
    s = bench.graph()
    encode = s.g.InternVLUEncode(vlm=s.vlm, prompt=PROMPT, negative="blurry")
    counter = s.g.DebugCount(model=s.model)
    conds = {name: encode[i] for i, name in enumerate(NAMES)}
    latent = s.g.InternVLUSampler(model=counter, **conds, latent_image=s.empty, seed=7, steps=3)
    out = bench.run(s.g, calls=counter[1], latent=latent)
    assert [call["rows"] for call in out.calls] == [2] * 3, "two branches: the partial one is the unconditional one"
    assert_equal(out.latent["samples"], bench.official(bench.dual(bench.context(negative="blurry"))))
    assert_differs(out.latent["samples"], bench.official(bench.dual(bench.context())))
