"""Which audio feature belongs to which video frame: samples -> 50 features a second -> 30 -> video frames.

All numbers are those of the published implementation; positions are whole numbers, so they have no end.
"""

from __future__ import annotations

import numpy as np

from ..config import AUDIO_FEATURE_RATE, BLOCK_FRAMES, CLIP_BLOCKS, FPS

CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)
CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)
"""wav2vec2's convolutions over the 16 kHz samples."""
HOP = 320
"""Samples between features: the product of the strides."""
FIELD = 400
"""Samples one feature is made of: 25 ms."""
FEATURE_RATE = 50
"""Features per second (of 16,000 / 320 samples)."""


def feature_count(samples: int) -> int:
    """Features the convolutions make of 16 kHz samples; 0 under 400 samples."""
    for kernel, stride in zip(CONV_KERNELS, CONV_STRIDES, strict=True):
        samples = max(0, (samples - kernel) // stride + 1)
    return samples


def samples_of(features: int) -> int:
    """The fewest samples that make so many features (at least 1)."""
    return FIELD + HOP * (features - 1)


def resampled_count(features: int) -> int:
    """Steps left of so many features at 30 a second.

    Not floor(3 n / 5): the published float formula gives one less for some n (205 is the first).
    """
    return int(features / FEATURE_RATE * AUDIO_FEATURE_RATE)


def feature_indices(frames: int) -> np.ndarray:
    """int64 [frames]: the step at 30 a second that video frame i hears, round(i / 25 * 30).

    Sixths of a frame never fall on a half, so whole numbers give what rounded floats do, for any i.
    """
    i = np.arange(frames, dtype=np.int64)
    return (2 * AUDIO_FEATURE_RATE * i + FPS) // (2 * FPS)


def features_needed(frames: int) -> int:
    """The fewest features with which every one of `frames` (>= 1) video frames hears one."""
    steps = int(feature_indices(frames)[-1]) + 1
    features = steps * FEATURE_RATE // AUDIO_FEATURE_RATE
    while resampled_count(features) < steps:
        features += 1
    return features


def published_clips(steps: int, clip_frames: int = CLIP_BLOCKS * BLOCK_FRAMES) -> int:
    """Clips the published implementation makes of so many steps at 30 a second; the last may be all silence."""
    return int(steps / (clip_frames * (AUDIO_FEATURE_RATE / FPS))) + 1


def interpolation(features: int, steps: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where step j of `steps` lies among `features` when both ends meet: j * (features - 1) / (steps - 1).

    Returns:
        int64 left neighbours and float32 weights (0 <= w < 1) of the right ones, exact for any length.
    """
    over = max(steps - 1, 1)
    left, rest = np.divmod(indices * (features - 1), over)
    return left, (rest / over).astype(np.float32)
