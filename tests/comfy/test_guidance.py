"""Three-branch guidance: guider, patch, one-node sampler and core agree; hooks of other nodes; crossed wires."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from internvlu_core import InternVLU
from internvlu_core.guidance import combine
from internvlu_core.sampling import flow_sigmas, sigma_to_timestep
from support.bench import (
    EDIT_PROMPT,
    HEIGHT,
    PROMPT,
    SEED,
    SHAPE,
    STEPS,
    WIDTH,
    Bench,
    assert_differs,
    assert_equal,
    difference,
    simple_sigmas,
)
from support.checkpoints import copy_checkpoint
from support.comfy_server import ComfyError
from support.stock_sampling import patched_options, stock_guider, with_hooks
from support.workflows import assert_close_pictures, picture_of

SCALES = [(4.5, 2.0), (3.5, 1.5), (1.0, 1.0), (6.0, 0.0), (0.0, 0.0)]
BATCH = 2


# The three ways to the official guidance. Each: (graph, model, scales, latent, changed conditionings) → LATENT.


def branches(s, **changes):
    return {name: getattr(s, name) for name in ("full", "partial", "unconditional")} | changes


def by_node(s, model, scales=(4.5, 2.0), latent=None, **changes):
    all_scale, partial_scale = scales
    return s.g.InternVLUSampler(
        model=model,
        **branches(s, **changes),
        latent_image=latent or s.empty,
        seed=SEED,
        steps=STEPS,
        all_scale=all_scale,
        partial_scale=partial_scale,
        denoise=1.0,
    )


def by_guider(s, model, scales=(4.5, 2.0), latent=None, **changes):
    guider = s.g.InternVLUGuider(model=model, **branches(s, **changes), all_scale=scales[0], partial_scale=scales[1])
    return official(s, guider, latent)


def official(s, guider, latent=None):
    """SamplerCustomAdvanced with our noise levels and our sampler."""
    return s.g.SamplerCustomAdvanced(
        noise=s.g.RandomNoise(noise_seed=SEED),
        guider=guider,
        sampler=s.g.InternVLUSamplerSelect(),
        sigmas=s.g.InternVLUScheduler(steps=STEPS, shift=3.0, denoise=1.0),
        latent_image=latent or s.empty,
    )


def patched(s, model, scales, changes):
    conds = branches(s, **changes)
    model = s.g.InternVLUGuidance(model=model, partial=conds["partial"], partial_scale=scales[1])
    return model, conds["full"], conds["unconditional"]


def by_patch(s, model, scales=(4.5, 2.0), latent=None, after=lambda model: model, **changes):
    """after: another node behind the patch."""
    model, full, unconditional = patched(s, model, scales, changes)
    guider = s.g.CFGGuider(model=after(model), positive=full, negative=unconditional, cfg=scales[0])
    return official(s, guider, latent)


def by_sampler_custom(s, model, scales=(4.5, 2.0), latent=None, **changes):
    model, full, unconditional = patched(s, model, scales, changes)
    return s.g.SamplerCustom(
        model=model,
        add_noise=True,
        noise_seed=SEED,
        cfg=scales[0],
        positive=full,
        negative=unconditional,
        sampler=s.g.InternVLUSamplerSelect(),
        sigmas=s.g.InternVLUScheduler(steps=STEPS, shift=3.0, denoise=1.0),
        latent_image=latent or s.empty,
    )


ROUTES = {"node": by_node, "guider": by_guider, "patch": by_patch, "custom": by_sampler_custom}


def latents_of(bench, route, edit, change=lambda s, model: model, prepare=lambda s: {}, **inputs):
    """(latents, calls) by one route. change: another node in front of the route, on the MODEL."""
    s = bench.graph(edit)
    counter = s.g.DebugCount(model=change(s, s.model))
    out = bench.run(s.g, calls=counter[1], latent=ROUTES[route](s, counter, **inputs, **prepare(s)))
    return out.latent["samples"], out.calls


@pytest.mark.parametrize("edit", [False, True], ids=["t2i", "edit"])
@pytest.mark.parametrize("scales", SCALES)
def test_all_routes_equal_the_core(bench, edit, scales):
    """A batch of 2, by every route in one prompt."""
    s = bench.graph(edit)
    latent = s.g.InternVLUEmptyLatent(width=WIDTH, height=HEIGHT, batch_size=BATCH)
    out = bench.run(s.g, **{name: route(s, s.model, scales, latent) for name, route in ROUTES.items()})
    model = bench.dual(bench.context(edit), *scales)
    expected = bench.official(model, x=bench.noise((BATCH, *SHAPE[1:])))
    for name in ROUTES:
        assert_equal(getattr(out, name)["samples"], expected)


@pytest.mark.parametrize("edit", [False, True], ids=["t2i", "edit"])
def test_ksampler_with_the_patch(bench, edit):
    """KSampler takes no SIGMAS, so it follows stock noise levels; the guidance at each is the core's."""
    s = bench.graph(edit)
    latents, calls = bench.ksample(s, model=s.g.InternVLUGuidance(model=s.model, partial=s.partial, partial_scale=2.0))
    assert [call["rows"] for call in calls] == [3 if edit else 2] * STEPS
    assert_equal(latents, bench.euler(bench.dual(bench.context(edit)), simple_sigmas()))


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_the_same_is_evaluated_once(bench, route):
    """Text to image: partial is unconditional, told by identity. The results equal brute force over three branches."""

    def copied(s):
        # A range over all steps changes nothing but the identity.
        return {"partial": s.g.ConditioningSetTimestepRange(conditioning=s.partial, start=0.0, end=1.0)}

    once, calls = latents_of(bench, route, edit=False)
    brute, brute_calls = latents_of(bench, route, edit=False, prepare=copied)
    # One forward a step, whatever the lengths of the branches in it.
    assert [call["rows"] for call in calls] == [2] * STEPS
    assert [call["rows"] for call in brute_calls] == [3] * STEPS
    assert_equal(once, brute)
    assert_equal(brute, bench.official(bench.dual(bench.context())))
    _, calls = latents_of(bench, route, edit=True)
    assert [call["rows"] for call in calls] == [3] * STEPS


