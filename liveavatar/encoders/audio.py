"""The voice as the network hears it: for every video frame, all hidden states of wav2vec2.

The published implementation encodes the whole sound at once, which takes memory quadratic in its length. Here that is
done up to 60 s; a longer sound is encoded in windows of 30 s that hear 5 s more on each side, and features go to a
spool, so memory does not grow with the sound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from ..config import AUDIO_SAMPLE_RATE, BLOCK_FRAMES
from ..errors import AudioError
from ..spool import MEMORY_BYTES, Rows
from . import timing
from .features import AudioFeatures
from .listener import Listener, listener_of
from .timing import resampled_count

WHOLE_SECONDS = 60
"""Sounds up to this long are encoded in one piece."""
WINDOW_FEATURES = 30 * timing.FEATURE_RATE
CONTEXT_FEATURES = 5 * timing.FEATURE_RATE
"""What a window of a longer sound keeps, and what it hears besides on each side."""

_CHUNK_FRAMES = 4 * BLOCK_FRAMES

Tail = Literal["silence", "zeros"]


@dataclasses.dataclass(frozen=True)
class Loudness:
    """Mean and standard deviation that wav2vec2 expects to be taken out: sqrt(population variance + 1e-7)."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, wave: np.ndarray | Rows) -> Loudness:
        """Measure samples [n], in pieces and in float64.

        Raises:
            AudioError: NaN or infinite samples.
        """
        step = 1 << 20
        pieces = lambda: (np.asarray(wave[i : i + step]) for i in range(0, len(wave), step))  # noqa: E731
        mean = sum(float(p.sum(dtype=np.float64)) for p in pieces()) / len(wave)
        if not np.isfinite(mean):
            raise AudioError("The sound holds values that are not numbers or infinite.", "Export it again.")
        variance = sum(float(np.square(p - mean, dtype=np.float64).sum()) for p in pieces()) / len(wave)
        return cls(mean, float(np.sqrt(variance + 1e-7)))

    def normalised(self, values: np.ndarray) -> np.ndarray:
        """(values - mean) / deviation, float32."""
        return ((values - np.float32(self.mean)) / np.float32(self.deviation)).astype(np.float32, copy=False)


@dataclasses.dataclass(frozen=True)
class _Work:
    """One sound to encode: what is heard, how much of it, and where each video frame's feature lies.

    Attributes:
        wave: 16 kHz samples [n]; heard as if zeros followed up to `total`.
        features: rows of wav2vec2 for all of it; steps: rows at 30 a second.
        indices: int64, the step each frame hears; frames whose step does not exist get zeros.
    """

    wave: np.ndarray | Rows
    loudness: Loudness
    total: int
    features: int
    steps: int
    indices: np.ndarray

    @property
    def audible(self) -> int:
        """Frames that hear a feature; they come first."""
        return int(np.searchsorted(self.indices, self.steps))

    def samples(self, start: int, stop: int) -> np.ndarray:
        """Normalised samples [start, stop), zeros past the end of the sound normalised like it."""
        heard = np.zeros(stop - start, np.float32)
        real = np.asarray(self.wave[start : min(stop, len(self.wave))])
        heard[: len(real)] = real
        return self.loudness.normalised(heard)


