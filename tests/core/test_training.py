"""Training: what each stage learns, from what, and that a killed or a divided run is the same run."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from internvlu_core import CheckpointError, InputError, InternVLU, TextResult
from internvlu_core.checkpoints.convert import convert
from internvlu_core.imaging import reference_pixels, vit_tiles
from internvlu_core.prompt import CHAT_SYSTEM, DRAW_SYSTEM, EDIT_SYSTEM, Tokenizer
from internvlu_core.sampling import flow_sigmas
from internvlu_train import __main__ as command
from internvlu_train import data, objectives, synthesis
from internvlu_train.attention import masked_attention
from internvlu_train.feed import Feed
from internvlu_train.folder import read_folder
from internvlu_train.fresh import write_fresh
from internvlu_train.loop import Run, assign, freeze, learning_rate, make_optimizers
from internvlu_train.settings import CPU, PRESETS, SIZES, LoraStage, PictureStage, Sizes, TextStage, VAEStage, changed
from internvlu_train.storage import Networks, write_checkpoint
from internvlu_train.synthesis import Sample
from support.tensors import relative

ROOT = Path(__file__).resolve().parents[2]
TINY = Sizes(
    vae_blocks=1,
    vit_width=32,
    vit_layers=1,
    llm_width=32,
    llm_layers=2,
    mmdit_layers=2,
    mmdit_heads=2,
    vocabulary=1024,
    patch=2,
)
LEARN = {"warmup": 5, "decay": 0.0, "ema": 0.9, "weight_decay": 0.0, "autocast": False, "save_every": 10**6}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    """A tiny checkpoint that has learnt nothing."""
    folder = tmp_path_factory.mktemp("fresh") / "checkpoint"
    made = data.samples(TextStage(trained=(), tasks=(("draw", 1), ("edit", 1), ("ask", 1)), samples=300))
    write_fresh(folder, TINY, [text for sample in made for text in (sample.prompt, sample.words)])
    return folder


@pytest.fixture(scope="module")
def awake(fresh) -> Networks:
    """Its networks, with an MMDiT of which no part is zero, so that everything has an effect."""
    networks = Networks(fresh)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in networks.mmdit.named_parameters():
        if not parameter.any():
            with torch.no_grad():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        assert parameter.any(), name
    return networks


def sample(task: str, words: str = "", images: int = 0, size: tuple[int, int] = (48, 64)) -> Sample:
    """Noise with words: what it shows is of no matter."""
    chance = np.random.default_rng(len(task) + images)
    pictures = [chance.integers(0, 255, (*size[::-1], 3), dtype=np.uint8) for _ in range(images + 1)]
    picture = None if task == "ask" else pictures[0]
    return Sample(task, "objects", f"{task} two red stars", tuple(pictures[1:]), picture, words, None)


def picture_stage(**changes) -> PictureStage:
    settings = {"trained": ("mmdit.",), "tasks": (("draw", 1),), "samples": 4, "steps": 4, "batch": 2, **LEARN}
    return PictureStage(**settings | changes)


def entries(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


# The start


def test_tokenizer_reads_the_fixed_texts_in_few_tokens_and_words_to_draw_by_letters(fresh):
    tokenizer = Tokenizer(fresh / "processor")
    counts = [len(tokenizer.encode(text)) for text in (CHAT_SYSTEM, DRAW_SYSTEM, EDIT_SYSTEM)]
    assert all(count <= most for count, most in zip(counts, (6, 18, 24), strict=True)), counts
    for text in ("Draw a red star.", 'the word "CAT" in blue', "看，三个 stars: 12 <|im_end|>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    for word in ("QXZ", "VLO", "STA", "人工", "大人"):  # parts of the fixed texts among them
        tokens = [tokenizer.decode([token]).strip() for token in tokenizer.encode(f"the word {word} in blue")]
        assert [token for token in tokens if token and token in word] == list(word), tokens
    words = len(tokenizer.encode("draw a red star left of a blue circle"))
    assert words <= 10, "merges of the toy world's words are missing"


def test_small_pictures_are_edited_at_their_own_size(fresh):
    """The released minimum area would blow a 64 × 64 picture up to 512 × 512."""
    networks = Networks(fresh)
    for width, height in {side for stage in CPU.values() for side in stage.sides}:
        pixels = reference_pixels(Image.new("RGB", (width, height)), networks.config.processor)
        assert pixels.shape[-2:] == (height, width)


@torch.no_grad()
def test_a_fresh_models_hidden_states_are_still_its_words(fresh):
    """Where its layers drowned them, a drawing learnt what its prompt says several times more slowly."""
    networks = Networks(fresh)
    language = networks.vlm.language_model
    ids = torch.arange(40, 80)[None]
    words = networks.vlm.embed(ids, networks.conditioner.tokenizer.special_ids)
    (last,) = language(words, (language.config.num_layers - 1,))
    assert relative(last, words) < 0.25


# The same as at inference


@pytest.mark.parametrize(
    ("task", "words", "images"),
    [("draw", "", 0), ("edit", "", 1), ("edit", "", 2), ("reason", "One more is three.", 0), ("reason", "Red.", 1)],
)
def test_contexts_are_those_of_inference(awake, task, words, images):
    """In a padded batch with another row. The cuts and pads of reasoning are among them."""
    one = sample(task, words, images)
    other = replace(one, prompt="a rather longer prompt for a picture of two red stars", words=2 * words)
    conditioner = awake.conditioner
    rows = [data.branch_tokens(each, conditioner) for each in (one, other)]
    tiles = [vit_tiles(Image.fromarray(image), conditioner.config.processor) for image in one.images]
    features = conditioner.image_features(tiles, "cpu", torch.float32)
    thought = TextResult(words, data.written(words, conditioner)) if words else None
    context = conditioner.context(one.prompt, features, [], device="cpu", reasoning=thought)
    for branch in (data.FULL, data.PARTIAL, data.UNCONDITIONAL):
        pair = [row[branch] for row in rows]
        with torch.no_grad():
            batch = objectives.read(awake, data.make_reading(pair, [one.images, other.images], conditioner))
        expected = getattr(context, branch)
        length = len(expected.hidden)
        assert int(batch.mask[0].sum()) == length
        assert relative(batch.hidden[0, :length], expected.hidden) < 1e-5
        if data.structure(data.Exercise(None, rows[0], one.images, one.picture), branch) == data.structure(
            data.Exercise(None, rows[1], other.images, other.picture), branch
        ):
            assert batch.image_mask[:length].tolist() == expected.image_mask.tolist()
            assert batch.image_grids == expected.image_grids


@pytest.mark.parametrize("images", [0, 1])
def test_padding_does_not_change_a_velocity(awake, images):
    chance = torch.Generator().manual_seed(0)
    config = awake.config.mmdit
    x = torch.randn(1, 16, 6, 8, generator=chance)
    references = [torch.randn(1, 16, 4, 4, generator=chance) for _ in range(images)]
    hidden = torch.randn(25, config.context_size, generator=chance)
    image_mask = torch.zeros(25, dtype=torch.bool)
    image_mask[3 : 3 + 16 * images] = True
    time = torch.tensor([700.0])
    grids = [awake.config.tile_grid] * images
    alone = awake.mmdit(x, time, hidden[None], image_mask, grids, references)
    longer = torch.randn(31, config.context_size, generator=chance)
    masks = [image_mask, torch.cat([image_mask, image_mask.new_zeros(6)])]
    context = objectives.make_context(awake, [hidden, longer], masks)
    together = awake.mmdit(
        x.expand(2, -1, -1, -1),
        time.expand(2),
        context.hidden,
        context.image_mask,
        context.image_grids,
        [r.expand(2, -1, -1, -1) for r in references],
        mask=objectives.joint_mask(awake, x, references, context.mask),
    )
    assert relative(together[:1], alone) < 1e-5


def test_attention_is_torchs():
    q, k, v = torch.randn(3, 2, 4, 7, 8, generator=torch.Generator().manual_seed(0)).unbind()
    fused = torch.nn.functional.scaled_dot_product_attention
    assert relative(masked_attention(q, k, v, is_causal=True), fused(q, k, v, is_causal=True)) < 1e-5
    mask = torch.arange(7) < torch.tensor([[5], [7]])
    assert relative(masked_attention(q, k, v, mask=mask), fused(q, k, v, mask[:, None, None])) < 1e-5


def test_noise_levels_are_shifted_as_the_samplers():
    """The σ at the middle of both is 0.75: three quarters of the way to noise."""
    stage = replace(CPU["stage1"], even=0.0)
    sigma = objectives.noise_levels(20_001, stage, torch.Generator().manual_seed(0))
    assert abs(float(sigma.median()) - float(flow_sigmas(20, 3.0)[10])) < 0.01
    logits = (sigma / (1 - sigma)).log()  # a shift by m moves a logit by log m
    assert abs(float(logits.mean()) - np.log(3)) < 0.03 and abs(float(logits.std()) - 1) < 0.03
    shifts = {stage.shift for preset in PRESETS.values() for stage in preset.values() if hasattr(stage, "shift")}
    assert shifts == {3.0} == {sizes.flow_shift for sizes in SIZES.values()}


def test_the_samplers_first_levels_are_trained():
    """Of the normal alone not one in a thousand is as high as the first three of 20 steps."""
    sigma = objectives.noise_levels(20_000, CPU["stage1"], torch.Generator().manual_seed(0))
    first = float(flow_sigmas(20, 3.0)[2])
    even = objectives.noise_levels(20_000, replace(CPU["stage1"], even=1.0), torch.Generator().manual_seed(0))
    assert abs(float((even > first).float().mean()) - 0.1) < 0.01  # 2 of 20
    assert float((sigma > first).float().mean()) > 0.02 and float(sigma.max()) > 0.999


def test_timesteps_are_those_of_inference(awake, monkeypatch):
    """Whole, and not rounded to bfloat16: what only ever saw multiples of 4 draws nothing in float32, at 983, say."""
    seen = []
    monkeypatch.setattr(awake.mmdit, "forward", lambda x, timestep, *args, **kwargs: seen.append(timestep) or x)
    stage = picture_stage(samples=64, batch=64, even=1.0)
    objectives.flow_loss(awake, Feed(awake, stage, torch.device("cpu")).batch(0), stage)
    (times,) = seen
    assert torch.equal(times, times.trunc()) and {int(t) % 4 for t in times if t > 512} == {0, 1, 2, 3}


def test_neighbouring_timesteps_look_alike_to_a_fresh_model(fresh):
    """Bfloat16 rounds 983 to 984; random weights on all of the embedding's sinusoids see no likeness in the two."""
    embedding = Networks(fresh).mmdit.time_text_embed
    near, at, far = embedding(torch.tensor([983.0, 984.0, 940.0]), torch.float32)
    assert relative(near, at) < 0.5 < relative(far, at)


