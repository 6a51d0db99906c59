"""Lip sync: how far a mouth opens against how loud the sound is, and by how much one of both is late. Pure functions.

Both are series of `RATE` values a second on one clock: value i belongs to time (i + 0.5) / RATE.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ..config import AUDIO_SAMPLE_RATE
from ..spool import Rows

RATE = 100
"""Values per second of both series."""
MOST_OFFSET_MS = 500
"""How late or early the picture may be and is still found."""
LEAST_SPEECH_SECONDS = 2.0
"""Less of it says nothing about lips."""
LEAST_SEEN_SHARE = 0.5
"""Share of the frames that must show a face."""
CHANCES = 3.0
"""Standard deviations of a correlation between unrelated series that the best of all offsets exceeds in about one of a
hundred cases: between mouths that speak one recording and the loudness of another it was 2.5 in one of twenty."""

_HOP = AUDIO_SAMPLE_RATE // RATE
_BLUR = 3
"""Values that loudness is averaged over: 30 ms, more than a period of the deepest voice."""
_RANGE_DB, _AUDIBLE_DB, _SILENT_DB = 35.0, 25.0, -60.0
"""Below the loudest of a window: what counts as silence, what as speech; of full scale: what is never speech."""
_TREND_SECONDS = 4.0
"""What changes more slowly is left out: how a head is held, how near a microphone is."""
_MEMORY_SECONDS = 4.0
"""How far back a series is related to itself."""
_GAP_SECONDS = 0.2
"""Between frames with a face: a longer one is a gap in the series."""
_STILL = 1e-4
"""Standard deviation of an opening, in widths of a face, that is no movement."""


@dataclasses.dataclass(frozen=True)
class LipSync:
    """How lips follow a sound.

    Attributes:
        offset_ms: by which the picture is late (early where negative) when both agree best; None where that cannot be
            told.
        correlation: of opening and loudness at that offset, -1..1.
        at_zero: the same as the file is played.
        chance: the correlation that lips reach which have nothing to do with the sound.
        why_not: why there is no offset; "" where there is one.
    """

    offset_ms: int | None = None
    correlation: float | None = None
    at_zero: float | None = None
    chance: float | None = None
    why_not: str = ""


def loudness(samples: np.ndarray | Rows) -> np.ndarray:
    """Loudness of samples [n] at 16 kHz in decibels of full scale: float32 [n / 160], read in pieces."""
    count = -(-len(samples) // _HOP)
    power = np.zeros(count)
    step = _HOP * RATE * 10
    for start in range(0, len(samples), step):
        piece = np.square(np.asarray(samples[start : start + step]).reshape(-1), dtype=np.float64)
        sums = np.add.reduceat(piece, np.arange(0, len(piece), _HOP))
        power[start // _HOP : start // _HOP + len(sums)] = sums / _HOP
    around = np.pad(power, _BLUR // 2)
    blurred = np.convolve(around, np.full(_BLUR, 1 / _BLUR), mode="valid")
    return (10 * np.log10(np.maximum(blurred, 1e-10))).astype(np.float32)


def on_clock(times: Sequence[float], values: Sequence[float], count: int) -> np.ndarray:
    """Values at rising times in seconds (NaN: nothing was seen) as a series float32 [count]; NaN in gaps."""
    clock = (np.arange(count) + 0.5) / RATE
    at, seen = np.asarray(times, np.float64), np.asarray(values, np.float64)
    at, seen = at[np.isfinite(seen)], seen[np.isfinite(seen)]
    if not len(at):
        return np.full(count, np.nan, np.float32)
    series = np.interp(clock, at, seen)
    after = np.searchsorted(at, clock).clip(0, len(at) - 1)
    before = (after - 1).clip(0)
    inside = (at[before] <= clock) & (at[after] >= clock) & (at[after] - at[before] <= _GAP_SECONDS)
    near = np.minimum(np.abs(at[after] - clock), np.abs(at[before] - clock)) < 0.5 / RATE
    return np.where(inside | near, series, np.nan).astype(np.float32)


def lip_sync(opening: np.ndarray, decibels: np.ndarray, start: int = 0, stop: int | None = None) -> LipSync:
    """Compare both series between two of their values; sound around that stretch is used for the offsets.

    Args:
        opening: how far the mouth is open [n], in any unit; NaN where no face is seen.
        decibels: loudness [m], of `loudness`.
        start, stop: the stretch.
    """
    stop = len(opening) if stop is None else min(stop, len(opening))
    lips = opening[start:stop]
    if why_not := _hindrance(lips, decibels[start:stop]):
        return LipSync(why_not=why_not)
    most = MOST_OFFSET_MS * RATE // 1000
    around = np.full(len(lips) + 2 * most, np.nan)
    first, last = max(0, start - most), min(len(decibels), stop + most)
    around[first - start + most : last - start + most] = decibels[first:last]
    lips, heard = without_trend(lips), without_trend(_audible(around))
    found = np.array([_correlation(lips, heard[most - lag :][: len(lips)]) for lag in range(-most, most + 1)])
    chance = CHANCES * _spread(lips, heard[most:][: len(lips)])
    best = int(found.argmax())
    known = LipSync(None, round(float(found[best]), 3), round(float(found[most]), 3), round(chance, 3))
    if found[best] <= chance:
        return dataclasses.replace(known, why_not="the mouth does not follow the sound")
    if best in (0, 2 * most):
        return dataclasses.replace(known, why_not=f"lips and sound are more than {MOST_OFFSET_MS} ms apart")
    steps = best - most + _summit(found[best - 1 : best + 2])
    return dataclasses.replace(known, offset_ms=round(1000 / RATE * steps))


def speech_seconds(decibels: np.ndarray) -> float:
    """How long something is said: as loud as 25 dB below the loudest, and above -60 dB of full scale."""
    if not np.isfinite(decibels).any():
        return 0.0
    least = max(_SILENT_DB, float(np.nanpercentile(decibels, 95)) - _AUDIBLE_DB)
    return float((decibels > least).sum()) / RATE


def without_trend(series: np.ndarray) -> np.ndarray:
    """A series less its average over the seconds around; float64, NaN where it is NaN."""
    half = int(_TREND_SECONDS * RATE / 2)
    there = np.isfinite(series)
    sums = np.concatenate([[0.0], np.cumsum(np.where(there, series, 0.0), dtype=np.float64)])
    counts = np.concatenate([[0], np.cumsum(there)])
    low = np.maximum(np.arange(len(series)) - half, 0)
    high = np.minimum(np.arange(len(series)) + half + 1, len(series))
    average = (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1)
    return np.where(there, series - average, np.nan)


def _hindrance(lips: np.ndarray, decibels: np.ndarray) -> str:
    """Why lips cannot be compared with a sound; "" where they can."""
    seen = np.isfinite(lips)
    if not len(lips) or seen.mean() < LEAST_SEEN_SHARE:
        return "no face in most of it"
    if (spoken := speech_seconds(decibels)) < LEAST_SPEECH_SECONDS:
        return f"too little speech ({spoken:.1f} s)"
    if lips[seen].std() < _STILL:
        return "the mouth does not move"
    return ""


def _audible(decibels: np.ndarray) -> np.ndarray:
    """Loudness as 0 (silent) to 1 (as loud as the loudest)."""
    loudest = max(float(np.nanpercentile(decibels, 95)), _SILENT_DB)
    return np.clip((decibels - loudest + _RANGE_DB) / _RANGE_DB, 0, 1)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two series of one length, where both are known."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < RATE:
        return 0.0
    x, y = a[both] - a[both].mean(), b[both] - b[both].mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else 0.0


def _spread(a: np.ndarray, b: np.ndarray) -> float:
    """Standard deviation of the correlation that two unrelated series have which remember as long as these (Bartlett).

    A sentence rises and falls for seconds: its hundred values a second are far fewer independent ones.
    """
    both = np.isfinite(a) & np.isfinite(b)
    remembered = _memory(np.where(both, a, np.nan)) * _memory(np.where(both, b, np.nan))
    return math.sqrt(max(float(remembered[0] + 2 * remembered[1:].sum()), 1.0) / max(int(both.sum()), 1))


def _memory(series: np.ndarray) -> np.ndarray:
    """Correlation of a series with itself, by how far back; gaps count as its mean."""
    values = np.where(np.isfinite(series), series - np.nanmean(series), 0.0)
    size = 1 << (2 * len(values) - 1).bit_length()
    spectrum = np.fft.rfft(values, size)
    products = np.fft.irfft(spectrum * spectrum.conj(), size)[: min(len(values), int(_MEMORY_SECONDS * RATE))]
    return products / max(float(products[0]), 1e-12)


def _summit(three: np.ndarray) -> float:
    """Where the parabola through three values around a largest one has its summit, -0.5..0.5."""
    left, middle, right = (float(v) for v in three)
    bend = left - 2 * middle + right
    return 0.5 * (left - right) / bend if bend < 0 else 0.0