# Automatic scales

OWN = {"guidance_scales": [2.0, 1.2], "guidance_scales_reasoned": [1.8, 1.1]}
AUTOMATIC = (-1.0, -1.0)


@pytest.fixture(scope="module")
def own(bench, photo):
    """The workbench on a checkpoint whose scales are not the released one's."""
    folder = bench.server.base_dir / "models" / "internvl_u" / "own"
    copy_checkpoint(folder, {"generation_decoder/config.json": OWN})
    return Bench(bench.server, InternVLU.from_pretrained(folder, device="cpu", dtype=torch.float32), photo)


def own_graph(own, edit: bool, reasoning: str | None):
    s = own.graph(edit)
    inputs = {node["class_type"]: node["inputs"] for node in s.g.prompt.values()}
    inputs["InternVLULoader"]["checkpoint"] = "own"
    if reasoning is not None:
        inputs["InternVLUEncode"]["reasoning_text"] = [s.g.PrimitiveString(value=reasoning).id, 0]
    return s


@pytest.mark.parametrize("edit", [False, True], ids=["t2i", "edit"])
@pytest.mark.parametrize(("reasoning", "scales"), [(None, (2.0, 1.2)), ("", (2.0, 1.2)), ("A hat.", (1.8, 1.1))])
def test_automatic_scales_are_the_checkpoint_s(own, edit, reasoning, scales):
    """In the nodes as in InternVLU.generate: those for reasoning, if there was any. A number that is given wins."""
    context = own.context(edit, reasoning=reasoning or None)
    s = own_graph(own, edit, reasoning)
    # Stock nodes that change a conditioning leave it the one of reasoning.
    changed = s.g.ConditioningCombine(
        conditioning_1=s.g.ConditioningSetTimestepRange(conditioning=s.full, start=0.0, end=1.0), conditioning_2=s.full
    )
    patched = by_patch(s, s.model, (scales[0], -1.0))  # cfg is the stock node's own number
    out = own.run(
        s.g,
        node=by_node(s, s.model, AUTOMATIC),
        guider=by_guider(s, s.model, (-0.1, -0.5)),
        changed=by_guider(s, s.model, AUTOMATIC, full=changed),
        patch=patched,
        given=by_node(s, s.model, (4.5, 2.0)),
        half=by_node(s, s.model, (4.5, -1.0)),
        zero=by_node(s, s.model, (0.0, 0.0)),
    )
    expected = own.official(own.dual(context, *scales))
    for name in ("node", "guider", "changed", "patch"):
        assert_equal(getattr(out, name)["samples"], expected)
    for name, given in {"given": (4.5, 2.0), "half": (4.5, scales[1]), "zero": (0.0, 0.0)}.items():
        assert_equal(getattr(out, name)["samples"], own.official(own.dual(context, *given)))
    drawn = own.core.generate(
        EDIT_PROMPT if edit else PROMPT,
        [own.photo] if edit else None,
        reasoning=reasoning or None,
        width=WIDTH,
        height=HEIGHT,
        steps=STEPS,
        seed=SEED,
    )
    assert_equal(own.normal(expected)[:, :, 0], drawn.latents)


