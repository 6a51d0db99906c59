"""What travels in one copy: the tensors of some modules, packed into one piece of memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from .host import ALIGNED


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor in packed bytes, as plain data.

    Attributes:
        name: of the module's entry.
        start: where it begins.
        shape, stride: of it, in numbers.
        dtype: name of it in torch.
        learned: whether it is a parameter.
    """

    name: str
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    learned: bool

    @classmethod
    def of(cls, name: str, start: int, tensor: torch.Tensor) -> Row:
        """For a tensor that will begin there."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        return cls(name, start, tuple(tensor.shape), tensor.stride(), dtype, isinstance(tensor, nn.Parameter))

    @property
    def span(self) -> int:
        """Bytes from the first number to the last."""
        if not math.prod(self.shape):
            return 0
        steps = zip(self.shape, self.stride, strict=True)
        return (1 + sum((n - 1) * step for n, step in steps)) * self._number.itemsize

    @property
    def nbytes(self) -> int:
        """Of its numbers alone."""
        return math.prod(self.shape) * self._number.itemsize

    @property
    def end(self) -> int:
        """Where the next one may begin."""
        return self.start + -(-self.span // ALIGNED) * ALIGNED

    def within(self, packed: torch.Tensor) -> torch.Tensor:
        """The tensor that lies in packed bytes."""
        there = packed[self.start : self.start + self.span].view(self._number)
        view = torch.as_strided(there, self.shape, self.stride, there.storage_offset())
        return nn.Parameter(view, requires_grad=False) if self.learned else view

    @property
    def _number(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


class Load:
    """The tensors of some modules: parameters and buffers.

    Args:
        modules: each without its children.
        rows: how they are packed, where they are already: they lie in the host's memory, and the modules, which have
            none of them, are to have them from there (see `lie_in`).

    Attributes:
        rows: of its tensors.
        nbytes: packed, with what lies unused between the tensors.
        tensor_bytes: of the tensors alone.
    """

    def __init__(self, modules: Iterable[nn.Module], rows: Sequence[Row] | None = None):
        tables: list[dict[str, Any]] = [table for m in modules for table in (m._parameters, m._buffers)]
        self._entries = [(table, name) for table in tables for name, held in table.items() if held is not None]
        self.rows = tuple(self._packed() if rows is None else rows)
        if [row.name for row in self.rows] != [name for _, name in self._entries]:
            raise ValueError("What is packed there are the tensors of other modules.")
        self.nbytes = self.rows[-1].end if self.rows else 0
        self.tensor_bytes = sum(row.nbytes for row in self.rows)
        self._home: list[torch.Tensor] = []
        self.packed = torch.empty(0, dtype=torch.uint8)

    def _packed(self) -> Iterator[Row]:
        end = 0
        for table, name in self._entries:
            row = Row.of(name, end, table[name])
            end = row.end
            yield row

    @property
    def settled(self) -> bool:
        """Whether its tensors lie in host memory."""
        return bool(self._home)

    def settle(self, packed: torch.Tensor) -> None:
        """Move into host memory of `nbytes`."""
        for (table, name), view in zip(self._entries, self.views(packed), strict=True):
            table[name] = view.copy_(table[name])
        self.lie_in(packed)

    def lie_in(self, packed: torch.Tensor) -> None:
        """Let the modules have their tensors from host memory in which they are packed."""
        self.packed, self._home = packed, self.views(packed)
        self.go_home()

    def views(self, packed: torch.Tensor) -> list[torch.Tensor]:
        """The tensors as they lie in packed bytes, for `become`; for autograd they are of the same kind as those.

        Whoever compiles for layers that stay has compiled for those that pass then, too.
        """
        with torch.inference_mode(packed.is_inference()):
            return [row.within(packed) for row in self.rows]

    def become(self, views: list[torch.Tensor]) -> None:
        """Let the modules work with these tensors."""
        for (table, name), view in zip(self._entries, views, strict=True):
            table[name] = view

    def go_home(self) -> None:
        """Let the modules have their tensors on the host again."""
        self.become(self._home)
