"""Steps of decoding as CUDA graphs, with a stand-in for the graph: its replay runs the captured step again."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from internvlu_core import replay
from internvlu_core.decoding import DecodingSession, TextSettings, continue_text
from internvlu_core.models import language
from support.networks import tiny_language
from support.tensors import noise


@pytest.fixture
def captured(monkeypatch):
    """The graphs that were captured, as {capture's number: times replayed}."""
    times = {}

    class Graph:
        def __init__(self):
            self.number = len(times)
            times[self.number] = 0

        def replay(self):
            times[self.number] += 1
            self.run()

    run = replay.Replay._run

    def remember(self):
        self.graph.run = lambda: run(self)
        self.graph.run()

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name in ("current_stream", "Stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: stream)
    for name in ("stream", "graph", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda value, **options: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(replay.Replay, "_run", remember)
    return times


@pytest.mark.parametrize("num_beams", [1, 3])
@torch.inference_mode()
def test_a_replayed_step_writes_the_same(monkeypatch, captured, num_beams):
    """Through windows that the text outgrows, beams, and what is kept for the prefix cache."""
    monkeypatch.setattr(language, "WINDOW", 16)
    vlm, settings = tiny_language(seed=4), TextSettings(30, num_beams)
    prompt = noise(1, 5, vlm.language_model.config.hidden_size)
    select = (2, 1) if num_beams == 1 else ()
    plain = DecodingSession(vlm, prompt, 30, select)
    session = DecodingSession(vlm, prompt, 30, select, replay=True)
    session.fixes_shapes = True  # as on a GPU
    assert continue_text(session, (), settings) == continue_text(plain, (), settings)
    assert list(captured.values()) == [11, 16, 2]  # of 29 tokens behind 5 of the prompt
    for mine, expected in zip(session.inputs + session.hidden, plain.inputs + plain.hidden, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_captured_runs_as_it_is(captured, caplog):
    def step(tokens):
        if len(captured):
            raise RuntimeError("operation not permitted when stream is capturing")
        return (tokens + 1,)

    assert replay.replayed(step, torch.tensor([1])) is step
    assert "without a CUDA graph" in caplog.text and "not permitted" in caplog.text


def test_only_weights_that_stay_are_replayed():
    assert not replay.can_replay(tiny_language(seed=4).language_model)  # on the CPU
    for device, expected in (("cuda", True), ("cpu", False)):
        parts = [SimpleNamespace(device=torch.device(d)) for d in ("cuda", device)]
        network = SimpleNamespace(parameters=lambda p=parts: p, buffers=list, modules=lambda: [torch.nn.Identity()])
        assert replay.can_replay(network) is expected
    hooked = torch.nn.Identity()
    hooked._hf_hook = object()
    network.modules, network.parameters = (lambda: [hooked]), (lambda: parts[:1])
    assert not replay.can_replay(network)