# What is learnt


@pytest.mark.parametrize("preset", PRESETS)
def test_tasks_have_the_reports_shares(preset, monkeypatch):
    monkeypatch.setattr(synthesis, "make", lambda domain, task, seed, size, kind: task)
    stages = PRESETS[preset]
    for name in ("stage1", "stage2"):
        count = Counter(data.samples(replace(stages[name], samples=500)))
        assert count == {"draw": 400, "edit": 100}
    count = Counter(data.samples(replace(stages["stage3"], samples=1200)))
    assert count["draw"] + count["reason"] == count["edit"] == (count["ask"] + count["caption"]) / 2 == 300
    assert count["reason"] >= 75


def test_stage_0_draws_one_object_at_a_time():
    for stages in PRESETS.values():
        made = list(data.samples(replace(stages["stage0"], samples=40)))
        assert Counter(one.truth.kind for one in made) == {"single": 30, "colours": 10}
        assert all(len(one.truth.things) == 1 for one in made)


def cycle(stage):
    """(task, domain, kind) of each sample of a stage's first cycle."""
    orders = list(data.orders(replace(stage, samples=sum(share for _, share in stage.tasks))))
    return [(task, domain, synthesis.make(domain, task, *rest).truth.kind) for domain, task, *rest in orders]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_searching_is_practised_nearly_alone(preset):
    """Among all other questions it stays a guess."""
    made = cycle(preset["search"])
    assert [kind for *_, kind in made[:6]] == ["relation", "where", "describe", "relation", "colour", "shape"]
    others = {("ask", domain): 1 for domain in ("text", "science", "spatial", "humour", "reasoning")}
    assert Counter(one[:2] for one in made) == {("ask", "objects"): 10, ("reason", "reasoning"): 2} | others


