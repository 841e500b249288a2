"""The recorded runs of the official pipeline, stage by stage: every stage is fed the recorded input of that stage, so
the test that fails names the stage that broke. Last, from file to picture.
"""

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from internvlu_core import Context, guidance, imaging
from internvlu_core.decoding import TextSettings, generate_tokens
from internvlu_core.doctor.compare import recorded_frequencies
from internvlu_core.doctor.recording import BRANCHES, Recording, read_cases
from internvlu_core.sampling import dpmpp_2m, flow_sigmas, sigma_to_timestep
from support.checkpoints import GOLDEN
from support.tensors import noise, relative

CASES = {case["name"]: case for case in read_cases(GOLDEN)}
STAGE = 1e-4  # relative; of one stage, given its recorded input
RUN = 1e-3  # relative; of many steps in a row, or many layers without a norm on the way


def cases(wanted=lambda case: True):
    """Parametrises a test by the cases that have its stage."""
    return pytest.mark.parametrize("case", [name for name, case in CASES.items() if wanted(case)], indirect=True)


def draws(case):
    return case["mode"] != "text"


def writes(case):
    return case["mode"] != "image"


def sees(case):
    return "images" in case


branches = pytest.mark.parametrize("branch", BRANCHES)


@pytest.fixture(autouse=True)
def frequencies(model):
    """As they were where the runs were recorded, to the last bit."""
    with recorded_frequencies(model, GOLDEN):
        yield


class Case(Recording):
    """One recorded run, with its settings as the official code has them."""

    def __init__(self, name: str):
        super().__init__(GOLDEN, CASES[name])
        self.steps = self.settings.get("steps")
        self.max_new_tokens = self.settings.get("max_new_tokens")
        self.num_beams = self.settings.get("num_beams", 1)

    @property
    def official_scales(self) -> tuple[float, float]:
        """all, partial"""
        defaults = (3.5, 1.5) if self.reasons else (4.5, 2.0)
        return self.settings.get("all_cfg", defaults[0]), self.settings.get("part_cfg", defaults[1])

    @property
    def official_sigmas(self):
        return flow_sigmas(self.steps, 3.0)


@cache
def load(name: str) -> Case:
    return Case(name)


@pytest.fixture
def case(request) -> Case:
    return load(request.param)


# Pictures in


@cases(sees)
def test_vit_pixels(model, case):
    tiles = torch.cat([imaging.vit_tiles(image, model.config.processor) for image in case.images])
    if case.settings.get("keep_pixels"):
        torch.testing.assert_close(tiles, case["vit.pixel_values"], rtol=0, atol=1e-6)
    assert len(tiles) == len(case.images)


@cases(sees)
def test_vit_features(model, case):
    if case.settings.get("keep_pixels"):
        pixels = case["vit.pixel_values"]
    else:  # not recorded in this case; equal in the others (see above)
        pixels = torch.cat([imaging.vit_tiles(image, model.config.processor) for image in case.images])
    features = torch.stack(model.conditioner.image_features([tile[None] for tile in pixels], "cpu", torch.float32))
    assert relative(features, case["vit.features"]) < STAGE


@cases(lambda case: sees(case) and draws(case))
def test_reference_pixels(model, case):
    (image,) = case.images
    levels = (imaging.reference_pixels(image, model.config.processor) - case["reference.pixels.0"]).abs() * 127.5
    assert levels.max() < 1.01


@cases(lambda case: sees(case) and draws(case))
def test_reference_latents(model, case):
    assert relative(model.vae.encode(case["reference.pixels.0"]), case["reference.latents.0"]) < STAGE


# Text


@cases(writes)
def test_prompt_ids(model, case):
    ids = list(case.text_prompt(model).ids)
    recorded = case.record["generate_input_ids"][0]
    pads = len(recorded) - len(ids)
    assert recorded == [model.tokenizer.id("<|endoftext|>")] * pads + ids
    if not case.reasons:  # only there has the official batch other rows to align with
        assert pads == 0


@cases(writes)
def test_generated_ids(model, case):
    """From the recorded features on."""
    embeddings = model.conditioner.embed(case.text_prompt(model), case.features, "cpu")
    settings = TextSettings(case.max_new_tokens, case.num_beams)
    assert tuple(generate_tokens(model.vlm, embeddings, model.tokenizer.stop_ids, settings)) == case.tokens


@cases(writes)
def test_text_from_files(model, case):
    write = model.reason if case.reasons else model.answer
    result = write(
        case.prompt,
        case.images,
        system_prompt=case.system,
        max_new_tokens=case.max_new_tokens,
        num_beams=case.num_beams,
    )
    assert result.token_ids == case.tokens
    assert [result.text] == case.record["output_text"]


# Conditioning


def make_context(model, case) -> Context:
    return model.conditioner.context(
        case.prompt,
        case.features,
        case.references,
        device="cpu",
        system_prompt=case.system,
        reasoning=case.reasoning,
    )


