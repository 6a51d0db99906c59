"""Layers in host memory, prefetched into two slots on the device (double buffering)."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import nn

from ..model.layer import Layer
from ..model.transformer import CausalS2VTransformer
from ..storage import NUM_SLOTS, MemoryUse, StorageConfig, offloaded_layers
from ..weights.load import TensorDevice
from .double_buffer import DoubleBuffer, Slot
from .host_weights import HostWeightCache, HostWeights, PackedBytes, PackedModule
from .pinned_memory import PinnedBuffer
from .streams import CopyStreams, copy_streams


@dataclasses.dataclass(eq=False)
class _PackedRoom:
    """Room on the device for one packed module.

    Attributes:
        packed: its bytes.
        views: layer -> the tensors of its module in this room.
    """

    packed: torch.Tensor
    views: dict[int, list[torch.Tensor]] = dataclasses.field(default_factory=dict)


class LayerPrefetcher:
    """Prefetches layers: hands them out in their order, each on the device while it computes.

    The next layer is copied while this one computes (double buffering). It belongs to the network, not to a stage or a
    session: whoever walks the layers finds the slots as the one before left them.

    Args:
        modules: layer -> what of it is copied; moved into host memory by this, where they do not lie there yet.
        streams: of the device.
        persistent: whether the slots stay, and the first layer is fetched again while the last one works; otherwise
            they are there during a walk only.
        host_weights: where modules that are in host memory already lie.

    Raises:
        HostMemoryError: the host's memory cannot hold the modules.
    """

    def __init__(
        self,
        modules: Mapping[int, PackedModule],
        streams: CopyStreams,
        *,
        persistent: bool = True,
        host_weights: HostWeights | None = None,
    ):
        self.streams, self._modules = streams, dict(modules)
        self.host_weights = host_weights
        self._buffers: list[PinnedBuffer] = []
        """Of the modules that had not."""
        for module in modules.values():
            if not module.is_on_host:
                self._buffers.append(streams.pinned_buffer(module.nbytes))
                module.move_to_host(self._buffers[-1].bytes)
        order = sorted(modules)
        self._next_layer = dict(itertools.pairwise(order))
        if persistent and order:
            self._next_layer[order[-1]] = order[0]
        self._persistent = persistent
        self.slots = DoubleBuffer[_PackedRoom](streams)
        if persistent:
            self._allocate_slots()

    @property
    def device_bytes(self) -> int:
        """Bytes of the slots on the device."""
        return sum(slot.buffer.packed.nbytes for slot in self.slots)

    @property
    def host_bytes(self) -> int:
        """Bytes of the modules in host memory."""
        return sum(module.nbytes for module in self._modules.values())

    @property
    def tensor_bytes(self) -> int:
        """What the tensors of the modules take by themselves."""
        return sum(module.tensor_bytes for module in self._modules.values())

    def __call__(self, layers: Iterable[tuple[int, Layer]]) -> Iterator[Layer]:
        """The layers in their order, each ready to work until the next one is asked for."""
        self._allocate_slots()
        try:
            for number, layer in layers:
                with self._on_device(number):
                    yield layer
        finally:
            if not self._persistent:
                self.slots.clear()

    def _allocate_slots(self) -> None:
        if not len(self.slots) and self._modules:
            slot_bytes = max(module.nbytes for module in self._modules.values())
            count = min(NUM_SLOTS, len(self._modules))
            buffers = [self.streams.device_buffer((slot_bytes,), torch.uint8) for _ in range(count)]
            self.slots.allocate(map(_PackedRoom, buffers))

    @contextlib.contextmanager
    def _on_device(self, number: int) -> Iterator[None]:
        module = self._modules.get(number)
        if module is None:
            yield
            return
        slot = self.prefetch_layer(number)
        self.slots.acquire(slot)
        if (next_layer := self._next_layer.get(number)) is not None:
            self.prefetch_layer(next_layer)
        self.streams.wait_event(slot.arrived)
        room = slot.buffer
        if number not in room.views:
            room.views[number] = module.views(room.packed)
        module.assign(room.views[number])
        try:
            yield
        finally:
            module.assign_host_views()
            slot.free = (self.streams.record_event(),)

    def prefetch_layer(self, number: int) -> Slot[_PackedRoom]:
        """The slot that holds a layer, or is being filled with it from now on."""
        module, room = self._modules[number], self.slots.next_slot.buffer
        return self.slots.find(number) or self.slots.fill(number, [(room.packed[: module.nbytes], module.packed)])


_OF_LAYER = re.compile(r"blocks\.(\d+)\.(cross_attn\.(?:k|v|norm_k)\.)?")
"""Names of a layer's tensors, and of those among them that only the prompt needs (`Layer.text_kv_modules`)."""
ReadSlice = Callable[[TensorDevice], CausalS2VTransformer]
"""Gives a part of a network with its tensors where they are wanted."""


