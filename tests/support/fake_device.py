"""A GPU that is not there: shapes, dtypes and devices of every operation on it, without a value.

Tensors on the device are torch's fake ones. Tensors on the CPU are real, so that a program runs as it would on a GPU:
it reads prompts, pictures and files, and decides by what comes back from the device, which is `number` everywhere.
What is recorded: operations (each is a kernel), matrix products, floating-point operations, bytes alive, waits of the
host, and copies between the two. What no fake can tell: whether a kernel exists for it, its time, and what the
allocator and libraries take for themselves. What runs here must run in inference mode: outside of it torch takes
attention apart before anyone is asked.
"""

import json
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from unittest import mock

import accelerate.hooks
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from internvlu_core import InternVLU
from internvlu_core.checkpoints.config import Config
from internvlu_core.checkpoints.files import COMPONENTS
from internvlu_core.checkpoints.load import build_on_meta
from internvlu_core.prompt import Tokenizer
from internvlu_core.quantization import WEIGHT_FORMATS, Gguf

from .checkpoints import copy_json
from .networks import quantise_network
from .scaled_checkpoints import stored_shapes

ROOT = Path(__file__).resolve().parents[2]
aten = torch.ops.aten
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd

PRODUCTS = {
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten.convolution,
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
}
# They make or forget a tensor, and start no kernel.
NO_KERNEL = {
    aten.empty,
    aten.empty_strided,
    aten.empty_like,
    aten.new_empty,
    aten.new_empty_strided,
    aten.detach,
    aten.lift_fresh,
    aten._unsafe_view,
}
COPIES = {aten._to_copy, aten.copy_}
LARGE = 2**22  # values; a tensor of more comes back from the device without any


@dataclass
class Record:
    """What happened on the device while it was watched. A place is the line of the program that asked for it.

    operations: {operation: how often}, without views. products: {(operation, dtype): how often}, of matrices.
    waits: places at which the host waited for a value. uploads, downloads: places of copies from and to the CPU.
    before, peak, after: bytes alive.
    """

    before: int = 0
    peak: int = 0
    after: int = 0
    flops: int = 0
    operations: Counter = field(default_factory=Counter)
    dtypes: Counter = field(default_factory=Counter)  # of results
    products: Counter = field(default_factory=Counter)
    waits: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)

    @property
    def kernels(self) -> int:
        return self.operations.total()

    @property
    def working(self) -> int:
        """Bytes at most, beside those that were there before."""
        return self.peak - self.before

    @property
    def product_dtypes(self) -> set[torch.dtype]:
        return {dtype for _, dtype in self.products}


