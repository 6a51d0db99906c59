"""Where tensors lie between two uses: on the pages of the host, or where they are."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from .host import ALIGNED, HostMemory


def berth_of(device: torch.device) -> HostBerth | PlainBerth:
    """One for the tensors of a device: what is on the CPU is on the host already."""
    return HostBerth(device) if device.type == "cuda" else PlainBerth()


class PlainBerth:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self._held: list[Any] = []

    def put(self, held: list[Any]) -> None:
        """Lay it here."""
        self._held = list(held)

    def take(self) -> list[Any]:
        """Have it again; it is not here any more."""
        held, self._held = self._held, []
        return held


@dataclasses.dataclass(frozen=True)
class _Kept:
    """A tensor on the host: its numbers in the order of memory, and how they are to be read."""

    flat: torch.Tensor
    shape: torch.Size
    strides: tuple[int, ...]


class HostBerth:
    """Copies what it is given to host memory, page-locked for a CUDA device, and back, bit for bit.

    Copies are done in the stream that computes, so that they are in order with the work and nothing waits for them
    here. The memory is made once and used again as long as the tensors keep their layouts.

    Args:
        device: of the tensors.

    Raises:
        HostMemoryError: the host has not that much memory, or may not lock it; at the first `put`.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._memory: HostMemory | None = None
        self._layout: list[Any] = []
        self._held: list[Any] = []

    @property
    def nbytes(self) -> int:
        """Bytes on the host."""
        return 0 if self._memory is None else self._memory.bytes.nbytes

    def put(self, held: list[Any]) -> None:
        """Lay tensors here; whatever else is among them is kept as it is."""
        dense = [_dense(t) if isinstance(t, torch.Tensor) else t for t in held]
        layout = [(t.shape, t.stride(), t.dtype) if isinstance(t, torch.Tensor) else t for t in dense]
        if layout != self._layout:
            self._make_room(dense, layout)
        for kept, tensor in zip(self._held, dense, strict=True):
            if isinstance(kept, _Kept):
                kept.flat.copy_(_flat(tensor), non_blocking=True)

    def take(self) -> list[Any]:
        """Have them on the device again."""
        return [self._brought(kept) if isinstance(kept, _Kept) else kept for kept in self._held]

    def _make_room(self, dense: list[Any], layout: list[Any]) -> None:
        nbytes = sum(-(-t.nbytes // ALIGNED) * ALIGNED for t in dense if isinstance(t, torch.Tensor))
        self._memory = memory = HostMemory(max(1, nbytes), self._device)
        self._layout = layout
        self._held = [
            _Kept(memory.take((t.numel(),), t.dtype), t.shape, t.stride()) if isinstance(t, torch.Tensor) else t
            for t in dense
        ]

    def _brought(self, kept: _Kept) -> torch.Tensor:
        tensor = torch.empty_strided(kept.shape, kept.strides, dtype=kept.flat.dtype, device=self._device)
        _flat(tensor).copy_(kept.flat, non_blocking=True)
        return tensor


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers without gaps in memory, in the same order where that has none."""
    return tensor if torch.empty_like(tensor, device="meta").stride() == tensor.stride() else tensor.contiguous()


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of a dense tensor in the order of memory."""
    return tensor.as_strided((tensor.numel(),), (1,))
