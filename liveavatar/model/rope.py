"""Three-dimensional rotary positions without end.

A head of width HD is HD/2 complex pairs (adjacent real channels): the first pairs turn with time, then rows, then
columns. Cosines and sines are rounded to float16, as the published implementation stores them; angles are computed in
float64 for the few time ids a task needs, so no table runs out and no position is too far.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from einops import repeat

from ..config import BLOCK_LATENTS, REFERENCE_TIME_ID

_THETA = 10_000.0
_PACKED_2X_TIME_ID = -3
_PACKED_4X_TIME_IDS = (-19, -14, -9, -4)


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotation of a row of tokens.

    Attributes:
        cos, sin: [tokens, head_dim / 2] float32, float16-rounded values.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    @functools.cached_property
    def turns(self) -> torch.Tensor:
        """The same as complex numbers, for every head: [tokens, 1, head_dim / 2]"""
        return torch.complex(self.cos, self.sin).unsqueeze(1)

    def __add__(self, other: Rope) -> Rope:
        """The tokens of both, one after the other."""
        return Rope(torch.cat((self.cos, other.cos)), torch.cat((self.sin, other.sin)))


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Complex pairs given to time, rows and columns."""
    pairs = head_dim // 2
    spatial = pairs // 3
    return pairs - 2 * spatial, spatial, spatial


def apply_rope(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Turn the pairs of x [tokens, heads, head_dim]; computed in float32, returned in x's dtype.

    The product of complex numbers is one pass; compilers, which do not know those, make one of the same written out.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    if not torch.compiler.is_compiling():
        turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * rope.turns)
        return turned.flatten(-2).to(x.dtype)
    even, odd = pairs.unbind(-1)
    cos, sin = rope.cos.unsqueeze(1), rope.sin.unsqueeze(1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


def _axis(ids: Sequence[int], pairs: int) -> torch.Tensor:
    """Unit complex numbers [len(ids), pairs] of one axis, as (cos, sin) in the last dimension, float16-rounded."""
    frequency = _THETA ** (-torch.arange(pairs, dtype=torch.float64) / pairs) if pairs else torch.empty(0)
    angle = torch.tensor(ids, dtype=torch.float64).unsqueeze(1) * frequency
    return torch.stack((angle.cos(), angle.sin()), -1).half().float()


def _spread(count: int, places: int) -> list[int]:
    """`places` whole positions spread over 0..count-1, fractions cut off (numpy's linspace(...).astype(int))."""
    import numpy as np

    return [int(i) for i in np.linspace(0, count - 1, places).astype(int)]


class RopeGrid:
    """Rotations for one image size: rows x columns of patches per latent frame.

    Args:
        rows, columns: patch grid (pixel height and width / 16).
        head_dim: width of an attention head.
        device: where the rotations are needed.
    """

    def __init__(self, rows: int, columns: int, head_dim: int, device: torch.device | str = "cpu"):
        self.rows, self.columns, self.device = rows, columns, torch.device(device)
        self._pairs = axis_pairs(head_dim)
        self._full_grid = self._space(range(rows), range(columns))
        """[rows * columns, row and column pairs, 2]"""

    @property
    def tokens(self) -> int:
        """Tokens of one latent frame."""
        return self.rows * self.columns

    def block(self, block: int) -> Rope:
        """The tokens of a block on the full grid: time ids 3b, 3b+1, 3b+2."""
        return self.frames(block * BLOCK_LATENTS)

    def frames(self, first: int) -> Rope:
        """The tokens of three latent frames from `first` on; there is no last one."""
        return self._join(range(first, first + BLOCK_LATENTS), self._full_grid)

    def reference(self, time_id: int = REFERENCE_TIME_ID) -> Rope:
        """The tokens of the reference image at a time id."""
        return self._join([time_id], self._full_grid)

    def motion(self) -> Rope:
        """The packed motion tokens: 1x, 2x, then 4x. Negative ids turn backwards; they never move."""
        half = self._space(_spread(self.rows, self.rows // 2), _spread(self.columns, self.columns // 2))
        quarter = self._space(_spread(self.rows, self.rows // 4), _spread(self.columns, self.columns // 4))
        newest = self._join([-1], self._full_grid)
        return newest + self._join([_PACKED_2X_TIME_ID], half) + self._join(_PACKED_4X_TIME_IDS, quarter)

    def _space(self, row_ids: Sequence[int], column_ids: Sequence[int]) -> torch.Tensor:
        row, column = _axis(row_ids, self._pairs[1]), _axis(column_ids, self._pairs[2])
        rows = repeat(row, "h pairs xy -> (h w) pairs xy", w=len(column))
        columns = repeat(column, "w pairs xy -> (h w) pairs xy", h=len(row))
        return torch.cat((rows, columns), 1).to(self.device)

    def _join(self, time_ids: Sequence[int], space: torch.Tensor) -> Rope:
        time = _axis(time_ids, self._pairs[0]).to(self.device, non_blocking=True)
        times = repeat(time, "f pairs xy -> (f s) pairs xy", s=len(space))
        places = repeat(space, "s pairs xy -> (f s) pairs xy", f=len(time))
        turns = torch.cat((times, places), 1)
        return Rope(turns[..., 0].contiguous(), turns[..., 1].contiguous())
