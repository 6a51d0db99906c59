"""Audio features of blocks from a rolling window: what was said before them, and a little of what comes."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import torch
from einops import rearrange

from ..config import AUDIO_FEATURE_RATE, AUDIO_SAMPLE_RATE, BLOCK_FRAMES, FPS
from ..encoders.audio import FEATURE_RATE, HOP, AudioEncoder, feature_count, feature_indices
from ..errors import AudioError
from .audio_feed import BlockAudio

PAST_SECONDS = 5.0
"""Sound before a block that its features know, as in windows of long sounds."""
_KEPT_BLOCKS = 64
_PRIOR_DEVIATION, _PRIOR_SECONDS = 0.05, 1.0
"""The loudness of speech that is assumed at first, and how long a sound outweighs it."""


class RunningLoudness:
    """Mean and deviation of what was said so far, which wav2vec2 expects to be taken out.

    A file is measured as a whole; speech that is still going on begins with an assumed loudness, so that the first
    breath is not made as loud as a voice. Silence that nobody has sent does not count.
    """

    def __init__(self) -> None:
        self._count = _PRIOR_SECONDS * AUDIO_SAMPLE_RATE
        self._sum, self._squares = 0.0, self._count * _PRIOR_DEVIATION**2

    def add(self, samples: np.ndarray) -> None:
        """Count samples [n]."""
        self._count += len(samples)
        self._sum += float(samples.sum(dtype=np.float64))
        self._squares += float(np.square(samples, dtype=np.float64).sum())

    def normalized(self, samples: np.ndarray) -> np.ndarray:
        """(samples - mean) / deviation, float32."""
        mean = self._sum / self._count
        deviation = np.sqrt(max(self._squares / self._count - mean**2, 0.0) + 1e-7)
        return ((samples - mean) / deviation).astype(np.float32)


class RollingFeatures:
    """Features of the latest blocks (see `encoders.block_features`).

    Feature j of 30 a second lies at 50/30 j of those at 50 a second, which is what interpolating a sound as a whole
    comes to with its length.

    Args:
        encoder: of the model.
        past: seconds of sound before a block that are encoded with it.
    """

    def __init__(self, encoder: AudioEncoder, past: float = PAST_SECONDS):
        self.encoder, self.layers, self.channels = encoder, encoder.layers, encoder.channels
        self._past = np.zeros(0, np.float32)
        self._past_limit = int(past * FEATURE_RATE) * HOP
        self._loudness = RunningLoudness()
        self._blocks: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._next = 0
        self._lock = threading.Lock()

    def hear(self, audio: BlockAudio) -> None:
        """Make the features of the next block."""
        start, stop = audio.silence, audio.silence + audio.spoken
        self._loudness.add(audio.heard[start:stop])
        window = np.concatenate((self._past, audio.heard, audio.ahead))
        features = self._of_frames(self._loudness.normalized(window), len(self._past) // HOP)
        self._past = np.concatenate((self._past, audio.heard))[-self._past_limit :]
        with self._lock:
            self._blocks[self._next] = features
            self._next += 1
            while len(self._blocks) > _KEPT_BLOCKS:
                self._blocks.popitem(last=False)

    def block(self, b: int) -> torch.Tensor:
        """Block b as float32 [1, layers, channels, 12] on the CPU.

        Raises:
            AudioError: it has not been heard yet, or too long ago.
        """
        with self._lock:
            if b not in self._blocks:
                raise AudioError(f"Block {b} of a live sound is not there.", f"The latest is {self._next - 1}.")
            return self._blocks[b]

    def close(self) -> None:
        """Forget all."""
        with self._lock:
            self._blocks.clear()

    def _of_frames(self, window: np.ndarray, own: int) -> torch.Tensor:
        """[1, layers, channels, 12] of the block whose sound begins at row `own` of the window's hidden states."""
        first, last_row = self._next * BLOCK_FRAMES, feature_count(len(window)) - 1
        steps = feature_indices(first + BLOCK_FRAMES)[first:]
        left, rest = np.divmod(steps * FEATURE_RATE, AUDIO_FEATURE_RATE)
        left = np.clip(left + own - self._next * BLOCK_FRAMES * FEATURE_RATE // FPS, 0, last_row)
        right = np.minimum(left + 1, last_row)
        weight = torch.from_numpy((rest / AUDIO_FEATURE_RATE).astype(np.float32))[:, None]
        states = self.encoder.states(window, slice(left[0], right[-1] + 1))
        left, right = left - left[0], right - left[0]
        picked = [(1 - weight) * s[left].float().cpu() + weight * s[right].float().cpu() for s in states]
        return rearrange(torch.stack(picked), "layers frames c -> 1 layers c frames").contiguous()