def test_the_plot_shows_the_scales_that_were_used(own):
    s = own_graph(own, edit=True, reasoning="A hat.")
    shown = {}
    for name, scales in {"automatic": AUTOMATIC, "same": (1.8, 1.1), "other": (4.5, 2.0)}.items():
        sampled = by_node(s, s.model, scales)
        s.g.prompt[sampled.id]["inputs"]["guidance_plot"] = True
        shown[name] = s.g.PreviewImage(images=sampled[1])
    result = own.server.run(s.g.prompt)
    pictures = {name: picture_of(own.server, result, node.id).tobytes() for name, node in shown.items()}
    assert pictures["automatic"] == pictures["same"] != pictures["other"]


def test_automatic_is_what_a_new_node_has(bench):
    for node, names in {
        "InternVLUSampler": ["all_scale", "partial_scale"],
        "InternVLUGuider": ["all_scale", "partial_scale"],
        "InternVLUGuidance": ["partial_scale"],
    }.items():
        inputs = bench.info[node]["input"]["required"]
        assert [(inputs[name][1]["default"], inputs[name][1]["min"]) for name in names] == [(-1.0, -1.0)] * len(names)


# Hooks of other nodes

HOOKS = {
    "APG": ("nodes_apg", {"eta": 0.5, "norm_threshold": 5.0, "momentum": 0.3}),
    "TCFG": ("nodes_tcfg", {}),
    "CFGNorm": ("nodes_cfg", {"strength": 0.9}),
    "Mahiro": ("nodes_mahiro", {}),
    "FreSca": ("nodes_fresca", {"scale_low": 0.5, "scale_high": 2.0, "freq_cutoff": 2}),
}
PLACES = ["node", "guider", "before the patch", "behind the patch"]


def with_other_node(bench, place, edit, add):
    """(latents, calls) with another node at a place. add: (s, model) → model."""
    if place == "behind the patch":
        s = bench.graph(edit)
        counts = []

        def after(model):
            counter = s.g.DebugCount(model=add(s, model))
            counts.append(counter[1])
            return counter

        latent = by_patch(s, s.model, after=after)
        out = bench.run(s.g, calls=counts[0], latent=latent)
        return out.latent["samples"], out.calls
    return latents_of(bench, {"before the patch": "patch"}.get(place, place), edit, change=add)


