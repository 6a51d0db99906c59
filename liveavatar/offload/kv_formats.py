"""Formats of the KV cache that take less: keys and values of earlier blocks in e4m3, or in four bits.

A block attends to its own rows as they are; only what later blocks see of it is rounded. It is rounded once and by
itself, so that every partition rounds alike, and widened for the layer that works, straight into the keys and values
that it attends to.

Four bits leave 16 values. Some channels of a transformer's keys are many times as large as the others, or far from
zero (Liu et al. 2024, "KIVI"; Hooper et al. 2024, "KVQuant"), and in one scale with them the others would be lost.
Blocks are written whole here, so every channel is first brought to mean 0 over the tokens of its block, and nearer to
the spread of its head; rotation keeps the length of a pair of channels, so this holds for rotated keys. Nearer, by the
root, and not to it: where keys spread, queries are larger, too (in the miniature), and errors count for more; Xiao et
al. 2023, "SmoothQuant", share out so. What is left is rounded with a scale per token and 32 numbers. What that costs
stands in `liveavatar/mini/model/README.md`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import torch

from ..config import WINDOW_BLOCKS
from ..model.attention import KeyValue
from ..model.kv_cache import RollingKVCache, Window, part_rows
from ..model.quantize import quantize_rows_fp8
from ..storage import KVDtype, int4_groups

Allocate = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
"""Gives memory for a tensor."""
TensorShape = tuple[tuple[int, ...], torch.dtype]
_EIGHTS = 0x88 - 0x100
"""A byte of two numbers in four bits, which brings n + 8 to n."""


@dataclasses.dataclass(frozen=True)
class KVCacheShape:
    """What a KV cache has room for.

    Attributes:
        tokens: of a whole window.
        heads, head_dim: of a token.
        dtype: of the keys and values that pass.
        blocks: of a whole window.
    """

    tokens: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    blocks: int = WINDOW_BLOCKS


@dataclasses.dataclass(frozen=True)
class KVFormat:
    """How the keys, or the values, of blocks are rounded.

    Attributes:
        kinds: what the names of its tensors end in.
        tensors: their shapes and dtypes for a window; each has a row per token, or per block.
        quantize: those of a block [tokens, heads, head_dim] -> its rows of these tensors.
        dequantize: the rows of whole blocks, and where they go: [tokens, heads, head_dim] of any floating dtype.
        per_byte: numbers in a byte of the first of the tensors.
    """

    kinds: tuple[str, ...]
    tensors: Callable[[KVCacheShape], tuple[TensorShape, ...]]
    quantize: Callable[[torch.Tensor], Sequence[torch.Tensor]]
    dequantize: Callable[[Sequence[torch.Tensor], torch.Tensor], None]
    per_byte: int = 1


def _fp8_tensors(shape: KVCacheShape) -> tuple[TensorShape, ...]:
    """The numbers, and a scale per token and head."""
    rows = shape.tokens, shape.heads
    return ((*rows, shape.head_dim), torch.float8_e4m3fn), ((*rows, 1), torch.float32)


def _dequantize_fp8(kept: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    numbers, scale = kept
    out.copy_(numbers).mul_(scale)


def _int4_tensors(shape: KVCacheShape) -> tuple[TensorShape, ...]:
    """Two numbers a byte; a scale per token and group of a head; mean and factor per block and channel."""
    rows = shape.tokens, shape.heads
    channels = shape.blocks, 2, shape.heads, shape.head_dim
    return (
        ((*rows, shape.head_dim // 2), torch.int8),
        ((*rows, int4_groups(shape.head_dim)), torch.float16),
        (channels, torch.float32),
    )


def quantize_block_int4(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A block [tokens, heads, head_dim] -> int8 [tokens, heads, head_dim / 2], float16 [tokens, heads, groups] and
    float32 [1, 2, heads, head_dim].

    A number is mean + factor * scale * n with n from -8 to 7. The largest of a group becomes -8, which gives its scale
    the opposite sign, as in Q4_0 of GGUF: none is off by more than a scale, and most by at most half of one.
    """
    spread, mean = torch.std_mean(x, 0, correction=0, keepdim=True)
    root = spread.float().clamp_min(torch.finfo(x.dtype).tiny).sqrt()
    factor = (root * root.square().mean(-1, keepdim=True).sqrt()).to(x.dtype)
    rest = (x - mean).div_(factor).unflatten(-1, (int4_groups(x.shape[-1]), -1))
    low, high = torch.aminmax(rest, dim=-1, keepdim=True)
    scale = (torch.where(high > -low, high, low) / -8).half()
    scale.masked_fill_(scale == 0, 1)
    above = torch.addcdiv(rest.new_full((), 8.5), rest, scale.to(x.dtype)).to(torch.int8)  # n + 8, for it cuts off
    first, second = above.clamp_(max=15).chunk(2, -1)
    packed = (first | (second << 4)) ^ _EIGHTS
    return packed.flatten(-2), scale.squeeze(-1), torch.cat((mean, factor)).float()[None]


