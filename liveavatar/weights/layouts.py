"""The layouts of matrices of eight and four bits in ComfyUI's files, and the numbers that each of them means.

A layer states its layout by name, in JSON; the rest is fixed by the name:

- float8_e4m3fn, float8_e5m2: W = stored * scale, where the scale is one number or a column with one per row.
- int8_tensorwise: the same of whole numbers. With `convrot`, every group of a row was turned by a Hadamard matrix
  before it was rounded, and is turned back here.
- mxfp8: fp8, where 32 numbers of a row share a power of two, of which the exponent is stored.
- nvfp4: two numbers of four bits (sign, two bits of exponent, one of mantissa) in a byte, the first in its upper half;
  16 numbers of a row share a scale in fp8, and all of the matrix share another one. Inputs may have factors of their
  own (`pre_quant_scale`), which are multiplied into the columns.

Scales of blocks lie in tiles of 128 rows and 4 columns, as tensor cores take them: in a tile, rows 32 apart lie side by
side. Sides that are no whole number of tiles were filled with zeros.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
FP8, FLOATS = ("F8_E4M3", "F8_E5M2"), ("F32", "F16", "BF16")
"""Types as files state them."""
SCALE, SCALE_2, INPUT_FACTORS = "weight_scale", "weight_scale_2", "pre_quant_scale"
"""Names of tensors beside a matrix."""
_TILE = (128, 4)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The positive numbers of four bits, in the order of their bits."""
_MANTISSA_BITS = 23
"""Of float32, whose exponent is the one that is stored."""
_ROWS_AT_ONCE = 64
"""What is unpacked together: its indices take four times its bytes."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a matrix is kept.

    Attributes:
        name: in words for the user.
        stored, scales: types that the matrix and its `weight_scale` may have.
        block: numbers of a row that share a scale; 0 where rows or the whole matrix do.
        per_byte: numbers in one stored one.
        beside: further tensors: names, and whether they have to be there.
        rotated: numbers of a row that were turned together; 0: none were.
    """

    name: str
    stored: tuple[str, ...]
    scales: tuple[str, ...] = FLOATS
    block: int = 0
    per_byte: int = 1
    beside: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    rotated: int = 0

    def shape(self, stored: Shape) -> Shape:
        """The shape of a matrix that is stored in such a one."""
        return (*stored[:-1], stored[-1] * self.per_byte) if stored else stored

    def fits(self, stored: Shape, scale: Shape) -> bool:
        """Whether a matrix and its scales can belong together."""
        shape = self.shape(stored)
        if not self.block:
            column = (*shape[:1], *[1] * (len(shape) - 1))
            return scale in ((), (1,), (1,) * len(shape), column) and self._turns(shape)
        if len(shape) != 2 or not shape[0] or shape[1] % self.block:
            return False
        rows, columns = _whole_tiles(shape[0], _TILE[0]), _whole_tiles(shape[1] // self.block, _TILE[1])
        return scale in ((rows, columns), (rows * columns,))

    def _turns(self, shape: Shape) -> bool:
        return not self.rotated or (len(shape) == 2 and shape[1] % self.rotated == 0)

    def numbers(self, stored: torch.Tensor, beside: Callable[[str], torch.Tensor | None]) -> torch.Tensor:
        """The numbers that were meant, float32.

        Args:
            stored: the matrix.
            beside: gives the tensors beside it by the last words of their names.
        """
        import torch

        scale = beside(SCALE)
        assert scale is not None
        if not self.block:
            numbers = stored.to(torch.float32, copy=True).mul_(scale.float().reshape(-1, *[1] * (stored.ndim - 1)))
            return _turned(numbers, self.rotated) if self.rotated else numbers
        numbers = _unpacked(stored) if self.per_byte == 2 else stored.to(torch.float32, copy=True)
        by_block = numbers.unflatten(1, (-1, self.block))
        by_block.mul_(self._block_scales(scale, beside(SCALE_2), *by_block.shape[:2])[..., None])
        factors = beside(INPUT_FACTORS)
        return numbers if factors is None else numbers.mul_(factors.float().reshape(1, -1))

    def small_scales(self) -> tuple[str, ...]:
        """Names of the scales that are few, and whose values all have to be above 0."""
        return (SCALE,) if not self.block else tuple(name for name, needed in self.beside.items() if needed)

    def _block_scales(self, tiled: torch.Tensor, of_all: torch.Tensor | None, rows: int, columns: int) -> torch.Tensor:
        """Scales of blocks [rows, columns]."""
        import torch

        scales = _untiled(tiled.view(torch.uint8), rows, columns)
        if of_all is not None:
            return scales.view(torch.float8_e4m3fn).float() * of_all.float().reshape(())
        return (scales.int() << _MANTISSA_BITS).view(torch.float32)  # 0 is that of blocks of zeros


FLOAT8 = Layout("fp8", (*FP8, *FLOATS))
"""Floats may stand in place of fp8: a scale counts whatever it scales."""
_LAYOUTS = {
    "float8_e4m3fn": FLOAT8,
    "float8_e5m2": FLOAT8,
    "int8_tensorwise": Layout("int8", ("I8",)),
    "mxfp8": Layout("mxfp8", ("F8_E4M3",), ("F8_E8M0", "U8"), block=32),
    "nvfp4": Layout(
        "nvfp4", ("U8",), ("F8_E4M3", "U8"), block=16, per_byte=2, beside={SCALE_2: True, INPUT_FACTORS: False}
    ),
}
"""By the names that layers state."""
_GROUP = 256
"""Numbers that `convrot` turns together where nothing is said."""


def layout_of(stated: Any) -> Layout | None:
    """The layout that a layer states; None where it is not known.

    Args:
        stated: an object with its name in `format`, or the name alone.
    """
    settings = stated if isinstance(stated, dict) else {"format": stated}
    name = settings.get("format")
    layout = _LAYOUTS.get(name) if isinstance(name, str) else None
    within = settings.get("params")
    settings = {**(within if isinstance(within, dict) else {}), **settings}
    if name != "int8_tensorwise" or not layout or not settings.get("convrot"):
        return layout
    group = settings.get("convrot_groupsize", _GROUP)
    return dataclasses.replace(layout, rotated=group) if group in (4, 16, 64, 256, 1024) else None


def _whole_tiles(n: int, tile: int) -> int:
    return -(-n // tile) * tile


def _untiled(scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Scales [rows, columns] that lie in tiles."""
    from einops import rearrange

    tiles = _whole_tiles(columns, _TILE[1]) // _TILE[1]
    whole = rearrange(scales.reshape(-1), "(R C r q c) -> (R q r) (C c)", C=tiles, r=32, q=4, c=4)
    return whole[:rows, :columns].contiguous()


def _unpacked(pairs: torch.Tensor) -> torch.Tensor:
    """Numbers of four bits [rows, 2 n], float32, of bytes [rows, n]."""
    import torch

    each = torch.tensor((*_E2M1, *(-n for n in _E2M1)))
    of_byte = torch.stack((each.repeat_interleave(16), each.repeat(16)), 1)
    numbers = torch.empty(*pairs.shape, 2)
    for part, bytes_ in zip(numbers.split(_ROWS_AT_ONCE), pairs.split(_ROWS_AT_ONCE), strict=True):
        torch.index_select(of_byte, 0, bytes_.flatten().int(), out=part.view(-1, 2))
    return numbers.flatten(1)


@functools.lru_cache(maxsize=4)
def _hadamard(size: int) -> torch.Tensor:
    """The regular Hadamard matrix of a size that is a power of 4, which is symmetric and its own inverse."""
    import torch

    four = 1 - 2 * torch.eye(4).flip(0)
    return four / 2 if size == 4 else torch.kron(_hadamard(size // 4), four / 2)


def _turned(matrix: torch.Tensor, group: int) -> torch.Tensor:
    """Each group of every row, turned back."""
    return (matrix.unflatten(1, (-1, group)) @ _hadamard(group)).flatten(1)
