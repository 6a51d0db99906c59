"""The frames of a video, decoded from its latents for every consumer anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from ..config import BLOCK_FRAMES
from ..errors import ModelError
from .latents import LatentStream

Decoder = Callable[[torch.Tensor], torch.Tensor]
"""Block latents [16, 3, h, w] -> pixels [3, 12, H, W] in [-1, 1]; called once per block, in order."""


class FrameStream:
    """The frames of one video, decoded anew for every consumer. Any number of consumers, in any threads.

    Iterating opens a decoder of its own, pulls the blocks it needs and yields chunks [3, n, H, W] in [-1, 1] whose n
    add up to `frames`. Blocks beyond the last frame are never asked for.

    Args:
        latents: where blocks come from.
        open_decoder: makes a decoder with a fresh state; see `Decoder`.
        frames: frames of the whole video, at least 1.
        drop: frames thrown away at the start, fewer than one block.

    Raises:
        ValueError: the latents do not hold that many frames.
        Whatever the latents and the decoder raise, while iterating.
    """

    def __init__(self, latents: LatentStream, open_decoder: Callable[[], Decoder], frames: int, drop: int = 0):
        held = latents.blocks * BLOCK_FRAMES - drop
        if not 0 <= drop < BLOCK_FRAMES or not 1 <= frames <= held:
            raise ValueError(f"{latents.blocks} blocks cannot give {frames} frames after dropping {drop}.")
        self.latents = latents
        self.frames = frames
        self.drop = drop
        self._open_decoder = open_decoder

    def __len__(self) -> int:
        return self.frames

    def __iter__(self) -> Iterator[torch.Tensor]:
        decode = self._open_decoder()
        start, left = self.drop, self.frames
        for block in self.latents:
            pixels = decode(block)
            if pixels.ndim != 4 or pixels.shape[:2] != (3, BLOCK_FRAMES):
                raise ModelError(f"The decoder made {list(pixels.shape)} of a block, not [3, {BLOCK_FRAMES}, H, W].")
            pixels = pixels[:, start : start + left]
            start, left = 0, left - pixels.shape[1]
            yield pixels
            if not left:
                return


def to_rgb24(pixels: torch.Tensor) -> np.ndarray:
    """Frames as bytes: [3, n, H, W] in [-1, 1] -> uint8 [n, H, W, 3].

    Each value is (x + 1) * 127.5, computed in float32, clamped to 0..255 and rounded to the nearest whole number (ties
    to even).

    Raises:
        ModelError: the frames hold NaN.
    """
    scaled = pixels.detach().float().add(1.0).mul_(127.5).clamp_(0.0, 255.0)
    if scaled.sum().isnan():  # clamping lets only NaN through; its cast to bytes would depend on the machine
        raise ModelError(
            "The decoded frames hold NaN: the network's numbers overflowed.",
            "Run with bfloat16 or float32 instead of float16, or check that the weights are not damaged.",
        )
    return scaled.round_().to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu().numpy()
