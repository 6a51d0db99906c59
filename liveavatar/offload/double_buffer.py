"""The double buffer: slots on the device, of which one is computed with while another is filled from the host."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

from .streams import CopyStreams, StreamEvent, TensorPairs

T = TypeVar("T")


@dataclasses.dataclass(eq=False)
class Slot(Generic[T]):
    """Room on the device.

    Attributes:
        buffer: the room.
        free: when the computation, and what is copied out of it, have done with it: all of these are past.
        holds: the key of what is in it, or on its way; None where that is of no use.
        arrived: when that is there.
    """

    buffer: T
    free: tuple[StreamEvent, ...]
    holds: Hashable = None
    arrived: StreamEvent = None


class DoubleBuffer(Generic[T]):
    """Slots that are filled in turns, so that copies to the device run beside the computation.

    Args:
        streams: of the device.
        buffers: one per slot.
    """

    def __init__(self, streams: CopyStreams, buffers: Iterable[T] = ()):
        self.streams = streams
        self._order: collections.deque[Slot[T]] = collections.deque()
        """The one that was computed with last stands last."""
        self.allocate(buffers)

    def __iter__(self) -> Iterator[Slot[T]]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def allocate(self, buffers: Iterable[T]) -> None:
        """Add slots."""
        self._order.extend(Slot(buffer, (self.streams.record_event(),)) for buffer in buffers)

    def clear(self) -> None:
        """Give the slots back."""
        self._order.clear()

    def find(self, key: Hashable) -> Slot[T] | None:
        """The slot that holds what belongs to a key, if any does."""
        return next((slot for slot in self._order if slot.holds == key), None)

    @property
    def next_slot(self) -> Slot[T]:
        """The slot to be filled next: the one that was computed with longest ago."""
        return self._order[0]

    @property
    def latest(self) -> Slot[T]:
        """The slot that was computed with last."""
        return self._order[-1]

    def fill(self, key: Hashable, pairs: TensorPairs, *after: StreamEvent) -> Slot[T]:
        """Begin to copy to the device into `next_slot`; what it held is lost.

        Args:
            key: of what is copied.
            pairs: tensors of the slot's buffer, and their sources on the host.
            after: events that the copies wait for, besides the slot being free.
        """
        slot = self.next_slot
        slot.holds = None
        slot.arrived = self.streams.h2d(pairs, *slot.free, *after)
        slot.holds = key
        return slot

    def acquire(self, slot: Slot[T]) -> None:
        """Take a slot for the computation: the others are filled before it."""
        self._order.remove(slot)
        self._order.append(slot)