def test_sizes_are_one_in_stage_1_and_many_in_stage_2():
    for stages in PRESETS.values():
        assert len(stages["stage1"].sides) == 1 and len({w / h for w, h in stages["stage2"].sides}) >= 5
    made = data.samples(picture_stage(sides=((64, 64), (48, 80)), samples=40))
    assert {one.picture.shape for one in made} == {(64, 64, 3), (80, 48, 3)}


def test_samples_are_the_same_from_several_processes(monkeypatch):
    stage = picture_stage(samples=6)
    alone = list(data.samples(stage))
    monkeypatch.setattr(data, "WORTH_WORKERS", 1)
    monkeypatch.setattr(data.os, "cpu_count", lambda: 2)
    divided = list(data.samples(stage))
    assert [one.prompt for one in divided] == [one.prompt for one in alone]
    assert all(np.array_equal(one.picture, other.picture) for one, other in zip(divided, alone, strict=True))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_letters_are_practised_nearly_alone(preset):
    made = cycle(replace(preset["words"], tasks=(("draw", 40),)))
    assert Counter(domain for _, domain, _ in made) == {"text": 30, "objects": 10}
    assert {kind for _, domain, kind in made if domain == "text"} == {"word"}


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("binding", {"word": 9, "single": 3, "position": 3, "two": 3, "attribution": 3, "counting": 2}),
        ("pairs", {"word": 3, "single": 9, "position": 1, "two": 4, "attribution": 3, "counting": 4}),
    ],
)
@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_binding_is_practised_on_what_has_several_places_and_keeps_the_rest_alive(preset, name, drawn):
    made = cycle(preset[name])
    assert preset[name].muon
    assert Counter(kind for task, _, kind in made if task == "draw") == drawn
    assert Counter(one[:2] for one in made if one[0] != "draw") == {("edit", "objects"): 3, ("reason", "reasoning"): 2}
    assert [kind for task, _, kind in made if task == "edit"][:2] == ["move", "replace"]


def test_kinds_are_taken_in_turn():
    stage = picture_stage(domains=(("objects", 1), ("text", 1)), kinds=("two", ""), samples=8)
    orders = [(domain, kind) for domain, _, _, _, kind in data.orders(stage)]
    assert orders == [("objects", "two"), ("text", None)] * 4


def test_a_task_can_name_its_domain():
    stage = picture_stage(tasks=(("draw", 2), ("edit/text", 1)), domains=(("objects", 1), ("text", 1)), samples=6)
    orders = [(domain, task) for domain, task, *_ in data.orders(stage)]
    assert orders == [("objects", "draw"), ("text", "draw"), ("text", "edit")] * 2
    with pytest.raises(InputError, match="'edit/science'"):
        list(data.orders(replace(stage, tasks=(("edit/science", 1),))))


def test_training_never_sees_evaluations_seeds(monkeypatch):
    seeds = []
    monkeypatch.setattr(synthesis, "make", lambda domain, task, seed, size, kind: seeds.append(seed))
    for seed in (0, 1):
        list(data.samples(picture_stage(samples=50, seed=seed)))
    assert len(set(seeds)) == 100 and not any(seed % 2 for seed in seeds)


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
        ("stage2", {"mmdit"}),
        ("stage3", {"vlm", "mmdit"}),
    ],
)
def test_a_stage_moves_its_own_parameters_and_no_others(fresh, tmp_path, name, learning):
    for preset in PRESETS.values():
        assert {prefix.rstrip(".") for prefix in preset[name].trained} == learning
    settings = {"steps": 2, "samples": 12, "batch": 12, "warmup": 0, "autocast": False, "sides": ((64, 64),)}
    run = Run(replace(CPU[name], **settings), fresh, tmp_path)
    before = {key: parameter.clone() for key, parameter in run.networks.named_parameters()}
    for _ in range(6 if name == "stage3" else 2):  # of one structure each
        run._take_step()
    moved = {key for key, parameter in run.networks.named_parameters() if not parameter.equal(before[key])}
    prefixes = tuple(prefix + "." for prefix in learning)
    assert all(key.startswith(prefixes) for key in moved)
    for prefix in prefixes:
        assert any(key.startswith(prefix) for key in moved), prefix
    assert len(moved) > 0.9 * sum(key.startswith(prefixes) for key in before) or "mmdit" in learning


