"""Weights that stay in main memory, and come to the device part by part, when they are used.

Networks take turns on the device if it has no room for all. Of a transformer that is larger than it may be,
some layers are brought one by one in each forward, by hooks of accelerate.
"""

from collections.abc import Mapping

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import PrefixedDataset, convert_file_size_to_int
from torch import Tensor, nn

from .errors import InputError
from .quantization import repeated_blocks

WORKING_MEMORY = 2 * 2**30  # bytes beside the weights; the most is asked by the VAE, 1.5 GB for 1024 × 1024 in 16 bits


class Offload:
    """Networks on the meta device and their weights in main memory, memory-mapped ones for preference.

    limit: bytes of weights that may be on the device at once. Raises InputError if that is too few for a network.
    """

    def __init__(self, networks: Mapping[str, tuple[nn.Module, dict[str, Tensor]]], device: torch.device, limit: int):
        self.device, self.limit = device, limit
        self.resident: dict[nn.Module, dict[str, Tensor]] = {}  # {network: those of its weights that it has at once}
        self.sizes: dict[nn.Module, int] = {}  # bytes of these, and of the largest of the other blocks
        self.present: list[nn.Module] = []  # on the device, in the order in which they came
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
        """The blocks that have to be brought one by one, and the bytes at once.

        As few as possible, from the first one: a VLM's are those of its ViT, which runs once, not for every token.
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
        """Bring a network's weights; others leave, the longest there first, if there is not room for all."""
        if network in self.present:
            return
        while self.present and sum(self.sizes[other] for other in (*self.present, network)) > self.limit:
            self.present.pop(0).to("meta")
        brought = {name: tensor.to(self.device) for name, tensor in self.resident[network].items()}
        network.load_state_dict(brought, strict=False, assign=True)
        self.present.append(network)


def memory_limit(max_memory: int | str | None, device: torch.device) -> int:
    """In bytes. None: what is free on the device, less what pictures of 1024 × 1024 need beside the weights."""
    if max_memory is None:
        if device.type != "cuda":
            raise InputError(f"max_memory must be given for the device {str(device)!r}")
        return torch.cuda.mem_get_info(device)[0] - WORKING_MEMORY
    try:
        return convert_file_size_to_int(max_memory)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"max_memory is {max_memory!r}; it must be bytes, or a text such as '5GB'") from error
