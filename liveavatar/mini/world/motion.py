"""Blinks and small movements of the head: a function of what the mouth did in the last 0.64 s, and of nothing else.

Nothing is hidden in it, neither a clock nor a state: what a frame shows can be told from the sound just heard.
"""

from __future__ import annotations

import numpy as np

from .pose import Track
from .speech import Mouth

MEMORY = 16
"""Video frames that move the head."""
PAUSE = 5
"""Frames of silence after sound that make the eyes blink."""
SHUT = 0.03
"""Opening under which the mouth counts as silent."""
_BLINK = (0.67, 1.0, 1.0, 0.67, 0.33)
_WEIGHTS = np.hanning(MEMORY + 2)[1:-1]


def track(spoken: Mouth) -> Track:
    """The whole face over time, from its mouth."""
    loud, wide = _remembered(spoken.opening), _remembered(spoken.width)
    return Track(
        opening=spoken.opening,
        width=spoken.width,
        blink=blinks(spoken.opening),
        dx=(1.3 * wide).astype(np.float32),
        dy=(2.8 * loud).astype(np.float32),
        tilt=(2.0 * wide).astype(np.float32),
    )


def blinks(opening: np.ndarray) -> np.ndarray:
    """Closing of the eyes, float32 [n], 0..1: five frames that begin with the fifth silent frame after sound."""
    sound = np.concatenate([[False], opening >= SHUT])
    starts = np.zeros(len(opening), bool)
    if len(opening) >= PAUSE:
        silent = np.logical_not(np.lib.stride_tricks.sliding_window_view(sound[1:], PAUSE).any(axis=1))
        starts[PAUSE - 1 :] = silent & sound[: len(silent)]
    out = np.zeros(len(opening), np.float32)
    for k, closed in enumerate(_BLINK):
        out[k:] = np.maximum(out[k:], closed * starts[: len(out) - k])
    return out


def _remembered(values: np.ndarray) -> np.ndarray:
    """Weighted mean over the last MEMORY frames, as if there had been zeros before the first."""
    padded = np.concatenate([np.zeros(MEMORY - 1), values])
    return np.convolve(padded, _WEIGHTS / _WEIGHTS.sum(), mode="valid")
