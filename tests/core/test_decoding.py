"""Choosing tokens: stop rules, sampling, seeds, callbacks, and beams as Hugging Face's `generate` searches them."""

import warnings
from collections import Counter

import pytest
import torch

from internvlu_core import InputError
from internvlu_core.decoding import Text, TextSettings, generate_tokens, next_tokens
from support.networks import language_config, tiny_language
from support.tensors import noise

QUESTION = {"prompt": "What is a cat?", "max_new_tokens": 12}


class Cancelled(Exception):
    pass


# One token


def allowed(logits, **settings) -> set[int]:
    """Every token that can come out: seen in so many draws that one of 1% stays unseen less than once in 10^17."""
    return set(draws(logits, 4000, seed=0, **({"temperature": 1.0} | settings)))


def draws(logits, count: int, **settings) -> list[int]:
    """So many next tokens of one text, in one call: all rows have the text's settings and draw from its generator."""
    return next_tokens(logits.expand(count, -1), [Text((), TextSettings(1, **settings))] * count)


PROBABILITIES = torch.tensor([0.05, 0.4, 0.03, 0.3, 0.02, 0.2])


@pytest.mark.parametrize(
    "settings, tokens",
    [
        ({}, {0, 1, 2, 3, 4, 5}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 3, 5}),
        ({"top_k": 50}, {0, 1, 2, 3, 4, 5}),
        # The smallest set of the most probable tokens that reaches top_p: 0.4, 0.7, 0.9, 0.95, 0.98, 1.
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.41}, {1, 3}),
        ({"top_p": 0.69}, {1, 3}),
        ({"top_p": 0.71}, {1, 3, 5}),
        ({"top_p": 0.94}, {0, 1, 3, 5}),
        ({"top_p": 0.97}, {0, 1, 2, 3, 5}),
        ({"top_p": 1e-6}, {1}),
        ({"top_p": 1e-17}, {1}),
        # top_k first: what is left sums to 0.9, so 0.4 and 0.3 are 0.78 of it.
        ({"top_k": 3, "top_p": 0.77}, {1, 3}),
        ({"top_k": 3, "top_p": 0.79}, {1, 3, 5}),
        # Temperature before both: at 0.5 the probabilities are squared, and 0.16 and 0.09 are 0.85 of their sum.
        ({"temperature": 0.5, "top_p": 0.84}, {1, 3}),
        ({"temperature": 0.5, "top_p": 0.86}, {1, 3, 5}),
        ({"temperature": 0.0}, {1}),
        ({"temperature": 0.02}, {1}),
    ],
    ids=str,
)
def test_allowed_tokens(settings, tokens):
    assert allowed(PROBABILITIES.log() + 3.0, **settings) == tokens


def test_texts_together_draw_what_each_draws_alone():
    logits = noise(6, 5000, seed=3) * 4
    chosen = [{}, {"top_p": 0.8}, {"top_k": 40}, {"temperature": 0.0}, {"top_k": 900, "top_p": 0.5}, {"top_p": 0.999}]
    settings = [TextSettings(1, **({"temperature": 0.5 + i, "seed": i} | one)) for i, one in enumerate(chosen)]
    together, alone = ([Text((), one) for one in settings] for _ in range(2))
    for _ in range(20):
        expected = [next_tokens(row[None], [text])[0] for row, text in zip(logits, alone, strict=True)]
        assert next_tokens(logits, together) == expected
    assert next_tokens(logits.index_fill(0, torch.tensor(1), torch.nan), together)[1] is None


def test_tokens_tied_for_the_last_place_of_top_k_all_stay():
    assert allowed(torch.tensor([2.0, 1.0, 1.0, 0.0]), top_k=2) == {0, 1, 2}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_frequencies(temperature):
    count = 8000
    counts = Counter(draws(PROBABILITIES.log(), count, temperature=temperature, seed=1))
    expected = PROBABILITIES ** (1 / temperature)
    for token, probability in enumerate((expected / expected.sum()).tolist()):
        # Five standard deviations.
        assert counts[token] / count == pytest.approx(probability, abs=5 * (probability / count) ** 0.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"num_beams": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_k": -1},
        {"num_beams": 2, "temperature": 1.0},
    ],
    ids=str,
)
def test_impossible_settings_are_named(settings):
    name = next(iter(settings))
    with pytest.raises(InputError, match=rf"{name} is {settings[name]}"):
        TextSettings(**({"max_new_tokens": 8} | settings))


