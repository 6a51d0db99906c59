"""Audio clips: samples of any rate and channels, and the 16 kHz mono of them that the audio encoder takes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..config import AUDIO_SAMPLE_RATE
from ..errors import AudioError
from ..spool import Rows, Spool

MIN_RATE, MAX_RATE = 1_000, 1_000_000
"""Samples per second outside which a header is taken to be damaged."""
MAX_CHANNELS = 32
"""More columns than this are samples laid out the other way round."""
MAX_PEAK = 64.0
"""A float sample beyond this multiple of full scale (36 dB) is no sound: integers taken for floats, or damage."""
SILENT_PEAK = 0.001
"""Sound that stays under this share of full scale (-60 dB) is told to be silent."""
CHUNK_FRAMES = 1 << 18
"""Samples per channel resampled at a time."""

_CANCELLED = 0.1
"""Share of the power that one channel alone would leave in the mean, below which channels cancel each other."""
_CANCELLED_TIME = 0.1
"""Share of the audible time in which channels may cancel each other."""
_AUDIBLE = 1e-3
"""Share of the loudest window's power from which a window is audible."""
_WINDOWS_PER_SECOND = 4

_INTEGER_MIDDLE = {"u1": 128.0}
_FULL_SCALE = {"u1": 128.0, "i2": 2.0**15, "i4": 2.0**31, "i8": 2.0**63}


@dataclasses.dataclass(frozen=True, eq=False)
class AudioClip:
    """A decoded audio clip.

    Attributes:
        samples: float32 [n, channels], n >= 1, finite; full scale is -1..1 (a float file may exceed it). Those of long
            sounds lie in a temporary file, which disappears with them: slice, then `numpy.asarray`.
        rate: samples per second and channel.
        source: where it came from, for messages and receipts.
        notes: what whoever decoded it has to say of it, a sentence each.
    """

    samples: np.ndarray | Rows
    rate: int
    source: str
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.samples.shape[1]

    @classmethod
    def from_array(cls, samples: Any, rate: float, source: str = "array") -> AudioClip:
        """Wrap samples that are already decoded.

        Args:
            samples: [n] or [n, channels] (time first), anything numpy takes: floats with full scale -1..1, or
                uint8, int16 or int32 with the full scale of their type.
            rate: samples per second, a whole number.
            source: a name for messages.

        Raises:
            AudioError: another shape ([channels, n] has to be transposed) or type, no samples, NaN or infinite
                samples, an unusable rate.
        """
        try:
            array = np.asarray(samples)
        except (TypeError, ValueError, RuntimeError) as e:  # ragged lists; tensors of a device or with gradients
            raise AudioError(f"{type(samples).__name__} is no array of samples ({e}).", "Give float32 in -1..1.") from e
        if (array.dtype.kind != "f" and array.dtype.str[1:] not in _FULL_SCALE) or array.dtype.str[1:] == "i8":
            raise AudioError(
                f"Samples of type {array.dtype} have no known full scale.", "Give float32 in -1..1, or int16."
            )
        if array.ndim == 1:
            array = array[:, None]
        if array.ndim != 2 or not 1 <= array.shape[1] <= MAX_CHANNELS:
            raise AudioError(
                f"Samples of shape {list(np.shape(samples))} are not [n] or [n, channels].",
                "Transpose [channels, n], and give one sound at a time.",
            )
        if len(array) == 0:
            raise no_samples(source)
        values = np.ascontiguousarray(to_float(array))
        check_samples(values, 0, check_rate(rate, source), source)
        return cls(values, int(rate), source)

    @functools.cached_property
    def mixdown(self) -> Mixdown:
        """How its channels become one; its samples are read once for it."""
        return _mixdown(self)

    @property
    def is_silent(self) -> bool:
        """Whether nobody hears anything in it."""
        return self.mixdown.peak < SILENT_PEAK

    def limited(self, seconds: float) -> AudioClip:
        """The first `seconds` seconds (rounded up to a sample), or all of it where it is shorter. Nothing is copied.

        Raises:
            AudioError: not a positive number of seconds.
        """
        if not isinstance(seconds, int | float) or not (math.isfinite(seconds) and seconds > 0):
            raise AudioError(f"A sound cannot be limited to {seconds} s.", "Give a number of seconds above 0.")
        count = math.ceil(seconds * self.rate - 1e-6)
        return self if count >= len(self.samples) else dataclasses.replace(self, samples=self.samples[: max(count, 1)])


@dataclasses.dataclass(frozen=True)
class Mixdown:
    """How the channels of a clip become one.

    Attributes:
        channel: the one that is used alone, from 0; None: the mean of all.
        peak: the largest sample of all channels, where full scale is 1.
    """

    channel: int | None
    peak: float


def audio_notes(audio: AudioClip) -> tuple[str, ...]:
    """What is to be told of a clip before a video is made of it, a sentence each."""
    notes = list(audio.notes)
    mixdown = audio.mixdown
    if mixdown.channel is not None:
        notes.append(
            f"the {audio.channels} channels of the sound cancel each other when they are mixed; the model hears only "
            f"number {mixdown.channel + 1}, the loudest"
        )
    if audio.is_silent:
        level = f"its loudest sample is at {20 * math.log10(mixdown.peak):.0f} dB" if mixdown.peak else "all of it is 0"
        notes.append(f"the sound is silent ({level}), so the mouth has nothing to say")
    return tuple(notes)


