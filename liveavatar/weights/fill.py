"""Putting tensors into modules that were built without memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ..errors import MissingFilesError, ModelError
from .source import TensorSource

DType = torch.dtype | Callable[[str], torch.dtype]
"""One dtype for all tensors, or one per name."""
Where = torch.device | str | Callable[[str], torch.device | str]
"""One device for all tensors, or one per name; what is for the meta device is not read."""


@runtime_checkable
class Packing(Protocol):
    """A module that keeps its `weight` in a form of its own, such as fewer bits.

    Attributes:
        packed: names of the tensors it keeps instead, "weight" among them; sources have none of the others.
    """

    packed: tuple[str, ...]

    def pack(self, weight: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The weight as the source has it, on the module's device -> each of `packed`."""


def fill(module: nn.Module, source: TensorSource, *, dtype: DType, device: Where) -> None:
    """Give a module built under `torch.device("meta")` its tensors, in place, one at a time.

    Exactly what the module owns is read; names are those of its state dict, and a tensor it knows under several names
    is read once, from the first name the source has. Afterwards everything is real, on `device`, in `dtype` (whole
    numbers keep theirs), needs no gradient, and the module is in evaluation mode. What modules pack (see `Packing`) is
    packed on `device`, tensor by tensor. Peak host memory is what stays plus the tensor in hand. What is for the meta
    device is there to be given its values by somebody else: it is not read, and stays as it was built.

    Modules with buffers outside their state dict (computed ones) are refused, because nothing could give those values;
    those of this library and the encoder and VAE classes it uses have none.

    Raises:
        MissingFilesError: the source lacks tensors; the first few are named.
        ModelError: a tensor has another shape than the module's, or the module has computed buffers.
    """
    chosen = check(module, source)
    ready: dict[torch.Tensor, torch.Tensor] = {}
    for owner in module.modules():
        packed: Mapping[str, torch.Tensor] = {}
        if isinstance(owner, Packing):
            key = chosen[owner.get_parameter("weight")]
            if (there := _place(key, device)).type == "meta":
                packed = {name: getattr(owner, name).detach() for name in owner.packed}
            else:
                packed = owner.pack(source.read(key).detach().to(there))
        tables: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers)
        for slots in tables:
            for slot, old in slots.items():
                if old is None:
                    continue
                if slot in packed:
                    ready[old] = nn.Parameter(packed[slot], requires_grad=False)
                if old not in ready:
                    ready[old] = _read(source, chosen[old], old, dtype, device)
                slots[slot] = ready[old]
    module.eval()


def check(module: nn.Module, source: TensorSource) -> dict[torch.Tensor, str]:
    """Make sure, without reading a tensor, that `fill` would find everything in its shape.

    Returns:
        Each tensor of the module -> the name under which the source has it.

    Raises:
        MissingFilesError, ModelError: as `fill`.
    """
    names = _names(module)
    _refuse_computed_buffers(module, names)
    keys = source.keys()
    chosen = {tensor: next((n for n in ns if n in keys), "") for tensor, ns in names.items()}
    _refuse_missing([names[t][0] for t, n in chosen.items() if not n], source)
    for tensor, key in chosen.items():
        if (shape := source.shape(key)) != tuple(tensor.shape):
            raise ModelError(
                f"{key} in {source.describe()} has shape {list(shape)}; this model needs {list(tensor.shape)}.",
                "The weights and the config.json belong to different models.",
            )
    return chosen


def _names(module: nn.Module) -> dict[torch.Tensor, list[str]]:
    """Each tensor a source must have (tensors hash by identity) -> its names in the state dict, the shortest first."""
    made = {
        owner.get_parameter(slot)
        for owner in module.modules()
        if isinstance(owner, Packing)
        for slot in owner.packed
        if slot != "weight"
    }
    names: dict[torch.Tensor, list[str]] = {}
    for key, tensor in module.state_dict(keep_vars=True).items():
        if tensor not in made:
            names.setdefault(tensor, []).append(key)
    return {t: sorted(ns, key=lambda n: (len(n), n)) for t, ns in names.items()}


def _refuse_computed_buffers(module: nn.Module, names: dict[torch.Tensor, list[str]]) -> None:
    computed = [n for n, b in module.named_buffers() if b not in names]
    if computed:
        raise ModelError(f"{type(module).__name__} computes {computed[0]} itself and cannot be built without memory.")


def _refuse_missing(missing: list[str], source: TensorSource) -> None:
    if missing:
        listed = ", ".join(sorted(missing)[:5]) + (", ..." if len(missing) > 5 else "")
        raise MissingFilesError(
            f"{source.describe()} lacks {len(missing)} of the tensors this model needs: {listed}.",
            "Use the complete published files, and the config.json that belongs to them.",
        )


def _read(source: TensorSource, key: str, old: torch.Tensor, dtype: DType, device: Where) -> torch.Tensor:
    """A copy of one tensor where it is wanted, never the file's own memory; a parameter where `old` is one."""
    there = _place(key, device)
    if there.type == "meta":
        return old
    value = source.read(key)
    wanted = dtype if isinstance(dtype, torch.dtype) else dtype(key)
    kept = value.detach().to(device=there, dtype=wanted if value.is_floating_point() else value.dtype, copy=True)
    return nn.Parameter(kept, requires_grad=False) if isinstance(old, nn.Parameter) else kept


def _place(key: str, device: Where) -> torch.device:
    return torch.device(device(key) if callable(device) else device)
