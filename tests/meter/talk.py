"""Talk of a known rhythm: how far a mouth is open, and a sound that is as loud, as series, samples and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from liveavatar.config import AUDIO_SAMPLE_RATE, FPS
from liveavatar.media.audio import AudioClip
from liveavatar.media.video import VideoWriter
from liveavatar.meter.lip_sync import RATE


def rhythm(seconds: float, seed: int) -> np.ndarray:
    """Syllables of a tenth to a third of a second in phrases with pauses: [seconds x RATE], 0 (silent) to 1."""
    rng = np.random.default_rng(seed)
    count = round(seconds * RATE)
    loud = np.zeros(count)
    at = rng.uniform(0, 0.5)
    while at < seconds:
        for _ in range(int(rng.integers(4, 12))):
            lasts = rng.uniform(0.1, 0.35)
            start, stop = round(at * RATE), min(round((at + lasts) * RATE), count)
            if stop > start:
                loud[start:stop] = rng.uniform(0.3, 1.0) * np.sin(np.linspace(0, np.pi, stop - start))
            at += lasts
        at += rng.uniform(0.2, 0.9)
    return loud


def decibels(loud: np.ndarray) -> np.ndarray:
    """As loud as that, over a hiss."""
    return (20 * np.log10(0.3 * loud + 1e-4)).astype(np.float32)


def late(series: np.ndarray, ms: int) -> np.ndarray:
    """The same, so much later; what is moved out comes in at the other end."""
    return np.roll(series, ms * RATE // 1000)


def spoken(loud: np.ndarray) -> AudioClip:
    """A tone of 700 Hz that is as loud as that."""
    t = np.arange(len(loud) * AUDIO_SAMPLE_RATE // RATE) / AUDIO_SAMPLE_RATE
    amplitude = np.interp(t, (np.arange(len(loud)) + 0.5) / RATE, loud)
    tone = 0.3 * amplitude * np.sin(2 * np.pi * 700 * t)
    return AudioClip.from_array(tone.astype(np.float32), AUDIO_SAMPLE_RATE, "talk")


def at_frames(loud: np.ndarray) -> np.ndarray:
    """When each frame appears."""
    times = np.arange(int(len(loud) / RATE * FPS)) / FPS
    return np.interp(times, (np.arange(len(loud)) + 0.5) / RATE, loud)


def write_video(path: Path, frames: np.ndarray, audio: AudioClip | None) -> Path:
    """An MP4 as this project writes it."""
    count, height, width, _ = frames.shape
    with VideoWriter(path, width, height, audio, count, {}) as writer:
        for start in range(0, count, 12):
            writer.write(frames[start : start + 12])
    return path
