"""The voice as the network hears it: for every video frame, all hidden states of wav2vec2.

The published implementation encodes the whole sound at once, which takes memory quadratic in its length. Here that is
done up to 60 s; a longer sound is encoded in windows of 30 s that hear 5 s more on each side, and features go to a
spool, so memory does not grow with the sound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from ..config import AUDIO_SAMPLE_RATE, BLOCK_FRAMES
from ..errors import AudioError, ModelError
from ..spool import MEMORY_BYTES, Rows, Spool
from . import timing

WHOLE_SECONDS = 60
"""Sounds up to this long are encoded in one piece."""
WINDOW_FEATURES = 30 * timing.FEATURE_RATE
CONTEXT_FEATURES = 5 * timing.FEATURE_RATE
"""What a window of a longer sound keeps, and what it hears besides on each side."""

_CHUNK_FRAMES = 4 * BLOCK_FRAMES

Tail = Literal["silence", "zeros"]


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
        """Block b as float32 [layers, channels, 12] on the CPU.

        Raises:
            IndexError: no such block.
        """
        if not 0 <= b < self.blocks:
            raise IndexError(f"block {b} of {self.blocks}")
        rows = torch.from_numpy(self._spool.read(b * BLOCK_FRAMES, (b + 1) * BLOCK_FRAMES))
        return rows.reshape(BLOCK_FRAMES, self.layers, self.channels).permute(1, 2, 0).contiguous()

    def close(self) -> None:
        """Let memory and file go now instead of with the object."""
        self._spool.close()


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
        model: `transformers.Wav2Vec2Model` in eval mode; runs in its dtype, on its device.
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
    _check_model(model)
    work = _plan(wave16k, frames, tail)
    report, check = progress or (lambda share: None), check or (lambda: None)
    short = len(work.wave) <= WHOLE_SECONDS * AUDIO_SAMPLE_RATE
    if short and work.total <= (WHOLE_SECONDS + 1) * AUDIO_SAMPLE_RATE:
        parts = _encode_whole(model, work, check)
    else:
        parts = _encode_windows(model, work, check, report)
    config = model.config
    features = AudioFeatures(config.num_hidden_layers + 1, config.hidden_size, memory_bytes)
    try:
        for part in parts:
            features.append(part)
        for start in range(features.frames, frames, _CHUNK_FRAMES):
            silent = min(_CHUNK_FRAMES, frames - start)
            features.append(np.zeros((silent, features.layers, features.channels), np.float32))
    except BaseException:
        features.close()
        raise
    report(1.0)
    return features


def _plan(wave: np.ndarray | Rows, frames: int, tail: Tail) -> _Work:
    if wave.ndim != 1 or wave.dtype.kind != "f":
        raise AudioError(f"Samples of type {wave.dtype} and shape {list(wave.shape)} are not mono.", "Give float [n].")
    if frames < 1 or frames % BLOCK_FRAMES:
        raise AudioError(f"{frames} video frames are no whole blocks.", f"Use a multiple of {BLOCK_FRAMES}.")
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


def _check_model(model: Any) -> None:
    if model.training:
        raise ModelError("The audio encoder is in training mode, where it drops layers at random.", "Call .eval().")
    found = (tuple(model.config.conv_kernel), tuple(model.config.conv_stride))
    if found != (timing.CONV_KERNELS, timing.CONV_STRIDES):
        raise ModelError(
            f"The audio encoder has convolutions {found[0]} with strides {found[1]}.",
            "Use a wav2vec2 model of 50 features a second, such as wav2vec2-large-xlsr-53.",
        )


def _encode_whole(model: Any, work: _Work, check: Callable[[], None]) -> Iterator[np.ndarray]:
    """Frames [n, layers, C] of all audible frames, with the published arithmetic."""
    check()
    indices = torch.from_numpy(work.indices[: work.audible])
    states = hidden_states(model, work.samples(0, work.total))
    picked = torch.empty(len(indices), len(states), states[0].shape[1])
    for layer, state in enumerate(states):
        columns = state.float().cpu().T[None]
        stretched = F.interpolate(columns, size=work.steps, mode="linear", align_corners=True)[0]
        picked[:, layer] = stretched[:, indices].T
    yield picked.numpy()


def _encode_windows(
    model: Any, work: _Work, check: Callable[[], None], report: Callable[[float], None]
) -> Iterator[np.ndarray]:
    """Frames [n, layers, C], in order, as far as the features at hand reach; one feature is carried across borders."""
    left, weight = timing.interpolation(work.features, work.steps, work.indices[: work.audible])
    right = np.minimum(left + 1, work.features - 1)
    done = 0
    carried: np.ndarray | None = None
    for start in range(0, work.features, WINDOW_FEATURES):
        check()
        stop = min(start + WINDOW_FEATURES, work.features)
        rows = _window(model, work, start, stop, carried)
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


def _window(model: Any, work: _Work, start: int, stop: int, carried: np.ndarray | None) -> np.ndarray:
    """float32 features [start, stop) as [n, layers, C], encoded with their context, after the carried one."""
    first = max(0, start - CONTEXT_FEATURES)
    last = min(work.features, stop + CONTEXT_FEATURES)
    begin = first * timing.HOP
    states = hidden_states(model, work.samples(begin, begin + timing.samples_of(last - first)))
    extra = 0 if carried is None else 1
    rows = np.empty((extra + stop - start, len(states), states[0].shape[1]), np.float32)
    if carried is not None:
        rows[0] = carried
    for layer, state in enumerate(states):
        rows[extra:, layer] = state[start - first : stop - first].float().cpu().numpy()
    return rows