def test_an_unknown_prefix_is_refused(awake):
    with pytest.raises(InputError, match="mmdti"):
        freeze(awake, ("mmdti.",))


def test_branches_are_dropped_as_often_as_asked(awake):
    """Every exercise once an epoch, its picture with the branch that this epoch has for it."""
    edits = [data.exercise(sample("edit", images=1), awake.conditioner, picture_stage())] * 2000
    for stage in (CPU["stage1"], CPU["stage2"], CPU["stage3"]):
        assert stage.drop_prompt == stage.drop_all == 0.05
    stage = picture_stage(drop_prompt=0.1, drop_all=0.3)
    items = [item for batch in data.plan_epoch(edits, stage, 0) for item in batch]
    assert sorted(item.index for item in items) == list(range(2000))
    count = Counter(item.branch for item in items)
    assert abs(count[data.PARTIAL] - 200) < 50 and abs(count[data.UNCONDITIONAL] - 600) < 80
    other = {item.index: item.branch for batch in data.plan_epoch(edits, stage, 1) for item in batch}
    assert any(other[item.index] != item.branch for item in items)
    never = data.plan_epoch(edits, picture_stage(drop_prompt=0.0, drop_all=0.0), 0)
    assert {item.branch for batch in never for item in batch} == {data.FULL}


def test_a_dropped_picture_is_trained_without_its_prompt_and_images(fresh):
    """Through to the batch: `unconditional` has neither, `partial` has the images and their latents."""
    networks = Networks(fresh)
    for drops, references, layout in (((1.0, 0.0), 1, 16), ((0.0, 1.0), 0, 0)):
        stage = picture_stage(tasks=(("edit", 1),), drop_prompt=drops[0], drop_all=drops[1], trained=("vlm.", "mmdit."))
        batch = Feed(networks, stage, torch.device("cpu")).batch(0)
        text = networks.conditioner.tokenizer.decode(batch.reading.ids[0].tolist())
        assert ("Generate an image based on reference images." in text) == bool(references)
        assert ("Here is a random image" in text) != bool(references)
        assert len(batch.references) == references and int(batch.reading.image_mask[0].sum()) == layout


def test_batches_are_of_one_structure_and_about_one_length(awake):
    exercises = [
        data.exercise(each, awake.conditioner, CPU["stage3"])
        for each in (sample("draw"), sample("edit", images=1), sample("ask", "Two.", 1), sample("reason", "Three."))
    ] * 9
    exercises += [
        data.exercise(sample("ask", "Orange."), awake.conditioner, CPU["stage3"])
    ]  # a question without a picture
    for batch in data.plan_epoch(exercises, replace(CPU["stage3"], batch=4), 0):
        chosen = [(exercises[item.index], item.branch) for item in batch]
        assert len(batch) <= 4 and len({data.structure(*each) for each in chosen}) == 1
        lengths = [data.length(*each) for each in chosen]
        assert max(lengths) - min(lengths) < 3 * data.LENGTH_STEP


def test_losses_are_weighted_1_to_20(awake):
    stage = replace(CPU["stage3"], drop_prompt=0.0, drop_all=0.0)
    assert (stage.text_weight, stage.flow_weight) == (1.0, 20.0)
    one = data.exercise(sample("reason", "Three."), awake.conditioner, stage)
    latents = torch.randn(1, 16, 8, 6, generator=torch.Generator().manual_seed(0))
    batch = data.Batch(
        weight=1.0,
        generator=torch.Generator().manual_seed(0),
        text=data.make_reading([one.text], [()], awake.conditioner),
        latents=latents,
        reading=data.make_reading([one.branches[data.FULL]], [()], awake.conditioner),
    )
    losses = objectives.losses(awake, batch, stage, 0)
    assert set(losses.parts) == {"text", "flow"}
    assert float(losses.total) == pytest.approx(float(losses.parts["text"] + 20 * losses.parts["flow"]), rel=1e-5)


def test_the_velocity_leads_from_the_picture_to_the_noise(awake, monkeypatch):
    """So that the sampler, which goes against it, arrives at the picture."""
    stage = picture_stage(samples=2, drop_prompt=0.0, drop_all=0.0)
    batch = Feed(awake, stage, torch.device("cpu")).batch(0)
    sigma, noise = torch.tensor([0.9, 0.25]), torch.randn(batch.latents.shape)

    def forward(x, timestep, *args, **kwargs):
        assert timestep.tolist() == [900, 250]
        assert torch.allclose(x - sigma[:, None, None, None] * (noise - batch.latents), batch.latents, atol=1e-5)
        return noise - batch.latents

    monkeypatch.setattr(objectives, "noise_levels", lambda *args: sigma)
    monkeypatch.setattr(objectives, "noise_like", lambda *args: noise)
    monkeypatch.setattr(awake.mmdit, "forward", forward)
    assert float(objectives.flow_loss(awake, batch, stage)) == 0


