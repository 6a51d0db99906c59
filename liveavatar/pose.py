"""Pose latents: a pose video encoded block by block, beside the blocks that follow it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from .config import BLOCK_FRAMES
from .events import Callback, ignore
from .media.pose_video import Pictures

Encode = Callable[[np.ndarray, Callback], torch.Tensor]
"""Encodes the next pictures of a clip, uint8 [1 or 4n, H, W, 3], to latents [16, 1 or n, h, w]; raises `ClipLost`. The
callback is called with the bare phase again and again meanwhile; what it raises ends the clip."""
OpenClip = Callable[[], Encode]
"""Begins a clip."""


class ClipLost(Exception):
    """The encoder of a clip, with what it remembered, is gone: another one can encode the clip again."""


class PoseLatents:
    """The pose latents of each block.

    As published, every clip is a video of its own: its first picture comes before it once more, and the latent of that
    is dropped. What is in memory is one block and what the encoder remembers. Blocks are best asked for in their order;
    to go back, the pose video is read again.

    Args:
        pictures: opens the pose video: pictures uint8 [H, W, 3] without end.
        open_encoder: begins a clip.
        clip_blocks: blocks of a clip.
        first: the block that the pose video begins with. Where it is in the midst of a clip, that begins there.
        before: pictures uint8 [12 n, H, W, 3] of the blocks before that in its clip, which the encoder has to have
            seen; None: there are none.
        keep: whether the pictures of the present clip stay in memory, for `pictures_before`.
    """

    def __init__(
        self,
        pictures: Callable[[], Pictures],
        open_encoder: OpenClip,
        clip_blocks: int,
        first: int = 0,
        before: np.ndarray | None = None,
        keep: bool = False,
    ):
        self._open_pictures, self._open_encoder, self._clip_blocks = pictures, open_encoder, clip_blocks
        self._before, self._keep = before, keep
        self._first = first - (0 if before is None else len(before) // BLOCK_FRAMES)
        self._pictures: Iterator[np.ndarray] | None = None
        self._source: Pictures | None = None
        self._encode: Encode | None = None
        self._next = self._first
        self._clip: list[np.ndarray] = []
        """Pictures of the present clip, by block, where they are kept."""

    def block(self, number: int, callback: Callback = ignore) -> torch.Tensor:
        """The latents of a block [16, 3, h, w], where they were encoded; the callback is that of `Encode`."""
        while True:
            try:
                return self._block(number, callback)
            except ClipLost:
                self.close()
            except BaseException:
                self.close()  # the encoder has seen a part of the block
                raise

    def pictures_before(self, number: int) -> np.ndarray | None:
        """The pictures of the blocks before one in its clip, uint8 [12 n, H, W, 3], of which the latest that was asked
        for is the last; None where the block begins a clip."""
        if number % self._clip_blocks == 0:
            return None
        return np.concatenate(self._clip) if self._clip else self._before

    def close(self) -> None:
        """Let the pose video and the encoder's memory go; another block begins anew."""
        source, self._source, self._pictures, self._encode = self._source, None, None, None
        self._next, self._clip = self._first, []
        if source is not None:
            source.close()

    def _block(self, number: int, callback: Callback) -> torch.Tensor:
        clip = number - number % self._clip_blocks
        if self._pictures is None or number < self._next:
            self.close()
            self._source = self._open_pictures()
            self._pictures = itertools.chain(() if self._before is None else self._before, self._source)
        while self._next < clip:  # an encoder knows nothing of earlier clips
            self._read()
        while self._next < number:
            self._encode_next(callback)
        return self._encode_next(callback)

    def _encode_next(self, callback: Callback) -> torch.Tensor:
        begins_clip = self._next % self._clip_blocks == 0 or self._next == self._first
        pictures = self._read()
        if begins_clip:
            self._clip, self._encode = [], self._open_encoder()
            self._encode(pictures[:1], callback)
        if self._keep:
            self._clip.append(pictures)
        assert self._encode is not None
        return self._encode(pictures, callback)

    def _read(self) -> np.ndarray:
        """The pictures of the next block, uint8 [12, H, W, 3]."""
        assert self._pictures is not None
        self._next += 1
        return np.stack([next(self._pictures) for _ in range(BLOCK_FRAMES)])
