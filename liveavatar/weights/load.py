"""Filling modules that were built without memory with the tensors of a source."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ..errors import ModelError
from .header import FETCH_AGAIN, shortened
from .packed import PackedSource
from .shapes import refuse_another_shape, refuse_missing
from .source import TensorSource

DType = torch.dtype | Callable[[str], torch.dtype]
"""One dtype for all tensors, or one per name."""
TensorDevice = torch.device | str | Callable[[str], torch.device | str]
"""One device for all tensors, or one per name; what is for the meta device is not read."""
OnRead = Callable[[int, float], None]
"""Called with the bytes of a tensor that was read, as it stays, and with the share of its module that is there now."""

_on_read: ContextVar[OnRead | None] = ContextVar("on_read", default=None)


@contextlib.contextmanager
def watched_reads(on_read: OnRead) -> Iterator[None]:
    """Inside, `fill` calls `on_read` after every tensor, in this thread; what it raises ends the reading."""
    token = _on_read.set(on_read)
    try:
        yield
    finally:
        _on_read.reset(token)


@runtime_checkable
class WeightQuantizer(Protocol):
    """A module that keeps its `weight` in a form of its own, such as fewer bits.

    Attributes:
        quantized_names: names of the tensors it keeps instead, "weight" among them; sources have none of the others.
    """

    quantized_names: tuple[str, ...]

    def quantize_parts(self, weights: Iterable[torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The weight as the source has it, on the module's device -> each of `quantized_names`.

        It comes in parts of its rows, one at a time, where the module is fused from several (see `FusedModule`).
        """


@runtime_checkable
class PackedReader(Protocol):
    """A module that keeps its `weight` as its file has it (see `liveavatar.model.packed`).

    Attributes:
        packed_names: names of the tensors it keeps instead, "weight" among them; some may be None.
        in_features, out_features: of the matrix that is meant.
    """

    packed_names: tuple[str, ...]
    in_features: int
    out_features: int

    def read_packed(
        self, source: PackedSource, keys: Sequence[str], device: torch.device, dtype: torch.dtype
    ) -> Mapping[str, torch.Tensor]:
        """Those of `packed_names` that there are, on the device, from the matrices of these names."""


@runtime_checkable
class FusedModule(Protocol):
    """A module whose tensors hold the rows of several modules of the source (see `liveavatar.model.fused`).

    Attributes:
        fused_from: names of those modules, beside it; empty where it is one of the source's itself.
    """

    fused_from: tuple[str, ...]


def fill(module: nn.Module, source: TensorSource, *, dtype: DType, device: TensorDevice) -> None:
    """Give a module built under `torch.device("meta")` its tensors, in place, one at a time.

    Exactly what the module owns is read; names are those of its state dict, and a tensor it knows under several names
    is read once, from the first name the source has. One that is fused from several is read part by part (see
    `FusedModule`). Afterwards everything is real, on `device`, in `dtype` (whole
    numbers keep theirs), needs no gradient, and the module is in evaluation mode. What modules pack (see
    `WeightQuantizer`) is packed on `device`, tensor by tensor; what the source has packed (see `PackedReader`) stays
    so. Peak host memory is what stays plus the tensor in hand. What is for the meta device is there to be given its
    values by somebody else: it is not read, and stays as it was built.

    Modules with buffers outside their state dict (computed ones) are refused, because nothing could give those values;
    those of this library and the encoder and VAE classes it uses have none.

    Raises:
        MissingFilesError: the source lacks tensors; the first few are named.
        ModelError: a tensor has another shape than the module's, or the module has computed buffers; while reading: a
            tensor holds values that are not finite, or whole numbers where the module has others.
    """
    chosen = check(module, source)
    ready: dict[torch.Tensor, torch.Tensor] = {}
    progress = _ReadProgress(chosen, device)
    for owner in module.modules():
        packed: Mapping[str, torch.Tensor] = {}
        if isinstance(owner, WeightQuantizer | PackedReader):
            packed = _packed(owner, source, chosen[owner.get_parameter("weight")], dtype, device)
            progress.count(owner.get_parameter("weight"), sum(part.nbytes for part in packed.values()))
        tables: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers)
        for slots in tables:
            for slot, old in slots.items():
                if old is None:
                    continue
                if slot in packed:
                    ready[old] = nn.Parameter(packed[slot], requires_grad=False)
                if old not in ready:
                    ready[old] = _read(source, chosen[old], old, dtype, device)
                    progress.count(old, ready[old].nbytes)
                slots[slot] = ready[old]
    module.eval()


