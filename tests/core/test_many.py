"""Many requests in one process: each result is that of its request alone, whatever it shared a batch with."""

import gc
import itertools
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from internvlu_core import DrawRequest, InputError, InternVLU, TextRequest
from internvlu_core.batching import BatchLimits, TextBatch, TextJob
from internvlu_core.decoding import TextSettings, generate_tokens
from internvlu_core.many import HELD, Order, Outcome
from internvlu_core.models.language import KVCache, PackedPrompts, Qwen3, RowCache, cache_bytes
from support.checkpoints import copy_checkpoint
from support.networks import tiny_language
from support.tensors import noise, relative


class Cancelled(Exception):
    pass


def levels(picture) -> np.ndarray:
    return np.asarray(picture, dtype=int)


def broken_picture() -> Image.Image:
    """A picture whose file is cut off, which is noticed when it is read."""

    class Broken(Image.Image):
        def load(self):
            raise OSError("image file is truncated")

        def convert(self, *args, **kwargs):
            self.load()

    picture = Broken()
    picture._size, picture._mode = (8, 8), "RGB"
    return picture


# Text


def text_requests(photo, tall) -> list:
    """Prompts and answers of different lengths, pictures, tiles, a conversation's settings, seeds; three that fail."""
    return [
        TextRequest("What is <image>?", [photo], max_new_tokens=20),
        {"prompt": "Hello there " * 30, "max_new_tokens": 5, "temperature": 1.0, "seed": 3},
        {"prompt": "x", "images": [tall], "max_tiles": 4, "max_new_tokens": 30, "temperature": 0.7, "top_p": 0.9},
        {"prompt": "A broken one", "images": [broken_picture()]},
        {"prompt": "Beams", "num_beams": 3, "max_new_tokens": 8},
        {"prompt": "a " * 9000},
        {"prompt": "Which?", "images": [photo, tall], "max_new_tokens": 1},
        {"prompt": "Of many", "max_new_tokens": 25, "temperature": 1.3, "top_k": 40, "seed": 5},
        {"prompt": "No such setting", "colour": "red"},
        {"prompt": "Be brief.", "system_prompt": "You are terse.", "max_new_tokens": 12},
    ]


def seeded(requests: list) -> list:
    """Sampling without a seed cannot be compared."""
    return [r | {"seed": 9} if isinstance(r, dict) and "top_p" in r else r for r in requests]


@pytest.fixture(scope="module")
def alone(model):
    """alone(request) → the result of answer, or its error; the request once only."""
    known = {}

    def run(number, request):
        if number not in known:
            try:
                arguments = {} if isinstance(request, TextRequest) else dict(request)
                prompt = request if isinstance(request, TextRequest) else arguments.pop("prompt")
                known[number] = model.answer(prompt, **arguments)
            except (ValueError, TypeError, OSError) as error:
                known[number] = error
        return known[number]

    return run


@pytest.mark.parametrize(
    "limits", [{}, {"rows": 1}, {"rows": 3}, {"cache_bytes": 0}, {"cache_bytes": 500_000}], ids=str
)
def test_answers_equal_single_ones(model, photo, tall, alone, limits):
    requests = seeded(text_requests(photo, tall))
    outcomes = list(model.answer_many(iter(requests), **limits))
    assert sorted(outcome.index for outcome in outcomes) == list(range(len(requests)))
    for outcome in outcomes:
        request, expected = requests[outcome.index], alone(outcome.index, requests[outcome.index])
        assert outcome.request is request
        if isinstance(expected, Exception):
            assert outcome.result is None and repr(outcome.error) == repr(expected)
            with pytest.raises(type(expected)):
                outcome.unwrap()
        else:
            assert outcome.unwrap() == expected  # text and tokens
    failed = {outcome.index: type(outcome.error) for outcome in outcomes if outcome.error}
    assert failed == {3: InputError, 5: InputError, 8: TypeError}