def test_the_vaes_losses_are_weighted_and_l1_is_ramped_in(awake):
    stage = CPU["vae"]
    for part in awake.vae.parameters():
        part.requires_grad_(True)
    pixels = data.to_pixels([sample("draw").picture])

    def at(step: int) -> objectives.Losses:
        return objectives.losses(awake, data.Batch(1.0, torch.Generator().manual_seed(0), pixels=pixels), stage, step)

    first, late = at(0), at(10**6)
    parts = {name: float(value.detach()) for name, value in late.parts.items()}
    full = 10 * parts["mse"] + stage.l1 * parts["l1"] + 1e-5 * parts["kl"]
    assert float(late.total) == pytest.approx(full, rel=1e-5)
    assert float(first.total) == pytest.approx(full - stage.l1 * parts["l1"] * (1 - 1 / stage.l1_ramp), rel=1e-5)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_vae_is_smoothed_before_its_decoder_learns_alone(preset):
    assert list(preset)[:3] == ["vae", "vae-smooth", "vae-decoder"]
    first, smooth, decoder = (preset[name] for name in ("vae", "vae-smooth", "vae-decoder"))
    assert (first.kl, smooth.kl) == (1e-5, 1e-3)
    assert (first.negatives, smooth.negatives, decoder.negatives) == (0, 0.25, 0.1)
    assert (first.noise, smooth.noise, decoder.noise) == (0, 0, 0.2)
    for stage in (smooth, decoder):  # 3 of 8 may have another background than white, and the rest are of all domains
        made = [synthesis.make(*order).truth.kind for order in data.orders(replace(stage, samples=80))]
        assert 30 <= made.count("single") <= 36 and len(set(made)) > 12


def test_a_share_of_the_vaes_pictures_is_shown_as_negatives(awake):
    def batch(share: float) -> tuple[torch.Tensor, torch.Tensor]:
        stage = replace(OVERFIT["vae"], samples=200, batch=200, negatives=share)
        feed = Feed(awake, stage, torch.device("cpu"))
        pictures = data.to_pixels([feed.exercises[item.index].picture for item in feed.plan(0)])
        return feed.batch(0).pixels, pictures

    pixels, pictures = batch(0.3)
    negative = (pixels == -pictures).flatten(1).all(1)
    assert ((pixels == pictures).flatten(1).all(1) ^ negative).all()
    assert 0.2 < float(negative.float().mean()) < 0.4
    pixels, pictures = batch(0.0)
    assert pixels.equal(pictures)


def test_the_decoder_alone_learns_from_the_encoders_mode_and_noise_of_many_strengths(awake, monkeypatch):
    seen = []
    monkeypatch.setattr(awake.vae.post_quant_conv, "forward", lambda x: seen.append(x) or torch.zeros_like(x))
    deviation = tuple(1 + i / 4 for i in range(16))
    monkeypatch.setattr(awake.vae, "config", replace(awake.vae.config, latents_std=deviation))
    freeze(awake, ("vae.decoder.", "vae.post_quant_conv."))
    pixels = data.to_pixels([sample("draw").picture] * 200)
    for noise in (0.0, 0.5):
        stage = replace(CPU["vae-decoder"], noise=noise)
        objectives.losses(awake, data.Batch(1.0, torch.Generator().manual_seed(0), pixels=pixels), stage, 0)
    mode = awake.vae.encode_raw(pixels)
    assert torch.allclose(seen[0], mode, atol=1e-5)
    added = (seen[1] - mode) / torch.tensor(deviation)[:, None, None]
    assert added.std((0, 2, 3)).tolist() == pytest.approx([0.5 / 3**0.5] * 16, rel=0.15)  # alike in all channels
    strengths = added.flatten(1).std(1)
    assert float(strengths.min()) < 0.05 and 0.45 < float(strengths.max()) < 0.55


def test_only_answers_are_trained_and_end_the_turn(awake):
    text = data.text_tokens(sample("ask", "Two red stars.", 1), awake.conditioner)
    trained = [token for token, on in zip(text.ids, text.trained, strict=True) if on]
    tokenizer = awake.conditioner.tokenizer
    assert tokenizer.decode(trained, keep=("<|im_end|>",)) == "Two red stars.<|im_end|>"
    prompt = data.text_tokens(sample("draw"), awake.conditioner)
    assert sum(prompt.trained) == len(prompt.ids) - prompt.start


def test_samples_of_which_nothing_is_learnt_are_refused(awake):
    with pytest.raises(InputError, match="'ask'"):
        data.exercise(sample("ask", "Two.", 1), awake.conditioner, CPU["stage1"])
    with pytest.raises(InputError, match="'ask'"):
        data.exercise(sample("ask", "Orange."), awake.conditioner, CPU["vae"])
    with pytest.raises(InputError, match="'sing'"):
        next(data.samples(picture_stage(tasks=(("sing", 1),))))


# Each loss overfits a handful of samples


OVERFIT = {
    "vae": VAEStage(
        trained=("vae.",),
        tasks=(("draw", 1),),
        sides=((48, 48),),
        samples=2,
        steps=100,
        batch=2,
        learning_rate=2e-3,
        l1_ramp=50,
        **LEARN,
    ),
    "mllm": TextStage(
        trained=("vlm.",), tasks=(("ask", 1),), samples=4, steps=60, batch=4, learning_rate=1e-2, **LEARN
    ),
    "stage1": picture_stage(samples=2, steps=150, learning_rate=6e-3, drop_prompt=0.0, drop_all=0.0),
}


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
        known = list(data.samples(OVERFIT[name]))
        answers = [
            trained.answer(one.prompt, [Image.fromarray(i) for i in one.images], max_new_tokens=9) for one in known
        ]
        assert [answer.text for answer in answers] == [one.words for one in known]
    if name == "vae":  # latents are about standard normal
        latents = trained.vae.encode(data.to_pixels([one.picture for one in data.samples(OVERFIT[name])]))
        assert abs(float(latents.mean())) < 0.1 and abs(float(latents.std()) - 1) < 0.1