# Stop rules


def start(vlm, seed=0, length=4):
    return noise(1, length, vlm.language_model.config.hidden_size, seed=seed)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_goes_on_without_stop_tokens(num_beams):
    vlm = tiny_language(seed=4)
    assert len(generate_tokens(vlm, start(vlm), (), TextSettings(10, num_beams))) == 10


def test_stops_at_each_stop_token():
    """Where beams stop is compared with `generate` below."""
    vlm = tiny_language(seed=4)
    prompt = start(vlm)
    free = generate_tokens(vlm, prompt, (), TextSettings(10))
    assert len(free) == 10 and len(set(free)) > 1
    absent = next(token for token in range(31) if token not in free)
    for stop in set(free):
        until = free[: free.index(stop) + 1]
        # The stop token itself is returned; either of two stops ends the text; a token that never comes does not.
        assert generate_tokens(vlm, prompt, (stop,), TextSettings(10)) == until
        assert generate_tokens(vlm, prompt, (absent, stop), TextSettings(10)) == until
        assert generate_tokens(vlm, prompt, (stop, absent), TextSettings(10)) == until


@pytest.mark.parametrize("max_new_tokens", [1, 2, 5])
def test_max_new_tokens(max_new_tokens):
    vlm = tiny_language(seed=4)
    longer = generate_tokens(vlm, start(vlm), (), TextSettings(9))
    assert generate_tokens(vlm, start(vlm), (), TextSettings(max_new_tokens)) == longer[:max_new_tokens]


def test_model_stops_at_end_of_turn_and_at_img(model):
    assert set(model.tokenizer.stop_ids) == {model.tokenizer.id("<|im_end|>"), model.tokenizer.id("<img>")}
    # This recorded run ends at its first stop token, before max_new_tokens.
    result = model.reason("生成一张展现希望的画面", max_new_tokens=50)
    assert result.token_ids[-1] == model.tokenizer.id("<|im_end|>")
    assert len(result.token_ids) == 7


def test_special_tokens_are_left_out_of_the_text(model):
    tokenizer = model.tokenizer
    ids = [tokenizer.id("</img>"), *tokenizer.encode("a <b> "), tokenizer.id("<ref>"), *tokenizer.encode("cat")]
    assert tokenizer.decode([*ids, *tokenizer.stop_ids]) == "a <b> cat"
    result = model.answer(**QUESTION)
    assert tokenizer.id("<box>") not in result.token_ids
    assert result.text == tokenizer.decode([token for token in result.token_ids if token < 300])


# Seeds