def test_reasonings_equal_single_ones(model, photo):
    requests = [{"prompt": "a cat", "max_new_tokens": 9}, TextRequest("a hat", [photo], max_new_tokens=14)]
    requests += [{"prompt": "a star"}, {"prompt": "no tiles here", "max_tiles": 2}, 3]
    outcomes = list(model.reason_many(requests, ordered=True))
    assert [outcome.index for outcome in outcomes] == list(range(5))
    expected = [model.reason("a cat", max_new_tokens=9), model.reason(requests[1]), model.reason("a star")]
    assert [outcome.unwrap() for outcome in outcomes[:3]] == expected
    assert all(outcome.unwrap().prefix_cache is None for outcome in outcomes[:3])
    assert str(outcomes[3].error) == "unknown settings: max_tiles"
    assert str(outcomes[4].error) == "a request must be a TextRequest or a mapping of its settings, not int"
    (without,) = model.answer_many([{"max_new_tokens": 3}])
    assert str(without.error) == "the request has no prompt"


def test_ordered_or_as_they_end(model):
    requests = [{"prompt": "a", "max_new_tokens": n} for n in (12, 2, 7)]
    assert [outcome.index for outcome in model.answer_many(requests)] == [1, 2, 0]
    assert [outcome.index for outcome in model.answer_many(requests, ordered=True)] == [0, 1, 2]


def test_requests_are_taken_when_there_is_room(model):
    taken = []

    def endless():
        for index in itertools.count():
            taken.append(index)
            yield {"prompt": f"Question {index}", "max_new_tokens": 3 + index % 2}

    outcomes = model.answer_many(endless(), rows=2)
    assert taken == []
    for done in range(1, 7):
        next(outcomes)
        assert len(taken) <= done + 2 and list(taken) == list(range(len(taken)))
    outcomes.close()
    with pytest.raises(RuntimeError, match="the list ended badly"):

        def broken():
            yield {"prompt": "a", "max_new_tokens": 2}
            raise RuntimeError("the list ended badly")

        list(model.answer_many(broken()))


def test_progress_and_cancelling_of_texts(model):
    seen = []
    requests = [{"prompt": "a", "max_new_tokens": 4}, {"prompt": "Beams", "max_new_tokens": 4, "num_beams": 2}]
    results = {o.index: o.result for o in model.answer_many(requests, on_token=lambda *args: seen.append(args))}
    assert [tokens for index, tokens, _ in seen if index == 0] == [1, 2, 3, 4]
    assert [tokens for index, tokens, _ in seen if index == 1] == [1, 2, 3]  # of running beams, as in answer
    assert [args for args in seen if args[0] == 0][-1] == (0, 4, results[0].text)
    for request in requests:

        def cancel(index, tokens, text):
            if tokens == 2:
                raise Cancelled

        with pytest.raises(Cancelled):
            list(model.answer_many([request], on_token=cancel))


@pytest.mark.parametrize("limits", [{"rows": 0}, {"rows": 1.5}, {"cache_bytes": -1}, {"cache_bytes": "1"}], ids=str)
def test_impossible_limits_are_named(model, limits):
    (name,) = limits
    with pytest.raises(InputError, match=rf"{name} is {limits[name]!r}"):
        model.answer_many([], **limits)


# The decoding loop


def jobs_of(vlm, sizes, embed=None):
    """Texts of (prompt tokens, new tokens); the prompts are random."""
    width = vlm.language_model.config.hidden_size
    for number, (tokens, new) in enumerate(sizes):
        x = noise(1, tokens, width, seed=number)
        yield lambda x=x, new=new: TextJob(x.shape[1], lambda: x, TextSettings(new))


def finish(batch: TextBatch) -> dict:
    with torch.inference_mode():
        return dict(batch.run())