def _packed(
    owner: nn.Module, source: TensorSource, keys: tuple[str, ...], dtype: DType, device: TensorDevice
) -> Mapping[str, torch.Tensor]:
    """The tensors that a module keeps in place of its weight, where they are wanted.

    Raises:
        ModelError: the source has nothing packed, or what is there is damaged.
    """
    there = _place(keys[0], device)
    if there.type == "meta":
        held = ((name, getattr(owner, name)) for name in _own_names(owner))
        return {name: tensor.detach() for name, tensor in held if tensor is not None}
    if isinstance(owner, PackedReader):
        assert isinstance(source, PackedSource), f"{source.describe()} has nothing packed"
        return owner.read_packed(source, keys, there, dtype if isinstance(dtype, torch.dtype) else dtype(keys[0]))
    assert isinstance(owner, WeightQuantizer)
    return owner.quantize_parts(_checked(source, keys, there))


def _own_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the tensors that a module keeps in place of its weight; () where it keeps that as it is."""
    if isinstance(module, PackedReader):
        return module.packed_names
    return module.quantized_names if isinstance(module, WeightQuantizer) else ()


class _ReadProgress:
    """How much of a module is there; tells who watches (see `watched_reads`).

    Args:
        chosen: the module's tensors, and their names in the source.
        device: those for the meta device are not read.
    """

    def __init__(self, chosen: Mapping[torch.Tensor, tuple[str, ...]], device: TensorDevice):
        self._on_read, self._done = _on_read.get(), 0
        self._sizes: dict[torch.Tensor, int] = {}
        if self._on_read is not None:
            self._sizes = {t: t.numel() for t, keys in chosen.items() if _place(keys[0], device).type != "meta"}
        self._total = max(1, sum(self._sizes.values()))

    def count(self, tensor: torch.Tensor, nbytes: int) -> None:
        """A tensor of the module was read and takes so many bytes."""
        if self._on_read is not None and (size := self._sizes.get(tensor)) is not None:
            self._done += size
            self._on_read(nbytes, self._done / self._total)


def check(module: nn.Module, source: TensorSource) -> dict[torch.Tensor, tuple[str, ...]]:
    """Make sure, without reading a tensor, that `fill` would find everything in its shape.

    Returns:
        Each tensor of the module -> the name under which the source has it, or the names of the parts of its rows.

    Raises:
        MissingFilesError, ModelError: as `fill`.
    """
    fused, names = _fused_names(module), _names(module)
    _refuse_computed_buffers(module, names)
    keys = source.keys()
    chosen = fused | {tensor: (next((n for n in ns if n in keys), ns[0]),) for tensor, ns in names.items()}
    refuse_missing([key for ns in chosen.values() for key in ns if key not in keys], source)
    packed: dict[torch.Tensor, tuple[int, ...]] = {
        owner.get_parameter("weight"): (owner.out_features, owner.in_features)
        for owner in module.modules()
        if isinstance(owner, PackedReader)
    }
    for tensor, parts in chosen.items():
        needed = packed.get(tensor, tuple(tensor.shape))
        if tensor in fused:
            needed = (needed[0] // len(parts), *needed[1:])
        for key in parts:
            refuse_another_shape(key, needed, source)
    return chosen


def _fused_names(module: nn.Module) -> dict[torch.Tensor, tuple[str, ...]]:
    """Each tensor whose rows are several of a source's -> the names of those."""
    names: dict[torch.Tensor, tuple[str, ...]] = {}
    for path, owner in module.named_modules():
        parts = owner.fused_from if isinstance(owner, FusedModule) else ()
        beside = path[: path.rfind(".") + 1]
        for slot in ("weight", "bias") if parts else ():
            if (tensor := owner._parameters.get(slot)) is not None:
                names[tensor] = tuple(f"{beside}{part}.{slot}" for part in parts)
    return names


