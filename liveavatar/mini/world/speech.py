"""From sound to the shape of a mouth: how far it opens and how wide it is, for every video frame.

A frame hears an eighth of a second of sound and nothing else. The mouth opens with the energy where open vowels have
theirs, so that hums and hisses leave it nearly shut, and is wide or round as the second formant is high or low.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ...config import AUDIO_SAMPLE_RATE, FPS
from ...errors import AudioError

HOP = 160
"""Samples between spectra: 10 ms."""
WINDOW = 400
"""Samples of a spectrum: 25 ms."""
QUIET = 10 ** (-45 / 20)
"""Root mean square below which a whole sound counts as this loud: its hiss does not move the mouth."""
_BANDS = {"vowel": (420, 1900), "low": (350, 1150), "high": (1600, 3400)}
"""Hertz."""
_KERNEL = np.array([0.2, 0.5, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.5, 0.2])
"""Weights of the spectra around a frame, 60 ms before to 40 ms after."""
_BEFORE = 6
_FULL, _FLOOR, _POWER = 1.75, 0.09, 0.85
"""Amplitude, relative to the whole sound's, of a wide open and of a just opening mouth, and the curve between."""
_ROUND, _SPREAD = -21.0, 1.0
"""Decibels of the high band over the low one that make the mouth fully round or wide."""
_CHUNK = 1 << 14


@dataclasses.dataclass(frozen=True, eq=False)
class Mouth:
    """The mouth over time: float32 [frames] each.

    Attributes:
        opening: 0 (shut) to 1.
        width: -1 (rounded) to 1 (spread), 0 in silence.
    """

    opening: np.ndarray
    width: np.ndarray


def level(wave: np.ndarray) -> float:
    """Root mean square of samples, at least QUIET."""
    return max(QUIET, float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))) if len(wave) else QUIET


def mouth(wave: np.ndarray, frames: int | None = None, reference: float | None = None) -> Mouth:
    """The mouth that speaks a sound.

    Args:
        wave: float [n] samples at 16 kHz; frame i looks at time i / 25 s, as the network does.
        frames: video frames; those past the sound are silent. None: as many as the sound lasts, rounded up.
        reference: root mean square that loudness is relative to: that of the sound as it is heard, noise included,
            because the audio encoder hears sound normalised by it. None: of `wave`.

    Raises:
        AudioError: not [n] finite floats.
    """
    wave = np.asarray(wave)
    if wave.ndim != 1 or wave.dtype.kind != "f" or not np.isfinite(wave).all():
        raise AudioError(f"Samples of type {wave.dtype} and shape {list(wave.shape)} have no mouth.", "Give float [n].")
    if frames is None:
        frames = -(-len(wave) * FPS // AUDIO_SAMPLE_RATE)
    reference = max(QUIET, level(wave) if reference is None else reference)
    powers = _band_powers(wave.astype(np.float32, copy=False))
    vowel, low, high = (_at_frames(powers[:, i], frames) for i in range(3))
    loudness = np.sqrt(vowel) / reference
    opening = np.clip((loudness - _FLOOR) / (_FULL - _FLOOR), 0, 1) ** _POWER
    tiny = 1e-7 * reference**2
    ratio = 10 * np.log10((high + tiny) / (low + tiny))
    width = np.clip(2 * (ratio - _ROUND) / (_SPREAD - _ROUND) - 1, -1, 1)
    sounding = np.clip(np.sqrt(low + high) / (0.25 * reference), 0, 1)
    return Mouth(opening.astype(np.float32), (width * sounding).astype(np.float32))


def _band_powers(wave: np.ndarray) -> np.ndarray:
    """Mean squares within the bands, float64 [spectra, 3]; spectrum j is centred at 10 ms x j."""
    padded = np.concatenate([np.zeros(WINDOW // 2, np.float32), wave, np.zeros(WINDOW // 2, np.float32)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    taper = np.hanning(WINDOW).astype(np.float32)
    scale = 2 / (WINDOW * float(np.sum(taper**2)))
    frequencies = np.fft.rfftfreq(512, 1 / AUDIO_SAMPLE_RATE)
    select = np.stack([(frequencies >= a) & (frequencies < b) for a, b in _BANDS.values()], 1).astype(np.float32)
    out = np.empty((len(windows), len(_BANDS)))
    for i in range(0, len(windows), _CHUNK):
        spectrum = np.fft.rfft(windows[i : i + _CHUNK] * taper, 512)
        power = spectrum.real**2 + spectrum.imag**2
        out[i : i + _CHUNK] = power @ select * (scale * WINDOW / 512)
    return out


def _at_frames(power: np.ndarray, frames: int) -> np.ndarray:
    """Smoothed and taken at every video frame: [frames]."""
    after = len(_KERNEL) - 1 - _BEFORE
    need = frames * 4 + after
    padded = np.concatenate([np.zeros(_BEFORE), power[:need], np.zeros(max(0, need - len(power)))])
    smooth = np.convolve(padded, (_KERNEL / _KERNEL.sum())[::-1], mode="valid")
    return smooth[: frames * 4 : 4]
