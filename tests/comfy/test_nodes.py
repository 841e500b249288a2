"""What a user meets at the nodes: stock nodes on our types, batches, caching, cancelling, errors."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from internvlu_core.conditioning import TextResult
from internvlu_core.sampling import flow_sigmas
from support.checkpoints import CHECKPOINT
from support.comfy_server import PACK_NAME, ComfyError, ComfyInterrupted
from support.inprocess import PACK, load_pack
from support.workflows import assert_close_pictures, picture_of, workflow

SMALL = {"width": 160, "height": 128, "steps": 3}


def test_node_descriptions(server):
    """Every input and output explains itself, and ids and sockets are the promised ones."""
    info = {name: node for name, node in server.object_info().items() if name.startswith("InternVLU")}
    assert {name: node["output"] for name, node in info.items()} == {
        "InternVLULoader": ["MODEL", "INTERNVLU_VLM", "VAE"],
        "InternVLUModelLoader": ["MODEL"],
        "InternVLUVLMLoader": ["INTERNVLU_VLM"],
        "InternVLUEncode": ["CONDITIONING", "CONDITIONING", "CONDITIONING"],
        "InternVLUReason": ["INTERNVLU_REASONING", "STRING"],
        "InternVLUAsk": ["STRING", "INTERNVLU_HISTORY"],
        "InternVLUBoxes": ["BBOX", "MASK", "IMAGE"],
        "InternVLUSampler": ["LATENT", "IMAGE"],
        "InternVLUEmptyLatent": ["LATENT"],
        "InternVLUEdit": ["IMAGE", "LATENT", "INTERNVLU_EDIT", "INT", "INT"],
        "InternVLUEditRestore": ["IMAGE"],
        "InternVLUGuider": ["GUIDER"],
        "InternVLUGuidance": ["MODEL"],
        "InternVLUGuidanceRange": ["MODEL"],
        "InternVLUScheduler": ["SIGMAS"],
        "InternVLUSamplerSelect": ["SAMPLER"],
        "InternVLUCLIP": ["CLIP"],
    }
    for name, node in info.items():
        assert node.get("search_aliases", ["not known to this ComfyUI"]), name
        assert node["category"] == "InternVL-U" and node["description"], name
        assert all(node["output_tooltips"]), f"{name}: an output without a tooltip"
        for section in ("required", "optional"):
            for socket, (_, options) in node["input"].get(section, {}).items():
                assert options.get("tooltip"), f"{name}.{socket} has no tooltip"


def test_several_pictures_equal_the_core(server, model):
    prompt = workflow("text_to_image", **SMALL, prompt="two cats", batch_size=2)
    pictures = list(server.images(server.run(prompt)))
    expected = model.generate("two cats", height=128, width=160, steps=3, seed=42, num_images=2)
    for picture, core in zip(pictures, expected.images, strict=True):
        assert_close_pictures(picture, np.asarray(core))


def test_two_references_equal_the_core(server, model, photo, tall):
    prompt = workflow("two_references", **SMALL, prompt="put both together")
    (picture,) = server.images(server.run(prompt))
    core = model.generate("put both together", [photo, tall], height=128, width=160, steps=3, seed=42).images[0]
    assert_close_pictures(picture, np.asarray(core))


def test_stock_ksampler_with_the_full_conditioning(server):
    """euler / simple starts at σ = 1; another seed gives another picture."""
    pictures = []
    for seed in (1, 1, 2):
        prompt = workflow("text_to_image", width=160, height=128)
        prompt["4"] = {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 2], "latent_image": ["3", 0],
                "seed": seed, "steps": 3, "cfg": 4.5, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
            },
        }  # fmt: skip
        prompt["6"]["inputs"]["filename_prefix"] = f"ksampler_{len(pictures)}"
        pictures += list(server.images(server.run(prompt)))
    first, again, other = (picture.tobytes() for picture in pictures)
    assert first == again != other
    assert len(set(first)) > 30, "a flat picture"


def test_stock_vae_nodes_equal_the_core(server, model, photo):
    """LoadImage → VAEEncode → VAEDecode against the core's own round trip."""
    prompt = {
        "1": workflow("text_to_image")["1"],
        "2": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
        "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["2", 0], "vae": ["1", 2]}},
        "4": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 2]}},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
    }
    (picture,) = server.images(server.run(prompt))
    # Encoding crops to multiples of 8, from the middle.
    left, top = (photo.width % 8) // 2, (photo.height % 8) // 2
    cropped = photo.crop((left, top, left + photo.width // 8 * 8, top + photo.height // 8 * 8))
    decoded = model.decode(model.vae.encode(pixels_of(cropped)).detach())
    assert_close_pictures(picture, levels_of(decoded))


def test_img2img_equals_the_core(server, model, tall):
    """denoise 0.5 of 4 steps: the last 4 of 8, from the picture's latent and noise in the proportion of σ."""
    prompt = workflow("text_to_image", prompt="a red cat", steps=4, denoise=0.5)
    prompt["7"] = {"class_type": "LoadImage", "inputs": {"image": "tall.png"}}
    prompt["8"] = {
        "class_type": "ImageScale",
        "inputs": {"image": ["7", 0], "width": 96, "height": 144, "upscale_method": "area", "crop": "disabled"},
    }
    prompt["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}
    prompt["3"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["8", 0], "vae": ["1", 2]}}
    result = server.run(prompt)
    scaled, picture = (picture_of(server, result, node) for node in ("9", "6"))

    latent = model.vae.encode(pixels_of(scaled)).detach()
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(42))
    sigmas = flow_sigmas(8)[-5:]
    start = sigmas[0] * noise + (1 - sigmas[0]) * latent
    latents = model.sample(model.encode("a red cat"), start, sigmas, 4.5, 2.0)
    assert_close_pictures(picture, levels_of(model.decode(latents)))


def pixels_of(picture: Image.Image) -> torch.Tensor:
    """[1, 3, H, W] in [-1, 1]."""
    return torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None] / 127.5 - 1