def encode_audio(
    model: Any,
    wave16k: np.ndarray | Rows,
    frames: int,
    *,
    tail: Tail = "silence",
    progress: Callable[[float], None] | None = None,
    check: Callable[[], None] | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> AudioFeatures:
    """Encode a sound for so many video frames at 25 a second.

    Samples are normalised to zero mean and unit variance over the real sound. Features are interpolated from 50 to 30
    a second over the whole length (linear, ends meeting), and each frame takes the nearest.

    Args:
        model: `transformers.Wav2Vec2Model` in eval mode, which runs in its dtype, on its device; or any `Listener`.
        wave16k: [n] mono samples at 16 kHz, n >= 400 (25 ms); read by stretches where it lies in a file.
        frames: video frames, a positive multiple of 12.
        tail: what frames past the end of the sound hear. "silence": zeros are heard and encoded with the sound.
            "zeros": nothing is encoded and their features are zeros, as in the published implementation; the sound
            then needs 720 samples (45 ms) for a first step at 30 a second.
        progress: called with the finished share, 0 to 1, after every window.
        check: called before every window; what it raises ends the encoding and leaves nothing behind.
        memory_bytes: features beyond this many bytes go to a temporary file.

    Raises:
        AudioError: too short, not mono, NaN or infinite samples, frames that are no whole blocks.
        ModelError: a model in training mode or with other convolutions.
        OutputError: the temporary folder cannot take the features.
    """
    listener = listener_of(model)
    work = _plan(wave16k, frames, tail)
    report, check = progress or (lambda share: None), check or (lambda: None)
    short = len(work.wave) <= WHOLE_SECONDS * AUDIO_SAMPLE_RATE
    if short and work.total <= (WHOLE_SECONDS + 1) * AUDIO_SAMPLE_RATE:
        parts = _encode_whole(listener, work, check)
    else:
        parts = _encode_windows(listener, work, check, report)
    features = _collect(AudioFeatures(listener.layers, listener.channels, memory_bytes), parts, frames)
    report(1.0)
    return features


def pick_audio(states: Sequence[torch.Tensor], frames: int, *, memory_bytes: int = MEMORY_BYTES) -> AudioFeatures:
    """What video frames hear of hidden states that somebody else made of the whole sound.

    Frames past the end of the sound hear zeros, as in the published implementation.

    Args:
        states: one [n, channels] per layer, n features at 50 a second; the last one after the final norm.
        frames: video frames, a positive multiple of 12.
        memory_bytes: as in `encode_audio`.

    Raises:
        AudioError: no features, layers of different shapes, frames that are no whole blocks.
        OutputError: the temporary folder cannot take the features.
    """
    shapes = {tuple(s.shape) for s in states}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or resampled_count(shape[0]) < 1:
        raise AudioError(
            f"Hidden states of shapes {[list(s.shape) for s in states][:3]} are not [features, channels] per layer.",
            "Encode at least 0.045 s of sound with a wav2vec2 model.",
        )
    _check_frames(frames)
    indices = timing.feature_indices(frames)
    steps = resampled_count(shape[0])
    audible = indices[: int(np.searchsorted(indices, steps))]
    left, weight = timing.interpolation(shape[0], steps, audible)
    right = np.minimum(left + 1, shape[0] - 1)

    def parts() -> Iterator[np.ndarray]:
        for start in range(0, len(audible), _CHUNK_FRAMES):
            part = slice(start, start + _CHUNK_FRAMES)
            w = weight[part, None, None]
            before, after = (
                np.stack([s[torch.from_numpy(at[part])].float().cpu().numpy() for s in states], 1)
                for at in (left, right)
            )
            yield (1 - w) * before + w * after

    return _collect(AudioFeatures(len(states), shape[1], memory_bytes), parts(), frames)


def _collect(features: AudioFeatures, parts: Iterable[np.ndarray], frames: int) -> AudioFeatures:
    """All parts, then zeros up to `frames`; nothing is left behind when a part fails."""
    try:
        for part in parts:
            features.append(part)
        for start in range(features.frames, frames, _CHUNK_FRAMES):
            silent = min(_CHUNK_FRAMES, frames - start)
            features.append(np.zeros((silent, features.layers, features.channels), np.float32))
    except BaseException:
        features.close()
        raise
    return features


def _plan(wave: np.ndarray | Rows, frames: int, tail: Tail) -> _Work:
    if wave.ndim != 1 or wave.dtype.kind != "f":
        raise AudioError(f"Samples of type {wave.dtype} and shape {list(wave.shape)} are not mono.", "Give float [n].")
    _check_frames(frames)
    if tail not in ("silence", "zeros"):
        raise AudioError(f"There is no tail named {tail!r}.", "Choose silence or zeros.")
    total, features = len(wave), timing.feature_count(len(wave))
    least = 1 if tail == "silence" else 2
    if features < least:
        raise AudioError(
            f"The sound is too short: {len(wave) / AUDIO_SAMPLE_RATE:.3f} s.",
            f"The shortest usable one has {timing.samples_of(least) / AUDIO_SAMPLE_RATE:.3f} s.",
        )
    if tail == "silence":
        features = max(features, timing.features_needed(frames))
        total = max(total, timing.samples_of(features))
    steps = timing.resampled_count(features)
    return _Work(wave, Loudness.of(wave), total, features, steps, timing.feature_indices(frames))


def _check_frames(frames: int) -> None:
    if frames < 1 or frames % BLOCK_FRAMES:
        raise AudioError(f"{frames} video frames are no whole blocks.", f"Use a multiple of {BLOCK_FRAMES}.")


def _encode_whole(listener: Listener, work: _Work, check: Callable[[], None]) -> Iterator[np.ndarray]:
    """Frames [n, layers, C] of all audible frames, with the published arithmetic."""
    check()
    indices = torch.from_numpy(work.indices[: work.audible])
    states = listener.states(work.samples(0, work.total))
    picked = torch.empty(len(indices), len(states), states[0].shape[1])
    for layer, state in enumerate(states):
        columns = state.float().cpu().T[None]
        stretched = F.interpolate(columns, size=work.steps, mode="linear", align_corners=True)[0]
        picked[:, layer] = stretched[:, indices].T
    yield picked.numpy()


def _encode_windows(
    listener: Listener, work: _Work, check: Callable[[], None], report: Callable[[float], None]
) -> Iterator[np.ndarray]:
    """Frames [n, layers, C], in order, as far as the features at hand reach; one feature is carried across borders."""
    left, weight = timing.interpolation(work.features, work.steps, work.indices[: work.audible])
    right = np.minimum(left + 1, work.features - 1)
    done = 0
    carried: np.ndarray | None = None
    for start in range(0, work.features, WINDOW_FEATURES):
        check()
        stop = min(start + WINDOW_FEATURES, work.features)
        rows = _window(listener, work, start, stop, carried)
        base = stop - len(rows)
        reach = int(np.searchsorted(right, stop))
        for lo in range(done, reach, _CHUNK_FRAMES):
            part = slice(lo, min(lo + _CHUNK_FRAMES, reach))
            w = weight[part, None, None]
            yield (1 - w) * rows[left[part] - base] + w * rows[right[part] - base]
        done, carried = reach, rows[-1].copy()
        report(stop / work.features)
        if done == work.audible:
            return


def _window(listener: Listener, work: _Work, start: int, stop: int, carried: np.ndarray | None) -> np.ndarray:
    """float32 features [start, stop) as [n, layers, C], encoded with their context, after the carried one."""
    first = max(0, start - CONTEXT_FEATURES)
    last = min(work.features, stop + CONTEXT_FEATURES)
    begin = first * timing.HOP
    states = listener.states(work.samples(begin, begin + timing.samples_of(last - first)))
    extra = 0 if carried is None else 1
    rows = np.empty((extra + stop - start, len(states), states[0].shape[1]), np.float32)
    if carried is not None:
        rows[0] = carried
    for layer, state in enumerate(states):
        rows[extra:, layer] = state[start - first : stop - first].float().cpu().numpy()
    return rows
