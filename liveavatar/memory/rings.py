"""Rings that take less of the device: in fp8, and in the host's memory.

A ring on the host borrows one of two device slots while its layer works. A slot is a ring of the same format, so the
two ways of saving combine: what travels are the tensors the format keeps.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import torch

from ..model.kv import BlockRing, Ring, Window
from ..storage import KeyFormat, Storage, ring_bytes
from .copies import Copies, Mark, Traffic, copies_of
from .host import ALIGNED, HostMemory

_E4M3_MAX = 448.0
_NO_SCALE = 1e-12
"""Smallest scale, so that a row of zeros is no division by zero."""

Take = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
"""Gives memory for a tensor."""


@dataclasses.dataclass
class Fp8Ring:
    """Keys (rotated) and values of the last blocks at one step, in one layer, in e4m3.

    A block attends to its own rows as they are; only what later blocks see of it is rounded. Only new rows are
    quantised, and only the layer that works is widened, straight into the keys and values it attends to.

    Attributes:
        k, v: [window blocks * block tokens, heads, head_dim] e4m3.
        k_scale, v_scale: [window blocks * block tokens, heads, 1] float32.
    """

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor
    v_scale: torch.Tensor

    def fetch(self, window: Window) -> None:
        """Nothing to do: the rows are there."""

    def extend(
        self,
        window: Window,
        k: torch.Tensor,
        v: torch.Tensor,
        also_k: Sequence[torch.Tensor],
        also_v: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Ring.extend`."""
        keys = _extended(self.k, self.k_scale, window, k, also_k)
        return keys, _extended(self.v, self.v_scale, window, v, also_v)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """k, v and their scales."""
        return self.k, self.v, self.k_scale, self.v_scale


def _extended(
    rows: torch.Tensor, scales: torch.Tensor, window: Window, new: torch.Tensor, also: Sequence[torch.Tensor]
) -> torch.Tensor:
    seen = new.new_empty((window.valid + sum(map(len, also)), *new.shape[1:]))
    for earlier in window.earlier:
        seen[earlier].copy_(rows[earlier]).mul_(scales[earlier])
    seen[window.own] = new
    torch.cat(tuple(also), out=seen[window.valid :])
    rows[window.own], scales[window.own] = quantised(new)
    return seen