def levels_of(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [1, 3, H, W] in [-1, 1] → [H, W, 3] in 0…255."""
    return (pixels[0].permute(1, 2, 0) + 1) * 127.5


def test_only_what_changed_runs_again(server):
    prompt = workflow("text_to_image", **SMALL, prompt="a cached cat")
    server.run(prompt)
    prompt["4"]["inputs"]["seed"] = 7
    result = server.run(prompt)
    assert {"1", "2", "3"} <= set(result.cached)
    assert set(result.executed) == {"4", "5", "6"}


def test_progress_previews_and_cancel(server):
    def cancel(kind, data):
        if kind == "progress" and data["node"] == "4" and data["value"] >= 2:
            server.interrupt()

    prompt = workflow("text_to_image", prompt="cancelled", width=160, height=128, steps=200)
    with pytest.raises(ComfyInterrupted):
        server.run(prompt, on_event=cancel)

    prompt = workflow("text_to_image", prompt="cancelled", **SMALL)
    result = server.run(prompt)
    assert [(value, most) for node, value, most in result.progress if node == "4"] == [(1, 3), (2, 3), (3, 3)]
    assert sum(kind == "preview" for kind, _ in result.events) == 3


def test_cancel_inside_text(server):
    def cancel(kind, data):
        # Newer servers send only some of the progress events.
        if kind == "progress" and data["value"] >= 3:
            server.interrupt()

    prompt = workflow("ask", question="Cancel me?", max_new_tokens=4096)
    prompt["8"]["inputs"] |= {"temperature": 2.0, "seed": 3}  # goes on for 487 tokens
    with pytest.raises(ComfyInterrupted):
        server.run(prompt, on_event=cancel)
    prompt["8"]["inputs"]["max_new_tokens"] = 4
    assert list(server.texts(server.run(prompt)))


def test_text_streams_to_its_node(server):
    """The beginning of the answer reaches the node before the answer is there."""
    prompt = workflow("ask", question="Stream, please.", max_new_tokens=8)
    result = server.run(prompt)
    streamed = [data for kind, data in result.events if kind == "internvlu.text"]
    assert {data["node"] for data in streamed} == {"8"}
    output = result.outputs["8"]
    (answer,), (tokens,), (rate,) = output["text"], output["tokens"], output["tokens_per_second"]
    assert streamed[0]["text"] == "" and streamed[1]["tokens"] == 1
    assert all(answer.startswith(data["text"].rstrip("\N{REPLACEMENT CHARACTER}")) for data in streamed)
    assert tokens == 8 and rate > 0


def test_pinned_reasoning(server, model):
    """Drawn from as if the model had written it: without generating, and to the same picture."""
    prompt = workflow("reason_then_draw", **SMALL, prompt="hope", max_new_tokens=400)
    reason = next(node for node in prompt.values() if node["class_type"] == "InternVLUReason")
    words = "A lighthouse above the waves. 灯塔。"
    reason["inputs"] |= {"pinned": True, "text": words}
    result = server.run(prompt)
    assert not [kind for kind, _ in result.events if kind == "internvlu.text"]
    (picture,) = server.images(result)
    assert words in list(server.texts(result))
    thought = TextResult(words, (*model.tokenizer.encode(words), model.tokenizer.stop_ids[0]))
    size = {"height": 128, "width": 160, "steps": 3, "seed": 42}
    expected = model.generate("hope", reasoning=thought, **size)
    assert_close_pictures(picture, np.asarray(expected.images[0]))

    # Words of just so many tokens as may be written are like ones that were cut off there: none ends them.
    tokens = tuple(model.tokenizer.encode(words))
    reason["inputs"]["max_new_tokens"] = len(tokens)
    (cut,) = server.images(server.run(prompt))
    expected = model.generate("hope", reasoning=TextResult(words, tokens), **size)
    assert_close_pictures(cut, np.asarray(expected.images[0]))
    assert (np.asarray(cut) != np.asarray(picture)).any()

    reason["inputs"]["text"] = "  "
    with pytest.raises(ComfyError, match='"my own words" is on, but the text is empty'):
        server.run(prompt)


def test_guidance_plot(server):
    prompt = workflow("edit", steps=4)
    sampler = next(node for node in prompt.values() if node["class_type"] == "InternVLUSampler")
    (key,) = (key for key, node in prompt.items() if node is sampler)
    prompt["50"] = {"class_type": "PreviewImage", "inputs": {"images": [key, 1]}}
    result = server.run(prompt)
    assert "50" not in result.outputs and key not in result.outputs  # off: what is behind it is skipped
    sampler["inputs"] |= {"guidance_plot": True, "seed": 7}
    result = server.run(prompt)
    plot = picture_of(server, result, "50")
    assert plot.size == picture_of(server, result, key).size
    assert {(0xE4, 0x57, 0x2E), (0x2E, 0x86, 0xAB)} <= {colour for _, colour in plot.getcolors(1 << 20)}


def test_seeds_of_sampled_text(server):
    def text(seed):
        prompt = workflow("ask", question="Roll a die.", max_new_tokens=12)
        prompt["8"]["inputs"] |= {"temperature": 1.5, "seed": seed}
        return next(iter(server.texts(server.run(prompt))))

    assert text(1) != text(2)


FOREIGN = {
    "20": {"class_type": "EmptyLatentImage", "inputs": {"width": 104, "height": 128, "batch_size": 1}},
    "22": {
        "class_type": "EmptyHunyuanLatentVideo",
        "inputs": {"width": 160, "height": 128, "length": 5, "batch_size": 1},
    },
}


@pytest.mark.parametrize(
    ("name", "node", "inputs", "words"),
    [
        ("text_to_image", "1", {"checkpoint": "nowhere"}, ["'nowhere'", "models", "InternVL-U"]),
        ("text_to_image", "1", {"checkpoint": "../../etc"}, ["'../../etc'"]),
        ("text_to_image", "1", {"weight_dtype": "int3"}, ["int3"]),
        ("text_to_image", "3", {"width": 200}, ["width 200", "192 or 208"]),
        ("text_to_image", "4", {"latent_image": ["20", 0]}, ["width 104", "96 or 112"]),
        ("text_to_image", "4", {"latent_image": ["22", 0]}, ["2 frames"]),
        ("text_to_image", "2", {"prompt": "<image> here"}, ["1 <image> placeholders", "0 images"]),
        ("edit", "2", {"vae": None}, ["VAE"]),
        ("edit", "2", {"reasoning": ["8", 0], "reasoning_text": ["8", 1]}, ["reasoning", "reasoning_text"]),
        ("ask", "8", {"temperature": 1.0, "num_beams": 2}, ["num_beams is 2", "temperature 1.0"]),
    ],
)
def test_errors_say_what_is_wrong(server, name, node, inputs, words):
    prompt = workflow(name) | FOREIGN
    reason = {"vlm": ["1", 1], "prompt": "x", "max_new_tokens": 2, "seed": 0}
    if "reasoning" in inputs:
        prompt["8"] = {"class_type": "InternVLUReason", "inputs": reason}
    changed = prompt[node]["inputs"] | inputs
    prompt[node]["inputs"] = {key: value for key, value in changed.items() if value is not None}
    with pytest.raises(ComfyError) as caught:
        server.run(prompt)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("node", "name"),
    [("InternVLULoader", "checkpoint"), ("InternVLUModelLoader", "file"), ("InternVLUVLMLoader", "file")],
)
def test_what_a_link_brings_is_not_refused_before_it_is_there(node, name):
    """ComfyUI validates a prompt with None in the place of every linked input."""
    loader = getattr(importlib.import_module(f"{load_pack().__name__}.nodes.loader"), node)
    assert loader.validate_inputs(**{name: None}) is True
    assert loader.fingerprint_inputs(weight_dtype="auto", **{name: None}) == []


def test_a_conversation_that_a_link_brings_is_not_refused():
    ask = importlib.import_module(f"{load_pack().__name__}.nodes.ask").InternVLUAsk
    assert ask.validate_inputs(go_on=[True], conversation=[None]) is True
    assert ask.validate_inputs(go_on=[True], conversation=["no JSON"]) is not True


def test_a_good_prompt_after_the_bad_ones(server):
    (picture,) = server.images(server.run(workflow("text_to_image", **SMALL, prompt="still well")))
    assert picture.size == (160, 128)


def test_every_node_has_a_help_page(server):
    """Served where the frontend looks for it, and about that node."""
    for name, node in server.object_info().items():
        if name.startswith("InternVLU"):
            page = server.http.get(f"{server.url}/extensions/{PACK_NAME}/docs/{name}.md", timeout=60)
            assert page.ok and page.text.startswith(f"# {node['display_name']}\n"), name


def test_inputs_of_other_packs_and_odd_values(host):
    """Grey IMAGEs, half characters, denoise that is none, a MODEL whose sampling another node has changed."""
    images, sampler, encode = (host(name) for name in ("comfy.images", "comfy.sampler", "encode"))
    grey = torch.linspace(0, 1, 256).view(1, 256, 1)
    assert np.array_equal(np.asarray(images.to_pil(grey)), np.arange(256)[None, :, None].repeat(3, 2))
    _, vlm, _ = host("loader").InternVLULoader.execute("InternVL-U", "fp32").result
    for words in ("\ud83d", "a \udc00 cat"):
        with pytest.raises(ValueError, match="not valid text"):
            encode.InternVLUEncode.execute(vlm, words)
    for denoise in (float("nan"), -0.1, 1.5):
        with pytest.raises(ValueError, match="denoise is"):
            sampler.denoise_sigmas(4, 3.0, denoise)
    assert len(sampler.denoise_sigmas(4, 3.0, 1e-9)) == 0


def test_sample_follows_a_patched_shift(host):
    """ModelSamplingFlux keeps the logarithm of what ModelSamplingSD3 keeps."""
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM, ModelSamplingFlux, ModelSamplingSD3

    model = host("loader").InternVLULoader.execute("InternVL-U", "fp32").result[0]
    shift = host("comfy.sampler").shift_of
    assert shift(model.get_model_object("model_sampling")) == 3.0
    (sd3,) = ModelSamplingSD3().patch(model, 5.0)
    assert shift(sd3.get_model_object("model_sampling")) == 5.0
    (flux,) = ModelSamplingFlux().patch(model, max_shift=1.15, base_shift=0.5, width=1024, height=1024)
    assert shift(flux.get_model_object("model_sampling")) == pytest.approx(np.exp(1.15))
    (edm,) = ModelSamplingContinuousEDM().patch(model, "v_prediction", 120.0, 0.002)
    with pytest.raises(ValueError, match="not that of a flow model"):
        shift(edm.get_model_object("model_sampling"))


def test_clip_keeps_its_hooks(host):
    _, vlm, _ = host("loader").InternVLULoader.execute("InternVL-U", "fp32").result
    clip = host("comfy.clip").InternVLUCLIP(vlm)
    clip.use_clip_schedule, clip.apply_hooks_to_conds = True, object()
    clone = clip.clone()
    assert clone.use_clip_schedule and clone.apply_hooks_to_conds is clip.apply_hooks_to_conds
    clone.patcher.forced_hooks = object()
    with pytest.raises(ValueError, match="schedule_clip"):
        clone.encode_from_tokens_scheduled(clone.tokenize("a cat"))
    with pytest.raises(ValueError, match="CLIPSetLastLayer"):
        clone.clip_layer(-2)


def test_partial_with_hooks_needs_the_guider(host):
    model, vlm, _ = host("loader").InternVLULoader.execute("InternVL-U", "fp32").result
    _, partial, _ = host("encode").InternVLUEncode.execute(vlm, "a cat").result
    hooked = [[hidden, {**values, "hooks": object()}] for hidden, values in partial]
    with pytest.raises(ValueError, match="hooks on partial"):
        host("sampling").InternVLUGuidance.execute(model, hooked, 2.0)


def test_hooks_for_two_branches_leave_the_third(host):
    """A pre-CFG hook of a pack that knows two branches must not take the pictures' guidance away."""
    guiding = host("comfy.guider")
    x = torch.ones(1, 16, 1, 2, 2)
    outputs = [x * value for value in (0.5, 0.2, 0.3)]
    guider = SimpleNamespace(inner_model=None, conds={"positive": 1, "negative": 2, "partial": 3})
    results = []
    for hooks in ([], [lambda args: args["conds_out"][:2]]):
        options = {"sampler_calc_cond_batch_function": lambda args: outputs, "sampler_pre_cfg_function": hooks}
        guider.conds = {"positive": 1, "negative": 2, "partial": 3}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("comfy.samplers.calc_cond_batch", lambda *args: [])
            results.append(guiding.predict(guider, x, torch.tensor([0.5]), options, guiding.Guidance(4.5, 2.0)))
    assert torch.equal(*results)
    assert not torch.allclose(results[0], x - 0.5 * ((1 - 0.2) / 0.5 + 4.5 * (0.2 - 0.5) / 0.5) * x)


@pytest.fixture(scope="module")
def host():
    """host(name) → a module of nodes/, in this process, with the tiny checkpoint as InternVL-U."""
    load_pack()

    def module(name):
        return importlib.import_module(f"{PACK}.nodes.{name}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module("comfy.folders"), "checkpoints", lambda: {"InternVL-U": CHECKPOINT})
        yield module