def guided(bench, context, options):
    """The core's guidance under other nodes' hooks: they see full and unconditional first, the partial one behind."""

    def model(x, sigma):
        order = context.full, context.unconditional, context.partial
        outputs = [bench.denoised(branch, x, sigma) for branch in order]

        def guide(outputs):
            full, unconditional, middle = ((x - denoised) / sigma for denoised in outputs)
            if context.partial is context.unconditional:
                middle = unconditional
            step = sigma_to_timestep(sigma).item()
            return x - sigma * combine(full, middle, unconditional, 4.5, 2.0, step)

        return with_hooks(stock_guider(None).inner_model, options, x, sigma, outputs, 4.5, guide)

    return model


@pytest.mark.parametrize("edit", [False, True], ids=["t2i", "edit"])
@pytest.mark.parametrize("name", HOOKS)
def test_cfg_hooks(bench, name, edit):
    module, inputs = HOOKS[name]
    context = bench.context(edit)
    plain = bench.official(bench.dual(context))
    for place in PLACES:
        latents, calls = with_other_node(bench, place, edit, lambda s, model: getattr(s.g, name)(model=model, **inputs))
        assert sum(call["rows"] for call in calls) == (3 if edit else 2) * STEPS
        # Anew each time: APG keeps a running average.
        options = patched_options(f"comfy_extras.{module}", name, **inputs)
        assert_equal(latents, bench.official(guided(bench, context, options)), 3e-5)
        assert_differs(latents, plain)


@pytest.mark.parametrize("edit", [False, True], ids=["t2i", "edit"])
@pytest.mark.parametrize("name", ["SkipLayerGuidanceDiT", "SkipLayerGuidanceDiTSimple"])
def test_skip_layer_guidance(bench, name, edit):
    """One more forward of the full branch; or the unconditional one without a block."""
    simple = name.endswith("Simple")
    inputs = {"double_layers": "1", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0}
    inputs |= {} if simple else {"scale": 2.0}
    results = []
    for place in PLACES:
        latents, calls = with_other_node(bench, place, edit, lambda s, model: getattr(s.g, name)(model=model, **inputs))
        assert sum(call["rows"] for call in calls) == ((3 if edit else 2) + (not simple)) * STEPS
        results.append(latents)
    for latents in results[1:]:
        assert_equal(latents, results[0])
    assert_differs(results[0], bench.official(bench.dual(bench.context(edit))))


@pytest.mark.parametrize("edit", [False, True], ids=["t2i", "edit"])
@pytest.mark.parametrize("name", ["EasyCache", "LazyCache"])
def test_caches(bench, name, edit):
    """Threshold 0 changes nothing; above it, whole steps are left out, and the same ones wherever the node stands."""
    expected = bench.official(bench.dual(bench.context(edit)))
    for threshold in (0.0, 3.0):
        results = {}
        for place in PLACES:
            inputs = {"reuse_threshold": threshold, "start_percent": 0.0, "end_percent": 1.0}
            results[place] = with_other_node(
                bench, place, edit, lambda s, model, i=inputs: getattr(s.g, name)(model=model, **i)
            )
        for latents, calls in results.values():
            assert_equal(latents, results["guider"][0])
            assert [call["t"] for call in calls] == [call["t"] for call in results["guider"][1]]
        latents, calls = results["guider"]
        rows, evaluations = [call["rows"] for call in calls], 3 if edit else 2
        if threshold:
            assert rows == [evaluations] * 2, "the first two steps must run, the third is left out"
            assert difference(latents, expected) < 2
        else:
            assert rows == [evaluations] * STEPS
            assert_equal(latents, expected)


# A range of steps

RANGE = {"start_percent": 0.3, "end_percent": 0.6}  # of three steps the second one


def limited(s, model):
    return s.g.InternVLUGuidanceRange(model=model, **RANGE)


