"""Replay a step of decoding as a CUDA graph: the GPU gets one launch for a token instead of several hundred.

The kernels of a token take a few microseconds each, and the host takes longer to launch one than the GPU to run it.
"""

import logging
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn

Outputs = tuple[Tensor | None, ...]


def can_replay(network: nn.Module) -> bool:
    """Whether all weights of a network are on one CUDA device, and nobody moves them while it computes."""
    devices = {tensor.device for tensor in chain(network.parameters(), network.buffers())}
    moved = any(hasattr(module, "_hf_hook") for module in network.modules())  # by accelerate, see offload.py
    return len(devices) == 1 and devices.pop().type == "cuda" and not moved


def replayed(step: Callable[[Tensor], Outputs], tokens: Tensor) -> Callable[[Tensor], Outputs]:
    """The step as a CUDA graph, or the step itself where the device cannot capture it. Its outputs are overwritten.

    step: reads tokens [batch] on a CUDA device, and otherwise only tensors that stay where they are.
    """
    try:
        with torch.cuda.device(tokens.device):  # a capture is of the current device
            return Replay(step, tokens)
    except RuntimeError as error:
        logging.getLogger(__name__).warning("Text is decoded without a CUDA graph, which is slower: %s", error)
        return step


class Replay:
    """A captured step. Source: PyTorch's documentation, "CUDA semantics", section "CUDA Graphs"."""

    def __init__(self, step: Callable[[Tensor], Outputs], tokens: Tensor):
        self.step, self.tokens = step, tokens.clone()
        current, side = torch.cuda.current_stream(tokens.device), torch.cuda.Stream(tokens.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):  # libraries allocate at their first call, which a capture forbids
            self.outputs = step(self.tokens)
        current.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads, such as ComfyUI's server, may allocate meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self._run()

    def _run(self):
        """The step, into the outputs that are there. All that it allocates is free again at its end."""
        for output, new in zip(self.outputs, self.step(self.tokens), strict=True):
            if new is not None:
                output.copy_(new)

    def __call__(self, tokens: Tensor) -> Outputs:
        self.tokens.copy_(tokens)
        self.graph.replay()
        return self.outputs