def _names(module: nn.Module) -> dict[torch.Tensor, list[str]]:
    """Each other tensor a source must have (they hash by identity) -> its names in the state dict, the shortest first.

    What a state dict shows of a fused tensor are new views: they are no tensors of the module's.
    """
    owned = {*module.parameters(), *module.buffers()} - _fused_names(module).keys()
    made = {
        getattr(owner, slot)
        for owner in module.modules()
        for slot in _own_names(owner)
        if slot != "weight" and getattr(owner, slot) is not None
    }
    names: dict[torch.Tensor, list[str]] = {}
    for key, tensor in module.state_dict(keep_vars=True).items():
        if tensor in owned and tensor not in made:
            names.setdefault(tensor, []).append(key)
    return {t: sorted(ns, key=lambda n: (len(n), n)) for t, ns in names.items()}


def _refuse_computed_buffers(module: nn.Module, names: dict[torch.Tensor, list[str]]) -> None:
    computed = [n for n, b in module.named_buffers() if b not in names]
    if computed:
        raise ModelError(f"{type(module).__name__} computes {computed[0]} itself and cannot be built without memory.")


def _read(
    source: TensorSource, keys: tuple[str, ...], old: torch.Tensor, dtype: DType, device: TensorDevice
) -> torch.Tensor:
    """A copy of one tensor where it is wanted, never the file's own memory; a parameter where `old` is one."""
    there = _place(keys[0], device)
    if there.type == "meta":
        return old
    wanted = dtype if isinstance(dtype, torch.dtype) else dtype(keys[0])
    if len(keys) > 1:
        kept = torch.empty(old.shape, dtype=wanted, device=there)
        for key, rows in zip(keys, kept.chunk(len(keys)), strict=True):
            value = source.read(key).detach()
            _check_values(rows.copy_(value) if value.is_floating_point() else value, key, source, there)
        return nn.Parameter(kept, requires_grad=False)
    value = source.read(keys[0])
    kept = value.detach().to(device=there, dtype=wanted if value.is_floating_point() else value.dtype, copy=True)
    if old.is_floating_point():
        _check_values(kept, keys[0], source, there)
    return nn.Parameter(kept, requires_grad=False) if isinstance(old, nn.Parameter) else kept


def _checked(source: TensorSource, keys: Iterable[str], there: torch.device) -> Iterator[torch.Tensor]:
    """Tensors of the source, one at a time."""
    for key in keys:
        tensor = source.read(key).detach().to(there)
        _check_values(tensor, key, source, there)
        yield tensor


def _check_values(tensor: torch.Tensor, key: str, source: TensorSource, there: torch.device) -> None:
    """Refuse numbers that no network works with, by name; where they lie, in one pass that costs less than the copy.

    The smallest and the largest number of a tensor with NaN are NaN.
    """
    if not tensor.is_floating_point():
        raise ModelError(
            f"{source.describe()} stores {shortened(key)} in whole numbers ({tensor.dtype}), without a scale.",
            "Use the bf16, fp16 or fp8_scaled file of this model.",
        )
    if not tensor.numel():
        return
    least, most = tensor.aminmax()
    if bool(torch.isfinite(most - least if tensor.dtype == torch.float64 else most.float() - least.float())):
        return
    if not source.read(key).isfinite().all():
        raise ModelError(f"{shortened(key)} in {source.describe()} holds values that are not finite.", FETCH_AGAIN)
    dtype = str(tensor.dtype).removeprefix("torch.")
    raise ModelError(
        f"{shortened(key)} in {source.describe()} holds values that are too large for {dtype} on {there}.",
        "Use bfloat16 or float32.",
    )


def _place(key: str, device: TensorDevice) -> torch.device:
    return torch.device(device(key) if callable(device) else device)