class FakeDevice(TorchDispatchMode):
    """While it is entered, `device` is there. Raises where an operation mixes it with the CPU, as the device would.

    number: what every value is that the host reads from it; of a truth value, its truth. total: bytes of its memory.
    enforced: an operation that needs more raises torch.cuda.OutOfMemoryError.
    """

    def __init__(self, device: str = "cuda", number: float = 1, total: int = 80 * 2**30, enforced: bool = False):
        super().__init__()
        self.device, self.number, self.total, self.enforced = torch.device(device, 0), number, total, enforced
        self.fake = FakeTensorMode()
        self.live = 0
        self.storages: dict[int, weakref.ref] = {}
        self.records: list[Record] = []
        self.depth = 0
        self.hidden = False  # where tensors are: then they say "meta"

    # Entering

    def __enter__(self):
        self.depth += 1
        if self.depth > 1:  # from inside an operation
            return super().__enter__()
        self.stack = ExitStack()
        for target, name, replacement in self._replacements():
            self.stack.enter_context(mock.patch.object(target, name, replacement, create=True))
        self.stack.enter_context(self.fake)
        self.stack.enter_context(Hiding(self))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.depth -= 1
        if not self.depth:
            self.stack.close()

    def _replacements(self):
        """What torch's Python asks of a device, answered without one."""
        # A fake tensor has no address; whoever compares addresses wants to know whether two tensors are one.
        yield FakeTensor, "data_ptr", lambda tensor: tensor.untyped_storage()._cdata
        yield FakeTensor, "tolist", lambda tensor: tensor.cpu().tolist()
        yield nn.Module, "_apply", _apply
        yield accelerate.hooks, "set_module_tensor_to_device", _set_tensor
        if self.device.type == "cuda":
            for name, replacement in {
                "is_bf16_supported": lambda including_emulation=True: True,
                "mem_get_info": lambda device=None: (self.total - self.live, self.total),
                "current_stream": lambda device=None: FakeStream(),
                "current_device": lambda: 0,
                "synchronize": lambda device=None: self._note("waits"),
                "Stream": FakeStream,
                "stream": lambda stream: ExitStack(),
                "device": lambda device: ExitStack(),
            }.items():
                yield torch.cuda, name, replacement

    # Recording

    @contextmanager
    def watch(self) -> Iterator[Record]:
        record = Record(before=self.live, peak=self.live)
        self.records.append(record)
        try:
            yield record
        finally:
            self.records.remove(record)
            record.after = self.live

    @contextmanager
    def laps(self) -> Iterator["Laps"]:
        """Give a callback that begins another record whenever it is called."""
        laps = Laps(self)
        laps()
        with laps.stack:
            yield laps

    def _note(self, what: str, operation="synchronize"):
        place = f"{operation} at {_place()}"
        for record in self.records:
            getattr(record, what).append(place)

    def _count(self, operation, result, args, kwargs):
        packet = operation._overloadpacket
        if packet in NO_KERNEL or _is_view(operation):
            return
        flops = flop_registry[packet](*args, **kwargs, out_val=result) if packet in flop_registry else 0
        first = next(leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor))
        for record in self.records:
            record.operations[str(packet)] += 1
            record.flops += flops
            if packet in PRODUCTS:
                record.products[str(packet), first.dtype] += 1
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    record.dtypes[leaf.dtype] += 1

    def _track(self, tensor: Tensor):
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key in self.storages:
            return

        def release(_):
            del self.storages[key]
            self.live -= nbytes

        self.storages[key] = weakref.ref(storage, release)
        self.live += nbytes
        for record in self.records:
            record.peak = max(record.peak, self.live)
        if self.enforced and self.live > self.total:
            raise torch.cuda.OutOfMemoryError(f"{self.live} bytes on a device of {self.total}")

    # Operations

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(map(_is_made_of_others, types)):
            return NotImplemented  # their class says what is done with these others
        if operation is torch.ops.prim.device.default:
            return torch.device("meta") if self.hidden else args[0].fake_device
        hidden, self.hidden = self.hidden, False
        try:
            return self._dispatch(operation, args, kwargs)
        finally:
            self.hidden = hidden

    def _dispatch(self, operation, args, kwargs):
        packet, leaves = operation._overloadpacket, tree_leaves((args, kwargs))
        here = [leaf for leaf in leaves if self._is_here(leaf)]
        target = self._target(packet, args, kwargs, here)
        if not here and target != self.device:
            with unset_fake_temporarily():
                return operation(*args, **kwargs)
        if packet is aten._local_scalar_dense:
            self._note("waits", "item")
            return self._value(args[0].dtype)
        if packet is aten.scaled_dot_product_attention:
            return self._compute(*attention_kernel(*args, **kwargs))[0]
        if packet is aten._fused_rms_norm:
            return self._rms_norm(operation, args)
        if _is_composite(operation) and packet not in flop_registry:
            with torch._C.DisableTorchFunction(), self:  # which would forget that it is to be taken apart
                return operation._op_dk(COMPOSITE, *args, **kwargs)
        if here and target != self.device:
            return self._leave(operation, target, args, kwargs)
        return self._compute(operation, args, kwargs)

    def _is_here(self, leaf) -> bool:
        return isinstance(leaf, FakeTensor)

    def _target(self, packet, args, kwargs, here) -> torch.device:
        """Where the result is to be."""
        if packet is aten.copy_:
            return args[0].device
        named = (kwargs.get("device"), *(leaf for leaf in args if isinstance(leaf, torch.device)))
        device = next((device for device in named if device is not None), None)
        if device is None:
            return self.device if here else torch.device("cpu")
        device = torch.device(device)
        return self.device if device.type == self.device.type else device

    def _compute(self, operation, args, kwargs):
        packet = operation._overloadpacket
        away = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and not self._is_here(leaf)]
        if packet in COPIES and away:
            self._note("uploads", packet)
        elif packet in (aten.index, aten.index_put, aten.index_put_):
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self._note("waits", packet)  # it counts the true ones
            if any(not self._is_here(index) for index in indices):
                self._note("uploads", packet)
        if away:
            fakes = {id(tensor): self.fake.from_tensor(tensor) for tensor in away}
            args, kwargs = tree_map(lambda leaf: fakes.get(id(leaf), leaf), (args, kwargs))
        result = operation(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, FakeTensor) and leaf.device == self.device:
                self._track(leaf)
        self._count(operation, result, args, kwargs)
        return result

    def _rms_norm(self, operation, args):
        """One kernel on a GPU; torch's CPU build knows it as several operations only."""
        x, normalized_shape = args[:2]
        with self.fake:
            dims = len(normalized_shape)
            statistics = torch.empty(*x.shape[:-dims], *[1] * dims, dtype=torch.float32, device=self.device)
            result = torch.empty_like(x), statistics
        for tensor in result:
            self._track(tensor)
        self._count(operation, result, args, {})
        return result

    def _leave(self, operation, target: torch.device, args, kwargs):
        """A copy to another device: real there."""
        packet = operation._overloadpacket
        if target.type != "meta":
            self._note("downloads", packet)
            self._note("waits", packet)
        if packet is aten.copy_:
            with unset_fake_temporarily():
                return args[0].fill_(self._value(args[0].dtype))
        source = args[0]
        dtype = kwargs.get("dtype") or source.dtype
        with unset_fake_temporarily():
            result = torch.empty(source.shape, dtype=dtype, device=target)
            large = result.numel() > LARGE  # a weight that goes back to main memory, which would fill it
            return result if large or target.type == "meta" else result.fill_(self._value(dtype))

    def _value(self, dtype: torch.dtype):
        return bool(self.number) if dtype == torch.bool else self.number


