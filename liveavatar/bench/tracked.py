"""Memory of tensors where no allocator counts it: every storage that is alive, from its making to its end."""

from __future__ import annotations

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