def dequantize_blocks_int4(kept: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    """What `quantize_block_int4` gave of some blocks, side by side, into [tokens, heads, head_dim]."""
    packed, scale, channels = kept
    groups = scale.shape[-1], -1
    packed, numbers = packed.unflatten(-1, groups), out.unflatten(-1, groups)
    half, step = packed.shape[-1], scale.to(out.dtype).unsqueeze(-1) / 16  # numbers come as 16 times what they are
    torch.mul(packed << 4, step, out=numbers[..., :half])
    torch.mul(packed & -16, step, out=numbers[..., half:])
    mean, factor = channels.to(out.dtype).unsqueeze(2).unbind(1)
    blocks = out.unflatten(0, (len(channels), -1))
    torch.addcmul(mean, blocks, factor, out=blocks)


KV_FORMATS: Mapping[KVDtype, KVFormat] = {
    "fp8": KVFormat(("", "_scale"), _fp8_tensors, quantize_rows_fp8, _dequantize_fp8),
    "int4": KVFormat(
        ("", "_scale", "_channels"), _int4_tensors, quantize_block_int4, dequantize_blocks_int4, per_byte=2
    ),
}
"""All but "plain", which rounds nothing; each has another number of tensors."""


@dataclasses.dataclass
class QuantizedKVCache:
    """Keys (rotated) and values of the last blocks at one step, in one layer, rounded.

    Attributes:
        format: how they are kept.
        k, v: the tensors of that format.
    """

    format: KVFormat
    k: tuple[torch.Tensor, ...]
    v: tuple[torch.Tensor, ...]

    def prefetch(self, window: Window) -> None:
        """Nothing to do: the rows are there."""

    def update(self, window: Window, k: torch.Tensor, v: torch.Tensor) -> KeyValue:
        """As `KVCacheLayer.update`; new tensors."""
        return self._updated(self.k, window, k), self._updated(self.v, window, v)

    def release(self) -> None:
        """Nothing to do: what was attended to are copies."""

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """k and v, then their scales, and what else they have."""
        return _in_turn(self.k, self.v)

    def _updated(self, kept: tuple[torch.Tensor, ...], window: Window, new: torch.Tensor) -> torch.Tensor:
        attended = new.new_empty((window.valid, *new.shape[1:]))
        for earlier in window.earlier:
            self.format.dequantize(part_rows(kept, earlier), attended[earlier])
        attended[window.own] = new
        for rows, values in zip(part_rows(kept, window.own), self.format.quantize(new), strict=True):
            rows.copy_(values)
        return attended


def _in_turn(k: Sequence[torch.Tensor], v: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(itertools.chain.from_iterable(zip(k, v, strict=True)))


def kv_tensors(kv_dtype: KVDtype, shape: KVCacheShape) -> tuple[TensorShape, ...]:
    """Shapes and dtypes of `KVCacheLayer.tensors` in a format."""
    if kv_dtype == "plain":
        return 2 * (((shape.tokens, shape.heads, shape.head_dim), shape.dtype),)
    return tuple(each for each in KV_FORMATS[kv_dtype].tensors(shape) for _ in range(2))


def allocate_kv_cache_layer(
    kv_dtype: KVDtype, shape: KVCacheShape, allocate: Allocate
) -> RollingKVCache | QuantizedKVCache:
    """A KV cache of a format, in memory that `allocate` gives; what was not written is never read."""
    tensors = tuple(itertools.starmap(allocate, kv_tensors(kv_dtype, shape)))
    if kv_dtype == "plain":
        return RollingKVCache(*tensors)
    return QuantizedKVCache(KV_FORMATS[kv_dtype], tensors[::2], tensors[1::2])


def as_kv_format(rows: Sequence[torch.Tensor], tensors: int, block_tokens: int) -> tuple[torch.Tensor, ...]:
    """Rows of a KV cache as one of another format keeps them; those of the same format as they are.

    Args:
        rows: of one or more whole blocks: as of `KVCacheLayer.tensors`.
        tensors: how many the other one keeps.
        block_tokens: of a block.
    """
    if len(rows) == tensors:
        return tuple(rows)
    formats = {2 * len(each.kinds): each for each in KV_FORMATS.values()}
    k, v = (_widened(formats[len(rows)], rows[i::2]) for i in range(2)) if len(rows) in formats else rows
    if tensors not in formats:
        return k, v
    return _in_turn(*(_narrowed(formats[tensors], each, block_tokens) for each in (k, v)))


def _widened(kept_in: KVFormat, kept: Sequence[torch.Tensor]) -> torch.Tensor:
    """In float32."""
    tokens, heads, width = kept[0].shape
    out = torch.empty((tokens, heads, width * kept_in.per_byte), device=kept[0].device)
    kept_in.dequantize(kept, out)
    return out


def _narrowed(wanted: KVFormat, x: torch.Tensor, block_tokens: int) -> list[torch.Tensor]:
    """Block by block."""
    blocks = [wanted.quantize(block) for block in x.split(block_tokens)]
    return [torch.cat(parts) for parts in zip(*blocks, strict=True)]
