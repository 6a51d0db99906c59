"""What tensors take and move, counted where nothing else does: bytes that are alive, and bytes that are read and
written outside matrix products and attention. Tensors need no numbers for it ("meta")."""

from __future__ import annotations

import collections
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Allocated(TorchDispatchMode):
    """The most bytes that were alive at once, but those of tensors that were there before.

    Attributes:
        most: bytes.
    """

    def __init__(self, before: Iterable[torch.Tensor] = ()):
        super().__init__()
        self.alive = {t.untyped_storage()._cdata: 0 for t in before}
        self.most = 0
        self._now = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    self._now += storage.nbytes()
                    weakref.finalize(storage, self._forget, storage._cdata).atexit = False
        self.most = max(self.most, self._now)
        return made

    def _forget(self, storage: int) -> None:
        self._now -= self.alive.pop(storage, 0)


_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "_scaled_mm", "convolution")
_WITHOUT_BYTES = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "_unsafe_view", "_reshape_alias")
"""Operations that give a tensor and move nothing."""


class MemoryTraffic(TorchDispatchMode):
    """Bytes that operations read and write, every tensor once for each, but matrix products, attention and views.

    That is what one pass over memory after another moves on a device whose caches are small beside the tensors.

    Attributes:
        nbytes: by name of the operation.
        operations: how many ran, products and attention among them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nbytes: collections.Counter[str] = collections.Counter()
        self.operations = 0

    @property
    def total(self) -> int:
        """Bytes of all."""
        return sum(self.nbytes.values())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        name = function._schema.name.rpartition("::")[2]
        if function.is_view or name in _WITHOUT_BYTES:
            return made
        self.operations += 1
        if name in _PRODUCTS or "attention" in name:
            return made
        given = (args, {name: value for name, value in (kwargs or {}).items() if name != "out"})
        read = {id(t): t for t in tree_iter(given) if isinstance(t, torch.Tensor)}
        written = [t for t in tree_iter(made) if isinstance(t, torch.Tensor)]
        self.nbytes[name] += sum(map(_moved_bytes, (*read.values(), *written)))
        if name == "copy_":  # what is written over is not read
            self.nbytes[name] -= _moved_bytes(args[0])
        return made


def _moved_bytes(tensor: torch.Tensor) -> int:
    """Of the numbers of a tensor, those that are shown several times counted once."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= size if stride else 1
    return numbers * tensor.element_size()
