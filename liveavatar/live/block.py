"""A block of a live video: what a session makes, and what viewers, recordings and senders take."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class LiveBlock:
    """0.48 s of a live video.

    Attributes:
        number: from 0.
        images: uint8 [12, H, W, 3].
        audio: float32 [23040], mono at 48 kHz.
        spoken: whether anything is said in it.
        begun, finished: when its sound was taken and its images were there, seconds of `time.monotonic`.
    """

    number: int
    images: np.ndarray
    audio: np.ndarray
    spoken: bool
    begun: float
    finished: float