def quantised(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[tokens, heads, head_dim] -> e4m3 of the same shape and float32 scales [tokens, heads, 1].

    The largest number of a token and head becomes the largest of the format, so no number is off by more than 1/16 of
    itself or 1/2**18 of that largest one.
    """
    scale = (rows.abs().amax(-1, keepdim=True).float() / _E4M3_MAX).clamp_min_(_NO_SCALE)
    return torch.div(rows, scale).to(torch.float8_e4m3fn), scale


@dataclasses.dataclass(frozen=True)
class RingShape:
    """What a ring has room for.

    Attributes:
        tokens: of a whole window.
        heads, head_dim: of a token.
        dtype: of the keys and values that pass.
    """

    tokens: int
    heads: int
    head_dim: int
    dtype: torch.dtype


def allocate_ring(keys: KeyFormat, shape: RingShape, take: Take) -> Ring | Fp8Ring:
    """A ring of a format, in memory that `take` gives; what was not written is never read."""
    rows = (shape.tokens, shape.heads, shape.head_dim)
    if keys == "plain":
        return Ring(take(rows, shape.dtype), take(rows, shape.dtype))
    k, v = (take(rows, torch.float8_e4m3fn) for _ in range(2))
    return Fp8Ring(k, v, *(take((*rows[:2], 1), torch.float32) for _ in range(2)))


PADDING = 4 * ALIGNED
"""Bytes that at most lie unused between the tensors of a ring in the host's memory."""


class HostRing:
    """A ring in the host's memory.

    Args:
        kept: its rows.
        tray: the slots it borrows.
        following: the ring of the next layer at the same step, whose rows are fetched while this layer works.
    """

    def __init__(self, kept: Ring | Fp8Ring, tray: Tray, following: HostRing | None):
        self.kept, self.following, self._tray = kept, following, tray
        self.stored: Mark = None
        """When the rows that were last put away have arrived."""

    def fetch(self, window: Window) -> None:
        """Begin to copy the rows of earlier blocks into a slot; what was fetched before and not used is forgotten."""
        self._tray.fetch(self, window)

    def extend(
        self,
        window: Window,
        k: torch.Tensor,
        v: torch.Tensor,
        also_k: Sequence[torch.Tensor],
        also_v: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Ring.extend`, in a slot; only the new rows are copied back."""
        slot = self._tray.borrow(self, window)
        if self.following is not None:
            self._tray.fetch(self.following, window)
        self._tray.copies.wait(slot.arrived)
        seen = slot.ring.extend(window, k, v, also_k, also_v)
        self._tray.give_back(slot, self, window)
        return seen

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Those that are kept on the host, once every copy from and to them is done: this waits."""
        self._tray.copies.settle()
        return self.kept.tensors()


@dataclasses.dataclass(eq=False)
class _Slot:
    """Room for one ring on the device.

    Attributes:
        ring: the room.
        holds: whose earlier rows were fetched for which window.
        arrived: when they are there.
        free: when the computation has done with the slot and the new rows have been copied out of it.
    """

    ring: Ring | Fp8Ring
    free: Mark
    holds: tuple[HostRing, Window] | None = None
    arrived: Mark = None


class Tray:
    """Two slots on the device, shared by the rings of a stage: one works while the other is filled.

    Args:
        copies: of the device.
        memory: where the rings lie; kept for as long as the slots are used.
        allocate: makes the room of a slot.
    """

    def __init__(self, copies: Copies, memory: HostMemory, allocate: Callable[[Take], Ring | Fp8Ring]):
        self.copies, self._memory = copies, memory
        made = [_Slot(allocate(copies.room), copies.mark()) for _ in range(2)]
        self._slots = collections.deque(made)
        """The one that was borrowed last stands last."""

    def fetch(self, ring: HostRing, window: Window) -> _Slot:
        """Copy the rows of earlier blocks into the slot that is not at work."""
        slot = self._slots[0]
        slot.holds = None
        pairs = [
            (target[rows], source[rows])
            for target, source in zip(slot.ring.tensors(), ring.kept.tensors(), strict=True)
            for rows in window.earlier
        ]
        slot.arrived = self.copies.bring(pairs, slot.free, ring.stored)
        slot.holds = ring, window
        return slot

    def borrow(self, ring: HostRing, window: Window) -> _Slot:
        """The slot with the rows of a ring, fetched now if they were not before."""
        slot = self._slots[0]
        if slot.holds != (ring, window):
            self.fetch(ring, window)
        self._slots.rotate(-1)
        return slot

    def give_back(self, slot: _Slot, ring: HostRing, window: Window) -> None:
        """Copy the new rows out; the slot is free once that and the computation are done."""
        own = window.own
        pairs = zip(ring.kept.tensors(), slot.ring.tensors(), strict=True)
        stored = self.copies.put_away([(to[own], of[own]) for to, of in pairs], self.copies.mark())
        slot.free = ring.stored = stored
        slot.holds = None


@dataclasses.dataclass(frozen=True)
class Rings:
    """The rings of a stage.

    Attributes:
        by_step: step -> one ring per layer, in the order of the layers.
        traffic: what they have copied between host and device.
    """

    by_step: dict[int, list[BlockRing]]
    traffic: Traffic


def make_rings(storage: Storage, steps: range, layers: int, shape: RingShape, device: torch.device) -> Rings:
    """Empty rings for some steps and so many layers, kept as the storage says.

    Raises:
        HostMemoryError: they are to lie in the host's memory, and it cannot hold them.
    """

    def on_device(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    if storage.keys_home == "device":
        made: dict[int, list[BlockRing]] = {
            step: [allocate_ring(storage.keys, shape, on_device) for _ in range(layers)] for step in steps
        }
        return Rings(made, Traffic())
    copies = copies_of(device)
    one = ring_bytes(storage.keys, shape.tokens, shape.heads, shape.head_dim, shape.dtype.itemsize)
    memory = copies.host(len(steps) * layers * (one + PADDING))
    tray = Tray(copies, memory, lambda take: allocate_ring(storage.keys, shape, take))
    return Rings({step: _linked(storage.keys, layers, shape, memory, tray) for step in steps}, copies.traffic)


def _linked(keys: KeyFormat, layers: int, shape: RingShape, memory: HostMemory, tray: Tray) -> list[BlockRing]:
    """Rings on the host, each of which knows the next."""
    following: HostRing | None = None
    rings: list[BlockRing] = []
    for _ in range(layers):
        following = HostRing(allocate_ring(keys, shape, memory.take), tray, following)
        rings.insert(0, following)
    return rings
