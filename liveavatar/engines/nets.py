"""Loaded parts of a network, shared by the engines of one backend."""

from __future__ import annotations

import torch

from ..components import Components
from ..memory.weights import bytes_held, homes, keep_weights
from ..model.transformer import CausalS2VTransformer, Part
from ..storage import PLAIN, Storage, weights_of
from .compiled import Compiled

_Key = tuple[str, Part, torch.dtype, Storage]


class Nets:
    """Parts of one network at a time, by device, part, dtype and storage; loaded when first asked for."""

    def __init__(self) -> None:
        self._components: Components | None = None
        self._loaded: dict[_Key, CausalS2VTransformer] = {}
        self._compiled: dict[tuple[str, tuple[int, int], int, str], Compiled] = {}

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
            there = torch.device(device)
            net = components.transformer(part, homes(part.layers, there, storage), dtype, storage.weights)
            keep_weights(net, there, storage)
            self._loaded[key] = net
        return self._loaded[key]

    def holds(
        self, components: Components, device: str, part: Part, dtype: torch.dtype, storage: Storage = PLAIN
    ) -> bool:
        """Whether a part is loaded."""
        return components is self._components and _key(device, part, dtype, storage) in self._loaded

    def compiled(self, device: str, size: tuple[int, int], threads: int, compiler: str) -> Compiled:
        """What is compiled for them on a device; nothing at first.

        Args:
            device: by name.
            size: width and height of the picture.
            threads: on the CPU; other code is made for another number.
            compiler: see `Compiled`.
        """
        key = (device, size, threads, compiler)
        if key not in self._compiled:
            self._compiled[key] = Compiled(torch.device(device), size, compiler)
        return self._compiled[key]

    @property
    def bytes_by_device(self) -> dict[str, int]:
        """Bytes of the loaded weights; those that live on the host count as the CPU's."""
        by_device: dict[str, int] = {}
        for (device, *_), net in self._loaded.items():
            held = bytes_held(net)
            for where, nbytes in ((device, held.device), ("cpu", held.host)):
                if nbytes:
                    by_device[where] = by_device.get(where, 0) + nbytes
        return by_device

    def release(self) -> None:
        """Give all of it back."""
        devices = {device for device, *_ in self._loaded}
        self._loaded.clear()
        self._compiled.clear()
        self._components = None
        if any(torch.device(device).type == "cuda" for device in devices):
            torch.cuda.empty_cache()


def _key(device: str, part: Part, dtype: torch.dtype, storage: Storage) -> _Key:
    """Keys and values are the stages' business: nets that differ in them alone are one."""
    return device, part, dtype, weights_of(storage)
