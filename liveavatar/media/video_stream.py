"""The pictures of a video file, read in a stream by FFmpeg: a few of them are in memory at a time."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..config import FPS
from ..errors import LiveAvatarError
from .image_formats import MAX_PIXELS

_TICKS = 1_000_000
"""FFmpeg's time base of containers: a second."""


class VideoStream:
    """The pictures of an opened video file (see `open_video`).

    Attributes:
        container, stream: FFmpeg's.
        frame_seconds: how long a picture is shown, where the next one does not say it.
        begin: the earliest time stamp of the file, in seconds.
    """

    def __init__(self, container: Any, stream: Any, name: str, kind: type[LiveAvatarError], nearest: str):
        self.container, self.stream = container, stream
        self._name, self._kind, self._nearest = name, kind, nearest
        self.frame_seconds = float(1 / (stream.guessed_rate or stream.average_rate or FPS))
        self.begin = (container.start_time or 0) / _TICKS

    def frames(self) -> Iterator[tuple[float, Any]]:
        """FFmpeg's frames, each with its time in seconds.

        Raises:
            LiveAvatarError: of the kind that was given; damaged.
        """
        import av

        self.stream.thread_type, now = "AUTO", 0.0
        try:
            for frame in self.container.decode(self.stream):
                now = frame.time if frame.time is not None else now
                yield now, frame
                now += self.frame_seconds
        except (av.error.FFmpegError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or "too large for the memory"
            raise self._kind(f"{self._name} cannot be read beyond {now:.2f} s ({reason}).", self._nearest) from error

    def seconds(self, start: float = 0.0, length: float | None = None) -> float | None:
        """How long a part lasts, as far as the header says it.

        Args:
            start, length: of the part; without a length all of the rest.
        """
        container, stream = self.container, self.stream
        if not stream.duration and not container.duration:
            return length
        whole = stream.duration * stream.time_base if stream.duration else container.duration / _TICKS
        rest = max(0.0, float(whole) - start)
        return rest if length is None else min(rest, length)


@contextlib.contextmanager
def open_video(file: Path | io.BytesIO, name: str, kind: type[LiveAvatarError], nearest: str) -> Iterator[VideoStream]:
    """The pictures of a video file.

    Args:
        file: its path, or its content.
        name: of it, for messages.
        kind, nearest: of errors: what is raised, and what to give in its place.

    Raises:
        LiveAvatarError: of that kind; no video, or pictures that cannot be read.
    """
    import av

    with file.open("rb") if isinstance(file, Path) else io.BytesIO(file.getbuffer()) as content:
        try:
            # a file object: FFmpeg would read a name as a protocol or a pattern
            container = av.open(content, options={"protocol_whitelist": "none"}, metadata_errors="ignore")
        except (av.error.FFmpegError, OSError) as error:
            why = getattr(error, "strerror", None) or error
            raise kind(f"{name} is no video that can be read ({why}).", nearest) from error
        with container:
            if not container.streams.video:
                raise kind(f"{name} holds no pictures.", nearest)
            stream = container.streams.video[0]
            if (form := stream.codec_context) is None:
                raise kind(f"{name} has pictures in a form that cannot be read.", nearest)
            if form.width * form.height > MAX_PIXELS:
                raise kind(f"{name} has too many pixels per picture.", "Scale it down first.")
            yield VideoStream(container, stream, name, kind, nearest)


def upright(frame: Any, **reading: Any) -> np.ndarray:
    """A frame as it is shown, uint8 [H, W, 3].

    Args:
        frame: FFmpeg's.
        reading: how its colours are read, for PyAV.
    """
    rgb = frame.to_ndarray(format="rgb24", **reading)
    return np.ascontiguousarray(np.rot90(rgb, round(getattr(frame, "rotation", 0) / 90)))
