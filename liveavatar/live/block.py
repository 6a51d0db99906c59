"""What leaves a live session: pieces of blocks for whoever shows them at once, and whole blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..config import BLOCK_FRAMES, FRAMES_PER_LATENT

PIECE_FRAMES = FRAMES_PER_LATENT
"""Pictures of a piece, those of one latent frame: the least that is decoded at once."""
PIECES = BLOCK_FRAMES // PIECE_FRAMES
"""Of a block."""


@dataclasses.dataclass(frozen=True)
class LivePiece:
    """0.16 s of a live video, a third of a block: they leave one by one, so that nobody waits for the whole block.

    Attributes:
        block, place: number of its block and its own place in it, both from 0.
        images: uint8 [4, H, W, 3].
        audio: float32 [7680], mono at 48 kHz.
        spoken: whether anything is said in its block.
        begun, finished: when the sound of its block was taken and its own images were there, seconds of
            `time.monotonic`.
    """

    block: int
    place: int
    images: np.ndarray
    audio: np.ndarray
    spoken: bool
    begun: float
    finished: float

    @property
    def is_last(self) -> bool:
        """Whether it ends its block."""
        return self.place == PIECES - 1


@dataclasses.dataclass(frozen=True)
class LiveBlock:
    """0.48 s of a live video.

    Attributes:
        number: from 0.
        images: uint8 [12, H, W, 3].
        audio: float32 [23040], mono at 48 kHz.
        spoken: whether anything is said in it.
        begun, finished: when its sound was taken and its first images were there, seconds of `time.monotonic`.
    """

    number: int
    images: np.ndarray
    audio: np.ndarray
    spoken: bool
    begun: float
    finished: float

    @classmethod
    def of(cls, pieces: Sequence[LivePiece]) -> LiveBlock:
        """The block of all its pieces."""
        first = pieces[0]
        images, audio = (np.concatenate([getattr(one, name) for one in pieces]) for name in ("images", "audio"))
        return cls(first.block, images, audio, first.spoken, first.begun, first.finished)
