"""Copies between host and device beside the computation: copy streams, results on their way to the host."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, Protocol

import torch

from .pinned_memory import ALIGNMENT, PinnedBuffer, PinnedPool

StreamEvent = Any
"""A point in a line of work: a CUDA event, or None for one that is past."""
TensorPairs = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Targets and sources of equal shape, dtype and strides, contiguous."""


@dataclasses.dataclass
class TransferStats:
    """Transfer statistics: bytes copied to the device and from it since the beginning."""

    to_device: int = 0
    to_host: int = 0


class CopyStreams(Protocol):
    """The copy streams of one device."""

    transfer_stats: TransferStats

    def pinned_buffer(self, nbytes: int) -> PinnedBuffer:
        """Memory to copy from and to."""

    def device_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the device that copies go to and come from; its values are not set."""

    def h2d(self, pairs: TensorPairs, *after: StreamEvent) -> StreamEvent:
        """Copy to the device, after some events; the event of the last copy."""

    def d2h(self, pairs: TensorPairs, *after: StreamEvent) -> StreamEvent:
        """Copy to the host, after some events; the event of the last copy."""

    def record_event(self) -> StreamEvent:
        """An event of the compute stream: all it was given until now is done."""

    def wait_event(self, record_event: StreamEvent) -> None:
        """Let the compute stream wait for an event."""

    def synchronize(self) -> None:
        """Synchronize: wait until every copy is done."""


def copy_streams(device: torch.device, pinned: PinnedPool | None = None) -> CopyStreams:
    """For a device; each call makes its own lines of work.

    Args:
        device: which.
        pinned: where pinned buffers are from; None: they are made for this and given back after it.
    """
    return CudaCopyStreams(device, pinned) if device.type == "cuda" else SynchronousCopies(device, pinned)


class SynchronousCopies:
    """Copies that are done when they are asked for: every event is past."""

    def __init__(self, device: torch.device, pinned: PinnedPool | None = None):
        self.device, self.transfer_stats = device, TransferStats()
        self._pinned = pinned or PinnedPool()

    def pinned_buffer(self, nbytes: int) -> PinnedBuffer:
        return self._pinned.take(nbytes, self.device)

    def device_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def h2d(self, pairs: TensorPairs, *after: StreamEvent) -> StreamEvent:
        self.transfer_stats.to_device += _copy(pairs, wait=True)

    def d2h(self, pairs: TensorPairs, *after: StreamEvent) -> StreamEvent:
        self.transfer_stats.to_host += _copy(pairs, wait=True)

    def record_event(self) -> StreamEvent:
        return None

    def wait_event(self, record_event: StreamEvent) -> None:
        pass

    def synchronize(self) -> None:
        pass


class CudaCopyStreams:
    """Copies in a CUDA stream per direction, ordered by events."""

    def __init__(self, device: torch.device, pinned: PinnedPool | None = None):
        self.device, self.transfer_stats = device, TransferStats()
        self._pinned = pinned or PinnedPool()
        self._in, self._out = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def pinned_buffer(self, nbytes: int) -> PinnedBuffer:
        return self._pinned.take(nbytes, self.device)

    def device_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        device_buffer = torch.empty(shape, dtype=dtype, device=self.device)
        # So that its memory, once given back, is not used again before the copies that were under way are done.
        device_buffer.record_stream(self._in)
        device_buffer.record_stream(self._out)
        return device_buffer

    def h2d(self, pairs: TensorPairs, *after: StreamEvent) -> StreamEvent:
        record_event, copied = _copy_in_stream(self._in, pairs, after)
        self.transfer_stats.to_device += copied
        return record_event

    def d2h(self, pairs: TensorPairs, *after: StreamEvent) -> StreamEvent:
        record_event, copied = _copy_in_stream(self._out, pairs, after)
        self.transfer_stats.to_host += copied
        return record_event

    def record_event(self) -> StreamEvent:
        return torch.cuda.current_stream(self.device).record_event()

    def wait_event(self, record_event: StreamEvent) -> None:
        if record_event is not None:
            torch.cuda.current_stream(self.device).wait_event(record_event)

    def synchronize(self) -> None:
        self._in.synchronize()
        self._out.synchronize()


def _copy_in_stream(
    stream: torch.cuda.Stream, pairs: TensorPairs, after: Iterable[StreamEvent]
) -> tuple[StreamEvent, int]:
    with torch.cuda.stream(stream):
        for record_event in after:
            if record_event is not None:
                stream.wait_event(record_event)
        copied = _copy(pairs, wait=False)
        return stream.record_event(), copied


def _copy(pairs: TensorPairs, *, wait: bool) -> int:
    copied = 0
    for target, source in pairs:
        target.copy_(source, non_blocking=not wait)
        copied += target.nbytes
    return copied


@dataclasses.dataclass(frozen=True)
class AsyncHostTensor:
    """A tensor being copied to the host asynchronously.

    Attributes:
        host_tensor: where it lands, page-locked on CUDA; not to be read before `wait`.
        event: what passes when it is there; None where it is there already.
    """

    host_tensor: torch.Tensor
    event: StreamEvent

    @classmethod
    def copy_of(cls, tensor: torch.Tensor) -> AsyncHostTensor:
        """Send a tensor, in the stream that its device works in here."""
        if tensor.device.type != "cuda":
            return cls(tensor.cpu(), None)
        held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        held.copy_(tensor, non_blocking=True)
        mark = torch.cuda.Event(blocking=True)  # the thread that waits leaves its core to others
        mark.record(torch.cuda.current_stream(tensor.device))
        return cls(held, mark)

    @property
    def arrived(self) -> bool:
        """Whether `wait` would not have to wait."""
        return self.event is None or self.event.query()

    def wait(self) -> torch.Tensor:
        """The tensor, once it is there; what the device was given after it is not waited for.

        It comes in ordinary memory: page-locked memory is scarce, and the result may be kept for long.
        """
        if self.event is None:
            return self.host_tensor
        self.event.synchronize()
        return self.host_tensor.clone()


class SideStream:
    """A side stream of a CUDA device; elsewhere its work is like any other.

    It begins when the device has done what this thread's present stream was given until now. Its memory is taken and
    given back in that stream, so results must be waited for (see `AsyncHostTensor`) before other streams read them.

    Args:
        device: which.
    """

    def __init__(self, device: torch.device):
        self._stream = None
        if device.type == "cuda":
            self._stream = _side_stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def active(self) -> contextlib.AbstractContextManager[Any]:
        """What is inside is such work."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all such work of a device, because memory that a stream has used is kept for that stream."""
    return torch.cuda.Stream(device)


