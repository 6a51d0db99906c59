"""Pose latents: a pose video encoded block by block, beside the blocks that follow it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .config import BLOCK_FRAMES
from .media.pose_video import Pictures

Encode = Callable[[np.ndarray], torch.Tensor]
"""Encodes the next pictures of a clip, uint8 [1 or 4n, H, W, 3], to latents [16, 1 or n, h, w]."""


class PoseLatents:
    """The pose latents of each block.

    As published, every clip is a video of its own: its first picture comes before it once more, and the latent of that
    is dropped. What is in memory is one block and what the encoder remembers. Blocks are best asked for in their order;
    to go back, the pose video is read again.

    Args:
        pictures: opens the pose video: pictures uint8 [H, W, 3] without end.
        open_encoder: begins a clip.
        clip_blocks: blocks of a clip.
    """

    def __init__(self, pictures: Callable[[], Pictures], open_encoder: Callable[[], Encode], clip_blocks: int):
        self._open_pictures, self._open_encoder, self._clip_blocks = pictures, open_encoder, clip_blocks
        self._pictures: Pictures | None = None
        self._encode: Encode | None = None
        self._next = 0

    def block(self, number: int) -> torch.Tensor:
        """The latents of a block [16, 3, h, w], where they were encoded."""
        clip = number - number % self._clip_blocks
        if self._pictures is None or number < self._next:
            self.close()
            self._pictures = self._open_pictures()
        while self._next < clip:  # an encoder knows nothing of earlier clips
            self._read()
        while self._next < number:
            self._encode_next()
        return self._encode_next()

    def _encode_next(self) -> torch.Tensor:
        begins_clip = self._next % self._clip_blocks == 0
        pictures = self._read()
        if begins_clip:
            self._encode = self._open_encoder()
            self._encode(pictures[:1])
        assert self._encode is not None
        return self._encode(pictures)

    def _read(self) -> np.ndarray:
        """The pictures of the next block, uint8 [12, H, W, 3]."""
        assert self._pictures is not None
        self._next += 1
        return np.stack([next(self._pictures) for _ in range(BLOCK_FRAMES)])

    def close(self) -> None:
        """Let the pose video and the encoder's memory go; another block begins anew."""
        pictures, self._pictures, self._encode, self._next = self._pictures, None, None, 0
        if pictures is not None:
            pictures.close()
