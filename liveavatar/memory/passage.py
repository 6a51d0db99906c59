"""Weights that live in the host's memory and pass through two slots on the device.

The tensors of a module are packed into one piece of host memory, so that they travel in one copy. Between two uses the
module's tensors are those on the host; while it works they are views of a slot.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping

import torch

from ..model.layer import Layer
from .copies import Copies, Mark
from .host import HostMemory
from .load import Load
from .stock import Copy


@dataclasses.dataclass(eq=False)
class _Slot:
    """Room for one load on the device.

    Attributes:
        packed: the room.
        number: the layer whose load is in it, or on its way.
        arrived: when that is there.
        worked: when the computation has done with it.
        views: layer -> its tensors in this room.
    """

    packed: torch.Tensor
    worked: Mark
    number: int | None = None
    arrived: Mark = None
    views: dict[int, list[torch.Tensor]] = dataclasses.field(default_factory=dict)


class Passage:
    """Leads layers by, one after the other; those it has loads of are on the device while they are worked on.

    The next load travels while a layer works. It belongs to the network, not to a stage or a session: whoever walks the
    layers finds the slots as the one before left them.

    Args:
        loads: layer -> what of it travels; moved into host memory by this, where they do not lie there yet.
        copies: of the device.
        stays: whether the slots stay, and the first layer is fetched again while the last one works; otherwise they
            are there during a walk only.
        copy: what loads that have settled lie in.

    Raises:
        HostMemoryError: the host's memory cannot hold the loads.
    """

    def __init__(self, loads: Mapping[int, Load], copies: Copies, *, stays: bool = True, copy: Copy | None = None):
        self.copies, self._loads = copies, dict(loads)
        self.copy = copy
        self._memory: list[HostMemory] = []
        """Of the loads that had not."""
        for load in loads.values():
            if not load.settled:
                self._memory.append(copies.host(load.nbytes))
                load.settle(self._memory[-1].bytes)
        order = sorted(loads)
        self._following = dict(itertools.pairwise(order))
        if stays and order:
            self._following[order[-1]] = order[0]
        self._stays = stays
        self._slots: collections.deque[_Slot] = collections.deque()
        """The one that worked last stands last."""
        if stays:
            self._open()

    @property
    def device_bytes(self) -> int:
        """What the slots take."""
        return sum(slot.packed.nbytes for slot in self._slots)

    @property
    def host_bytes(self) -> int:
        """What the loads take."""
        return sum(load.nbytes for load in self._loads.values())

    @property
    def tensor_bytes(self) -> int:
        """What the tensors of the loads take by themselves."""
        return sum(load.tensor_bytes for load in self._loads.values())

    def __call__(self, layers: Iterable[tuple[int, Layer]]) -> Iterator[Layer]:
        """The layers in their order, each ready to work until the next one is asked for."""
        self._open()
        try:
            for number, layer in layers:
                with self._present(number):
                    yield layer
        finally:
            if not self._stays:
                self._slots.clear()

    def _open(self) -> None:
        if not self._slots and self._loads:
            room = max(load.nbytes for load in self._loads.values())
            rooms = [self.copies.room((room,), torch.uint8) for _ in range(min(2, len(self._loads)))]
            self._slots.extend(_Slot(r, self.copies.mark()) for r in rooms)

    @contextlib.contextmanager
    def _present(self, number: int) -> Iterator[None]:
        load = self._loads.get(number)
        if load is None:
            yield
            return
        slot = self._fetch(number)
        self._slots.remove(slot)
        self._slots.append(slot)
        if (following := self._following.get(number)) is not None:
            self._fetch(following)
        self.copies.wait(slot.arrived)
        if number not in slot.views:
            slot.views[number] = load.views(slot.packed)
        load.become(slot.views[number])
        try:
            yield
        finally:
            load.go_home()
            slot.worked = self.copies.mark()

    def _fetch(self, number: int) -> _Slot:
        """The slot a load is in or on its way to; if in none, it is sent to the one that worked longest ago."""
        for slot in self._slots:
            if slot.number == number:
                return slot
        slot, load = self._slots[0], self._loads[number]
        slot.number = None
        slot.arrived = self.copies.bring([(slot.packed[: load.nbytes], load.packed)], slot.worked)
        slot.number = number
        return slot
