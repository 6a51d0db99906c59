"""How matrices are packed in files, and which of a network's stay so: plain data, and what unpacks them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class PackedFormat(Protocol):
    """How the numbers of a matrix lie in bytes: blocks of GGUF (`BlockType`), or a layout of ComfyUI (layouts.py)."""

    @property
    def name(self) -> str:
        """For people: "Q4_K", "nvfp4"."""

    @property
    def is_rounded(self) -> bool:
        """Whether it is more than numbers as they are."""

    def bytes_of(self, shape: Sequence[int]) -> int:
        """Of a matrix [rows, columns] with all that belongs to it."""

    def unpack(self, packed: torch.Tensor, out: torch.Tensor, whole: bool = False) -> torch.Tensor:
        """Bring packed bytes to numbers, rounded once.

        Args:
            packed: uint8, `bytes_of` the matrix.
            out: [rows, columns] of a floating dtype.
            whole: all rows at once, for a compiler that joins the operations.
        """

    def is_finite(self, packed: torch.Tensor, shape: Sequence[int]) -> bool:
        """Whether all numbers of a matrix [rows, columns] are."""


@dataclasses.dataclass(frozen=True)
class BlockType:
    """One type of numbers, by GGML's name.

    Attributes:
        name: "Q4_K".
        numbers: that share a block; rows of a matrix are whole blocks.
        nbytes: of a block.
    """

    name: str
    numbers: int
    nbytes: int

    def bytes_of(self, shape: Sequence[int]) -> int:
        """Of a tensor whose rows are whole blocks."""
        return math.prod(shape) // self.numbers * self.nbytes

    @property
    def is_rounded(self) -> bool:
        return self.name not in FLOATS

    def unpack(self, packed: torch.Tensor, out: torch.Tensor, whole: bool = False) -> torch.Tensor:
        from .dequantise import unpack_rows

        return unpack_rows(packed, self.name, out, whole)

    def is_finite(self, packed: torch.Tensor, shape: Sequence[int]) -> bool:
        from .dequantise import is_finite

        return is_finite(packed, self.name)


FLOATS = {t.name: t for t in (BlockType("F32", 1, 4), BlockType("F16", 1, 2), BlockType("BF16", 1, 2))}
"""Numbers that need no unpacking."""
PACKED = {
    t.name: t
    for t in (
        BlockType("Q4_0", 32, 18),
        BlockType("Q4_1", 32, 20),
        BlockType("Q5_0", 32, 22),
        BlockType("Q5_1", 32, 24),
        BlockType("Q8_0", 32, 34),
        BlockType("Q2_K", 256, 84),
        BlockType("Q3_K", 256, 110),
        BlockType("Q4_K", 256, 144),
        BlockType("Q5_K", 256, 176),
        BlockType("Q6_K", 256, 210),
    )
}
"""Types that `dequantise` unpacks; what else the gguf package knows it unpacks itself, while a file is read."""
UNPACKED_AT_ONCE = 2**22
"""Numbers that are unpacked at a time on a GPU: what stands in between fits its cache."""


@dataclasses.dataclass(frozen=True)
class PackedMatrix:
    """How a matrix is kept.

    Attributes:
        kind: how its numbers lie in bytes.
        rank: of all LoRAs beside it.
    """

    kind: PackedFormat
    rank: int = 0


PackedMatrices = Mapping[str, PackedMatrix]
"""By the names of their modules in the checkpoint."""


def packed_parts(parts: Sequence[str], matrices: PackedMatrices) -> tuple[PackedMatrix, ...]:
    """How a module is kept whose rows are those of some modules of the checkpoint; () where it is not kept packed.

    Formats may differ, as in files that have q and k in fewer bits than v; what of it is in floats stays as it lies.
    """
    found = [matrices[part] for part in parts if part in matrices]
    whole = len(found) == len(parts) and any(matrix.kind.is_rounded for matrix in found)
    return tuple(found) if whole else ()
