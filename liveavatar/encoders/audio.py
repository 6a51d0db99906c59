"""Audio features for the network: for every video frame, all hidden states of wav2vec2."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from ..config import AUDIO_FEATURE_RATE, AUDIO_SAMPLE_RATE, BLOCK_FRAMES, CLIP_BLOCKS, FPS
from ..errors import AudioError, ModelError
from ..events import ENCODING_AUDIO, Callback, ignore, share_event
from ..spool import MEMORY_BYTES, Rows, Spool

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
    """int64 [frames]: the feature step (30 per second) of video frame i, round(i / 25 * 30).

    Sixths of a frame never fall on a half, so whole numbers give what rounded floats do, for any i.
    """
    i = np.arange(frames, dtype=np.int64)
    return (2 * AUDIO_FEATURE_RATE * i + FPS) // (2 * FPS)


def features_needed(frames: int) -> int:
    """The fewest features with which each of `frames` (>= 1) video frames has one."""
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


class AudioFeatures:
    """Hidden states per video frame, handed out by block. Blocks may be read in any order and from several threads.

    float32 takes 4 x layers x channels bytes per frame: 102 kB (2.6 MB a second) for 25 x 1024. Beyond `memory_bytes`
    they lie in a temporary file that disappears with the object.

    Attributes:
        frames: video frames, a multiple of 12.
        layers, channels: hidden states per frame and their width.
    """

    def __init__(self, layers: int, channels: int, memory_bytes: int = MEMORY_BYTES):
        self.layers, self.channels = layers, channels
        self._spool = Spool(layers * channels, memory_bytes)
        self._closed = False

    @property
    def frames(self) -> int:
        """Video frames held."""
        return len(self._spool)

    @property
    def blocks(self) -> int:
        """Blocks of 12 frames held."""
        return self.frames // BLOCK_FRAMES

    @property
    def on_disk(self) -> bool:
        """Whether they lie in a temporary file."""
        return self._spool.on_disk

    def append(self, rows: np.ndarray) -> None:
        """Add frames: [n, layers, channels]."""
        self._spool.append(rows.reshape(len(rows), -1))

    def block(self, b: int) -> torch.Tensor:
        """Block b as float32 [1, layers, channels, 12] on the CPU.

        Raises:
            IndexError: no such block.
        """
        if self._closed:
            raise ValueError("the features are closed")
        if not 0 <= b < self.blocks:
            raise IndexError(f"block {b} of {self.blocks}")
        rows = torch.from_numpy(self._spool.read(b * BLOCK_FRAMES, (b + 1) * BLOCK_FRAMES))
        return rearrange(rows, "frames (layers c) -> 1 layers c frames", layers=self.layers).contiguous()

    def share(self) -> AudioFeatures:
        """The same features, for somebody who closes them too: they go when all have closed theirs."""
        other = copy.copy(self)
        other._spool = self._spool.share()
        return other

    def close(self) -> None:
        """Let memory and file go now instead of with the object."""
        if not self._closed:
            self._closed = True
            self._spool.close()


ALL_ROWS = slice(None)


class AudioEncoder(Protocol):
    """A wav2vec2 model, wherever it comes from.

    Attributes:
        layers, channels: hidden states it makes, the input of the first layer included, and their width.
    """

    @property
    def layers(self) -> int: ...

    @property
    def channels(self) -> int: ...

    def states(self, samples: np.ndarray, rows: slice = ALL_ROWS) -> list[torch.Tensor]:
        """Normalised 16 kHz samples [n] -> these rows of `layers` tensors [feature_count(n), channels]; see
        `hidden_states`."""
        ...


class TransformersAudioEncoder:
    """A `transformers.Wav2Vec2Model` in eval mode.

    Raises:
        ModelError: a model in training mode or with other convolutions.
    """

    def __init__(self, model: Any):
        _check_model(model)
        self.model = model
        self.layers: int = model.config.num_hidden_layers + 1
        self.channels: int = model.config.hidden_size

    def states(self, samples: np.ndarray, rows: slice = ALL_ROWS) -> list[torch.Tensor]:
        """See `AudioEncoder`."""
        return [state[rows] for state in hidden_states(self.model, samples)]


def as_audio_encoder(model: Any) -> AudioEncoder:
    """The audio encoder itself, or a model of transformers as one."""
    return model if hasattr(model, "states") else TransformersAudioEncoder(model)


def hidden_states(model: Any, samples: np.ndarray | torch.Tensor) -> list[torch.Tensor]:
    """All hidden states of `transformers.Wav2Vec2Model` for normalised 16 kHz samples [n].

    Returns:
        layers + 1 tensors [feature_count(n), C] in the model's dtype and on its device: the input of layer 1, the
        outputs of all layers but the last, and the last one's after the final layer norm. (Versions of transformers
        disagree whether their own last entry is normed, so it is taken from `last_hidden_state`, which always is.)
    """
    weight = next(model.parameters())
    values = torch.as_tensor(samples).to(device=weight.device, dtype=weight.dtype)
    with torch.inference_mode():
        out = model(values[None], output_hidden_states=True)
    return [state[0] for state in (*out.hidden_states[:-1], out.last_hidden_state)]


def _check_model(model: Any) -> None:
    if model.training:
        raise ModelError("The audio encoder is in training mode, where it drops layers at random.", "Call .eval().")
    found = (tuple(model.config.conv_kernel), tuple(model.config.conv_stride))
    if found != (CONV_KERNELS, CONV_STRIDES):
        raise ModelError(
            f"The audio encoder has convolutions {found[0]} with strides {found[1]}.",
            "Use a wav2vec2 model of 50 features a second, such as wav2vec2-large-xlsr-53.",
        )


WHOLE_SECONDS = 60
"""Sounds up to this long are encoded in one piece."""
WINDOW_FEATURES = 30 * FEATURE_RATE
CONTEXT_FEATURES = 5 * FEATURE_RATE
"""Of a window of longer audio: the samples whose features are kept, and the context on each side."""

_KEPT_WINDOWS = 2
"""Of long audio: a block may lie on the border of two."""
_CHUNK_FRAMES = 4 * BLOCK_FRAMES

Tail = Literal["silence", "zeros"]


@dataclasses.dataclass(frozen=True)
class WaveformStats:
    """Mean and standard deviation that wav2vec2 expects to be taken out: sqrt(population variance + 1e-7)."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, wave: np.ndarray | Rows) -> WaveformStats:
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

    def normalized(self, values: np.ndarray) -> np.ndarray:
        """(values - mean) / deviation, float32."""
        return ((values - np.float32(self.mean)) / np.float32(self.deviation)).astype(np.float32, copy=False)


