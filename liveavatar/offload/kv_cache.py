"""KV caches in the host's memory, and all those of a stage.

A KV cache on the host borrows one of two device slots while its layer works. A slot is a KV cache of the same format
(see `kv_formats`), so the two ways of saving combine: what is copied are the tensors the format keeps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

from ..model.attention import KeyValue
from ..model.kv_cache import KVCacheLayer, RollingKVCache, Window, part_rows
from ..storage import NUM_SLOTS, KVDtype, StorageConfig
from .double_buffer import DoubleBuffer, Slot
from .kv_formats import Allocate, KVCacheShape, QuantizedKVCache, allocate_kv_cache_layer, kv_tensors
from .pinned_memory import ALIGNMENT, PinnedBuffer, PinnedPool
from .streams import CopyStreams, StreamEvent, TransferStats, copy_streams

KVSlot = Slot[RollingKVCache | QuantizedKVCache]
"""Room for one layer's KV cache on the device; holds the rows of earlier blocks of a cache, for a window."""


def _layer_bytes(kv_dtype: KVDtype, shape: KVCacheShape) -> int:
    """Bytes of the tensors of one KV cache."""
    return sum(math.prod(size) * dtype.itemsize for size, dtype in kv_tensors(kv_dtype, shape))


PADDING = 6 * ALIGNMENT
"""Bytes that at most lie unused between the tensors of a KV cache in the host's memory."""


class OffloadedKVCache:
    """A KV cache in the host's memory.

    Args:
        host_cache: its rows.
        double_buffer: the slots it borrows.
        next_layer: the KV cache of the next layer at the same step, whose rows are fetched while this layer works.
    """

    def __init__(
        self,
        host_cache: RollingKVCache | QuantizedKVCache,
        double_buffer: KVDoubleBuffer,
        next_layer: OffloadedKVCache | None,
    ):
        self.host_cache, self.next_layer, self.double_buffer = host_cache, next_layer, double_buffer
        self.stored: StreamEvent = None
        """When the rows that were last put away have arrived."""

    def prefetch(self, window: Window) -> None:
        """Begin to copy the rows of earlier blocks into a slot; what was fetched before and not used is forgotten."""
        self.double_buffer.prefetch(self, window)

    def update(self, window: Window, k: torch.Tensor, v: torch.Tensor) -> KeyValue:
        """As `KVCacheLayer.update`, in a slot; only the new rows are copied back."""
        slot = self.double_buffer.acquire(self, window)
        if self.next_layer is not None:
            self.double_buffer.prefetch(self.next_layer, window)
        self.double_buffer.streams.wait_event(slot.arrived)
        attended = slot.buffer.update(window, k, v)
        self.double_buffer.store(slot, self, window)
        return attended

    def release(self) -> None:
        """The slot is free once the device has done what it was given until now."""
        self.double_buffer.release()

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Those that are kept on the host, once every copy from and to them is done: this waits."""
        self.double_buffer.streams.synchronize()
        return self.host_cache.tensors()


class KVDoubleBuffer:
    """Two slots on the device, shared by the KV caches of a stage: one works while the other is filled.

    Args:
        streams: of the device.
        memory: where the KV caches lie; kept for as long as the slots are used.
        allocate: makes the room of a slot.
    """

    def __init__(
        self,
        streams: CopyStreams,
        memory: PinnedBuffer,
        allocate: Callable[[Allocate], RollingKVCache | QuantizedKVCache],
    ):
        self.streams, self.host_buffer = streams, memory
        self.slots = DoubleBuffer(streams, [allocate(streams.device_buffer) for _ in range(NUM_SLOTS)])

    def prefetch(self, offloaded: OffloadedKVCache, window: Window) -> KVSlot:
        """Copy the rows of earlier blocks into the slot that is not at work, even where they are in it already: the
        rows on the host may have changed."""
        kv_cache = self.slots.next_slot.buffer
        ends = kv_cache.tensors(), offloaded.host_cache.tensors()
        pairs = [
            pair
            for part in window.earlier
            for pair in zip(*(part_rows(tensors, part) for tensors in ends), strict=True)
        ]
        return self.slots.fill((offloaded, window), pairs, offloaded.stored)

    def acquire(self, offloaded: OffloadedKVCache, window: Window) -> KVSlot:
        """The slot with the rows of a KV cache, fetched now if they were not before."""
        slot = self.slots.find((offloaded, window)) or self.prefetch(offloaded, window)
        self.slots.acquire(slot)
        slot.holds = None  # the rows of its own block are about to change
        return slot

    def store(self, slot: KVSlot, offloaded: OffloadedKVCache, window: Window) -> None:
        """Copy the new rows out, beside what is computed with them."""
        ends = offloaded.host_cache.tensors(), slot.buffer.tensors()
        pairs = zip(*(part_rows(tensors, window.own) for tensors in ends), strict=True)
        offloaded.stored = self.streams.d2h(list(pairs), self.streams.record_event())
        slot.free = (offloaded.stored,)

    def release(self) -> None:
        """The slot that was computed with is free once that is done, too."""
        slot = self.slots.latest
        slot.free = (*slot.free, self.streams.record_event())


@dataclasses.dataclass(frozen=True)
class StageKVCaches:
    """The KV caches of a stage.

    Attributes:
        by_step: step -> one KV cache per layer, in the order of the layers.
        transfer_stats: what they have copied between host and device.
    """

    by_step: dict[int, list[KVCacheLayer]]
    transfer_stats: TransferStats


def allocate_kv_caches(
    storage: StorageConfig,
    steps: range,
    layers: int,
    shape: KVCacheShape,
    device: torch.device,
    pinned: PinnedPool | None = None,
) -> StageKVCaches:
    """Empty KV caches for some steps and so many layers, kept as the storage says; on the host in memory of a pool.

    Raises:
        HostMemoryError: they are to lie in the host's memory, and it cannot hold them.
    """

    def on_device(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    if not storage.kv_offload:
        made: dict[int, list[KVCacheLayer]] = {
            step: [allocate_kv_cache_layer(storage.kv_dtype, shape, on_device) for _ in range(layers)] for step in steps
        }
        return StageKVCaches(made, TransferStats())
    streams = copy_streams(device, pinned)
    layer_bytes = _layer_bytes(storage.kv_dtype, shape)
    host_buffer = streams.pinned_buffer(len(steps) * layers * (layer_bytes + PADDING))
    double_buffer = KVDoubleBuffer(
        streams, host_buffer, lambda allocate: allocate_kv_cache_layer(storage.kv_dtype, shape, allocate)
    )
    return StageKVCaches(
        {step: _linked_caches(storage.kv_dtype, layers, shape, host_buffer, double_buffer) for step in steps},
        streams.transfer_stats,
    )


def _linked_caches(
    kv_dtype: KVDtype, layers: int, shape: KVCacheShape, host_buffer: PinnedBuffer, double_buffer: KVDoubleBuffer
) -> list[KVCacheLayer]:
    """KV caches on the host, each of which knows the next."""
    next_layer: OffloadedKVCache | None = None
    caches: list[KVCacheLayer] = []
    for _ in range(layers):
        next_layer = OffloadedKVCache(
            allocate_kv_cache_layer(kv_dtype, shape, host_buffer.allocate), double_buffer, next_layer
        )
        caches.insert(0, next_layer)
    return caches