def test_equal_seeds_give_equal_texts(model):
    sampled = {"temperature": 1.5, "top_p": 0.95, "top_k": 40}
    texts = [model.answer(**QUESTION, **sampled, seed=seed).token_ids for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_without_a_seed_texts_differ(model):
    texts = {model.answer(**QUESTION, temperature=1.5).token_ids for _ in range(4)}
    assert len(texts) > 1


@pytest.mark.parametrize("seed", [5, None])
def test_global_random_state_is_left_alone(model, seed):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    sampled = model.answer(**QUESTION, temperature=1.0, seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(124)  # nor does it matter
    if seed is not None:
        assert model.answer(**QUESTION, temperature=1.0, seed=seed) == sampled


# Callbacks


@pytest.mark.parametrize("write", ["answer", "reason"])
def test_on_token_counts_up_and_shows_the_text_so_far(model, write):
    calls = []
    result = getattr(model, write)(**QUESTION, on_token=lambda *call: calls.append(call))
    assert calls == [
        (count, model.tokenizer.decode(result.token_ids[:count])) for count in range(1, len(result.token_ids) + 1)
    ]


def test_on_token_of_beams_counts_up(model):
    counts = []
    model.answer(**QUESTION, num_beams=3, on_token=lambda count, text: counts.append(count))
    assert counts == list(range(1, len(counts) + 1))
    assert len(counts) > 3


@pytest.mark.parametrize("num_beams", [1, 2])
def test_cancelling_leaves_the_model_as_good(model, num_beams):
    expected = model.answer(**QUESTION, num_beams=num_beams)
    calls = 0

    def cancel(count, text):
        nonlocal calls
        calls += 1
        if count == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        model.answer(**QUESTION, num_beams=num_beams, on_token=cancel)
    assert calls == 3
    assert model.answer(**QUESTION, num_beams=num_beams) == expected


# Against Hugging Face's `generate`, with the same weights


def hugging_face(network):
    """The same model in transformers. Its parameter names are those of the checkpoint."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = network.config
    twin = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.mlp_size,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            attention_bias=config.attention_bias,
            tie_word_embeddings=config.tied_head,
            max_position_embeddings=config.max_positions,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    )
    state = dict(network.state_dict())
    if config.tied_head:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    twin.load_state_dict(state)
    return twin.eval()


def generated(twin, ids, stop_ids, **settings) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (row,) = twin.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            eos_token_id=list(stop_ids),
            pad_token_id=0,
            **settings,
        ).tolist()
    tokens = row[len(ids) :]
    # A finished beam is padded to the length of the longest.
    end = next((i for i, token in enumerate(tokens) if token in stop_ids), None)
    return tokens if end is None else tokens[: end + 1]


MODELS = {
    "groups of 2": {},
    "groups of 1, bias": {"num_kv_heads": 4, "attention_bias": True},
    "groups of 4, tied": {"num_kv_heads": 1, "tied_head": True, "rope_theta": 1e6, "norm_eps": 0.1},
    "three layers": {"num_layers": 3, "num_heads": 6, "num_kv_heads": 3, "head_dim": 8, "hidden_size": 48},
}


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_equal_transformers(name):
    vlm = tiny_language(**MODELS[name])
    network = vlm.language_model
    twin = hugging_face(network)
    ids = torch.randint(0, 31, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = twin(ids, output_hidden_states=True)
        states = network(vlm.embed_generated(ids), tuple(range(network.config.num_layers + 1)))
    for state, hidden in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(state, hidden, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network.logits(states[-1]), expected.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_beams", [1, 2, 5])
@pytest.mark.parametrize("name", MODELS)
def test_equals_generate(name, num_beams):
    """Many prompts and pairs of stop tokens; texts end at many lengths, at a stop and at the limit."""
    vlm = tiny_language(**MODELS[name])
    twin = hugging_face(vlm.language_model)
    generator = torch.Generator().manual_seed(num_beams)
    limit, lengths, stopped = 9, Counter(), 0
    for _ in range(8):
        ids = torch.randint(0, 31, (5,), generator=generator).tolist()
        prompt = vlm.embed_generated(torch.tensor([ids]))
        # Two tokens that do come up, early or late, in an unstopped text.
        free = generate_tokens(vlm, prompt, (), TextSettings(limit))
        stop_ids = tuple(free[int(i)] for i in torch.randint(1, limit, (2,), generator=generator))
        expected = generated(twin, ids, stop_ids, num_beams=num_beams, max_new_tokens=limit)
        assert generate_tokens(vlm, prompt, stop_ids, TextSettings(limit, num_beams)) == expected, (ids, stop_ids)
        lengths[len(expected)] += 1
        stopped += expected[-1] in stop_ids
    assert len(lengths) >= 3 and stopped >= 3, (lengths, stopped)


@pytest.mark.parametrize("seed", [29, 45, 49])
def test_beams_that_stop_below_the_best_are_dropped(seed):
    """Found by search: here a continuation that stops, and is not among the best num_beams, would win in the end."""
    vlm = tiny_language()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 31, (5,), generator=generator).tolist()
    stop_ids = tuple(torch.randperm(31, generator=generator)[:4].tolist())
    expected = generated(hugging_face(vlm.language_model), ids, stop_ids, num_beams=2, max_new_tokens=6)
    assert generate_tokens(vlm, vlm.embed_generated(torch.tensor([ids])), stop_ids, TextSettings(6, 2)) == expected


def test_more_beams_than_tokens():
    """A vocabulary smaller than the beams asked for is no error: there are fewer beams then."""
    vlm = tiny_language(vocab_size=5)
    tokens = generate_tokens(vlm, start(vlm), (1,), TextSettings(4, 8))
    assert 1 <= len(tokens) <= 4


def test_config_of_the_tiny_model():
    """The twins above would miss a mix-up of sizes that are equal."""
    config = language_config()
    sizes = [config.vocab_size, config.hidden_size, config.mlp_size, config.num_heads * config.head_dim]
    assert len(set(sizes)) == len(sizes)