def test_the_cache_is_bounded_and_its_rows_are_used_again(monkeypatch):
    vlm = tiny_language(seed=4, max_positions=4096)
    sizes = [(10, 20), (300, 5), (4, 3), (30, 100), (7, 7), (900, 4), (12, 30), (3, 1), (40, 9), (5, 20)] * 2
    per_token = cache_bytes(vlm.language_model.config, torch.float32)
    reserved, used = [], []
    reserve, begin = RowCache.reserve, RowCache.begin
    monkeypatch.setattr(RowCache, "reserve", lambda s, *room: (reserved.append(room), reserve(s, *room))[-1])
    monkeypatch.setattr(RowCache, "begin", lambda s, tokens: (used.append(len(s.lengths)), begin(s, tokens))[-1])
    limits = BatchLimits(rows=4, cache_bytes=3000 * per_token)
    found = finish(TextBatch(vlm, (), jobs_of(vlm, sizes), limits))
    for index, (make, (_, new)) in enumerate(zip(jobs_of(vlm, sizes), sizes, strict=True)):
        assert found[index] == generate_tokens(vlm, make().embed(), (), TextSettings(new)), index
    assert max(used) == 4
    assert all(rows * capacity <= 3000 and rows <= 4 for rows, capacity in reserved)
    assert len(reserved) < len(sizes)


def test_a_text_larger_than_the_limit_is_written_alone():
    vlm = tiny_language(seed=4, max_positions=4096)
    steps, embed = [], vlm.embed_generated
    vlm.embed_generated = lambda ids: (steps.append(len(ids)), embed(ids))[-1]
    limits = BatchLimits(cache_bytes=600 * cache_bytes(vlm.language_model.config, torch.float32))
    found = finish(TextBatch(vlm, (), jobs_of(vlm, [(5, 6), (700, 4), (5, 6), (6, 6)]), limits))
    assert [len(found[i]) for i in range(4)] == [6, 4, 6, 6]
    assert steps == [1] * 5 + [1] * 3 + [2] * 5


def reads(monkeypatch) -> list[tuple[int, ...]]:
    """The prompts, in tokens, of each forward that reads prompts."""
    seen, forward = [], Qwen3.forward

    def spy(self, x, select, cache=None):
        seen.extend([cache.prompts] if isinstance(cache, PackedPrompts) else [])
        return forward(self, x, select, cache)

    monkeypatch.setattr(Qwen3, "forward", spy)
    return seen


def test_waiting_prompts_are_read_in_one_forward_of_bounded_size(monkeypatch):
    monkeypatch.setattr("internvlu_core.batching.READ_TOKENS", 50)
    vlm, seen = tiny_language(seed=4), reads(monkeypatch)
    sizes = [(20, 3), (25, 9), (8, 9), (60, 9), (4, 9), (5, 9), (6, 9)]
    found = finish(TextBatch(vlm, (), jobs_of(vlm, sizes), BatchLimits(rows=6)))
    assert seen == [(20, 25), (8,), (60,), (4, 5), (6,)]  # the last one in the place of the first
    for index, (make, (_, new)) in enumerate(zip(jobs_of(vlm, sizes), sizes, strict=True)):
        assert found[index] == generate_tokens(vlm, make().embed(), (), TextSettings(new)), index


def test_a_prompt_that_cannot_be_read_is_an_error_of_its_text_only(monkeypatch):
    """Nor is too little memory for several prompts at once one of any of them."""
    vlm, sizes = tiny_language(seed=4), [(20, 3), (25, 9), (8, 9)]
    forward = Qwen3.forward

    def short_of_memory(self, x, select, cache=None):
        states = forward(self, x, select, cache)
        if x.shape[1] > limit:
            raise MemoryError
        return states

    monkeypatch.setattr(Qwen3, "forward", short_of_memory)
    for failing in ([], [1]):
        limit = 22 if failing else 30
        found = finish(TextBatch(vlm, (), jobs_of(vlm, sizes), BatchLimits()))
        assert [i for i in range(3) if isinstance(found[i], MemoryError)] == failing
        for index, (make, (_, new)) in enumerate(zip(jobs_of(vlm, sizes), sizes, strict=True)):
            if index not in failing:
                assert found[index] == generate_tokens(vlm, make().embed(), (), TextSettings(new)), index


