"""Stock nodes that make and change latents, and previews: the rows "Latents" of docs/interop.md."""

import importlib
import io
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from support.bench import (
    HEIGHT,
    SEED,
    SHAPE,
    STEPS,
    WIDTH,
    assert_differs,
    assert_equal,
    latent_mask,
    left_half,
    one_forward_a_step,
    picture,
    simple_sigmas,
)
from support.checkpoints import CHECKPOINT
from support.inprocess import PACK, load_pack
from support.interop import ROWS, Checks
from support.stock_sampling import patched_options, stock_sample
from support.workflows import assert_close_pictures

H, W = SHAPE[-2:]
row = Checks("Latents")


@row("VAEEncode, VAEDecode")
def check_vae(bench):
    s = bench.graph()
    image = picture(s)
    pair = s.g.ImageBatch(image1=image, image2=s.g.ImageInvert(image=image))
    latent = s.g.VAEEncode(pixels=pair, vae=s.vae)
    out = bench.run(s.g, image=pair, latent=latent, decoded=s.g.VAEDecode(samples=latent, vae=s.vae))
    images, latents = out.image["value"], out.latent["samples"]
    assert latents.shape == (2, *SHAPE[1:])
    assert_equal(latents, bench.raw(bench.encoded(images)))
    pixels = bench.core.decode(bench.normal(latents)[:, :, 0])
    assert_equal(out.decoded["value"], ((pixels + 1) / 2).movedim(1, -1))


def check_tiled(bench, tile_size, tolerance):
    s = bench.graph()
    image = picture(s, 192, 160)
    tiles = {"vae": s.vae, "tile_size": tile_size, "overlap": 32}
    whole = s.g.VAEEncode(pixels=image, vae=s.vae)
    out = bench.run(
        s.g,
        whole=whole,
        tiled=s.g.VAEEncodeTiled(pixels=image, **tiles),
        picture=s.g.VAEDecode(samples=whole, vae=s.vae),
        tiles=s.g.VAEDecodeTiled(samples=whole, **tiles),
    )
    latents, pixels = out.whole["samples"], out.picture["value"]
    error = (out.tiled["samples"] - latents).square().mean().sqrt() / latents.std()
    assert error <= tolerance, error
    error = (out.tiles["value"] - pixels).square().mean().sqrt() / pixels.std()
    assert error <= tolerance, error


row("VAEEncodeTiled, VAEDecodeTiled in one tile")(partial(check_tiled, tile_size=512, tolerance=1e-5))
row("VAEEncodeTiled, VAEDecodeTiled in many tiles")(partial(check_tiled, tile_size=64, tolerance=0.5))


@row("img2img: VAEEncode, KSampler with denoise < 1")
def check_img2img(bench):
    s = bench.graph()
    latent = s.g.VAEEncode(pixels=picture(s), vae=s.vae)
    sampled, calls = bench.sampled(s, latent_image=latent, denoise=0.5)
    out = bench.run(s.g, calls=calls, latent=sampled, start=latent)
    one_forward_a_step(out.calls)
    sigmas = simple_sigmas(2 * STEPS)[-(STEPS + 1) :]
    start = sigmas[0] * bench.noise() + (1 - sigmas[0]) * bench.normal(out.start["samples"])
    context = bench.context()
    expected = bench.euler(bench.cfg(context.full, context.unconditional), sigmas, start)
    assert_equal(out.latent["samples"], expected)


def gradient() -> torch.Tensor:
    return torch.linspace(0, 1, WIDTH).expand(1, HEIGHT, WIDTH).contiguous()


