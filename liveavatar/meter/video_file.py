"""A finished video as the meter reads it: its sound, and its frames one by one with the time at which they appear."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np

from ..errors import AudioError, MeterError
from ..media.audio import AudioClip
from ..media.audio_file import ABSOLUTE_TIMES, read_audio
from ..media.video_stream import VideoStream, open_video, upright
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
        with self._opened() as video:
            self.seconds = video.seconds(start, length)

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
        with self._opened() as video:
            zero = 0.0 if video.container.format.name in ABSOLUTE_TIMES else video.begin
            for shown, frame in video.frames():
                time = shown - zero - self._start
                if self._length is not None and time >= self._length - _SLACK:
                    return
                if time >= -_SLACK:
                    yield time, upright(frame)

    def _opened(self) -> contextlib.AbstractContextManager[VideoStream]:
        return open_video(self.path, str(self.path), MeterError, _NEAREST)
