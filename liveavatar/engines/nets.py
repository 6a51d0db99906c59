"""Loaded parts of a network, shared by the engines of one backend."""

from __future__ import annotations

import torch

from ..components import Components
from ..memory.stock import Copy, Stock
from ..memory.weights import bytes_held, copy_of, read_weights
from ..model.transformer import CausalS2VTransformer, Part
from ..storage import PLAIN, Storage, weights_of
from ..weights.fill import Where
from .compiled import Compiled

_Key = tuple[str, Part, torch.dtype, Storage]


class Nets:
    """Parts of one network at a time, by device, part, dtype and storage; loaded when first asked for.

    Args:
        stock: of that network, for what lives on the host; parts that differ only in their device share it.
    """

    def __init__(self, stock: Stock | None = None) -> None:
        self._stock = stock or Stock()
        self._components: Components | None = None
        self._loaded: dict[_Key, CausalS2VTransformer] = {}
        self._compiled: dict[tuple[str, tuple[int, int], int, str, int], Compiled] = {}

    def get(
        self, components: Components, device: str, part: Part, dtype: torch.dtype, storage: Storage = PLAIN
    ) -> CausalS2VTransformer:
        """A part, from memory or from its files. Another model, dtype or format takes the place of the old."""
        kept = ((key[2], key[3].weights) for key in self._loaded)
        if components is not self._components or any(form != (dtype, storage.weights) for form in kept):
            self.release()
            self._components = components
        key = _key(device, part, dtype, storage)
        if key not in self._loaded:

            def read(where: Where) -> CausalS2VTransformer:
                return components.transformer(part, where, dtype, storage.weights)

            name = f"{dtype} {storage.weights}"
            self._loaded[key] = read_weights(read, part.layers, torch.device(device), storage, self._stock, name)
        return self._loaded[key]

    def holds(
        self, components: Components, device: str, part: Part, dtype: torch.dtype, storage: Storage = PLAIN
    ) -> bool:
        """Whether a part is loaded."""
        return components is self._components and _key(device, part, dtype, storage) in self._loaded

    def compiled(self, device: str, size: tuple[int, int], threads: int, compiler: str, window_blocks: int) -> Compiled:
        """What is compiled for them on a device; nothing at first.

        Args:
            device: by name.
            size: width and height of the picture.
            threads: on the CPU; other code is made for another number.
            compiler, window_blocks: see `Compiled`.
        """
        key = (device, size, threads, compiler, window_blocks)
        if key not in self._compiled:
            self._compiled[key] = Compiled(torch.device(device), size, compiler, window_blocks)
        return self._compiled[key]

    @property
    def bytes_by_device(self) -> dict[str, int]:
        """Bytes of the loaded weights; those that live on the host count as the CPU's, once for all that share them."""
        by_device: dict[str, int] = {}
        for (device, *_), net in self._loaded.items():
            by_device[device] = by_device.get(device, 0) + bytes_held(net).device
        for copy in self._copies:
            by_device["cpu"] = by_device.get("cpu", 0) + copy.nbytes
        return {device: nbytes for device, nbytes in by_device.items() if nbytes}

    @property
    def shared_bytes(self) -> dict[str, int]:
        """Bytes of what lives on the host and can be shared with other processes, by names that it has there."""
        return {copy.name: copy.nbytes for copy in self._copies if copy.name}

    @property
    def _copies(self) -> list[Copy]:
        """Each once."""
        found = (copy_of(net) for net in self._loaded.values())
        return list(dict.fromkeys(copy for copy in found if copy))

    def release(self) -> None:
        """Give all of it back."""
        devices = {device for device, *_ in self._loaded}
        self._loaded.clear()
        self._compiled.clear()
        self._stock.forget()
        self._components = None
        if any(torch.device(device).type == "cuda" for device in devices):
            torch.cuda.empty_cache()


def _key(device: str, part: Part, dtype: torch.dtype, storage: Storage) -> _Key:
    """Keys and values are the stages' business: nets that differ in them alone are one."""
    return device, part, dtype, weights_of(storage)