def test_none_means_not_yet():
    vlm = tiny_language(seed=4)
    first, second = jobs_of(vlm, [(5, 4), (6, 4)])
    found = finish(TextBatch(vlm, (), [first, None, None, second, None], BatchLimits()))
    assert sorted(found) == [0, 1]


def test_logits_that_are_not_finite_are_an_error_of_their_row_only():
    """In the prompt, or in the midst; and the row is clean for the next text."""
    vlm = tiny_language(seed=4)
    prompts = list(jobs_of(vlm, [(5, 9), (6, 9), (7, 9), (8, 9)]))
    expected = [generate_tokens(vlm, make().embed(), (), TextSettings(9)) for make in prompts]
    poison = TextJob(3, lambda: torch.full_like(noise(1, 3, 40), float("nan")), TextSettings(9))
    embed = vlm.embed_generated
    token = expected[1][3]  # after which the second text breaks, and maybe another

    def broken(ids):
        return embed(ids).masked_fill((ids == token)[..., None], float("nan"))

    found = finish(TextBatch(vlm, (), [prompts[0], lambda: poison, *prompts[1:]], BatchLimits(rows=2)))
    assert isinstance(found.pop(1), FloatingPointError)
    assert list(found[i] for i in (0, 2, 3, 4)) == expected
    vlm.embed_generated = broken
    found = finish(TextBatch(vlm, (), prompts, BatchLimits(rows=2)))
    assert isinstance(found[1], FloatingPointError)
    for index, tokens in enumerate(expected):
        fails = token in tokens[:-1]
        assert isinstance(found[index], FloatingPointError) if fails else found[index] == tokens
    assert any(isinstance(tokens, list) for tokens in found.values())


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 4}, {"attention_bias": True, "tied_head": True}], ids=str)
def test_rows_read_what_single_texts_read(changes):
    """Hidden states of each row, after rows have moved and grown."""
    vlm = tiny_language(seed=2, **changes)
    config, language = vlm.language_model.config, vlm.language_model
    last = (config.num_layers,)
    cache = RowCache(config, dtype=torch.float32, device="cpu")
    cache.reserve(3, 16)
    texts, prompts = [], [noise(1, length, config.hidden_size, seed=length) for length in (3, 9, 5)]
    for some in (prompts[:1], prompts[1:]):
        lengths = tuple(x.shape[1] for x in some)
        (found,) = language(torch.cat(some, 1), last, PackedPrompts(cache, lengths))
        for x, states in zip(some, found.split(lengths, 1), strict=True):
            texts.append(KVCache(config, 1, 40, dtype=torch.float32, device="cpu"))
            (expected,) = language(x, last, texts[-1])
            assert relative(states, expected) < 1e-5
    for step in range(8):
        if step == 3:
            cache.remove(0)
            texts = [texts[2], texts[1]]
        if step == 5:
            cache.reserve(4, 40)
        x = noise(len(texts), 1, config.hidden_size, seed=50 + step)
        (found,) = language(x, last, cache)
        for row, text in enumerate(texts):
            (expected,) = language(x[row : row + 1], last, text)
            assert relative(found[row], expected[0]) < 1e-5
    assert cache.lengths == [text.length for text in texts] == [13, 17]


def test_results_wait_for_their_turn_but_not_without_end():
    order = Order(True)
    for index in range(1, HELD + 1):
        assert not order.full
        assert list(order.give(Outcome(index, None))) == []
    assert order.full
    assert [outcome.index for outcome in order.give(Outcome(0, None))] == list(range(HELD + 1))
    assert not order.full


def test_no_request_begins_while_too_many_results_wait(model, monkeypatch):
    monkeypatch.setattr("internvlu_core.many.HELD", 2)
    begun = []

    def requests():
        for index in range(9):
            begun.append(index)
            yield {"prompt": f"Q{index}", "max_new_tokens": 1 if index else 6}

    outcomes = model.answer_many(requests(), rows=2, ordered=True)
    assert next(outcomes).index == 0 and len(begun) <= 5
    assert [outcome.index for outcome in outcomes] == list(range(1, 9))