class Laps:
    """As a sampler's or a text's callback: records[i] is what happens before call i, and after the one before it."""

    def __init__(self, device: FakeDevice):
        self.device, self.records, self.stack = device, [], ExitStack()

    def __call__(self, *arguments):
        self.stack.close()
        self.records.append(self.stack.enter_context(self.device.watch()))


class Hiding(TorchFunctionMode):
    """Lets those methods work for which torch, before any mode is asked, makes the tensor's device the current one."""

    METHODS = (
        *(Tensor.__getitem__, Tensor.__setitem__, Tensor.__int__, Tensor.__float__, Tensor.__index__),
        *(Tensor.__invert__, Tensor.contiguous, Tensor.copy_, Tensor.nonzero),
    )

    def __init__(self, owner: FakeDevice):
        super().__init__()
        self.owner = owner

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function == Tensor.copy_ and _is_made_of_others(type(args[0])):
            with self:
                return type(args[0]).__torch_dispatch__(aten.copy_.default, types, args, kwargs)
        if function not in self.METHODS or not isinstance(args[0], FakeTensor):
            return function(*args, **kwargs)
        if function == Tensor.__setitem__ and not isinstance(args[2], Tensor):
            args = *args[:2], torch.full((), args[2], dtype=args[0].dtype, device=self.owner.device)
        self.owner.hidden = True
        try:
            return function(*args, **kwargs)
        finally:
            self.owner.hidden = False


def _apply(module: nn.Module, function, recurse: bool = True) -> nn.Module:
    """nn.Module's own swaps the insides of fake tensors, which fails where there are weak references to them."""
    for child in module.children() if recurse else ():
        child._apply(function)
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            changed = tensor if tensor is None else function(tensor)
            if changed is not tensor:
                wrap = nn.Parameter if tensors is module._parameters else lambda changed, _: changed
                tensors[name] = wrap(changed, tensor.requires_grad)
    return module


