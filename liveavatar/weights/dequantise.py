"""Blocks of GGUF files to numbers, in PyTorch: to the bit what the gguf package computes, on any device.

The layouts of the blocks are those of GGML. Every function takes the blocks of a type as uint8 [n, bytes of a block]
and gives float32 [n, numbers of a block]; none waits for the device, and all can be compiled.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable

import torch

from .block_types import FLOATS, PACKED, UNPACKED_AT_ONCE

_CHUNK = 2**16, UNPACKED_AT_ONCE
"""Numbers unpacked at a time, on the CPU and elsewhere: what stands in between fits their caches."""
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def unpack_rows(packed: torch.Tensor, kind: str, out: torch.Tensor, whole: bool = False) -> torch.Tensor:
    """Unpack a matrix, a few rows at a time, rounded once.

    Args:
        packed: uint8 of all rows, one after the other.
        kind: name of the type, of `PACKED` or `FLOATS`.
        out: [rows, n] of a floating dtype; rows are whole blocks.
        whole: all rows at once, for a compiler that joins the operations.
    """
    if kind in FLOATS:
        return out.copy_(packed.view(_DTYPES[kind]).view(out.shape))
    block = PACKED[kind]
    rows = len(out)
    height = rows if whole else rows_at_once(out)
    for part, place in zip(packed.view(rows, -1).split(height), out.split(height), strict=True):
        place.copy_(_UNPACK[kind](part.reshape(-1, block.nbytes)).view(place.shape))
    return out


def rows_at_once(out: torch.Tensor) -> int:
    """How many rows of a matrix are unpacked together."""
    return max(1, _CHUNK[out.device.type != "cpu"] // max(1, out.shape[1]))


def is_finite(packed: torch.Tensor, kind: str) -> bool:
    """Whether all numbers of packed blocks are finite: those are that their scales make so."""
    if kind in FLOATS:
        return bool(packed.view(_DTYPES[kind]).isfinite().all())
    blocks = packed.view(-1, PACKED[kind].nbytes)
    return all(bool(_half(blocks, at).isfinite().all()) for at in _SCALES_AT.get(kind, (0,)))


def unpacked(packed: torch.Tensor, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A packed tensor on the CPU in float32, of any shape of as many numbers.

    It lies in pages of its own, which go back to the system with it: what is read next leaves no holes between what
    stays.
    """
    count = math.prod(shape)
    if not count:
        return torch.empty(shape)
    out = torch.frombuffer(mmap.mmap(-1, 4 * count), dtype=torch.float32)
    unpack_rows(packed.reshape(-1), kind, out.view(-1, PACKED[kind].numbers))
    return out.view(shape)


def _halves(qs: torch.Tensor) -> torch.Tensor:
    """[..., n] bytes -> [..., 2, n]: the lower four bits of all, then the upper four."""
    return torch.stack((qs & 15, qs >> 4), -2)


def _quarters(qs: torch.Tensor) -> torch.Tensor:
    """[..., n] bytes -> [..., 4, n]: two bits of all, from the lowest on."""
    return torch.stack((qs & 3, qs >> 2 & 3, qs >> 4 & 3, qs >> 6), -2)


def _bits(qh: torch.Tensor, dim: int) -> torch.Tensor:
    """[..., n] bytes -> their bits from the lowest on, in a new dimension."""
    return torch.stack([qh >> bit & 1 for bit in range(8)], dim)


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 number that begins at a byte of each block: float32 [n, 1]."""
    return blocks[:, at : at + 2].view(torch.float16).float()


def _signed(q: torch.Tensor, zero: int) -> torch.Tensor:
    """Bytes whose zero stands at some number."""
    return q.view(torch.int8) - zero


def _five_bits(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Bytes [n, 16] with four bits of 32 numbers, and [n, 4] with their fifth ones -> [n, 32]."""
    return _halves(low).flatten(1) | _bits(high, -1).flatten(1) << 4


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * _signed(_halves(blocks[:, 2:]).flatten(1), 8)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return (_half(blocks, 0) * _halves(blocks[:, 4:]).flatten(1)).add_(_half(blocks, 2))


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * _signed(_five_bits(blocks[:, 6:], blocks[:, 2:6]), 16)


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    return (_half(blocks, 0) * _five_bits(blocks[:, 8:], blocks[:, 4:8])).add_(_half(blocks, 2))


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8)


def _q2_k(blocks: torch.Tensor) -> torch.Tensor:
    """16 groups of 16 numbers with a scale and a least number, of four bits each."""
    scales = blocks[:, :16]
    q = _quarters(blocks[:, 16:80].unflatten(1, (2, 32))).reshape(-1, 16, 16)
    scale = (_half(blocks, 80) * (scales & 15)).unsqueeze(2)
    return (scale * q).sub_((_half(blocks, 82) * (scales >> 4)).unsqueeze(2)).flatten(1)


def _q3_k(blocks: torch.Tensor) -> torch.Tensor:
    """16 groups of 16 numbers with a scale of six bits; the third bit of a number is missing where it is 0."""
    high, low, scales = blocks[:, :32], blocks[:, 32:96].unflatten(1, (2, 32)), blocks[:, 96:108]
    lower, upper = _halves(scales[:, :8]).flatten(1), _quarters(scales[:, 8:]).flatten(1)
    scale = (_half(blocks, 108) * _signed(lower | upper << 4, 32)).unsqueeze(2)
    missing = (_bits(high, 1) ^ 1) << 2
    q = _quarters(low).reshape(-1, 16, 16).view(torch.int8) - missing.reshape(-1, 16, 16).view(torch.int8)
    return (scale * q).flatten(1)


def _scales_and_least(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of Q4_K and Q5_K: scales and least numbers of 8 groups, of six bits each, float32 [n, 8, 1]."""
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat((first & 63, (rest & 15) | (first >> 2 & 48)), 1)
    least = torch.cat((second & 63, (rest >> 4) | (second >> 2 & 48)), 1)
    return (_half(blocks, 0) * scales).unsqueeze(2), (_half(blocks, 2) * least).unsqueeze(2)


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    """8 groups of 32 numbers with a scale and a least number."""
    scale, least = _scales_and_least(blocks)
    q = _halves(blocks[:, 16:].unflatten(1, (4, 32))).flatten(1, 2)
    return (scale * q).sub_(least).flatten(1)


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    """As Q4_K, with a fifth bit of each number."""
    scale, least = _scales_and_least(blocks)
    low = _halves(blocks[:, 48:].unflatten(1, (4, 32))).flatten(1, 2)
    return (scale * (low | _bits(blocks[:, 16:48], 1) << 4)).sub_(least).flatten(1)


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """16 groups of 16 numbers with a scale of eight bits."""
    low = _halves(blocks[:, :128].unflatten(1, (2, 64))).reshape(-1, 8, 32)
    high = _quarters(blocks[:, 128:192].unflatten(1, (2, 32))).flatten(1, 2)
    scale = (_half(blocks, 208) * blocks[:, 192:208].view(torch.int8)).unsqueeze(2)
    return (scale * _signed(low | high << 4, 32).reshape(-1, 16, 16)).flatten(1)


_SCALES_AT = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
}
"""Where the float16 numbers of a block begin; at 0 in the other types."""
_UNPACK: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
