"""Offloading: weights stay in main memory and are copied to the device when they are used.

If the device has no room for all networks, only those that fit are there at a time. If one network alone does not fit,
some of its transformer layers are copied one by one in each forward pass, by hooks of accelerate.
"""

from collections.abc import Mapping

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import PrefixedDataset, convert_file_size_to_int
from torch import Tensor, nn

from .errors import InputError
from .quantization import repeated_blocks

# Bytes beside the weights. Four drawings of 1024 × 1024 at once take the most, 1.8 GB in float16.
WORKING_MEMORY = 2 * 2**30


class Offload:
    """Moves networks to a device and away from it, within a limit of memory.

    networks: {name for errors: (network on the meta device, its state dict in main memory, best memory-mapped)}.
    limit: bytes of weights that may be on the device at once. Raises InputError if a network needs more.
    """

    def __init__(self, networks: Mapping[str, tuple[nn.Module, dict[str, Tensor]]], device: torch.device, limit: int):
        self.device, self.limit = device, limit
        self.resident: dict[nn.Module, dict[str, Tensor]] = {}  # {network: its weights, without streamed blocks}
        self.sizes: dict[nn.Module, int] = {}  # bytes of these, and of the largest streamed block
        self.present: list[nn.Module] = []  # networks on the device, the first to arrive first
        for name, (network, state) in networks.items():
            streamed, self.sizes[network] = self._streamed(name, network, state, limit)
            for block, module in streamed.items():
                hook = AlignDevicesHook(
                    execution_device=device,
                    offload=True,
                    weights_map=PrefixedDataset(state, f"{block}."),
                    place_submodules=True,
                )
                add_hook_to_module(module, hook)
            prefixes = tuple(f"{block}." for block in streamed)
            self.resident[network] = {key: tensor for key, tensor in state.items() if not key.startswith(prefixes)}

    @staticmethod
    def _streamed(
        name: str, network: nn.Module, state: dict[str, Tensor], limit: int
    ) -> tuple[dict[str, nn.Module], int]:
        """The blocks to copy one by one in each forward pass, and the bytes that are then on the device at most.

        As few blocks as possible, from the first on: a VLM's first blocks are those of its ViT, which runs once, while
        its language model runs for every token.
        """
        left, streamed, slot = repeated_blocks(network), {}, 0
        sizes = {block: sum(t.nbytes for key, t in state.items() if key.startswith(f"{block}.")) for block in left}
        total = sum(tensor.nbytes for tensor in state.values())
        while total + slot > limit:
            if not left:
                raise InputError(
                    f"max_memory is {limit / 1e9:.3g} GB; the {name} needs at least {(total + slot) / 1e9:.3g} GB"
                )
            block = next(iter(left))
            streamed[block] = left.pop(block)
            total, slot = total - sizes[block], max(slot, sizes[block])
        return streamed, total + slot

    def use(self, network: nn.Module):
        """Copy a network's weights to the device. If there is too little room, others leave it, the oldest first."""
        if network in self.present:
            return
        while self.present and sum(self.sizes[other] for other in (*self.present, network)) > self.limit:
            self.present.pop(0).to("meta")
        brought = {name: tensor.to(self.device) for name, tensor in self.resident[network].items()}
        network.load_state_dict(brought, strict=False, assign=True)
        self.present.append(network)


def memory_limit(max_memory: int | str | None, device: torch.device) -> int:
    """The limit in bytes. max_memory: bytes, a text such as "5GB", or None for what is free less WORKING_MEMORY.

    Raises InputError for other values, and for None on a device that is not CUDA.
    """
    if max_memory is None:
        if device.type != "cuda":
            raise InputError(f"max_memory must be given for the device {str(device)!r}")
        return torch.cuda.mem_get_info(device)[0] - WORKING_MEMORY
    try:
        return convert_file_size_to_int(max_memory)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"max_memory is {max_memory!r}; it must be bytes, or a text such as '5GB'") from error