def test_another_decoder_leaves_the_latents_where_they_were(fresh, tmp_path):
    stage = replace(OVERFIT["vae"], trained=CPU["vae-decoder"].trained, steps=1)
    Run(stage, fresh, tmp_path).train()
    before, after = (Networks(folder).config.vae for folder in (fresh, tmp_path / "checkpoint"))
    assert (after.latents_mean, after.latents_std) == (before.latents_mean, before.latents_std)


# Adapters


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Two captioned pictures and an edit, of which one is larger than the model draws."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size, text in (("a", (48, 48), "a red star"), ("b", (64, 48), "a ring"), ("c", (96, 80), "make it blue")):
        chance = np.random.default_rng(len(text))
        for ending in ("", ".before")[: 1 + (name == "c")]:
            levels = chance.integers(0, 255, (2, 2, 3), dtype=np.uint8)
            Image.fromarray(levels).resize(size).save(folder / f"{name}{ending}.png")
        (folder / f"{name}.txt").write_text(f"{text}\n", encoding="utf-8")
    return folder


def test_a_folder_of_pictures(awake, pictures):
    Image.new("RGB", (700, 400)).save(pictures / "c.png")
    found = read_folder(pictures, awake.config.processor)
    assert [(one.task, one.prompt) for one in found] == [
        ("draw", "a red star"),
        ("draw", "a ring"),
        ("edit", "make it blue"),
    ]
    assert [one.picture.shape for one in found] == [(48, 48, 3), (48, 64, 3), (80, 96, 3)]
    assert [len(one.images) for one in found] == [0, 0, 1]


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda folder: (folder / "a.png").unlink(), "a.txt needs one picture a.png"),
        (lambda folder: (folder / "b.txt").write_text(" "), "b.txt is empty"),
        (lambda folder: (folder / "b.txt").write_text("naïve", encoding="latin-1"), "b.txt is not in UTF-8"),
        (lambda folder: (folder / "c.png").write_text("no picture"), "c.png cannot be read"),
        (lambda folder: [file.unlink() for file in folder.glob("*.txt")], "has no NAME.txt"),
    ],
)
def test_a_folder_that_cannot_be_learnt_from(awake, pictures, spoil, words):
    spoil(pictures)
    with pytest.raises(InputError, match=words):
        read_folder(pictures, awake.config.processor)


def test_pictures_before_an_edit_are_taken_by_their_numbers(awake, pictures):
    for number, grey in ((10, 40), (2, 30)):
        Image.new("RGB", (48, 48), (grey,) * 3).save(pictures / f"c.before{number}.png")
    Image.new("RGB", (48, 48)).save(pictures / "c.beforehand.png")
    (pictures / "c.beforehand.txt").write_text("night", encoding="utf-8-sig")
    other, edit = read_folder(pictures, awake.config.processor)[2:]
    assert [image.mean() for image in edit.images[1:]] == [30, 40]
    assert (other.task, other.prompt) == ("draw", "night")


@pytest.mark.parametrize("network", ["mmdit", "vlm"])
def test_an_adapter_learns_and_its_file_says_all_of_it(fresh, awake, pictures, tmp_path, network):
    base = tmp_path / "base"
    write_checkpoint(base, fresh, awake, ("mmdit.",), torch.float32)
    prefix = {"mmdit": "mmdit.", "vlm": "vlm.language_model."}[network]
    rank, alpha = 8, 16.0
    stage = LoraStage(
        trained=(prefix,),
        pictures=str(pictures),
        rank=rank,
        alpha=alpha,
        steps=90,
        batch=1,
        learning_rate=1e-2,
        **LEARN,
    )
    run = Run(stage, base, tmp_path / "run")
    before = {name: parameter.clone() for name, parameter in run.networks.named_parameters()}
    start = run.feed.batch(0)
    run.train()
    assert all(parameter.equal(before[name]) for name, parameter in run.networks.named_parameters())

    tensors = load_file(tmp_path / "run" / "lora.safetensors")
    merged, socket = Networks(base), {"mmdit": "diffusion_model.", "vlm": "text_encoders."}[network]
    layers = {name.removesuffix(".alpha") for name in tensors if name.endswith(".alpha")}
    assert len(tensors) == 3 * len(layers)
    for layer in layers:
        assert tensors[f"{layer}.alpha"] == alpha and len(tensors[f"{layer}.lora_down.weight"]) == rank
        delta = tensors[f"{layer}.lora_up.weight"] @ tensors[f"{layer}.lora_down.weight"]
        weight = merged.get_submodule(f"{network}.{layer.removeprefix(socket)}").weight
        weight.data += alpha / rank * delta
    assign(run.trained, run.ema)
    with torch.no_grad():
        values = []
        for networks in (run.networks, merged, Networks(base)):
            start.generator.manual_seed(0)
            batch = start if network == "mmdit" else Feed(networks, stage, torch.device("cpu")).batch(0)
            batch.generator.manual_seed(0)
            values.append(float(objectives.flow_loss(networks, batch, stage)))
    adapted, from_file, untaught = values
    assert abs(adapted / from_file - 1) < 1e-5
    # A random MMDiT makes little of what it is told.
    assert adapted < untaught * (0.8 if network == "mmdit" else 0.999)