def _set_tensor(module: nn.Module, name: str, device, value: Tensor | None = None, **options):
    """accelerate's own makes a parameter anew by the class of the old one, which a fake tensor's class refuses."""
    path, _, name = name.rpartition(".")
    owner = module.get_submodule(path)
    tensors = owner._parameters if name in owner._parameters else owner._buffers
    moved = (tensors[name] if value is None else value).to(device)
    tensors[name] = nn.Parameter(moved, requires_grad=False) if tensors is owner._parameters else moved


class FakeStream:
    def __init__(self, device=None, **options):
        self.device = device

    def wait_stream(self, stream):
        pass

    def synchronize(self):
        pass


def attention_kernel(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """(operation, args, kwargs) that torch chooses on a GPU since Ampere for scaled_dot_product_attention.

    Raises ValueError where that is none of the fused kernels, for then memory grows with the square of the tokens.
    """
    if enable_gqa or dropout_p:
        raise ValueError("attention with dropout or enable_gqa is not told of here")
    if not all(t.stride(-1) == 1 for t in (q, k, v)):
        raise ValueError(f"fused attention needs contiguous channels, strides are {q.stride(), k.stride(), v.stride()}")
    if attn_mask is None and q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] <= 256:
        operation = aten._scaled_dot_product_flash_attention.default
        return operation, (q, k, v, 0.0, is_causal), {"scale": scale}
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*q.shape[:-1], k.shape[-2])
    operation = aten._scaled_dot_product_efficient_attention.default
    return operation, (q, k, v, attn_mask, False, 0.0, is_causal), {"scale": scale}


def _is_made_of_others(kind: type) -> bool:
    """Whether tensors of a class are made of other tensors, as ComfyUI's QuantizedTensor is."""
    return hasattr(kind, "__tensor_flatten__")


@cache
def _is_composite(operation) -> bool:
    """Whether it is made of other operations on every device. (Python's decompositions are not asked.)"""
    return torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), COMPOSITE)


@cache
def _is_view(operation) -> bool:
    returns = operation._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _place() -> str:
    """The innermost line of this repository that is running, other than of this file."""
    frame = sys._getframe(1)
    while frame:
        if name := _repository_name(frame.f_code.co_filename):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


@cache
def _repository_name(file: str) -> str | None:
    if file == __file__ or not Path(file).is_relative_to(ROOT):
        return None
    name = Path(file).relative_to(ROOT)
    return None if ".cache" in name.parts else name.as_posix()


# Checkpoints


def write_hollow(file: Path, shapes: dict[str, tuple[int, ...]]):
    """A safetensors file of bfloat16 zeros that takes no room on the disk: nothing but its header is written."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)


def build_hollow(
    config: Config, dtype: torch.dtype, weight_format: str | None = None
) -> dict[str, tuple[nn.Module, dict[str, Tensor]]]:
    """{name: (network, its state dict)} of VLM, MMDiT and VAE on the meta device.

    weight_format: a name in WEIGHT_FORMATS, or a GGUF type.
    """
    found = {}
    for name, component in zip(("VLM", "MMDiT", "VAE"), COMPONENTS, strict=True):
        network = build_on_meta(config, component).to(dtype)
        state = network.state_dict()
        if weight_format:
            quantise_network(network, state, WEIGHT_FORMATS.get(weight_format) or Gguf(weight_format))
        found[name] = network, state
    return found


def hollow_model(folder: Path, device: torch.device, dtype: torch.dtype, weight_format: str | None = None) -> InternVLU:
    """A checkpoint's model with weights that were never loaded, which takes a moment at any size."""
    config, networks = Config.read(folder), []
    for network, state in build_hollow(config, dtype, weight_format).values():
        weights = {name: torch.empty(t.shape, dtype=t.dtype, device=device) for name, t in state.items()}
        network.requires_grad_(False).load_state_dict(weights, assign=True)
        networks.append(network)
    return InternVLU(config, Tokenizer(folder / "processor"), *networks)


def hollow_checkpoint(folder: Path, changes: dict[str, dict]) -> Path:
    """A checkpoint of zeros in the released layout; changes as in scaled_checkpoints.py."""
    copy_json(folder, changes)
    for names, shapes in stored_shapes(folder):
        write_hollow(folder / names.folder / f"{names.stem}.safetensors", shapes)
    return folder
