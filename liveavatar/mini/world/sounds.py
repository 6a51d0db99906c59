"""What is heard beside speech: noises and tones, and the change of sample rates."""

from __future__ import annotations

import numpy as np

from ...config import AUDIO_SAMPLE_RATE


def resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """To 16 kHz by cutting or padding the spectrum of the whole (short) sound; float32."""
    if rate == AUDIO_SAMPLE_RATE or not len(samples):
        return samples.astype(np.float32)
    unit = rate // np.gcd(rate, AUDIO_SAMPLE_RATE)
    padded = np.concatenate([samples, np.zeros(-len(samples) % int(unit), samples.dtype)])
    n = len(padded) * AUDIO_SAMPLE_RATE // rate
    spectrum = np.fft.rfft(padded)[: n // 2 + 1]
    spectrum = np.concatenate([spectrum, np.zeros(n // 2 + 1 - len(spectrum))])
    return (np.fft.irfft(spectrum, n) * (n / len(padded))).astype(np.float32)


def noise(rng: np.random.Generator, n: int) -> tuple[np.ndarray, str]:
    """n samples without speech and with a root mean square of 1, and their name."""
    kinds = {"hiss": 0.0, "rain": -0.5, "wind": -1.0, "hum": None, "music": None}
    name = str(rng.choice(list(kinds)))
    slope = kinds[name]
    if name == "hum":
        wave = _chord(rng, n, [float(rng.choice([50, 60, 100, 120]))])
    elif name == "music":
        wave = _music(rng, n)
    else:
        wave = _coloured(rng, n, slope or 0.0)
    return (wave / max(1e-6, float(np.sqrt(np.mean(wave**2))))).astype(np.float32), name


def _coloured(rng: np.random.Generator, n: int, slope: float) -> np.ndarray:
    """Noise whose amplitude falls with frequency to the power of `slope`, swelling slowly."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    frequency = np.maximum(np.fft.rfftfreq(n, 1 / AUDIO_SAMPLE_RATE), 40)
    time = np.arange(n) / AUDIO_SAMPLE_RATE
    swell = 1 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.05, 0.4) * time + rng.uniform(0, 6))
    return np.fft.irfft(spectrum * frequency**slope, n) * swell


def _chord(rng: np.random.Generator, n: int, pitches: list[float]) -> np.ndarray:
    """Tones with a few overtones each."""
    time = np.arange(n) / AUDIO_SAMPLE_RATE
    out = np.zeros(n)
    for pitch in pitches:
        for k in range(1, 5):
            out += np.sin(2 * np.pi * pitch * k * time + rng.uniform(0, 6)) / k
    return out


def _music(rng: np.random.Generator, n: int) -> np.ndarray:
    """Chords that follow each other and fade."""
    out, at = np.zeros(n), 0
    while at < n:
        length = min(n - at, int(rng.uniform(0.2, 0.8) * AUDIO_SAMPLE_RATE))
        root = 110 * 2 ** (int(rng.integers(0, 24)) / 12)
        fade = np.exp(-np.arange(length) / AUDIO_SAMPLE_RATE * rng.uniform(1, 5))
        out[at : at + length] = _chord(rng, length, [root, root * 5 / 4, root * 3 / 2]) * fade
        at += length
    return out