@pytest.mark.parametrize("edit", [False, True], ids=["t2i", "edit"])
def test_guidance_range(bench, edit):
    """Outside of it one row a step, of the full branch; the same wherever the node stands, and as in the core."""
    context = bench.context(edit)
    sigmas = flow_sigmas(STEPS).tolist()

    def model(x, sigma):
        return bench.dual(context)(x, sigma) if sigma == sigmas[1] else bench.denoised(context.full, x, sigma)

    expected = bench.official(model)
    for place in PLACES:
        latents, calls = with_other_node(bench, place, edit, limited)
        assert [call["rows"] for call in calls] == [1, 3 if edit else 2, 1]
        assert_equal(latents, expected)
    core = bench.core.sample(context, bench.noise()[:, :, 0], flow_sigmas(STEPS), 4.5, 2.0, guided=(0.3, 0.6))
    assert_equal(bench.normal(expected)[:, :, 0], core)
    assert_differs(expected, bench.official(bench.dual(context)))


def test_guidance_range_of_stock_guidance(bench):
    """A KSampler without the patch has two branches; the whole range changes nothing."""
    s = bench.graph(edit=True)
    whole, calls = bench.ksample(s, model=s.g.InternVLUGuidanceRange(model=s.model))
    assert [call["rows"] for call in calls] == [2] * STEPS
    s = bench.graph(edit=True)
    assert_equal(whole, bench.ksample(s)[0])
    s = bench.graph(edit=True)
    _, calls = bench.ksample(s, model=limited(s, s.model))
    assert [call["rows"] for call in calls] == [1, 2, 1]


def test_guidance_range_beside_other_nodes(bench):
    """The plot has a value for each step; hooks and caches are those of ComfyUI at cfg 1."""
    s = bench.graph(edit=True)
    sampled = by_node(s, limited(s, s.model))
    s.g.prompt[sampled.id]["inputs"]["guidance_plot"] = True
    bench.run(s.g, plot=sampled[1], latent=sampled)
    for name, inputs in {
        "APG": HOOKS["APG"][1],
        "RescaleCFG": {"multiplier": 0.7},
        "SkipLayerGuidanceDiT": {"double_layers": "1", "single_layers": "", "end_percent": 1.0},
        "EasyCache": {"reuse_threshold": 0.0, "start_percent": 0.0, "end_percent": 1.0},
    }.items():
        latents, calls = latents_of(
            bench, "node", True, lambda s, model, n=name, i=inputs: limited(s, getattr(s.g, n)(model=model, **i))
        )
        assert latents.isfinite().all() and len(calls) >= STEPS


@pytest.mark.parametrize("edit", [False, True], ids=["t2i", "edit"])
def test_guidance_range_that_starts_where_easycache_would_leave_a_step_out(bench, edit):
    """Its first step is evaluated, for nothing is known of the other branches."""
    late, cache = {"start_percent": 0.65, "end_percent": 1.0}, {"reuse_threshold": 3.0, "start_percent": 0.0}

    def nodes(s, model, cached=True):
        model = s.g.EasyCache(model=model, **cache, end_percent=1.0) if cached else model
        return s.g.InternVLUGuidanceRange(model=model, **late)

    for place in PLACES:
        latents, calls = with_other_node(bench, place, edit, nodes)
        assert [call["rows"] for call in calls] == [1, 1, 3 if edit else 2]
        assert_equal(latents, with_other_node(bench, place, edit, lambda s, model: nodes(s, model, cached=False))[0])


def test_guidance_range_that_ends_before_it_starts(bench):
    s = bench.graph()
    model = s.g.InternVLUGuidanceRange(model=s.model, start_percent=0.6, end_percent=0.5)
    with pytest.raises(ComfyError, match=r"start_percent is 0.6, end_percent 0.5"):
        bench.run(s.g, latent=by_node(s, model))


def test_cfg_function_is_without_effect_and_says_so(bench):
    latents, _ = latents_of(
        bench, "guider", edit=True, change=lambda s, model: s.g.RescaleCFG(model=model, multiplier=0.7)
    )
    assert_equal(latents, bench.official(bench.dual(bench.context(edit=True))))
    assert "without effect on three branches" in bench.server.log.read_text(encoding="utf-8", errors="replace")


# Wires


def edit_and_text(bench):
    """A graph with an edit's conditionings, and s.text, those of a text-to-image prompt."""
    s = bench.graph(edit=True)
    s.text = s.g.InternVLUEncode(vlm=s.vlm, prompt=PROMPT)
    return s


