"""Sound that arrives while it is used: pushed at any rate by one thread, taken block by block by another."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from typing import Any

import numpy as np

from ..config import AUDIO_SAMPLE_RATE, BLOCK_FRAMES, FPS
from ..errors import AudioError, RequestError
from ..media.audio import MAX_PEAK, check_rate

OUTPUT_RATE = 48_000
"""Samples per second of the sound that goes out with the picture."""
_TIMES = OUTPUT_RATE // AUDIO_SAMPLE_RATE
BLOCK_SECONDS = BLOCK_FRAMES / FPS
BLOCK_SAMPLES = int(BLOCK_SECONDS * AUDIO_SAMPLE_RATE)
"""Of one block, at 16 kHz."""
BACKLOG_SECONDS = 30.0
"""The most sound that waits; a live speaker is never that far ahead."""


@dataclasses.dataclass(frozen=True)
class BlockAudio:
    """The sound of one block.

    Attributes:
        heard: float32 [7680] mono at 16 kHz, for the audio encoder.
        ahead: what follows it, as far as it is known: float32 [look-ahead] at 16 kHz, silence where nothing is.
        output: float32 [23040] mono at 48 kHz, for the listener.
        silence: samples of `heard` before speech that were filled in; 7680 where nobody speaks.
        spoken: samples of `heard` that were pushed.
    """

    heard: np.ndarray
    ahead: np.ndarray
    output: np.ndarray
    silence: int
    spoken: int


class AudioFeed:
    """Sound on its way: a queue of samples in both rates that are needed. Every method may be called from any thread.

    Args:
        backlog: seconds of sound that may wait.
    """

    def __init__(self, backlog: float = BACKLOG_SECONDS):
        self._backlog = int(backlog * AUDIO_SAMPLE_RATE)
        self._changed = threading.Condition()
        self._heard, self._output = _Samples(), _Samples()
        self._resamplers: tuple[int, Any, Any] | None = None
        self._pushed_at = 0.0
        self._flushed = self._ended = False

    def push(self, samples: np.ndarray, rate: int) -> None:
        """Add sound.

        Args:
            samples: [n] or [n, channels], float32 in -1..1 or int16.
            rate: samples per second.

        Raises:
            AudioError: other samples or an unusable rate.
            RequestError: more than the backlog would wait, or the feed has ended; nothing was added.
        """
        mono = _mono(samples)
        check_rate(rate, "the live sound")
        with self._changed:
            if self._ended:
                raise RequestError("The sound has ended; no more can be added.", "Open another session.")
            if self._there + len(mono) / rate * AUDIO_SAMPLE_RATE > self._backlog:
                raise RequestError(
                    f"{self._there / AUDIO_SAMPLE_RATE:.1f} s of sound wait already; {len(mono) / rate:.1f} s more "
                    "are too much.",
                    f"Push at the pace of speech; up to {self._backlog / AUDIO_SAMPLE_RATE:g} s may wait.",
                )
            self._append(mono, rate)
            self._pushed_at, self._flushed = time.monotonic(), False
            self._changed.notify_all()

    def end_of_speech(self) -> None:
        """Let what was pushed be used to its last sample without waiting for more; more may come later."""
        with self._changed:
            self._flush()
            self._changed.notify_all()

    def end(self) -> None:
        """No more will come."""
        with self._changed:
            self._flush()
            self._ended = True
            self._changed.notify_all()

    def clear(self) -> float:
        """Drop all that no block has taken. Returns its seconds."""
        with self._changed:
            dropped = self._there / AUDIO_SAMPLE_RATE
            self._heard, self._output, self._resamplers = _Samples(), _Samples(), None
            self._flushed = True
            self._changed.notify_all()
            return dropped

    @property
    def queued_seconds(self) -> float:
        """Sound that waits."""
        with self._changed:
            return self._there / AUDIO_SAMPLE_RATE

    @property
    def queued(self) -> int:
        """Samples that wait, at 16 kHz."""
        with self._changed:
            return self._there

    @property
    def ended(self) -> bool:
        """Whether no more will come."""
        return self._ended

    def wait_for_change(self, timeout: float) -> None:
        """Wait for sound, its end, or so many seconds."""
        with self._changed:
            self._changed.wait(timeout)

    @property
    def waiting(self) -> tuple[int, bool]:
        """Samples that wait, at 16 kHz, and whether nothing more is expected of what is being said."""
        with self._changed:
            return self._there, self._flushed or self._ended

    @property
    def seconds_since_push(self) -> float:
        """How long ago sound came last."""
        return time.monotonic() - self._pushed_at

    def take(self, ahead: int, silence: int = 0) -> BlockAudio:
        """The next block's sound.

        Args:
            ahead: samples of look-ahead, at 16 kHz.
            silence: samples of silence before the sound, at 16 kHz, 0 to 7680.
        """
        with self._changed:
            spoken = min(BLOCK_SAMPLES - silence, self._there)
            heard, output = np.zeros(BLOCK_SAMPLES, np.float32), np.zeros(BLOCK_SAMPLES * _TIMES, np.float32)
            heard[silence : silence + spoken] = self._heard.take(spoken)
            output[silence * _TIMES : (silence + spoken) * _TIMES] = self._output.take(spoken * _TIMES)
            after = np.zeros(ahead, np.float32)
            if silence + spoken == BLOCK_SAMPLES or not spoken:
                seen = self._heard.peek(ahead) if spoken else np.zeros(0, np.float32)
                after[: len(seen)] = seen
            return BlockAudio(heard, after, output, silence if spoken else BLOCK_SAMPLES, spoken)

    @property
    def _there(self) -> int:
        """Samples at 16 kHz that are there in both rates; one resampler may lag behind the other."""
        return min(len(self._heard), len(self._output) // _TIMES)

    def _append(self, mono: np.ndarray, rate: int) -> None:
        import soxr

        if self._resamplers is None or self._resamplers[0] != rate:
            self._flush()
            heard, output = (
                soxr.ResampleStream(rate, to, 1, dtype="float32", quality="HQ")
                for to in (AUDIO_SAMPLE_RATE, OUTPUT_RATE)
            )
            self._resamplers = rate, heard, output
        self._add(*(stream.resample_chunk(mono) for stream in self._resamplers[1:]))

    def _flush(self) -> None:
        """Get out what the resamplers hold back."""
        if self._resamplers is not None:
            empty = np.zeros(0, np.float32)
            self._add(*(stream.resample_chunk(empty, last=True) for stream in self._resamplers[1:]))
            self._level()
        self._resamplers, self._flushed = None, True

    def _add(self, heard: np.ndarray, output: np.ndarray) -> None:
        self._heard.add(heard)
        self._output.add(output)

    def _level(self) -> None:
        """Make both queues end at the same time: their resamplers round the end differently."""
        missing = len(self._heard) * _TIMES - len(self._output)
        if missing > 0:
            self._output.add(np.zeros(missing, np.float32))
        elif missing < 0:
            self._heard.add(np.zeros(-(missing // _TIMES), np.float32))
            self._output.add(np.zeros(len(self._heard) * _TIMES - len(self._output), np.float32))


class _Samples:
    """A queue of samples."""

    def __init__(self) -> None:
        self._pieces: deque[np.ndarray] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, samples: np.ndarray) -> None:
        if len(samples):
            self._pieces.append(np.array(samples, np.float32))
            self._count += len(samples)

    def peek(self, count: int) -> np.ndarray:
        """The first so many, or all there are."""
        found: list[np.ndarray] = []
        for piece in self._pieces:
            if count <= 0:
                break
            found.append(piece[:count])
            count -= len(piece)
        return np.concatenate(found) if found else np.zeros(0, np.float32)

    def take(self, count: int) -> np.ndarray:
        """The first so many, which leave; at most as many as there are."""
        taken = self.peek(count)
        left = len(taken)
        self._count -= left
        while left:
            piece = self._pieces.popleft()
            if len(piece) > left:
                self._pieces.appendleft(piece[left:])
            left -= min(left, len(piece))
        return taken


def _mono(samples: np.ndarray) -> np.ndarray:
    """Samples as float32 [n].

    Raises:
        AudioError: no such samples.
    """
    values = np.asarray(samples)
    if values.dtype == np.int16:
        values = values.astype(np.float32) / 2**15
    if values.dtype.kind != "f" or values.ndim not in (1, 2):
        raise AudioError(
            f"Samples of type {values.dtype} and shape {list(values.shape)} are not understood.",
            "Push float32 in -1..1 or int16, [n] or [n, channels].",
        )
    mono = values.astype(np.float32) if values.ndim == 1 else values.mean(1, dtype=np.float32)
    if not np.isfinite(mono).all() or np.abs(mono).max(initial=0.0) > MAX_PEAK:
        raise AudioError("The live sound holds values that are no samples.", "Push float32 in -1..1 or int16.")
    return mono