def offload_slot(device: torch.device, pinned: PinnedPool | None = None) -> HostSlot | DeviceSlot:
    """One for the tensors of a device: what is on the CPU is on the host already. `pinned`: as of `HostSlot`."""
    return HostSlot(device, pinned) if device.type == "cuda" else DeviceSlot()


class DeviceSlot:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self._held: list[Any] = []

    def store(self, held: list[Any]) -> None:
        """Lay it here."""
        self._held = list(held)

    def load(self) -> list[Any]:
        """Have it again; it is not here any more."""
        held, self._held = self._held, []
        return held


@dataclasses.dataclass(frozen=True)
class _HostTensor:
    """A tensor on the host: its numbers in the order of memory, and how they are to be read."""

    flat: torch.Tensor
    shape: torch.Size
    strides: tuple[int, ...]


class HostSlot:
    """Offloads tensors to host memory, page-locked for a CUDA device, and back, bit for bit.

    Copies are done in the stream that computes, so that they are in order with the work and nothing waits for them
    here. The memory is made once and used again as long as the tensors keep their layouts.

    Args:
        device: of the tensors.
        pinned: where its memory is from; None: it is made for this and given back after it.

    Raises:
        HostMemoryError: the host has not that much memory, or may not lock it; at the first `store`.
    """

    def __init__(self, device: torch.device, pinned: PinnedPool | None = None):
        self._device, self._pinned = device, pinned or PinnedPool()
        self._memory: PinnedBuffer | None = None
        self._layout: list[Any] = []
        self._held: list[Any] = []

    @property
    def nbytes(self) -> int:
        """Bytes on the host."""
        return 0 if self._memory is None else self._memory.bytes.nbytes

    def store(self, held: list[Any]) -> None:
        """Lay tensors here; whatever else is among them is kept as it is."""
        dense = [_dense(t) if isinstance(t, torch.Tensor) else t for t in held]
        layout = [(t.shape, t.stride(), t.dtype) if isinstance(t, torch.Tensor) else t for t in dense]
        if layout != self._layout:
            self._allocate(dense, layout)
        for kept, tensor in zip(self._held, dense, strict=True):
            if isinstance(kept, _HostTensor):
                kept.flat.copy_(_flat(tensor), non_blocking=True)

    def load(self) -> list[Any]:
        """Have them on the device again."""
        return [self._to_device(kept) if isinstance(kept, _HostTensor) else kept for kept in self._held]

    def _allocate(self, dense: list[Any], layout: list[Any]) -> None:
        nbytes = sum(-(-t.nbytes // ALIGNMENT) * ALIGNMENT for t in dense if isinstance(t, torch.Tensor))
        self._memory = None  # what it had may be taken again
        self._memory = memory = self._pinned.take(max(1, nbytes), self._device)
        self._layout = layout
        self._held = [
            _HostTensor(memory.allocate((t.numel(),), t.dtype), t.shape, t.stride())
            if isinstance(t, torch.Tensor)
            else t
            for t in dense
        ]

    def _to_device(self, kept: _HostTensor) -> torch.Tensor:
        tensor = torch.empty_strided(kept.shape, kept.strides, dtype=kept.flat.dtype, device=self._device)
        _flat(tensor).copy_(kept.flat, non_blocking=True)
        return tensor


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers without gaps in memory, in the same order where that has none."""
    return tensor if torch.empty_like(tensor, device="meta").stride() == tensor.stride() else tensor.contiguous()


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of a dense tensor in the order of memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


_caps: dict[str, int] = {}
"""In force, by device: a setting of the whole process."""


def limit_device_memory(device: str, cap: int) -> None:
    """Let the tensors of this process take so many bytes of a GPU at most; nothing happens on the CPU.

    Args:
        device: its name.
        cap: bytes; 0 takes an earlier cap away and leaves alone what others set.
    """
    if torch.device(device).type != "cuda" or _caps.get(device, 0) == cap:
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total) if cap else 1.0, device)
    _caps[device] = cap
