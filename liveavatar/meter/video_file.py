"""A finished video as the meter reads it: its sound, and its frames one by one with the time at which they appear."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..config import FPS
from ..errors import AudioError, MeterError
from ..media.audio import AudioClip
from ..media.audio_file import ABSOLUTE_TIMES, read_audio
from ..media.image_formats import MAX_PIXELS
from ..utils import check_input_file

_SLACK = 0.005
"""Seconds by which containers round time stamps."""
_NEAREST = "Give a finished video with pictures and sound: MP4, MOV, MKV or WebM."


class VideoFile:
    """A video file; of its pictures a few are in memory at a time.

    Args:
        path: of the file.
        start, length: the part of it that is measured, in seconds; without a length all of the rest.

    Attributes:
        seconds: how long that part is, as far as the file says it; None where it does not.

    Raises:
        MeterError: nothing there, no video, or no pictures.
    """

    def __init__(self, path: str | os.PathLike[str], start: float = 0.0, length: float | None = None):
        self.path = check_input_file(path, "video", MeterError)
        self._start, self._length = start, length
        with self._opened() as (container, stream):
            self.seconds = self._promised_seconds(container, stream)

    def audio(self) -> AudioClip:
        """The sound of the part.

        Raises:
            MeterError: there is none.
        """
        try:
            clip = read_audio(self.path, None if self._length is None else self._start + self._length)
        except AudioError as error:
            raise MeterError(f"The sound of {self.path} cannot be measured: {error.what}", error.nearest) from error
        first = round(self._start * clip.rate)
        if first >= len(clip.samples):
            raise MeterError(f"{self.path} has no sound from {self._start:.2f} s on.", "Measure an earlier part.")
        return AudioClip(clip.samples[first:], clip.rate, clip.source, clip.notes)

    def frames(self) -> Iterator[tuple[float, np.ndarray]]:
        """When a frame appears, in seconds from the start of the part, and the frame uint8 [H, W, 3], upright.

        Raises:
            MeterError: damaged.
        """
        import av

        now = 0.0
        with self._opened() as (container, stream):
            stream.thread_type = "AUTO"
            lasts = float(1 / (stream.guessed_rate or stream.average_rate or FPS))
            absolute = container.format.name in ABSOLUTE_TIMES
            zero = 0.0 if absolute else (container.start_time or 0) / av.time_base
            try:
                for frame in container.decode(stream):
                    now = frame.time - zero if frame.time is not None else now + lasts
                    time = now - self._start
                    if self._length is not None and time >= self._length - _SLACK:
                        return
                    if time >= -_SLACK:
                        yield time, _upright(frame)
            except (av.error.FFmpegError, MemoryError) as error:
                reason = getattr(error, "strerror", None) or "too large for the memory"
                raise MeterError(f"{self.path} cannot be read beyond {now:.2f} s ({reason}).", _NEAREST) from error

    def _promised_seconds(self, container: Any, stream: Any) -> float | None:
        import av

        if not stream.duration and not container.duration:
            return self._length
        whole = stream.duration * stream.time_base if stream.duration else container.duration / av.time_base
        rest = max(0.0, float(whole) - self._start)
        return rest if self._length is None else min(rest, self._length)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """FFmpeg's container of the file, and its stream of pictures."""
        import av

        with self.path.open("rb") as file:
            try:
                # a file object: FFmpeg would read a name as a protocol or a pattern
                container = av.open(file, options={"protocol_whitelist": "none"}, metadata_errors="ignore")
            except (av.error.FFmpegError, OSError) as error:
                why = getattr(error, "strerror", None) or error
                raise MeterError(f"{self.path} is no video that can be read ({why}).", _NEAREST) from error
            with container:
                stream = next(iter(container.streams.video), None)
                if stream is None or stream.codec_context is None:
                    raise MeterError(f"{self.path} holds no pictures.", _NEAREST)
                if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
                    raise MeterError(f"{self.path} has too many pixels per picture.", "Scale it down first.")
                yield container, stream


def _upright(frame: Any) -> np.ndarray:
    rgb = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(rgb, round(getattr(frame, "rotation", 0) / 90)))