def test_one_command_teaches_an_adapter(fresh, pictures, tmp_path, capsys):
    arguments = ["lora", str(tmp_path), "--base", str(fresh)]
    tiny = ["--set", "steps=2", "--set", "batch=2"]
    assert command.main([*arguments, "--pictures", str(pictures), *tiny]) == 0
    assert (tmp_path / "lora" / "lora.safetensors").stat().st_size > 1000
    assert command.main(arguments) == 2
    assert "--pictures" in capsys.readouterr().err
    assert command.main([*arguments, "--pictures", str(pictures), *tiny, "--set", 'layers=["nothing"]']) == 2
    Image.new("RGB", (48, 48)).save(pictures / "a.png")  # latents of other pictures are of no use
    assert command.main([*arguments, "--pictures", str(pictures), *tiny]) == 2
    assert "other settings (pictures)" in capsys.readouterr().err


# Runs


def test_the_learning_rate_warms_up_and_decays():
    stage = picture_stage(steps=100, warmup=10, decay=0.5, learning_rate=1.0)
    rates = [learning_rate(stage, step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9:51] == [1.0] * 42 and rates[75] == pytest.approx(0.5) and 0 < rates[-1] <= 0.02


def test_muon_turns_hidden_matrices_and_adamw_moves_the_rest(fresh, awake, tmp_path):
    """Muon's update has one size in all directions, by which its elements are as large as AdamW's usually are, 0.2
    learning rates; AdamW's first is the learning rate everywhere."""
    checkpoint = tmp_path / "awake"
    write_checkpoint(checkpoint, fresh, awake, ("mmdit.",), torch.float32)
    run = Run(picture_stage(muon=True, warmup=0, learning_rate=1e-3), checkpoint, tmp_path / "run")
    before = {name: parameter.detach().clone() for name, parameter in run.trained.items()}
    run._take_step()
    steps = {name: (parameter.detach() - before[name]) / 1e-3 for name, parameter in run.trained.items()}
    turned = [name for name in steps if name.endswith((".to_q.weight", "img_mlp.net.0.proj.weight"))]
    assert len(turned) == 4
    for name in turned:
        singular = torch.linalg.svdvals(steps[name]) / (0.2 * max(steps[name].shape) ** 0.5)
        assert singular[:8].min() > 0.7 and singular.max() < 1.3, name  # of a gradient's own the first is far above
    for name in ("mmdit.img_in.weight", "mmdit.transformer_blocks.0.img_mod.1.weight", "mmdit.proj_out.bias"):
        assert steps[name].abs().median() == pytest.approx(1, abs=0.01), name


@pytest.mark.parametrize(("capability", "on"), [("AVX2", False), ("AVX512", True)])
def test_bfloat16_is_for_machines_that_have_it(fresh, tmp_path, monkeypatch, capability, on):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    run = Run(picture_stage(autocast=True), fresh, tmp_path)
    seen, original = [], objectives.losses
    monkeypatch.setattr(
        objectives, "losses", lambda *args: seen.append(torch.is_autocast_enabled("cpu")) or original(*args)
    )
    run._accumulate()
    assert seen == [on]


def test_muon_is_refused_where_torch_has_none(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(InputError, match=r"torch 2\.9.*muon=false"):
        make_optimizers(picture_stage(muon=True), {"mmdit.attn.to_q.weight": torch.nn.Parameter(torch.ones(2, 2))})


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", ["pictures", "pictures by muon", "words"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(fresh, tmp_path, monkeypatch, kind):
    """At a random step, between two saves. In the middle of a step everything that counts is still the saved state."""
    settings = {"tasks": (("draw", 2), ("edit", 1)), "samples": 9, "steps": 8, "batch": 3, "save_every": 3, "ema": 0.9}
    stage = picture_stage(**settings, drop_prompt=0.2, drop_all=0.2, muon="muon" in kind)
    if kind == "words":
        stage = TextStage(trained=("vlm.",), **{**LEARN, **settings, "tasks": (("ask", 2), ("draw", 1))})
    Run(stage, fresh, tmp_path / "whole").train()
    at = random.randrange(1, 8)

    def losses(networks, batch, stage, step, original=objectives.losses):
        if step == at:
            raise Killed
        return original(networks, batch, stage, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(objectives, "losses", losses)
        Run(stage, fresh, tmp_path / "killed").train()
    resumed = Run(stage, fresh, tmp_path / "killed")
    assert resumed.step == at // 3 * 3
    resumed.train()
    whole, killed = entries(tmp_path / "whole"), entries(tmp_path / "killed")
    assert [entry["step"] for entry in killed] == list(range(1, 9))
    assert [entry["loss"] for entry in killed] == pytest.approx([entry["loss"] for entry in whole], abs=1e-5)
    ends = [InternVLU.from_pretrained(tmp_path / name / "checkpoint") for name in ("whole", "killed")]
    for network in ("vlm", "mmdit"):
        pairs = zip(*(getattr(end, network).parameters() for end in ends), strict=True)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_what_is_written_is_the_average_of_the_weights(fresh, tmp_path):
    Run(picture_stage(), fresh, tmp_path).train()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    written = dict(Networks(tmp_path / "checkpoint").named_parameters())
    assert all(torch.equal(written[name], value) for name, value in state["ema"].items())
    assert not all(torch.equal(written[name], value) for name, value in state["model"].items())


def test_a_run_with_other_settings_is_refused(fresh, tmp_path):
    Run(picture_stage(), fresh, tmp_path)
    with pytest.raises(InputError, match="batch"):
        Run(picture_stage(batch=3), fresh, tmp_path)


def test_a_run_that_made_nothing_claims_nothing(fresh, tmp_path):
    with pytest.raises(CheckpointError):
        Run(picture_stage(), tmp_path / "missing", tmp_path / "run")
    with pytest.raises(InputError, match="mmdti"):
        Run(picture_stage(trained=("mmdti.",)), fresh, tmp_path / "run")
    assert Run(picture_stage(batch=3), fresh, tmp_path / "run").step == 0


def test_what_cannot_be_written_in_the_end_is_refused_at_the_start(fresh, tmp_path):
    (file,) = convert(fresh, tmp_path / "one.safetensors", "single")
    with pytest.raises(InputError, match="released layout"):
        Run(picture_stage(), file, tmp_path / "run")


def test_adapters_of_two_single_files_are_two_runs(fresh, awake, pictures, tmp_path):
    write_checkpoint(tmp_path / "awake", fresh, awake, ("mmdit.",), torch.float32)
    stage = LoraStage(trained=("mmdit.",), pictures=str(pictures), batch=1, **LEARN)
    folders = fresh, tmp_path / "awake"
    bases = [convert(folder, tmp_path / f"{folder.name}.safetensors", "single")[0] for folder in folders]
    Run(stage, bases[0], tmp_path / "run")
    with pytest.raises(InputError, match="base"):
        Run(stage, bases[1], tmp_path / "run")


def test_writing_what_there_is_leaves_the_log_alone(fresh, tmp_path):
    with pytest.raises(InputError, match="no saved step"):
        Run(picture_stage(save_every=3), fresh, tmp_path).write()
    Run(picture_stage(save_every=3), fresh, tmp_path).train()
    log = tmp_path / "log.jsonl"
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save(state | {"step": 3}, tmp_path / "state.pt")  # as while step 4 of a running one is not saved yet
    Run(picture_stage(save_every=3), fresh, tmp_path).write()
    assert [entry["step"] for entry in entries(tmp_path)] == [1, 2, 3, 4] and log.stat().st_nlink == 1


def test_a_gradient_that_is_not_finite_spoils_no_weights(fresh, tmp_path, monkeypatch):
    run = Run(picture_stage(), fresh, tmp_path)
    before = {name: parameter.detach().clone() for name, parameter in run.trained.items()}
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args: torch.tensor(torch.inf))
    with pytest.raises(FloatingPointError, match=r"step 1 .* gradient of inf"):
        run.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in run.trained.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("samples=0", "samples is 0"),
        ("save_every=0", "save_every is 0"),
        ('domains=[["object",1]]', "'object'; there are objects"),
        ("sides=[[32,32]]", "too small"),
        ('kinds=["word"]', "kind 'word'"),
    ],
)
def test_settings_that_cannot_be_are_named(fresh, tmp_path, capsys, change, message):
    arguments = ["stage1", str(tmp_path), "--base", str(fresh), "--set", "samples=2", "--set", change]
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_two_processes_equal_twice_the_accumulation(fresh, tmp_path):
    changes = ["steps=3", "samples=12", "batch=2", "autocast=false", "warmup=0"]
    alone = changed(CPU["stage3"], [*changes, "accumulate=4"])
    Run(alone, fresh, tmp_path / "alone").train()
    arguments = [flag for change in [*changes, "accumulate=2"] for flag in ("--set", change)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    module = ["-m", "internvlu_train", "stage3", str(tmp_path / "two"), "--base", str(fresh), *arguments]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    if os.name == "nt":
        environment["USE_LIBUV"] = "0"  # torch for Windows may be built without it, and is then not told by itself
    done = subprocess.run(
        [*launch, *module], env=os.environ | environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    both = [entries(folder) for folder in (tmp_path / "alone", tmp_path / "two" / "stage3")]
    assert len(both[0]) == 3
    for one, two in zip(*both, strict=True):
        assert {key: one[key] for key in ("loss", "text", "flow", "norm") if key in one} == pytest.approx(
            {key: two[key] for key in ("loss", "text", "flow", "norm") if key in two}, rel=1e-4
        )


def test_processes_wait_while_one_makes_a_large_cache(fresh, tmp_path):
    assert Run(picture_stage(), fresh, tmp_path).accelerator.init_handler.timeout >= timedelta(hours=12)


def test_recomputing_activations_changes_no_gradient(fresh, tmp_path):
    stage = picture_stage(trained=("vlm.", "mmdit."), tasks=(("edit", 1),), samples=2, steps=2)
    gradients = []
    for number, checkpointing in enumerate((False, True)):
        run = Run(replace(stage, checkpointing=checkpointing), fresh, tmp_path / str(number))
        run._take_step()
        run._take_step()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in run.trained.values()]))
    assert gradients[0].abs().sum() > 0 and relative(gradients[1], gradients[0]) < 1e-5


def test_one_command_per_stage_and_what_it_writes_draws(fresh, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(command.SIZES, "cpu", TINY)
    monkeypatch.setattr(command, "TOKENIZER_SAMPLES", 50)
    assert command.main(["new", str(tmp_path)]) == 0
    tiny = ["--set", "steps=2", "--set", "samples=8", "--set", "batch=4"]
    for stage in command.ORDER[1 : command.ORDER.index("lora")]:
        assert command.main([stage, str(tmp_path), *tiny]) == 0, stage
        assert {file.name for file in (tmp_path / stage).iterdir()} >= {
            "checkpoint",
            "log.jsonl",
            "loss.png",
            "state.pt",
        }
    model = InternVLU.from_pretrained(tmp_path / "stage3" / "checkpoint", dtype=torch.bfloat16)
    drawn = model.generate("a red star", steps=2).images[0]
    assert drawn.size == (64, 64)
    assert model.generate("make it blue", [drawn], steps=2).images[0].size == (64, 64)
    assert model.answer("what is it?", [drawn], max_new_tokens=3).token_ids
    assert command.main(["stage1", str(tmp_path), "--set", "stepz=2"]) == 2
    assert "stepz" in capsys.readouterr().err