@dataclasses.dataclass(frozen=True)
class _EncodeJob:
    """One audio track to encode: its samples, how many are used, and where each video frame's feature lies.

    Attributes:
        samples_16k: 16 kHz samples [n]; padded with zeros up to `total`.
        features: rows of wav2vec2 for all of it; steps: rows at 30 a second.
        indices: int64, the feature step of each frame; frames whose step does not exist get zeros.
    """

    samples_16k: np.ndarray | Rows
    stats: WaveformStats
    total: int
    features: int
    steps: int
    indices: np.ndarray

    @property
    def audible(self) -> int:
        """Number of frames that have a feature; they come first."""
        return int(np.searchsorted(self.indices, self.steps))

    def samples(self, start: int, stop: int) -> np.ndarray:
        """Normalised samples [start, stop), zeros past the end of the audio normalised like it."""
        samples = np.zeros(stop - start, np.float32)
        real = np.asarray(self.samples_16k[start : min(stop, len(self.samples_16k))])
        samples[: len(real)] = real
        return self.stats.normalized(samples)


def encode_audio(
    model: Any,
    wave16k: np.ndarray | Rows,
    frames: int,
    *,
    tail: Tail = "silence",
    callback: Callback = ignore,
    memory_bytes: int = MEMORY_BYTES,
) -> AudioFeatures:
    """Encode audio for so many video frames at 25 a second.

    Samples are normalised to zero mean and unit variance over the real sound. Features are interpolated from 50 to 30
    a second over the whole length (linear, ends meeting), and each frame takes the nearest.

    Args:
        model: `transformers.Wav2Vec2Model` in eval mode, which runs in its dtype, on its device; or any `AudioEncoder`.
        wave16k: [n] mono samples at 16 kHz, n >= 400 (25 ms); read by stretches where it lies in a file.
        frames: video frames, a positive multiple of 12.
        tail: features of frames past the end of the audio. "silence": zeros are appended and encoded with the audio.
            "zeros": nothing is encoded and their features are zeros, as in the published implementation; the audio
            then needs 720 samples (45 ms) for a first step at 30 a second.
        callback: called before every window and at the end; what it raises ends the encoding and leaves nothing behind.
        memory_bytes: features beyond this many bytes go to a temporary file.

    Raises:
        AudioError: too short, not mono, NaN or infinite samples, frames that are no whole blocks.
        ModelError: a model in training mode or with other convolutions.
        OutputError: the temporary folder cannot take the features.
    """
    encoder = as_audio_encoder(model)
    work = _encode_job(wave16k, frames, tail)
    short = len(work.samples_16k) <= WHOLE_SECONDS * AUDIO_SAMPLE_RATE
    if short and work.total <= (WHOLE_SECONDS + 1) * AUDIO_SAMPLE_RATE:
        parts = _encode_whole(encoder, work, callback)
    else:
        parts = _encode_windows(encoder, work, callback)
    features = _assemble(AudioFeatures(encoder.layers, encoder.channels, memory_bytes), parts, frames)
    callback(share_event(ENCODING_AUDIO, 1.0))
    return features