# Pictures

SIZE = {"height": 64, "width": 80, "steps": 3}


def draw_requests(photo, tall) -> list:
    """Two sizes, references, scales, reasoning, negatives and several pictures; three that fail."""
    return [
        {"prompt": "a cat", **SIZE, "seed": 1},
        DrawRequest("a hat", [photo], **SIZE, seed=2, all_scale=3.0, partial_scale=1.2),
        {"prompt": "of another size", "height": 96, "width": 96, "steps": 2},
        {"prompt": "a broken one", "images": [broken_picture()], **SIZE},
        {"prompt": "thought", **SIZE, "seed": 4, "reasoning": "because"},
        {"prompt": "two of them", **SIZE, "seed": 4, "num_images": 2},
        {"prompt": "a mix", "images": [photo, tall], **SIZE, "seed": 5, "negative": "rain"},
        {"prompt": "impossible", "steps": 0},
        {"prompt": "a " * 9000, **SIZE},
        {"prompt": "off the grid", "height": 70, "width": 90, "steps": 3},
        {"prompt": "other steps", **SIZE | {"steps": 2}},
    ]


def draw_alone(model, request):
    if isinstance(request, DrawRequest):
        return model.generate(request)
    return model.generate(request["prompt"], **{k: v for k, v in request.items() if k != "prompt"})


@pytest.mark.parametrize("limits", [{}, {"pictures": 1}, {"pictures": 3, "ordered": True}, {"memory": 0}], ids=str)
def test_pictures_equal_single_ones(model, photo, tall, limits):
    requests = draw_requests(photo, tall)
    outcomes = list(model.generate_many(iter(requests), **limits))
    assert sorted(outcome.index for outcome in outcomes) == list(range(len(requests)))
    if limits.get("ordered"):
        assert [outcome.index for outcome in outcomes] == list(range(len(requests)))
    failed = {outcome.index: type(outcome.error) for outcome in outcomes if outcome.error}
    assert failed == {3: InputError, 7: InputError, 8: InputError}
    for outcome in outcomes:
        assert outcome.request is requests[outcome.index]
        if outcome.error:
            continue
        single, found = draw_alone(model, requests[outcome.index]), outcome.unwrap()
        assert relative(found.latents, single.latents) < 1e-5
        assert len(found.images) == len(single.images)
        for one, other in zip(found.images, single.images, strict=True):
            assert one.size == other.size and np.abs(levels(one) - levels(other)).max() <= 1


@pytest.mark.parametrize(
    ("limits", "sizes"), [({}, [5]), ({"pictures": 2}, [2, 2, 1]), ({"memory": 0}, [1] * 5)], ids=["all", "two", "one"]
)
def test_how_many_are_drawn_together(model, limits, sizes):
    seen = []
    requests = ({"prompt": f"cat {i}", **SIZE, "seed": i} for i in range(5))
    list(model.generate_many(requests, **limits, callback=lambda index, step, steps, x: seen.append((step, index))))
    runs = [len(list(group)) for (step), group in itertools.groupby(seen, key=lambda entry: entry[0])]
    assert runs == [size for size in sizes for _ in range(3)]


def test_half_of_the_memory_is_half_of_the_pictures(model):
    drawing = model._drawing(DrawRequest("cat", **SIZE))
    needed = model._working_bytes(drawing)
    branches = [drawing.context.full, drawing.context.unconditional]
    tokens = sum(4 * 5 + len(branch.hidden) for branch in branches)
    assert needed == tokens * 13 * model.config.mmdit.hidden_size * 4
    edit = model._working_bytes(model._drawing(DrawRequest("cat", [Image.new("RGB", (64, 64))], **SIZE)))
    assert edit > 1.5 * needed
    seen = set()
    requests = [{"prompt": "cat", **SIZE, "seed": i} for i in range(5)]
    list(model.generate_many(requests, memory=2 * needed, callback=lambda i, step, *_: step or seen.add(i)))
    assert seen == set(range(5))


