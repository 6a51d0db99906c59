"""Audio examples to train the encoder on: sentences, pauses and noise, and how the face moves with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ...config import AUDIO_SAMPLE_RATE
from ...encoders.audio import WaveformStats
from ..world.motion import track
from ..world.sounds import noise
from ..world.speech import level, mouth

MOVEMENTS = {"opening": 0.3, "width": 0.4, "blink": 0.2, "dy": 0.65, "dx": 0.5}
"""What is read off a sound, and how much each usually varies; the head's tilt follows dx."""
_QUIETER_DB = 6.0


@dataclasses.dataclass(frozen=True, eq=False)
class AudioExample:
    """Audio and the movements of the face that belong to it.

    Attributes:
        wave: 16 kHz samples, float32 [n].
        movements: float32 [frames, len(MOVEMENTS)].
    """

    wave: np.ndarray
    movements: np.ndarray

    def normalised(self) -> np.ndarray:
        """The samples as the encoder gets them: mean 0 and variance 1 over the whole sound."""
        return WaveformStats.of(self.wave).normalized(self.wave)


def audio_example(rng: np.random.Generator, sentences: Sequence[np.ndarray], frames: int, samples: int) -> AudioExample:
    """Sentences with pauses, mostly with some noise, sometimes nothing else; noise never moves the face.

    Loudness is relative to all that is heard, because the encoder is given the sound normalised by that.
    """
    speech = _speech(rng, sentences, samples) if rng.random() > 0.04 else np.zeros(samples, np.float32)
    wave = speech
    roll = rng.random()
    if roll > 0.4:
        decibels = rng.uniform(20, 60) if roll < 0.75 else rng.uniform(7, 25)
        wave = speech + noise(rng, samples)[0] * max(level(speech), 0.01) * 10 ** (-decibels / 20)
    moves = track(mouth(speech, frames, reference=level(wave)))
    movements = np.stack([getattr(moves, name) for name in MOVEMENTS], 1)
    return AudioExample(wave.astype(np.float32), movements.astype(np.float32))


def nothing_but_noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Noise at a low level: float32 [samples]."""
    return np.float32(0.01) * noise(rng, samples)[0]


def _speech(rng: np.random.Generator, sentences: Sequence[np.ndarray], samples: int) -> np.ndarray:
    """Pieces of sentences of one sound level each, with pauses of up to 1.6 s; one in six ends early."""
    out = np.zeros(samples, np.float32)
    at = int(rng.uniform(-1.5, 1.0) * AUDIO_SAMPLE_RATE)
    end = samples if rng.random() > 1 / 6 else int(rng.uniform(0.3, 0.9) * samples)
    while at < end:
        sentence = sentences[int(rng.integers(len(sentences)))]
        skipped = max(0, -at)
        if skipped < len(sentence):
            piece = sentence[skipped : skipped + end - max(at, 0)]
            out[max(at, 0) : max(at, 0) + len(piece)] = piece * 10 ** (rng.uniform(-_QUIETER_DB, 0) / 20)
        at += len(sentence) + int(rng.uniform(0.05, 1.6) * AUDIO_SAMPLE_RATE)
    return out