class WindowedAudioFeatures:
    """Features of long audio, encoded window by window when a block of them is asked for (see `BlockFeatures`).

    The same numbers as those of `encode_audio`, in memory that does not grow with the audio: the latest two windows.
    The audio encoder is there from the beginning, and leaves when the last block is handed out; where a block is asked
    for after that, it comes again.

    Args:
        open_encoder: loads the audio encoder.
        wave16k, frames, tail: as of `encode_audio`.

    Raises:
        AudioError: as `encode_audio`.
    """

    def __init__(
        self,
        open_encoder: Callable[[], AudioEncoder],
        wave16k: np.ndarray | Rows,
        frames: int,
        tail: Tail = "silence",
    ):
        self.frames, self._work = frames, _encode_job(wave16k, frames, tail)
        self._open_encoder, self._lock = open_encoder, threading.Lock()
        self._encoder: AudioEncoder | None = open_encoder()
        self.layers, self.channels = self._encoder.layers, self._encoder.channels
        self._windows: OrderedDict[int, np.ndarray] = OrderedDict()

    @property
    def blocks(self) -> int:
        """Blocks of 12 frames."""
        return self.frames // BLOCK_FRAMES

    def block(self, b: int) -> torch.Tensor:
        """Block b as float32 [1, layers, channels, 12] on the CPU.

        Raises:
            IndexError: no such block.
        """
        if not 0 <= b < self.blocks:
            raise IndexError(f"block {b} of {self.blocks}")
        work, rows = self._work, np.zeros((BLOCK_FRAMES, self.layers, self.channels), np.float32)
        first = b * BLOCK_FRAMES
        audible = work.indices[first : min(first + BLOCK_FRAMES, work.audible)]
        left, weight = interpolation(work.features, work.steps, audible)
        right = np.minimum(left + 1, work.features - 1)
        with self._lock:
            w = weight[:, None, None]
            rows[: len(audible)] = (1 - w) * self._rows(left) + w * self._rows(right)
            if b == self.blocks - 1:
                self._forget()
        return rearrange(torch.from_numpy(rows), "frames layers c -> 1 layers c frames").contiguous()

    def close(self) -> None:
        """Let the audio encoder and the windows go."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._encoder = None
        self._windows.clear()

    def _rows(self, features: np.ndarray) -> np.ndarray:
        """[n, layers, channels] of features, by their numbers."""
        rows = np.empty((len(features), self.layers, self.channels), np.float32)
        for number, feature in enumerate(features):
            window, row = divmod(int(feature), WINDOW_FEATURES)
            rows[number] = self._window(window)[row]
        return rows

    def _window(self, number: int) -> np.ndarray:
        if number not in self._windows:
            if self._encoder is None:
                self._encoder = self._open_encoder()
            start = number * WINDOW_FEATURES
            stop = min(start + WINDOW_FEATURES, self._work.features)
            self._windows[number] = _window(self._encoder, self._work, start, stop, None)
            while len(self._windows) > _KEPT_WINDOWS:
                self._windows.popitem(last=False)
        return self._windows[number]


def gather_frame_features(
    states: Sequence[torch.Tensor], frames: int, *, memory_bytes: int = MEMORY_BYTES
) -> AudioFeatures:
    """Features of video frames from hidden states that somebody else made of the whole sound.

    Frames past the end of the audio get zeros, as in the published implementation.

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
    indices = feature_indices(frames)
    steps = resampled_count(shape[0])
    audible = indices[: int(np.searchsorted(indices, steps))]
    left, weight = interpolation(shape[0], steps, audible)
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

    return _assemble(AudioFeatures(len(states), shape[1], memory_bytes), parts(), frames)


