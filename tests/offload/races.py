"""Finds copies that could meet the computation, or each other, on a device where the three run side by side.

Here everything runs in turn. What is recorded is which order the marks promise (vector clocks of the three lines of
work) and who reads and writes which bytes; two accesses to the same bytes of which one writes, with no promised order
between them, are a race.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from liveavatar.offload.pinned_memory import PinnedBuffer
from liveavatar.offload.streams import StreamEvent, SynchronousCopies, TensorPairs

Clock = dict[str, int]


class RaceError(AssertionError):
    """Two accesses that nothing keeps in order."""


class Watched(TorchDispatchMode):
    """The lines of work, and every access to the memory that copies go to and come from."""

    def __init__(self) -> None:
        super().__init__()
        self.clocks: dict[str, Clock] = {}
        self.regions: list[torch.Tensor] = []
        self.accesses: dict[tuple[str, int, int, bool], int] = {}
        """(line, first byte, end, whether it writes) -> the latest time of the line."""
        self.line = "compute"
        self.checked = 0

    def tick(self, line: str) -> Clock:
        clock = self.clocks.setdefault(line, {})
        clock[line] = clock.get(line, 0) + 1
        return clock

    def join(self, line: str, mark: Clock | None) -> None:
        clock = self.clocks.setdefault(line, {})
        for other, time in (mark or {}).items():
            clock[other] = max(clock.get(other, 0), time)

    @contextlib.contextmanager
    def working(self, line: str) -> Iterator[None]:
        self.line, before = line, self.line
        try:
            yield
        finally:
            self.line = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns):  # else a view
            self.tick(self.line)
            for i, argument in enumerate(func._schema.arguments):
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                writes = bool(argument.alias_info and argument.alias_info.is_write)
                for tensor in tree_leaves(value):
                    if isinstance(tensor, torch.Tensor) and tensor.numel():
                        self.access(tensor, writes)
        return func(*args, **kwargs)

    def access(self, tensor: torch.Tensor, writes: bool) -> None:
        first = tensor.data_ptr()
        span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        end = first + span * tensor.element_size()
        if not any(r.data_ptr() <= first < r.data_ptr() + r.nbytes for r in self.regions):
            return
        clock = self.clocks[self.line]
        for (line, start, stop, wrote), time in self.accesses.items():
            if line != self.line and (writes or wrote) and start < end and first < stop:
                self.checked += 1
                if clock.get(line, 0) < time:
                    raise RaceError(f"{self.line} {'writes' if writes else 'reads'} what {line} may still have to do")
        self.accesses[self.line, first, end, writes] = clock[self.line]


class WatchedStreams(SynchronousCopies):
    """Copies done at once, whose promises are recorded.

    Args:
        careless: leaves out what copies are to come after ("after"), or what the computation waits for ("wait").
    """

    def __init__(self, watched: Watched, careless: str = ""):
        super().__init__(torch.device("cpu"))
        self.watched, self.careless = watched, careless

    def pinned_buffer(self, nbytes: int) -> PinnedBuffer:
        memory = super().pinned_buffer(nbytes)
        self.watched.regions.append(memory.bytes)
        return memory

    def device_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        room = super().device_buffer(shape, dtype)
        self.watched.regions.append(room)
        self.watched.tick("compute")
        self.watched.access(room, writes=True)  # who had this memory before may still work in it
        return room

    def h2d(self, pairs: TensorPairs, *after: StreamEvent) -> StreamEvent:
        return self._copy("in", super().h2d, pairs, after)

    def d2h(self, pairs: TensorPairs, *after: StreamEvent) -> StreamEvent:
        return self._copy("out", super().d2h, pairs, after)

    def record_event(self) -> StreamEvent:
        return dict(self.watched.tick("compute"))

    def wait_event(self, mark: StreamEvent) -> None:
        if self.careless != "wait":
            self.watched.join("compute", mark)

    def _copy(self, line: str, copy: Any, pairs: TensorPairs, after: tuple[StreamEvent, ...]) -> StreamEvent:
        for mark in after if self.careless != "after" else ():
            self.watched.join(line, mark)
        with self.watched.working(line):
            copy(pairs)
        return dict(self.watched.tick(line))
