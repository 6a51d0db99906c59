"""What a page heard and showed, beside the recording of the talk: which picture was shown when, and how late it was."""

from __future__ import annotations

import dataclasses

import numpy as np

from liveavatar.config import AUDIO_SAMPLE_RATE, BLOCK_FRAMES, FPS

_NEIGHBOURS = range(-10, 11)
"""Pictures that are compared around one, so that a single one that looks like another is not taken for it."""
_LOUD = 0.005
"""Mean square root of sound that is speech."""
_ALIKE = 0.5
"""Correlation from which sound is the same: what a browser plays and a recording keeps is compressed."""
_BLOCK = BLOCK_FRAMES * AUDIO_SAMPLE_RATE // FPS
_MOST_DELAY = 5.0
"""Seconds; a longer one is not found."""
_BLOCK_APART = BLOCK_FRAMES


@dataclasses.dataclass(frozen=True)
class Microphone:
    """The sound of a microphone, with the times at which it was there.

    Attributes:
        samples: float32 [n] at 16 kHz.
        begun: second in which the first of them was heard.
    """

    samples: np.ndarray
    begun: float

    @staticmethod
    def of(samples: np.ndarray, rate: int, arrivals: np.ndarray) -> Microphone:
        """From samples float32 [n] and [pieces, 2]: the first sample of each piece and the second in which it arrived.

        Pieces arrive late at times, and never early: the earliest one tells when the first sample was there.
        """
        import soxr

        first = arrivals[0, 0]
        begun = float(np.min(arrivals[:, 1] - (arrivals[:, 0] - first) / rate))
        return Microphone(soxr.resample(samples, rate, AUDIO_SAMPLE_RATE), begun)


def places(shown: np.ndarray, times: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """Which recorded picture each shown one is, int [n].

    Args:
        shown: uint8 [n, H, W, 3].
        times: second at which each was shown, float [n].
        recorded: uint8 [m, H, W, 3].
    """
    ours, theirs = _thumbnails(shown), _thumbnails(recorded)
    apart = (ours**2).sum(1)[:, None] - 2 * ours @ theirs.T + (theirs**2).sum(1)[None]
    found = np.zeros(len(shown), int)
    for k in range(len(shown)):
        total, count = np.zeros(len(recorded)), np.zeros(len(recorded))
        for other in (k + step for step in _NEIGHBOURS if 0 <= k + step < len(shown)):
            shift = round(FPS * (times[other] - times[k]))
            if abs(shift) >= len(recorded):
                continue
            low, high = max(0, -shift), min(len(recorded), len(recorded) - shift)
            total[low:high] += apart[other, low + shift : high + shift]
            count[low:high] += 1
        found[k] = int(np.argmin(np.where(count > len(_NEIGHBOURS) // 2, total / np.maximum(count, 1), np.inf)))
    return found


def delays(
    microphone: Microphone, times: np.ndarray, found: np.ndarray, sound: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds from a sample at the microphone to its picture on the page, for pictures in whose block is speech.

    Args:
        microphone: what it gave.
        times: second at which each picture was shown.
        found: as `places`.
        sound: of the recording, float32 [n] at 16 kHz.

    Returns: the delay of each picture, where it was shown several times of the first, and when it was shown.
    """
    sure = _steady(found - FPS * times)
    times, found = times[sure], found[sure]
    heard: dict[int, float | None] = {}
    late, when, seen = list[float](), list[float](), set[int]()
    for time, place in zip(times, found, strict=True):
        block = int(place) // BLOCK_FRAMES
        if place in seen:
            continue
        seen.add(int(place))
        if block not in heard:
            heard[block] = _heard(microphone, sound[block * _BLOCK : (block + 1) * _BLOCK], float(time))
        if (begun := heard[block]) is None:
            continue
        delay = float(time - begun - (place - block * BLOCK_FRAMES) / FPS)
        if 0 <= delay <= _MOST_DELAY:  # else it was taken for one of another time
            late.append(delay)
            when.append(float(time))
    return np.array(late), np.array(when)


def best_lag(times: np.ndarray, openings: np.ndarray, microphone: Microphone) -> tuple[float, float]:
    """The delay at which the mouth on the page follows the loudness of the microphone best, and their correlation.

    Args:
        times: second at which each picture was shown.
        openings: of its mouth, 0..1.
        microphone: what it gave.
    """
    window = AUDIO_SAMPLE_RATE // FPS
    loud = np.sqrt(np.convolve(microphone.samples**2, np.ones(window) / window, "same"))
    clock = microphone.begun + np.arange(len(loud)) / AUDIO_SAMPLE_RATE
    lags = np.arange(0.0, 3.0, 0.01)
    # A picture lies in the middle of its 40 ms of sound.
    fits = [np.corrcoef(openings, np.interp(times + 0.5 / FPS - lag, clock, loud))[0, 1] for lag in lags]
    return float(lags[int(np.argmax(fits))]), float(np.max(fits))


def shut_after(when: float, times: np.ndarray, openings: np.ndarray, within: float, limit: float) -> float:
    """Seconds until the mouth is shut and stays so: behind the last picture, within so many seconds, with it open."""
    during = (times > when) & (times < when + within)
    still_open = np.flatnonzero(during & (openings > limit))
    if not len(still_open):
        return 0.0
    following = times[times > times[still_open[-1]]]
    return float(following[0] - when) if len(following) else float("inf")


def _steady(offsets: np.ndarray) -> np.ndarray:
    """bool [n]: those that differ little from their neighbours; a single picture may be taken for another one."""
    padded = np.pad(offsets, len(_NEIGHBOURS) // 2, mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, len(_NEIGHBOURS))
    return np.abs(offsets - np.median(around, 1)) <= _BLOCK_APART


def _thumbnails(pictures: np.ndarray) -> np.ndarray:
    """float32 [n, pixels], grey at half the size."""
    grey = pictures.astype(np.float32).mean(-1)
    n, height, width = grey.shape
    return grey.reshape(n, height // 2, 2, width // 2, 2).mean((2, 4)).reshape(n, -1) / 16


def _heard(microphone: Microphone, sound: np.ndarray, shown: float) -> float | None:
    """The second in which the sound of a block was at the microphone; None where it is no speech, or not found."""
    if len(sound) < _BLOCK or np.sqrt(np.mean(sound**2)) < _LOUD:
        return None
    first = max(0, round((shown - _MOST_DELAY - microphone.begun) * AUDIO_SAMPLE_RATE))
    last = round((shown - microphone.begun) * AUDIO_SAMPLE_RATE) + _BLOCK
    candidates = microphone.samples[first:last]
    if len(candidates) < _BLOCK:
        return None
    size = 1 << (len(candidates) + _BLOCK).bit_length()
    product = np.fft.irfft(np.fft.rfft(candidates, size) * np.conj(np.fft.rfft(sound, size)), size)
    product = product[: len(candidates) - _BLOCK + 1]
    energy = np.concatenate(([0.0], np.cumsum(candidates.astype(np.float64) ** 2)))
    power = np.sqrt(np.maximum(energy[_BLOCK:] - energy[:-_BLOCK], 1e-9) * np.sum(sound.astype(np.float64) ** 2))
    likeness = product / power
    best = int(np.argmax(likeness))
    return None if likeness[best] < _ALIKE else microphone.begun + (first + best) / AUDIO_SAMPLE_RATE
