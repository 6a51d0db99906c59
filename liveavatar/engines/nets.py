"""Loaded parts of a network, shared by the engines of one backend."""

from __future__ import annotations

import torch

from ..components import Components
from ..model.transformer import CausalS2VTransformer, Part


class Nets:
    """Parts of one network at a time, by device, part and dtype; loaded when first asked for."""

    def __init__(self) -> None:
        self._components: Components | None = None
        self._loaded: dict[tuple[str, Part, torch.dtype], CausalS2VTransformer] = {}

    def get(self, components: Components, device: str, part: Part, dtype: torch.dtype) -> CausalS2VTransformer:
        """A part, from memory or from its files. Another model or dtype than before takes the place of the old."""
        if components is not self._components or any(kept != dtype for _, _, kept in self._loaded):
            self.release()
            self._components = components
        key = (device, part, dtype)
        if key not in self._loaded:
            self._loaded[key] = components.transformer(part, torch.device(device), dtype)
        return self._loaded[key]

    def holds(self, components: Components, device: str, part: Part, dtype: torch.dtype) -> bool:
        """Whether a part is loaded."""
        return components is self._components and (device, part, dtype) in self._loaded

    @property
    def bytes_by_device(self) -> dict[str, int]:
        """Bytes of the loaded weights."""
        held: dict[str, int] = {}
        for (device, _, _), net in self._loaded.items():
            held[device] = held.get(device, 0) + sum(p.nbytes for p in net.parameters())
        return held

    def release(self) -> None:
        """Give all of it back."""
        devices = {device for device, _, _ in self._loaded}
        self._loaded.clear()
        self._components = None
        if any(torch.device(device).type == "cuda" for device in devices):
            torch.cuda.empty_cache()