def _assemble(features: AudioFeatures, parts: Iterable[np.ndarray], frames: int) -> AudioFeatures:
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


def _encode_job(wave: np.ndarray | Rows, frames: int, tail: Tail) -> _EncodeJob:
    if wave.ndim != 1 or wave.dtype.kind != "f":
        raise AudioError(f"Samples of type {wave.dtype} and shape {list(wave.shape)} are not mono.", "Give float [n].")
    _check_frames(frames)
    if tail not in ("silence", "zeros"):
        raise AudioError(f"There is no tail named {tail!r}.", "Choose silence or zeros.")
    total, features = len(wave), feature_count(len(wave))
    least = 1 if tail == "silence" else 2
    if features < least:
        raise AudioError(
            f"The sound is too short: {len(wave) / AUDIO_SAMPLE_RATE:.3f} s.",
            f"The shortest usable one has {samples_of(least) / AUDIO_SAMPLE_RATE:.3f} s.",
        )
    if tail == "silence":
        features = max(features, features_needed(frames))
        total = max(total, samples_of(features))
    steps = resampled_count(features)
    return _EncodeJob(wave, WaveformStats.of(wave), total, features, steps, feature_indices(frames))


def _check_frames(frames: int) -> None:
    if frames < 1 or frames % BLOCK_FRAMES:
        raise AudioError(f"{frames} video frames are no whole blocks.", f"Use a multiple of {BLOCK_FRAMES}.")


def _encode_whole(encoder: AudioEncoder, work: _EncodeJob, callback: Callback) -> Iterator[np.ndarray]:
    """Frames [n, layers, C] of all audible frames, with the published arithmetic."""
    callback(share_event(ENCODING_AUDIO, 0.0))
    indices = torch.from_numpy(work.indices[: work.audible])
    states = encoder.states(work.samples(0, work.total))
    picked = torch.empty(len(indices), len(states), states[0].shape[1])
    for layer, state in enumerate(states):
        columns = state.float().cpu().T[None]
        stretched = F.interpolate(columns, size=work.steps, mode="linear", align_corners=True)[0]
        picked[:, layer] = stretched[:, indices].T
    yield picked.numpy()


def _encode_windows(encoder: AudioEncoder, work: _EncodeJob, callback: Callback) -> Iterator[np.ndarray]:
    """Frames [n, layers, C], in order, as far as the features at hand reach; one feature is transferred across
    borders."""
    left, weight = interpolation(work.features, work.steps, work.indices[: work.audible])
    right = np.minimum(left + 1, work.features - 1)
    done = 0
    carried: np.ndarray | None = None
    for start in range(0, work.features, WINDOW_FEATURES):
        callback(share_event(ENCODING_AUDIO, start / work.features))
        stop = min(start + WINDOW_FEATURES, work.features)
        rows = _window(encoder, work, start, stop, carried)
        base = stop - len(rows)
        reach = int(np.searchsorted(right, stop))
        for lo in range(done, reach, _CHUNK_FRAMES):
            part = slice(lo, min(lo + _CHUNK_FRAMES, reach))
            w = weight[part, None, None]
            yield (1 - w) * rows[left[part] - base] + w * rows[right[part] - base]
        done, carried = reach, rows[-1].copy()
        if done == work.audible:
            return


def _window(encoder: AudioEncoder, work: _EncodeJob, start: int, stop: int, carried: np.ndarray | None) -> np.ndarray:
    """float32 features [start, stop) as [n, layers, C], encoded with their context, after the transferred one."""
    first = max(0, start - CONTEXT_FEATURES)
    last = min(work.features, stop + CONTEXT_FEATURES)
    begin = first * HOP
    states = encoder.states(work.samples(begin, begin + samples_of(last - first)))
    extra = 0 if carried is None else 1
    rows = np.empty((extra + stop - start, len(states), states[0].shape[1]), np.float32)
    if carried is not None:
        rows[0] = carried
    for layer, state in enumerate(states):
        rows[extra:, layer] = state[start - first : stop - first].float().cpu().numpy()
    return rows