def check_masked(bench, mask, prepare, options=None):
    """prepare(s, image, mask) → what changes in KSampler's inputs."""
    s = bench.graph()
    image = picture(s)
    latent = s.g.VAEEncode(pixels=image, vae=s.vae)
    inputs = prepare(s, image, latent, bench.tensor(s.g, "mask.safetensors", mask)[2])
    sampled, calls = bench.sampled(s, **inputs)
    out = bench.run(s.g, calls=calls, latent=sampled, start=latent)
    one_forward_a_step(out.calls)
    start, latents = out.start["samples"], out.latent["samples"]
    context = bench.context()
    expected = stock_sample(
        bench.cfg(context.full, context.unconditional),
        bench.noise(),
        latent=bench.normal(start),
        mask=latent_mask(mask),
        options=options() if options else {},
    )
    assert_equal(latents, bench.raw(expected))
    if mask.unique().numel() == 2:
        kept = W // 2 + 1  # without the column on the mask's soft edge
        assert_equal(latents[..., kept:], start[..., kept:])
        assert_differs(latents[..., : W // 2 - 1], start[..., : W // 2 - 1], 0.1)


def noise_mask(s, image, latent, mask):
    return {"latent_image": s.g.SetLatentNoiseMask(samples=latent, mask=mask)}


def differential(s, image, latent, mask):
    return noise_mask(s, image, latent, mask) | {"model": s.g.DifferentialDiffusion(model=s.model)}


def inpaint_conditioning(s, image, latent, mask):
    node = s.g.InpaintModelConditioning(
        positive=s.full, negative=s.unconditional, vae=s.vae, pixels=image, mask=mask, noise_mask=True
    )
    return {"positive": node[0], "negative": node[1], "latent_image": node[2]}


row("SetLatentNoiseMask")(partial(check_masked, mask=left_half(), prepare=noise_mask))
row("DifferentialDiffusion with a soft mask")(
    partial(
        check_masked,
        mask=gradient(),
        prepare=differential,
        options=partial(patched_options, "comfy_extras.nodes_differential_diffusion", "DifferentialDiffusion"),
    )
)
row("InpaintModelConditioning")(partial(check_masked, mask=left_half(), prepare=inpaint_conditioning))


def check_upscale(bench, name, **inputs):
    s = bench.graph()
    first, _ = bench.sampled(s, count=False)
    upscaled = getattr(s.g, name)(samples=first, upscale_method="bilinear", **inputs)
    second, _ = bench.sampled(s, latent_image=upscaled, denoise=0.5, count=False)
    out = bench.run(s.g, first=first, upscaled=upscaled, second=second)
    expected = F.interpolate(out.first["samples"][:, :, 0], (2 * H, 2 * W), mode="bilinear").unsqueeze(2)
    assert_equal(out.upscaled["samples"], expected)
    sigmas = simple_sigmas(2 * STEPS)[-(STEPS + 1) :]
    start = sigmas[0] * bench.noise(expected.shape) + (1 - sigmas[0]) * bench.normal(expected)
    context = bench.context()
    assert_equal(
        out.second["samples"], bench.euler(bench.cfg(context.full, context.unconditional), sigmas, start), 2e-5
    )


row("LatentUpscale, second KSampler")(
    partial(check_upscale, name="LatentUpscale", width=2 * WIDTH, height=2 * HEIGHT, crop="disabled")
)
row("LatentUpscaleBy, second KSampler")(partial(check_upscale, name="LatentUpscaleBy", scale_by=2.0))


@row("RepeatLatentBatch")
def check_repeat(bench):
    s = bench.graph()
    latents, calls = bench.ksample(s, latent_image=s.g.RepeatLatentBatch(samples=s.empty, amount=2))
    assert [call["rows"] for call in calls] == [2 * 2] * STEPS
    context = bench.context()
    model = bench.cfg(context.full, context.unconditional)
    assert_equal(latents, bench.euler(model, simple_sigmas(), bench.noise((2, *SHAPE[1:]))))


@row("LatentFromBatch")
def check_from_batch(bench):
    s = bench.graph()
    batch = s.g.RepeatLatentBatch(samples=s.empty, amount=3)
    whole, _ = bench.sampled(s, latent_image=batch, count=False)
    one, _ = bench.sampled(s, latent_image=s.g.LatentFromBatch(samples=batch, batch_index=1, length=1), count=False)
    out = bench.run(s.g, whole=whole, one=one)
    assert_equal(out.one["samples"], out.whole["samples"][1:2])
    assert_differs(out.whole["samples"][:1], out.whole["samples"][1:2], 0.1)


@row("LatentBatch")
def check_latent_batch(bench):
    s = bench.graph()
    first, second = (s.g.VAEEncode(pixels=p, vae=s.vae) for p in (picture(s), s.g.ImageInvert(image=picture(s))))
    batch = s.g.LatentBatch(samples1=first, samples2=second)
    sampled, calls = bench.sampled(s, latent_image=batch, denoise=0.5)
    out = bench.run(s.g, calls=calls, latent=sampled, first=first, second=second, batch=batch)
    joined = torch.cat([out.first["samples"], out.second["samples"]])
    assert torch.equal(out.batch["samples"], joined)
    assert [call["rows"] for call in out.calls] == [2 * 2] * STEPS
    sigmas = simple_sigmas(2 * STEPS)[-(STEPS + 1) :]
    noise = bench.noise().repeat(2, 1, 1, 1, 1)  # the node numbers both pictures 0
    start = sigmas[0] * noise + (1 - sigmas[0]) * bench.normal(joined)
    context = bench.context()
    assert_equal(out.latent["samples"], bench.euler(bench.cfg(context.full, context.unconditional), sigmas, start))


def check_empty(bench, name, **inputs):
    s = bench.graph()
    ours, _ = bench.sampled(s, count=False)
    stock, _ = bench.sampled(
        s, count=False, latent_image=getattr(s.g, name)(width=WIDTH, height=HEIGHT, batch_size=1, **inputs)
    )
    out = bench.run(s.g, ours=ours, stock=stock)
    assert torch.equal(out.ours["samples"], out.stock["samples"])
    assert out.ours["samples"].shape == SHAPE


for _name, _inputs in [
    ("EmptySD3LatentImage", {}),
    ("EmptyLatentImage", {}),
    ("EmptyHunyuanLatentVideo", {"length": 1}),
]:
    _nodes = f"{_name} of length 1" if _inputs else _name
    row(_nodes)(partial(check_empty, name=_name, **_inputs))


@row("Previews (latent2rgb)")
def check_previews(bench):
    bench.ksample(bench.graph(), seed=SEED + 1)
    previews = [data for kind, data in bench.result.events if kind == "preview"]
    assert len(previews) == STEPS
    for preview in previews:
        image = Image.open(io.BytesIO(preview))
        assert abs(image.width * H / W - image.height) < 1 and len(image.convert("L").getcolors(256)) > 10


@row("Previews (TAESD, lighttaew2_1 in models/vae_approx)")
def check_taesd_previews(bench):
    """In this process, on the MODEL's latent format and an autoencoder of random weights."""
    load_pack()
    import comfy.cli_args
    import comfy.taesd.taehv
    import folder_paths
    import latent_preview

    modules = {
        name: importlib.import_module(f"{PACK}.{name}")
        for name in ("nodes.comfy.model", "internvlu_core.checkpoints.config")
    }
    config = modules["internvlu_core.checkpoints.config"].Config.read(CHECKPOINT)
    latent_format = modules["nodes.comfy.model"].ModelConfig(config).latent_format
    network = comfy.taesd.taehv.TAEHV(latent_channels=16)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():  # ComfyUI's layers do not initialise them
        size = max(1, parameter[0].numel())
        torch.nn.init.normal_(parameter, std=size**-0.5 if parameter.ndim > 1 else 0.1, generator=generator)
    folder = bench.server.base_dir / "models" / "vae_approx"
    folder.mkdir(exist_ok=True)
    save_file(network.state_dict(), folder / "lighttaew2_1.safetensors")
    folder_paths.add_model_folder_path("vae_approx", str(folder))
    args, before = comfy.cli_args.args, comfy.cli_args.args.preview_method
    args.preview_method = comfy.cli_args.LatentPreviewMethod.TAESD
    try:
        previewer = latent_preview.get_previewer(torch.device("cpu"), latent_format)
        _, image, _ = previewer.decode_latent_to_preview_image("JPEG", bench.noise())
    finally:
        args.preview_method = before
    with torch.inference_mode():
        pixels = network.decode(bench.noise())[0, :, 0].movedim(0, -1)
    expected = (pixels.clamp(0, 1) * 255).to(torch.uint8)
    assert_close_pictures(image, expected)
    assert len(expected.unique()) > 10


@pytest.mark.parametrize("nodes", ROWS[row.part])
def test_row(bench, nodes):
    row.checks[nodes](bench)
