"""The layouts of matrices of eight and four bits in ComfyUI's files: the numbers that each means, and their bytes.

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
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
FP8, FLOATS = ("F8_E4M3", "F8_E5M2"), ("F32", "F16", "BF16")
"""Types as files state them."""
STORED, SCALE, SCALE_2, INPUT_FACTORS = "weight", "weight_scale", "weight_scale_2", "pre_quant_scale"
"""Names of a matrix and of the tensors beside it."""
_DTYPES = {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "U8": "uint8",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}
_TILE = (128, 4)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The positive numbers of four bits, in the order of their bits."""
_MANTISSA_BITS = 23
"""Of float32, whose exponent is the one that is stored."""
_LARGEST = {"U8": 6.0, "I8": 127.0, "F8_E4M3": 448.0, "F8_E5M2": 57_344.0}
"""Numbers of a stored type; those of U8 have four bits."""
_LARGEST_EXPONENT = 246
"""Of a block of mxfp8 whose numbers are all in the range of float32."""
_ALIGNMENT = 16
"""Bytes at which the tensors of a packed matrix begin, as tensor cores take them."""


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
        exact: whether its layer asks for products in full precision (`full_precision_matrix_mult`).
    """

    name: str
    stored: tuple[str, ...]
    scales: tuple[str, ...] = FLOATS
    block: int = 0
    per_byte: int = 1
    beside: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    rotated: int = 0
    exact: bool = False

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
        rows, columns = self.tiles(shape)
        return scale in ((rows, columns), (rows * columns,))

    def tiles(self, shape: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the scales of blocks, which fill tiles."""
        return _whole_tiles(shape[0], _TILE[0]), _whole_tiles(shape[1] // self.block, _TILE[1])

    def _turns(self, shape: Shape) -> bool:
        return not self.rotated or (len(shape) == 2 and shape[1] % self.rotated == 0)

    def small_scales(self) -> tuple[str, ...]:
        """Names of the scales that are few, and whose values all have to be above 0."""
        return (SCALE,) if not self.block else tuple(name for name, needed in self.beside.items() if needed)

    def numbers(self, stored: Mapping[str, torch.Tensor], out: torch.Tensor, whole: bool = False) -> torch.Tensor:
        """The numbers that were meant, a few rows at a time, rounded once.

        Args:
            stored: the matrix and the tensors beside it, by the last words of their names.
            out: of the matrix's shape, of a floating dtype.
            whole: all rows at once.
        """
        from .dequantise import rows_at_once

        rows = out.shape[0] if out.ndim else 1
        flat = out.view(rows, out.numel() // rows if rows else 0)
        scales, factors = self._row_scales(stored[SCALE], rows, flat.shape[1]), stored.get(INPUT_FACTORS)
        height = max(1, rows) if whole else rows_at_once(flat)
        matrix = stored[STORED].reshape(rows, -1) if flat.numel() else flat
        for part, scale, place in zip(*(t.split(height) for t in (matrix, scales, flat)), strict=True):
            numbers = self._scaled(part, scale, stored.get(SCALE_2))
            place.copy_(numbers if factors is None else numbers.mul_(factors.float().reshape(1, -1)))
        return out

    def _row_scales(self, scale: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Of every row: one number, or the bytes of its blocks."""
        import torch

        if not self.block:
            return scale.float().reshape(-1, 1).expand(rows, 1)
        return _untiled(scale.view(torch.uint8), rows, columns // self.block)

    def _scaled(self, stored: torch.Tensor, scale: torch.Tensor, of_all: torch.Tensor | None) -> torch.Tensor:
        """Some rows of numbers, float32."""
        import torch

        numbers = _unpacked(stored) if self.per_byte == 2 else stored.to(torch.float32, copy=True)
        if not self.block:
            numbers.mul_(scale)
            return _turned(numbers, self.rotated) if self.rotated else numbers
        if of_all is not None:
            factors = scale.view(torch.float8_e4m3fn).float() * of_all.float().reshape(())
        else:
            factors = (scale.int() << _MANTISSA_BITS).view(torch.float32)  # 0 is that of blocks of zeros
        numbers.unflatten(1, (-1, self.block)).mul_(factors.unsqueeze(2))
        return numbers


@dataclasses.dataclass(frozen=True)
class LayoutFormat:
    """How a matrix of some layout is packed in bytes: all its tensors one after another (a `PackedFormat`).

    Attributes:
        layout: of the matrix.
        stored: type of its numbers.
        by_row: whether every row has a scale, where blocks have none.
        factors: whether its inputs have factors.
    """

    layout: Layout
    stored: str
    by_row: bool = False
    factors: bool = False

    is_rounded = True

    @property
    def name(self) -> str:
        return self.layout.name

    def bytes_of(self, shape: Sequence[int]) -> int:
        return sum(_aligned(_nbytes(*tensor)) for tensor in self._tensors(shape).values())

    def pack(self, tensors: Mapping[str, torch.Tensor], place: torch.Tensor, shape: Sequence[int]) -> None:
        """Bring the tensors of a matrix [rows, columns], as a file has them, to their places.

        Args:
            tensors: by the last words of their names.
            place: uint8, `bytes_of` the matrix.
            shape: of the matrix.
        """
        for name, view in self.views(place, shape).items():
            given = tensors[name].reshape(view.shape)
            view.copy_(given.view(view.dtype) if name == SCALE and self.layout.block else given)

    def views(self, packed: torch.Tensor, shape: Sequence[int]) -> dict[str, torch.Tensor]:
        """The tensors of a matrix [rows, columns] in its bytes, by the last words of their names."""
        import torch

        found, start = {}, 0
        for name, (dtype, size) in self._tensors(shape).items():
            nbytes = _nbytes(dtype, size)
            found[name] = packed[start : start + nbytes].view(getattr(torch, dtype)).view(size)
            start += _aligned(nbytes)
        return found

    def unpack(self, packed: torch.Tensor, out: torch.Tensor, whole: bool = False) -> torch.Tensor:
        return self.layout.numbers(self.views(packed, out.shape), out, whole)

    def is_finite(self, packed: torch.Tensor, shape: Sequence[int]) -> bool:
        """Whether all numbers are: those are whose scales and stored numbers are, and none of them is too large."""
        import torch

        views = self.views(packed, shape)
        stored, scale = views[STORED], views[SCALE]
        if not _is_finite(stored, self.stored):
            return False
        if self.layout.block and SCALE_2 not in views:
            return bool((scale <= _LARGEST_EXPONENT).all())
        largest = _LARGEST.get(self.stored) or stored.abs().max().float()
        if self.layout.block:
            if not _is_finite(scale.view(torch.float8_e4m3fn), "F8_E4M3"):
                return False
            scale, largest = views[SCALE_2], _LARGEST["U8"] * _LARGEST["F8_E4M3"]
        if self.factors:
            scale = scale * views[INPUT_FACTORS].abs().max()
        return bool((scale * largest).isfinite().all())

    def _tensors(self, shape: Sequence[int]) -> dict[str, tuple[str, Shape]]:
        """PyTorch's dtype and shape of each tensor, in their order."""
        rows, columns = shape
        made: dict[str, tuple[str, Shape]] = {STORED: (_DTYPES[self.stored], (rows, columns // self.layout.per_byte))}
        if self.layout.block:
            made[SCALE] = ("uint8", self.layout.tiles(shape))
        else:
            made[SCALE] = ("float32", (rows if self.by_row else 1, 1))
        if SCALE_2 in self.layout.beside:
            made[SCALE_2] = ("float32", ())
        if self.factors:
            made[INPUT_FACTORS] = ("float32", (columns,))
        return made


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
FORMATS = {
    layout.name: LayoutFormat(layout, layout.stored[0], by_row=not layout.block)
    for layout in (_LAYOUTS["nvfp4"], _LAYOUTS["mxfp8"], _LAYOUTS["int8_tensorwise"])
}
"""As most files have matrices in few bits, by the names of layouts."""
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
    if layout and settings.get("full_precision_matrix_mult"):
        layout = dataclasses.replace(layout, exact=True)
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
    return _kept("bytes", pairs.device, _numbers_of_bytes).index_select(0, pairs.flatten().int()).view(len(pairs), -1)


def _numbers_of_bytes() -> torch.Tensor:
    """Both numbers of every byte, [256, 2]."""
    import torch

    each = torch.tensor((*_E2M1, *(-n for n in _E2M1)))
    return torch.stack((each.repeat_interleave(16), each.repeat(16)), 1)


def _turned(matrix: torch.Tensor, group: int) -> torch.Tensor:
    """Each group of every row, turned back."""
    turn = _kept(f"hadamard {group}", matrix.device, lambda: _hadamard(group))
    return (matrix.unflatten(1, (-1, group)) @ turn).flatten(1)


def _hadamard(size: int) -> torch.Tensor:
    """The regular Hadamard matrix of a size that is a power of 4, which is symmetric and its own inverse."""
    import torch

    four = 1 - 2 * torch.eye(4).flip(0)
    return four / 2 if size == 4 else torch.kron(_hadamard(size // 4), four / 2)


_tables: dict[tuple[str, torch.device], torch.Tensor] = {}


def _kept(name: str, device: torch.device, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """A table on a device, brought there once: that may wait for the device."""
    if (name, device) not in _tables:
        _tables[name, device] = make().to(device)
    return _tables[name, device]


def _nbytes(dtype: str, shape: Shape) -> int:
    return math.prod(shape) * {"float32": 4, "float16": 2, "bfloat16": 2}.get(dtype, 1)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _is_finite(stored: torch.Tensor, kind: str) -> bool:
    """Whether all of some stored numbers are."""
    import torch

    if kind in FLOATS:
        return bool(stored.isfinite().all())
    none = {"F8_E4M3": 0x7F, "F8_E5M2": 0x7C}.get(kind)
    return none is None or not bool(((stored.view(torch.uint8) & none) == none).any())