def read_devices(layers: range, device: torch.device, storage: StorageConfig, away: str = "cpu") -> TensorDevice:
    """Where the tensors of a part with these layers are read to, by their names: the device, or the host.

    Args:
        layers: of the part.
        device: where it works.
        storage: what stays there.
        away: the place of what does not.
    """
    offloaded = frozenset(offloaded_layers(layers, storage.offload_layers))
    offload_text_kv = storage.offload_text_kv
    if not offloaded and not offload_text_kv:
        return device

    def device_of(name: str) -> torch.device:
        found = _OF_LAYER.match(name)
        on_host = found and (int(found[1]) in offloaded or (offload_text_kv and found[2]))
        return torch.device(away) if on_host else device

    return device_of


def load_offloaded(
    read: ReadSlice, layers: range, device: torch.device, storage: StorageConfig, cache: HostWeightCache, name: str
) -> CausalS2VTransformer:
    """A part, ready to work; what of it lives on the host comes from a stock, and is read where that has none of it.

    Args:
        read: reads the part.
        layers: of the part.
        device: where it works.
        storage: what stays there.
        cache: of the network's working dtype and format.
        name: of that dtype and format, for the stock.

    Raises:
        HostMemoryError: the host's memory cannot hold what lives there.
        Whatever `read` raises.
    """
    staying = read_devices(layers, device, storage, away="meta")
    net = read(staying)
    if staying is device:
        return net

    def packed_modules() -> list[PackedModule]:
        other = read(read_devices(layers, torch.device("meta"), storage))
        return [PackedModule(modules) for group in _offloaded_modules(other, storage) for modules in group.values()]

    host_weights = cache.get(
        f"{name} {layers} {storage.offload_text_kv} {storage.offload_layers}", device, packed_modules
    )
    attach_prefetchers(net, device, storage, host_weights)
    return net


def attach_prefetchers(
    net: CausalS2VTransformer, device: torch.device, storage: StorageConfig, host_weights: HostWeights | None = None
) -> None:
    """Let the weights that do not stay on the device live on the host, and pass through it when they work.

    Args:
        net: filled; what stays is on the device already.
        device: where it works.
        storage: what stays.
        host_weights: what does not, which the network need not have then; None: it is moved from the network.

    Raises:
        HostMemoryError: the host's memory cannot hold them.
    """
    prompts, offloaded = _offloaded_modules(net, storage)
    parts = iter(host_weights.modules() if host_weights else ())

    def packed(group: ModulesByLayer) -> dict[int, PackedModule]:
        return {number: _packed_module(modules, next(parts, None)) for number, modules in group.items()}

    if prompts:
        net.text_layers_on_device = LayerPrefetcher(
            packed(prompts), copy_streams(device), persistent=False, host_weights=host_weights
        )
    if offloaded:
        net.layers_on_device = LayerPrefetcher(packed(offloaded), copy_streams(device), host_weights=host_weights)


def _packed_module(modules: list[nn.Module], part: PackedBytes | None) -> PackedModule:
    if part is None:
        return PackedModule(modules)
    rows, packed = part
    module = PackedModule(modules, rows)
    module.attach_host_buffer(packed)
    return module


def host_weights_of(net: CausalS2VTransformer) -> HostWeights | None:
    """What a network has from a stock."""
    return next(
        (p.host_weights for p in (net.layers_on_device, net.text_layers_on_device) if isinstance(p, LayerPrefetcher)),
        None,
    )


def resident_bytes(net: CausalS2VTransformer) -> MemoryUse:
    """Bytes of a network's parameters and buffers, and of the slots they pass through."""
    prefetchers = [p for p in (net.layers_on_device, net.text_layers_on_device) if isinstance(p, LayerPrefetcher)]
    everything = sum(t.nbytes for t in (*net.parameters(), *net.buffers()))
    resident = everything - sum(p.tensor_bytes for p in prefetchers)
    return MemoryUse(resident + sum(p.device_bytes for p in prefetchers), sum(p.host_bytes for p in prefetchers))


ModulesByLayer = dict[int, list[nn.Module]]
"""Layer -> modules of it that travel together."""


def _offloaded_modules(net: CausalS2VTransformer, storage: StorageConfig) -> tuple[ModulesByLayer, ModulesByLayer]:
    """What only the prompt needs, and the layers that are offloaded; each as far as it does not stay on the device."""
    layers, offload_text_kv = dict(net.numbered_layers()), storage.offload_text_kv
    prompts = (
        {number: _submodules(layer.text_kv_modules) for number, layer in layers.items()} if offload_text_kv else {}
    )
    offloaded = offloaded_layers(net.slice.layers, storage.offload_layers)
    return prompts, {number: _transferred_modules(layers[number], offload_text_kv) for number in offloaded}


def _submodules(parts: tuple[nn.Module, ...]) -> list[nn.Module]:
    return [module for part in parts for module in part.modules()]


def _transferred_modules(layer: Layer, offload_text_kv: bool) -> list[nn.Module]:
    staying_away = set(_submodules(layer.text_kv_modules)) if offload_text_kv else set()
    return [module for module in layer.modules() if module not in staying_away]
