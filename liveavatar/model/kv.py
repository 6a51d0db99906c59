"""What a layer remembers: a ring of recent blocks per step, and the sink.

Both kinds of memory answer the same question of a self-attention layer: given the keys and values of the tokens now
passing, what do they attend to? A noise pass writes into the ring and sees the window and the sink; a prefill fills
the sink and sees only itself.
"""

from __future__ import annotations

import dataclasses

import torch

from ..config import BLOCK_LATENTS, WINDOW_BLOCKS
from .rope import Rope, rotate


@dataclasses.dataclass
class Ring:
    """Keys (rotated) and values of the last four blocks at one step, in one layer.

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
    ) -> Ring:
        """A ring for pictures of `frame_tokens` tokens per latent frame; what was not written is never read."""
        shape = (window_blocks * BLOCK_LATENTS * frame_tokens, heads, head_dim)
        return cls(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))


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
class Window:
    """Where a block writes in a ring and how much of the ring it sees, in tokens."""

    start: int
    valid: int

    @classmethod
    def of(cls, block: int, frame_tokens: int, window_blocks: int = WINDOW_BLOCKS) -> Window:
        """The first blocks see only what was written; later ones the whole ring."""
        tokens = BLOCK_LATENTS * frame_tokens
        return cls(block % window_blocks * tokens, min(block + 1, window_blocks) * tokens)


@dataclasses.dataclass(frozen=True)
class BlockMemory:
    """Memory of a noise pass: the ring of its step, and the sink with the reference at its present distance."""

    ring: Ring
    window: Window
    sink: SinkKV
    reference: Rope

    def extend(self, k: torch.Tensor, v: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the block's own keys and values, then list all it attends to."""
        slot = slice(self.window.start, self.window.start + k.shape[0])
        self.ring.k[slot] = rotate(k, rope)
        self.ring.v[slot] = v
        sink_k = rotate(self.sink.reference_k, self.reference)
        keys = torch.cat((self.ring.k[: self.window.valid], sink_k, self.sink.motion_k))
        return keys, torch.cat((self.ring.v[: self.window.valid], self.sink.v))


@dataclasses.dataclass
class SinkMemory:
    """Memory of a prefill: nothing before it; keeps what passes as the layer's sink.

    Attributes:
        reference_tokens: how many of the tokens, from the first, are the reference picture.
        sink: filled by the layer.
    """

    reference_tokens: int
    sink: SinkKV | None = None

    def extend(self, k: torch.Tensor, v: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the sink; the tokens attend to themselves only."""
        rotated = rotate(k, rope)
        n = self.reference_tokens
        self.sink = SinkKV(k[:n].clone(), rotated[n:].clone(), v.clone())
        return rotated, v
