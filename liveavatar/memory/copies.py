"""Copies between host and device that run beside the computation.

Three lines of work go on side by side: the computation, the copies in and the copies out. A `Mark` is a point that one
of them reaches; every copy names the marks it must come after, and the computation waits for the mark of what it reads.
Nothing here makes the host wait but `settle`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

import torch

from .host import HostMemory

Mark = Any
"""A point in a line of work: a CUDA event, or None for one that is past."""
Pairs = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Targets and sources of equal shape, dtype and strides, contiguous."""


@dataclasses.dataclass
class Traffic:
    """Bytes that were copied to the device and from it, since the beginning."""

    to_device: int = 0
    to_host: int = 0


class Copies(Protocol):
    """The copies of one device."""

    traffic: Traffic

    def host(self, nbytes: int) -> HostMemory:
        """Memory to copy from and to."""

    def room(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the device that copies go to and come from; its values are not set."""

    def bring(self, pairs: Pairs, *after: Mark) -> Mark:
        """Copy to the device, after some marks; the mark of the last copy."""

    def put_away(self, pairs: Pairs, *after: Mark) -> Mark:
        """Copy to the host, after some marks; the mark of the last copy."""

    def mark(self) -> Mark:
        """Where the computation will be when it has done all it was given until now."""

    def wait(self, mark: Mark) -> None:
        """What the computation is given from now on comes after a mark."""

    def settle(self) -> None:
        """Wait, here and now, until every copy is done."""


def copies_of(device: torch.device) -> Copies:
    """For a device; each call makes its own lines of work."""
    return CudaCopies(device) if device.type == "cuda" else PlainCopies(device)


class PlainCopies:
    """Copies that are done when they are asked for: every mark is past."""

    def __init__(self, device: torch.device):
        self.device, self.traffic = device, Traffic()

    def host(self, nbytes: int) -> HostMemory:
        return HostMemory(nbytes, self.device)

    def room(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def bring(self, pairs: Pairs, *after: Mark) -> Mark:
        self.traffic.to_device += _copy(pairs, wait=True)

    def put_away(self, pairs: Pairs, *after: Mark) -> Mark:
        self.traffic.to_host += _copy(pairs, wait=True)

    def mark(self) -> Mark:
        return None

    def wait(self, mark: Mark) -> None:
        pass

    def settle(self) -> None:
        pass


class CudaCopies:
    """Copies in a stream per direction; marks are events."""

    def __init__(self, device: torch.device):
        self.device, self.traffic = device, Traffic()
        self._in, self._out = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def host(self, nbytes: int) -> HostMemory:
        return HostMemory(nbytes, self.device)

    def room(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        room = torch.empty(shape, dtype=dtype, device=self.device)
        # So that its memory, once given back, is not used again before the copies that were under way are done.
        room.record_stream(self._in)
        room.record_stream(self._out)
        return room

    def bring(self, pairs: Pairs, *after: Mark) -> Mark:
        mark, copied = _copy_in_stream(self._in, pairs, after)
        self.traffic.to_device += copied
        return mark

    def put_away(self, pairs: Pairs, *after: Mark) -> Mark:
        mark, copied = _copy_in_stream(self._out, pairs, after)
        self.traffic.to_host += copied
        return mark

    def mark(self) -> Mark:
        return torch.cuda.current_stream(self.device).record_event()

    def wait(self, mark: Mark) -> None:
        if mark is not None:
            torch.cuda.current_stream(self.device).wait_event(mark)

    def settle(self) -> None:
        self._in.synchronize()
        self._out.synchronize()


def _copy_in_stream(stream: torch.cuda.Stream, pairs: Pairs, after: Iterable[Mark]) -> tuple[Mark, int]:
    with torch.cuda.stream(stream):
        for mark in after:
            if mark is not None:
                stream.wait_event(mark)
        copied = _copy(pairs, wait=False)
        return stream.record_event(), copied


def _copy(pairs: Pairs, *, wait: bool) -> int:
    copied = 0
    for target, source in pairs:
        target.copy_(source, non_blocking=not wait)
        copied += target.nbytes
    return copied
