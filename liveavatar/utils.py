"""Small helpers that every layer may use: amounts of bytes in words, copies of small tensors to a busy device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0}


def format_bytes(nbytes: float, spec: str = ".1f", unit: str = "GB") -> str:
    """An amount of bytes for people: "12.3 GB".

    Args:
        nbytes: how many.
        spec: format of the number.
        unit: "GB", "MB", "kB" (powers of 1000), or "largest": the largest of them that fits, whole bytes below.
    """
    if unit == "largest":
        unit = next(name for name, scale in _UNITS.items() if nbytes >= scale or name == "B")
    return f"{nbytes} B" if unit == "B" else f"{nbytes / _UNITS[unit]:{spec}} {unit}"


def to_device_async(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """An asynchronous copy on another device, without waiting for what that device has still to do.

    A GPU takes what it is sent in order, and from pageable memory the host would wait for its turn. Pinned memory comes
    from PyTorch's own store, which gives it to nobody else before the copy is done.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
