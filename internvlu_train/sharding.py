"""Training whose weights, gradients, moments and averages are divided among processes, and checkpoints of it.

torch's FSDP2 (`fully_shard`) is called here and not by accelerate's plugin: that one wraps a single module with its
optimizer and takes `forward` as the only way into it, whereas a step enters three networks by several methods.

Checkpoints are torch.distributed.checkpoint's: each process writes its part, and any number of processes reads them.
"""

import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from internvlu_core.errors import InputError

from .storage import Networks, disk_space

BUCKET = 2**22  # values of the gradients that processes exchange in one message


def blocks(networks: Networks) -> list[nn.Module]:
    """The layers that are gathered, or recomputed, one at a time: those of the ViT, the language model, the MMDiT."""
    vlm = networks.vlm
    layers = vlm.vision_model.encoder["layers"], vlm.language_model.model["layers"]
    return list(chain(*layers, networks.mmdit.transformer_blocks))


def shard(networks: Networks, device: torch.device, dtype: torch.dtype | None):
    """Divide the networks of which something is trained among all processes. The others stay whole.

    A block's weights are gathered when it is used; what is in no block, when networks(…) is called. dtype: in which
    they are gathered, None for float32. Gradients are summed up in float32. Raises InputError for torch before 2.7.
    """
    try:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    except ImportError as error:
        raise InputError(f"sharded training needs torch 2.7 or later, this is {torch.__version__}") from error
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    whole = [network for network in networks.children() if not any(p.requires_grad for p in network.parameters())]
    ignored = {parameter for network in whole for parameter in network.parameters()}
    for block in blocks(networks):
        if ignored.isdisjoint(block.parameters()):
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(networks, mesh=mesh, mp_policy=policy, ignored_params=ignored)


def touch(networks: Networks) -> Tensor:
    """0, with a gradient of 0 for each trained weight that is in no block.

    Their gradients are summed up together, so that each process must have one of each, whatever its batch uses.
    """
    inside = {parameter for block in blocks(networks) for parameter in block.parameters()}
    outside = [p for p in networks.parameters() if p.requires_grad and p not in inside]
    return sum((0 * parameter.flatten()[0].float() for parameter in outside), torch.zeros(()))


@torch.no_grad()
def average_gradients(gradients: list[Tensor], accelerator: Accelerator):
    """Replace gradients by their means over all processes, in messages of many gradients each.

    With one message for each of the 205 gradients of the toy's MMDiT, these took a quarter of a step of two processes.
    """
    for bucket in buckets(gradients):
        means = accelerator.reduce(torch.cat([gradient.flatten() for gradient in bucket]), "mean")
        for gradient, mean in zip(bucket, means.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, in groups of one dtype with at most BUCKET values, or with one tensor."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        size += tensor.numel()
        if bucket and (tensor.dtype != bucket[0].dtype or size > BUCKET):
            yield bucket
            bucket, size = [], tensor.numel()
        bucket.append(tensor)
    if bucket:
        yield bucket


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; a tensor that is not sharded as it is. Shares memory with it."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor. All processes must call it for a sharded one."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def moments(optimizers: list[torch.optim.Optimizer], weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The state of the optimizers by "NAME OF THE WEIGHT/NAME OF THE MOMENT"."""
    return {
        f"{name}/{key}": value
        for name, weight in weights.items()
        for optimizer in optimizers
        for key, value in optimizer.state.get(weight, {}).items()
    }


def is_saved(folder: Path) -> bool:
    """Whether there is what `save` wrote, be it for `recover` to bring back."""
    return folder.exists() or _old(folder).exists()


def recover(folder: Path):
    """Bring back the state that a run had when it was killed while `save` replaced it. All processes must call it."""
    if _is_main() and _old(folder).exists() and not folder.exists():
        _old(folder).rename(folder)
    _wait()


def _old(folder: Path) -> Path:
    """Where `save` keeps the state that it replaces, until the new one is in its place."""
    return folder.with_name(f".{folder.name}.old")


def save(folder: Path, tensors: dict[str, dict[str, Tensor]], numbers: dict[str, int]):
    """Write named groups of tensors and some numbers. All processes must call it.

    On an error, `folder` stays as it was. Raises InputError if the disk is full.

    tensors: such as {"model": {name: tensor}}.
    """
    new, old = folder.with_name(f".{folder.name}.new"), _old(folder)
    if _is_main():
        for stale in (new, old):
            shutil.rmtree(stale, ignore_errors=True)
    _wait()
    flat = {f"{group}/{name}": value for group, values in tensors.items() for name, value in values.items()}
    with disk_space(new):
        dcp.save(flat | dict(numbers), checkpoint_id=new, no_dist=not dist.is_initialized())
    if _is_main():
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    _wait()


def load(
    folder: Path, weights: dict[str, nn.Parameter], ema: dict[str, Tensor], optimizers: list[torch.optim.Optimizer]
) -> dict[str, int]:
    """Read what `save` wrote of the groups "model", "ema" and "moments" into these. Returns the numbers."""
    stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    flat = {f"model/{name}": weight.detach() for name, weight in weights.items()}
    flat |= {f"ema/{name}": value for name, value in ema.items()}
    owner = {
        id(weight): optimizer for optimizer in optimizers for g in optimizer.param_groups for weight in g["params"]
    }
    for key in (key for key in stored if key.startswith("moments/")):
        name, _, moment = key.removeprefix("moments/").rpartition("/")
        weight, shape, optimizer = weights[name], stored[key].size, owner[id(weights[name])]
        # A fused optimizer has the number of its steps on the device, any other on the CPU.
        device = local(weight).device if optimizer.defaults.get("fused") else None
        value = torch.zeros_like(weight.detach()) if shape == weight.shape else torch.zeros(shape, device=device)
        optimizer.state[weight][moment] = flat[key] = value
    flat |= {key: 0 for key in stored if "/" not in key}
    dcp.load(flat, checkpoint_id=folder, no_dist=not dist.is_initialized())
    return {key: value for key, value in flat.items() if "/" not in key}


def _is_main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _wait():
    if dist.is_initialized():
        dist.barrier()