def mono_16k(audio: AudioClip) -> np.ndarray | Rows:
    """The channels as one (see `AudioClip.mixdown`), resampled to 16 kHz: float32 [ceil(n * 16000 / rate)].

    Resampled by soxr at its HQ setting, as the published implementation does through librosa, in pieces; the pieces
    give the same numbers as the whole. A long result lies in a temporary file.

    Raises:
        OutputError: the temporary folder cannot take it.
    """
    length = -(-len(audio.samples) * AUDIO_SAMPLE_RATE // audio.rate)
    spool = Spool(1)
    for piece in _resampled(audio):
        spool.append(piece[: length - len(spool)])
    if len(spool) < length:  # the resampler rounds the length, librosa rounds it up with zeros
        spool.append(np.zeros(length - len(spool), np.float32))
    return spool.rows(flat=True)


def _mixdown(audio: AudioClip) -> Mixdown:
    window = max(audio.rate // _WINDOWS_PER_SECOND, 1)
    step = max(CHUNK_FRAMES // window, 1) * window
    peak = 0.0
    loudest, mean = [], []
    total = np.zeros(audio.channels)
    for start in range(0, len(audio.samples), step):
        piece = np.asarray(audio.samples[start : start + step])
        peak = max(peak, float(np.abs(piece).max()))
        if audio.channels == 1:
            continue
        starts = np.arange(0, len(piece), window)
        power = np.add.reduceat(np.square(piece, dtype=np.float64), starts)
        total += power.sum(axis=0)
        loudest.append(power.max(axis=1))
        mean.append(np.add.reduceat(np.square(piece.mean(axis=1), dtype=np.float64), starts))
    if audio.channels == 1 or not total.any():
        return Mixdown(None, peak)
    strongest, mixed = np.concatenate(loudest), np.concatenate(mean)
    audible = strongest > _AUDIBLE * strongest.max()
    cancelled = audible & (mixed < _CANCELLED * strongest / audio.channels**2)
    alone = cancelled.sum() > _CANCELLED_TIME * audible.sum()
    return Mixdown(int(np.argmax(total)) if alone else None, peak)


def to_float(values: np.ndarray) -> np.ndarray:
    """Integers scaled by their type's full scale (uint8, int16, int32, int64), and floats as they are; float32."""
    kind = values.dtype.str[1:]
    if kind not in _FULL_SCALE:
        return values.astype(np.float32, copy=False)
    return ((values.astype(np.float64) - _INTEGER_MIDDLE.get(kind, 0.0)) / _FULL_SCALE[kind]).astype(np.float32)


def _resampled(audio: AudioClip) -> Iterator[np.ndarray]:
    import soxr

    same = audio.rate == AUDIO_SAMPLE_RATE
    resampler = None if same else soxr.ResampleStream(audio.rate, AUDIO_SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    for start in range(0, len(audio.samples), CHUNK_FRAMES):
        piece = np.asarray(audio.samples[start : start + CHUNK_FRAMES])
        channel = 0 if audio.channels == 1 else audio.mixdown.channel
        mono = piece.mean(axis=1, dtype=np.float32) if channel is None else np.array(piece[:, channel])
        last = start + CHUNK_FRAMES >= len(audio.samples)
        yield mono if resampler is None else resampler.resample_chunk(mono, last=last)


def check_rate(rate: Any, source: str) -> int:
    """A usable number of samples per second.

    Raises:
        AudioError: no whole number, or out of range.
    """
    number = isinstance(rate, int | float | np.number) and not isinstance(rate, bool)
    if not number or rate != rate or not MIN_RATE <= rate <= MAX_RATE or int(rate) != rate:
        raise AudioError(
            f"{source} has a rate of {rate} samples per second.", f"Use {MIN_RATE} to {MAX_RATE}, for example 48000."
        )
    return int(rate)


def check_samples(values: np.ndarray, start: int, rate: int, source: str) -> None:
    """Make sure that float samples [n, channels] are sound.

    Args:
        start: samples that came before them.
        rate, source: for messages.

    Raises:
        AudioError: NaN, infinite or absurdly large values.
    """
    with np.errstate(invalid="ignore"):
        good = (np.abs(values) <= MAX_PEAK).all(axis=1)
    if good.all():
        return
    at = int(np.argmin(good))
    where = f"first at sample {start + at} ({(start + at) / rate:.3f} s)"
    if np.isfinite(values[at]).all():
        raise AudioError(
            f"{source} holds a value of {np.abs(values[at]).max():.6g} where full scale is 1, {where}.",
            "Divide float samples by their full scale, or export the sound again as 16-bit integers.",
        )
    raise AudioError(
        f"{source} holds a value that is not a number or infinite, {where}.",
        "Export the sound again from the program that made it.",
    )


def no_samples(source: str) -> AudioError:
    """The error of a sound without samples."""
    return AudioError(f"{source} holds no samples: it is 0 s long.", "The shortest usable sound has 0.025 s.")
