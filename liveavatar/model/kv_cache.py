"""The KV cache of a layer: a rolling window of recent blocks per step, and the sink.

Both kinds of cache answer the same question of a self-attention layer: given the keys and values of the tokens now
passing, what do they attend to? A noise pass writes into the KV cache and sees the window and the sink, each where it
lies; a prefill fills the sink and sees only itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from ..config import BLOCK_LATENTS, WINDOW_BLOCKS
from .attention import KeyValue
from .rope import Rope, apply_rope


def window_tokens(frame_tokens: int, window_blocks: int = WINDOW_BLOCKS) -> int:
    """Tokens of a whole window."""
    return window_blocks * BLOCK_LATENTS * frame_tokens


@dataclasses.dataclass(frozen=True)
class Window:
    """Where a block writes in a KV cache and how much of the KV cache it sees, in tokens.

    Attributes:
        start, tokens: the block's own rows.
        valid: how many rows have been written when the block is among them.
    """

    start: int
    tokens: int
    valid: int

    @classmethod
    def of(cls, block: int, frame_tokens: int, window_blocks: int = WINDOW_BLOCKS) -> Window:
        """The first blocks see only what was written; later ones the whole cache."""
        tokens = BLOCK_LATENTS * frame_tokens
        return cls(block % window_blocks * tokens, tokens, min(block + 1, window_blocks) * tokens)

    @property
    def own(self) -> slice:
        """The rows the block writes."""
        return slice(self.start, self.start + self.tokens)

    @property
    def earlier(self) -> tuple[slice, ...]:
        """The rows of the blocks before it that are still in the KV cache."""
        around = slice(0, self.start), slice(self.start + self.tokens, self.valid)
        return tuple(rows for rows in around if rows.start < rows.stop)


def part_rows(tensors: Sequence[torch.Tensor], part: slice) -> list[torch.Tensor]:
    """Views of a part of a window in the tensors of a KV cache.

    Args:
        tensors: the first has a row per token; the others have that, too, or a row per block.
        part: rows of whole blocks, counted in tokens.
    """
    tokens = len(tensors[0])
    return [t[part.start * len(t) // tokens : part.stop * len(t) // tokens] for t in tensors]


class KVCacheLayer(Protocol):
    """Keys and values of the last blocks at one step, in one layer, wherever and in whatever they are kept."""

    def prefetch(self, window: Window) -> None:
        """A hint that the layer will soon work on a block: begin to get what is far away."""

    def update(self, window: Window, k: torch.Tensor, v: torch.Tensor) -> KeyValue:
        """Keep a block's own rows, then show its window.

        Args:
            window: of the block.
            k, v: its keys (rotated) and values [block tokens, heads, head_dim].

        Returns:
            The rows of the window in the order of the KV cache; no copies where it is kept as it is attended to, so
            they are to be read until `release`.
        """

    def release(self) -> None:
        """The layer has attended to what `update` showed it, or was given to the device to do so."""

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All it keeps from one block to the next; written into, they restore it. The first have a row per token, and
        others may have one per block: see `part_rows`."""


@dataclasses.dataclass
class RollingKVCache:
    """Keys (rotated) and values of the last blocks at one step, in one layer.

    Attributes:
        k, v: [window blocks * block tokens, heads, head_dim]; block b lives in slot b mod window blocks.
    """

    k: torch.Tensor
    v: torch.Tensor

    @classmethod
    def empty(
        cls,
        frame_tokens: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        window_blocks: int = WINDOW_BLOCKS,
    ) -> RollingKVCache:
        """A KV cache for images of `frame_tokens` tokens per latent frame; what was not written is never read."""
        shape = (window_tokens(frame_tokens, window_blocks), heads, head_dim)
        return cls(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))

    def prefetch(self, window: Window) -> None:
        """Nothing to do: the rows are there."""

    def update(self, window: Window, k: torch.Tensor, v: torch.Tensor) -> KeyValue:
        """As `KVCacheLayer.update`."""
        self.k[window.own], self.v[window.own] = k, v
        return self.k[: window.valid], self.v[: window.valid]

    def release(self) -> None:
        """Nothing to do: nobody else uses its memory."""

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """k and v."""
        return self.k, self.v


@dataclasses.dataclass(frozen=True)
class SinkKV:
    """What every block attends to besides its window, in one layer.

    Attributes:
        reference_k: [S, heads, head_dim], not rotated, because the reference moves along with the blocks.
        motion_k: [1.5 S, heads, head_dim], rotated once, because motion never moves.
        v: [2.5 S, heads, head_dim], reference first.
    """

    reference_k: torch.Tensor
    motion_k: torch.Tensor
    v: torch.Tensor


@dataclasses.dataclass(frozen=True)
class BlockCache:
    """Cache of a denoising pass: the rolling KV cache of its step, and the sink with the reference at its present
    distance.

    Attributes:
        kv_cache, window, sink: see there.
        reference: rotation of the reference.
        apply_rope: how keys are rotated.
    """

    kv_cache: KVCacheLayer
    window: Window
    sink: SinkKV
    reference: Rope
    apply_rope: Callable[[torch.Tensor, Rope], torch.Tensor] = apply_rope

    def update(self, k: torch.Tensor, v: torch.Tensor, rope: Rope) -> tuple[KeyValue, KeyValue]:
        """Store the block's own keys and values, then list all it attends to: its window, and the sink."""
        window = self.kv_cache.update(self.window, self.apply_rope(k, rope), v)
        sink_k = torch.cat((self.apply_rope(self.sink.reference_k, self.reference), self.sink.motion_k))
        return window, (sink_k, self.sink.v)

    def release(self) -> None:
        """As `KVCacheLayer.release`."""
        self.kv_cache.release()


@dataclasses.dataclass
class SinkRecorder:
    """Recorder of a prefill: nothing is cached before it; its keys and values become the layer's sink.

    Attributes:
        reference_tokens: how many of the tokens, from the first, are the reference image.
        sink: filled by the layer.
    """

    reference_tokens: int
    sink: SinkKV | None = None

    def update(self, k: torch.Tensor, v: torch.Tensor, rope: Rope) -> tuple[KeyValue]:
        """Keep the sink; the tokens attend to themselves only."""
        rotated = apply_rope(k, rope)
        n = self.reference_tokens
        self.sink = SinkKV(k[:n].clone(), rotated[n:].clone(), v.clone())
        return ((rotated, v),)

    def release(self) -> None:
        """Nothing to do: nothing of it is used again."""
