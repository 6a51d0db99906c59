"""Matrices that stay packed as their file has them, and what LoRAs add beside them.

A LoRA can be merged into numbers only. Beside a packed matrix W its factors stay: y = W x + B (A x), with all scales in
B. What of a network is not packed has its LoRAs merged as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .block_types import PackedMatrices, PackedMatrix
from .source import TensorSource

if TYPE_CHECKING:
    import torch

    from .lora import LoRA
    from .quantised import DequantisedSource

Factors = tuple["torch.Tensor", "torch.Tensor"]
"""B [out, rank] and A [rank, in]."""


@runtime_checkable
class PackedSource(TensorSource, Protocol):
    """A source some of whose matrices can be read as they are packed."""

    def read_packed(self, key: str, place: torch.Tensor) -> None:
        """Bring a matrix to a place as it is: uint8, as many bytes as its format says."""

    def factors(self, key: str) -> Sequence[Factors]:
        """What LoRAs add beside it."""


class PackedWeights:
    """The tensors of a network in a file, merged with LoRAs, and its matrices as they are packed there.

    Args:
        merged: its tensors as numbers.
        file: where they are packed.
        loras: that are merged.

    Attributes:
        matrices: that can be read packed: those in a format that is unpacked on devices, and those in floats, where the
            file has them under the names that they have in the network.
    """

    def __init__(self, merged: TensorSource, file: DequantisedSource, loras: Sequence[LoRA]):
        self._merged, self._file, self._loras = merged, file, tuple(loras)
        stored = file.keys()
        self.matrices: PackedMatrices = {
            key.removesuffix(".weight"): PackedMatrix(kind, self._rank(key))
            for key in merged.keys()  # noqa: SIM118 (not a mapping)
            if key.endswith(".weight") and key in stored and len(merged.shape(key)) == 2
            if (kind := file.packed_format(key)) is not None and not self._has_difference(key)
        }

    def keys(self) -> frozenset[str]:
        return self._merged.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._merged.shape(key)

    def read(self, key: str) -> torch.Tensor:
        return self._merged.read(key)

    def describe(self) -> str:
        return self._merged.describe()

    def read_packed(self, key: str, place: torch.Tensor) -> None:
        self._file.read_packed(key, place)

    def factors(self, key: str) -> list[Factors]:
        return [lora.factors(key) for lora in self._loras if lora.changes(key)]

    def _rank(self, key: str) -> int:
        return sum(lora.rank(key) for lora in self._loras if lora.changes(key))

    def _has_difference(self, key: str) -> bool:
        """Whether a LoRA holds a whole difference, which has no factors."""
        return any(lora.changes(key) and not lora.rank(key) for lora in self._loras)
