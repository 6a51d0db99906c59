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
from typing import Any

import torch
from torch import nn

from ..model.layer import Layer
from .copies import Copies, Mark
from .host import ALIGNED, HostMemory


@dataclasses.dataclass(frozen=True)
class _Piece:
    """One tensor of a module.

    Attributes:
        table, name: the entry of the module that holds it.
        start: where it begins in the packed bytes.
        like: its shape, strides, dtype and kind, without memory.
    """

    table: dict[str, Any]
    name: str
    start: int
    like: torch.Tensor

    def within(self, packed: torch.Tensor) -> torch.Tensor:
        """The tensor that lies in packed bytes."""
        there = packed[self.start : self.start + _span(self.like)].view(self.like.dtype)
        view = torch.as_strided(there, self.like.shape, self.like.stride(), there.storage_offset())
        return nn.Parameter(view, requires_grad=False) if isinstance(self.like, nn.Parameter) else view


class Load:
    """The tensors of some modules: parameters and buffers.

    Args:
        modules: each without its children.

    Attributes:
        nbytes: packed, with what lies unused between the tensors.
        tensor_bytes: of the tensors alone.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        tables = [table for m in modules for table in (m._parameters, m._buffers)]
        entries = [(table, name, held) for table in tables for name, held in table.items() if held is not None]
        starts = [0, *itertools.accumulate(-(-_span(held) // ALIGNED) * ALIGNED for _, _, held in entries)]
        self.nbytes, self.tensor_bytes = starts[-1], sum(held.nbytes for _, _, held in entries)
        self._pieces = [
            _Piece(table, name, start, _without_memory(held))
            for (table, name, held), start in zip(entries, starts[:-1], strict=True)
        ]
        self._home: list[torch.Tensor] = []
        self.packed = torch.empty(0, dtype=torch.uint8)

    def settle(self, memory: HostMemory) -> None:
        """Move into host memory of `nbytes`."""
        self.packed, self._memory = memory.bytes, memory
        self._home = self.views(memory.bytes)
        for piece, view in zip(self._pieces, self._home, strict=True):
            view.copy_(piece.table[piece.name])
        self.go_home()

    def views(self, packed: torch.Tensor) -> list[torch.Tensor]:
        """The tensors as they lie in packed bytes, for `become`; for autograd they are of the same kind as those.

        Whoever compiles for layers that stay has compiled for those that pass then, too.
        """
        with torch.inference_mode(packed.is_inference()):
            return [piece.within(packed) for piece in self._pieces]

    def become(self, views: list[torch.Tensor]) -> None:
        """Let the modules work with these tensors."""
        for piece, view in zip(self._pieces, views, strict=True):
            piece.table[piece.name] = view

    def go_home(self) -> None:
        """Let the modules have their tensors on the host again."""
        self.become(self._home)


def _span(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first number to its last."""
    if not tensor.numel():
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((n - 1) * step for n, step in steps)) * tensor.element_size()


def _without_memory(tensor: torch.Tensor) -> torch.Tensor:
    like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return nn.Parameter(like, requires_grad=False) if isinstance(tensor, nn.Parameter) else like


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
        loads: layer -> what of it travels; moved into host memory by this.
        copies: of the device.
        stays: whether the slots stay, and the first layer is fetched again while the last one works; otherwise they
            are there during a walk only.

    Raises:
        HostMemoryError: the host's memory cannot hold the loads.
    """

    def __init__(self, loads: Mapping[int, Load], copies: Copies, *, stays: bool = True):
        self.copies, self._loads = copies, dict(loads)
        for load in loads.values():
            load.settle(copies.host(load.nbytes))
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