def test_pictures_are_taken_when_there_is_room(model):
    taken = []

    def endless():
        for index in itertools.count():
            taken.append(index)
            yield {"prompt": "cat", **SIZE, "steps": 1 + index % 2, "seed": index}

    outcomes = model.generate_many(endless(), pictures=2)
    assert taken == []
    next(outcomes)
    assert len(taken) == 3  # until a second one with as many steps as the first


def test_outcomes_are_not_kept(model):
    """Memory does not grow with the list."""
    alive = []
    for outcome in model.generate_many(({"prompt": "cat", **SIZE, "seed": i} for i in range(6)), pictures=2):
        alive.append(weakref.ref(outcome.result.latents))
        del outcome
    gc.collect()
    assert sum(ref() is not None for ref in alive) <= 2


def test_cancelling_pictures(model):
    def cancel(index, step, steps, latents):
        if (index, step) == (1, 1):
            raise Cancelled

    with pytest.raises(Cancelled):
        list(model.generate_many([{"prompt": "cat", **SIZE}, {"prompt": "hat", **SIZE}], callback=cancel))
    for limits in ({"pictures": 0}, {"memory": -1}):
        with pytest.raises(InputError, match="must be from"):
            model.generate_many([], **limits)


def test_pictures_that_do_not_fit_into_memory_together_are_drawn_apart(model, monkeypatch):
    """And one that does not fit alone is an error of its own."""
    sample, tried = model._sample_entries, []

    def little_memory(entries, callback):
        tried.append([entry.index for entry in entries])
        if len(entries) > 1 or entries[0].index == 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return sample(entries, callback)

    requests = [{"prompt": "cat", **SIZE, "seed": number} for number in range(4)]
    monkeypatch.setattr(model, "_sample_entries", little_memory)
    outcomes = list(model.generate_many(requests, ordered=True))
    assert tried == [[0, 1, 2, 3], [0, 1], [0], [1], [2, 3], [2], [3]]
    assert [type(outcome.error) for outcome in outcomes] == [type(None)] * 2 + [torch.cuda.OutOfMemoryError, type(None)]
    monkeypatch.undo()
    assert torch.allclose(outcomes[3].result.latents, model.generate(**requests[3]).latents, atol=1e-5)


def test_latents_that_are_not_finite_are_an_error_of_their_picture_only(model, monkeypatch):
    requests = [{"prompt": prompt, **SIZE} for prompt in ("cat", "hat", "dog")]
    encode = model.encode

    def broken(request):
        context = encode(request)
        hidden = context.full.hidden * (float("nan") if request.prompt == "hat" else 1)
        return replace(context, full=replace(context.full, hidden=hidden))

    monkeypatch.setattr(model, "encode", broken)
    first, second, third = model.generate_many(requests, ordered=True)
    assert isinstance(second.error, FloatingPointError) and "smaller scales" in str(second.error)
    for outcome in (first, third):
        single = draw_alone(model, outcome.request)
        assert relative(outcome.unwrap().latents, single.latents) < 1e-5


# With weights that wait in main memory


def test_other_calls_between_outcomes_with_offloaded_weights(tmp_path):
    """Which need another network on the device than the batch does."""
    folder = copy_checkpoint(tmp_path / "checkpoint")
    whole = InternVLU.from_pretrained(folder, "cpu", torch.float32)
    sizes = [sum(t.nbytes for t in network.state_dict().values()) for network in (whole.vlm, whole.mmdit, whole.vae)]
    model = InternVLU.from_pretrained(folder, "cpu", torch.float32, device_map="auto", max_memory=max(sizes) + 1)
    requests = [{"prompt": f"Question {i}", "max_new_tokens": 3 + i} for i in range(4)]
    for outcome in model.answer_many(requests, rows=2):
        expected = whole.answer(outcome.request["prompt"], max_new_tokens=outcome.request["max_new_tokens"])
        assert outcome.unwrap() == expected
        model.generate("cat", **SIZE)