@cases(draws)
def test_context_ids(model, case, read_ids):
    make_context(model, case)
    recorded = [
        row[mask.bool()].tolist()
        for row, mask in zip(case["context.input_ids"], case["context.attention_mask"], strict=True)
    ]
    if not case.images:
        assert recorded[1] == recorded[2]
        recorded = recorded[:2]  # the same text is read once
    assert sorted(read_ids) == sorted(recorded)


@cases(draws)
@branches
def test_hidden_states(model, case, branch):
    index = BRANCHES.index(branch)
    made = getattr(make_context(model, case), branch)
    assert relative(made.hidden, case[f"context.hidden.{index}"]) < STAGE
    assert made.image_mask.tolist() == case[f"context.image_mask.{index}"].tolist()
    grids = [(1, 8, 8)] if case.images and branch != "unconditional" else []
    assert made.image_grids == grids
    assert len(made.references) == len(grids)
    assert all(made is given for made, given in zip(made.references, case.references, strict=False))


# Sampling


@cases(draws)
def test_timesteps(model, case):
    sigmas = flow_sigmas(case.steps, model.config.mmdit.flow_shift)
    assert sigma_to_timestep(sigmas)[:-1].tolist() == case.record["timesteps"]
    assert sigmas[-1] == 0


@cases(draws)
def test_noise(case):
    """The first network input is the noise of the seed, unscaled, in all branches."""
    recorded = case["dit.step0.input"]
    assert torch.equal(noise(*recorded[:1].shape, seed=case.settings["seed"]).expand(3, -1, -1, -1), recorded)


@cases(draws)
@branches
def test_first_velocity(model, case, branch):
    index = BRANCHES.index(branch)
    timestep = case["dit.step0.timestep"][index]
    velocity = model.velocity(case.branch(model, index), case["dit.step0.input"][index][None], timestep)
    assert relative(velocity, case["dit.step0.velocity"][index][None]) < STAGE


@cases(draws)
def test_first_guided_velocity(case):
    full, partial, unconditional = (v[None] for v in case["dit.step0.velocity"])
    timestep = float(case["dit.step0.timestep"][0])
    guided = guidance.combine(full, partial, unconditional, *case.official_scales, timestep)
    assert relative(guided, case["sampler.guided.0"]) < STAGE
    if not case.images:  # two equal branches are run once, and say so by being one object
        assert relative(guidance.combine(full, partial, partial, *case.official_scales, timestep), guided) < STAGE


@cases(draws)
@pytest.mark.parametrize("step", [1, -1], ids=["second", "last"])
def test_later_guided_velocity(model, case, step):
    """From the recorded latents before the step."""
    step %= case.steps
    guided, context = case[f"sampler.guided.{step}"], case.context(model)
    # The start of the last step is recorded in runs of three steps only; but that step ends at x − σ v.
    start = case.tensors.get(f"sampler.latents.{step - 1}", case["latents.final"] + case.official_sigmas[step] * guided)
    timestep = torch.tensor(case.record["timesteps"][step])
    velocities = (model.velocity(getattr(context, name), start, timestep) for name in BRANCHES)
    assert relative(guidance.combine(*velocities, *case.official_scales, float(timestep)), guided) < STAGE


@cases(draws)
def test_sampler_latents(case):
    """The sampler alone, on the recorded guided velocities: its first two steps, or all of a run of three."""
    sigmas = case.official_sigmas
    seen = []

    def replay(x, sigma):
        seen.append(x)
        return x - sigma * case[f"sampler.guided.{len(seen) - 1}"]

    steps = case.steps if case.steps == 3 else 2
    seen.append(dpmpp_2m(replay, case["dit.step0.input"][:1], sigmas[: steps + 1]))
    for step in range(steps):
        assert relative(seen[step + 1], case[f"sampler.latents.{step}"]) < 1e-5, f"after step {step}"


@cases(draws)
def test_final_latents(model, case):
    """From the recorded conditioning and noise."""
    latents = model.sample(
        case.context(model), case["dit.step0.input"][:1], case.official_sigmas, *case.official_scales
    )
    assert relative(latents, case["latents.final"]) < RUN


# Pictures out


@cases(draws)
def test_decoded_pixels(model, case):
    assert relative(model.decode(case["latents.final"]), case["vae.decoded"]) < RUN


@cases(draws)
def test_pictures_from_decoded_pixels(case):
    _, height, width, _ = case["images"].shape
    (picture,) = imaging.to_pictures(case["vae.decoded"])
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(picture, dtype=int) - case["images"][0].numpy()).max() == 0


@cases(draws)
def test_from_file_to_picture(model, case):
    reasoning = None
    if case.reasons:
        reasoning = model.reason(case.prompt, case.images, max_new_tokens=case.max_new_tokens)
    result = model.generate(
        case.prompt,
        case.images,
        all_scale=case.settings.get("all_cfg"),  # else the defaults are under test, too
        partial_scale=case.settings.get("part_cfg"),
        reasoning=reasoning,
        **{name: case.settings[name] for name in ("height", "width", "steps", "seed")},
    )
    (picture,) = result.images
    difference = np.abs(np.asarray(picture, dtype=int) - case["images"][0].numpy())
    assert (difference <= 1).mean() >= 0.999
    assert difference.max() <= 3
    assert relative(result.latents, case["latents.final"]) < RUN