@pytest.mark.parametrize("route", ["node", "guider", "patch"])
def test_text_to_image_in_an_edit(bench, route):
    """All three of a prompt without pictures: a drawing of the edit's size. The full one alone: an error."""
    s = edit_and_text(bench)
    text = {"full": s.text[0], "partial": s.text[1], "unconditional": s.text[2]}
    edit = s.g.InternVLUEdit(vlm=s.vlm, vae=s.vae, image=s.photo)
    out = bench.run(s.g, latent=ROUTES[route](s, s.model, latent=edit[1], **text))
    latents = out.latent["samples"]
    assert_equal(latents, bench.official(bench.dual(bench.context()), x=bench.noise(latents.shape)))

    s = edit_and_text(bench)
    with pytest.raises(ComfyError, match=r"“images only” .partial. sees pictures, “positive” .full. none"):
        bench.run(s.g, latent=ROUTES[route](s, s.model, full=s.text[0]))


@pytest.mark.parametrize("route", ["node", "guider", "patch"])
def test_swapped_conditionings(bench, route):
    """In an edit an error. In text to image nothing tells a prompt from a blank one: the formula as it is wired."""
    for swap, words in [
        (("full", "unconditional"), "“images only” .partial. sees pictures, “positive” .full. none"),
        (("partial", "unconditional"), "“negative” .unconditional. sees pictures, “images only” .partial. none"),
    ]:
        s = bench.graph(edit=True)
        changes = {swap[0]: getattr(s, swap[1]), swap[1]: getattr(s, swap[0])}
        with pytest.raises(ComfyError, match=words):
            bench.run(s.g, latent=ROUTES[route](s, s.model, **changes))

    def swapped(s):
        return {"full": s.unconditional, "partial": s.full, "unconditional": s.full}

    latents, calls = latents_of(bench, route, edit=False, prepare=swapped)
    assert [call["rows"] for call in calls] == [2] * STEPS
    context = bench.context()
    context = replace(context, full=context.unconditional, partial=context.full, unconditional=context.full)
    assert_equal(latents, bench.official(bench.dual(context)))


def foreign_vae(bench, s, channels):
    """Another model's VAE by the stock loader: a TAESD of random weights."""
    from support.inprocess import load_pack

    load_pack()
    import comfy.taesd.taesd

    file = f"foreign{channels}.safetensors"
    torch.manual_seed(0)
    network = comfy.taesd.taesd.TAESD(latent_channels=channels)
    folder = bench.server.base_dir / "models" / "vae"
    folder.mkdir(exist_ok=True)
    if not (folder / file).exists():
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / file)
    return s.g.VAELoader(vae_name=file)


def foreign_latent(bench, s, channels):
    return s.g.VAEEncode(pixels=s.photo, vae=foreign_vae(bench, s, channels))


def foreign_model(bench, s):
    return {"model": s.g.DebugForeignModel()}


def foreign_start(bench, s):
    image = s.g.ImageScale(image=s.photo, width=64, height=64, upscale_method="area", crop="disabled")
    return {"latent": s.g.VAEEncode(pixels=image, vae=foreign_vae(bench, s, 4))}


def foreign_vae_in_encode(bench, s):
    encode = s.g.InternVLUEncode(vlm=s.vlm, prompt=EDIT_PROMPT, image1=s.photo, vae=foreign_vae(bench, s, 4))
    return {"full": encode[0], "partial": encode[1], "unconditional": encode[2]}


def foreign_reference(bench, s, channels):
    return {"full": s.g.ReferenceLatent(conditioning=s.full, latent=foreign_latent(bench, s, channels))}


def foreign_conditioning(bench, s):
    return {"full": bench.tensor(s.g, "foreign.safetensors", torch.zeros(1, 77, 768))[4]}


@pytest.mark.parametrize("route", ["node", "guider", "patch"])
@pytest.mark.parametrize(
    ("wire", "words"),
    [
        (foreign_model, ["for InternVL-U", "BaseModel"]),
        (foreign_start, ["a latent has 4 channels, InternVL-U's have 16", "VAE"]),
        (foreign_vae_in_encode, ["4 dimensions", "another model's VAE"]),
        (partial(foreign_reference, channels=4), ["4 dimensions", "another model's VAE"]),
        (partial(foreign_reference, channels=16), ["4 dimensions", "another model's VAE"]),
        (foreign_conditioning, ["768", "InternVL-U Encode"]),
    ],
    ids=["model", "latent", "encode", "reference of 4 channels", "reference of 16 channels", "conditioning"],
)
def test_foreign_parts(bench, route, wire, words):
    s = bench.graph()
    wired = wire(bench, s)
    with pytest.raises(ComfyError) as caught:
        bench.run(s.g, latent=ROUTES[route](s, wired.pop("model", s.model), **wired))
    for word in words:
        assert word in str(caught.value)


def test_zeros_of_four_channels_are_an_empty_latent(bench):
    s = bench.graph()
    latent = s.g.EmptyLatentImage(width=WIDTH, height=HEIGHT, batch_size=1)
    out = bench.run(s.g, latent=by_guider(s, s.model, latent=latent))
    assert_equal(out.latent["samples"], bench.official(bench.dual(bench.context())))


@pytest.mark.parametrize("edit", [False, True], ids=["t2i", "edit"])
def test_of_two_patches_the_last_counts(bench, edit):
    s = bench.graph(edit)
    first = s.g.InternVLUGuidance(model=s.model, partial=s.partial, partial_scale=7.0)
    latents, _ = bench.ksample(s, model=s.g.InternVLUGuidance(model=first, partial=s.partial, partial_scale=2.0))
    assert_equal(latents, bench.euler(bench.dual(bench.context(edit)), simple_sigmas()))


def test_patch_under_other_guiders(bench):
    """It needs a positive and a negative conditioning, and no other."""
    s = bench.graph(edit=True)
    model = s.g.InternVLUGuidance(model=s.model, partial=s.partial)
    with pytest.raises(ComfyError, match="not with a Guider_Basic"):
        bench.run(s.g, latent=official(s, s.g.BasicGuider(model=model, conditioning=s.full)))
    s = bench.graph(edit=True)
    with pytest.raises(ComfyError, match="not with a DualGuider"):
        bench.run(s.g, latent=by_guider(s, s.g.InternVLUGuidance(model=s.model, partial=s.partial)))


# The official pictures


@pytest.mark.parametrize("route", ["guider", "custom"])
@pytest.mark.parametrize("case", ["t2i", "edit", "edit_small"])
def test_official_pictures(bench, recorded, route, case):
    """The one-node sampler's are in test_workflows. KSampler cannot: it takes neither our SIGMAS nor our SAMPLER; the
    nearest stock node that takes them is SamplerCustom, here with the patch."""
    case, tensors = recorded(case)
    s = bench.graph()
    pictures = {}
    if "images" in case:
        pictures = {"image1": s.g.LoadImage(image=case["images"][0]), "vae": s.vae}
    encode = s.g.InternVLUEncode(vlm=s.vlm, prompt=case["prompt"], **pictures)
    latent = s.g.InternVLUEmptyLatent(width=case["width"], height=case["height"])
    conds = {"full": encode[0], "partial": encode[1], "unconditional": encode[2]}
    sampled = ROUTES[route](s, s.model, latent=latent, **conds)
    s.g.prompt[sampled.id]["inputs"]["noise_seed"] = case["seed"]
    for node in s.g.prompt.values():
        for name, value in {"noise_seed": case["seed"], "steps": case["steps"]}.items():
            if name in node["inputs"]:
                node["inputs"][name] = value
    saved = s.g.PreviewImage(images=s.g.VAEDecode(samples=sampled, vae=s.vae))
    result = bench.server.run(s.g.prompt)
    assert_close_pictures(picture_of(bench.server, result, saved.id), tensors["images"][0])
