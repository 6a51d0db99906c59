"""The last frames of a video file, for one that goes on from them."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..config import FPS
from ..errors import StateError
from ..request import MAX_AREA
from ..utils import check_input_file
from .video_stream import VideoStream, open_video, upright

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
_BT709, _BT601 = 1, 5
"""FFmpeg's numbers."""
_UNKNOWN_COLOURS = 2
_MARGIN_SECONDS = 1.0
"""Further back than the frames that are wanted: time stamps need not be even."""
_NEAREST = "Give an MP4 that this project has made, or the state of a video."


@dataclasses.dataclass(frozen=True)
class LastFrames:
    """The end of a video.

    Attributes:
        frames: uint8 [n, H, W, 3].
        first: the very first frame of the video, uint8 [H, W, 3].
        fps: frames per second.
    """

    frames: np.ndarray
    first: np.ndarray
    fps: float

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.frames.shape[2], self.frames.shape[1]


def read_last_frames(path: str | os.PathLike[str], count: int) -> LastFrames:
    """The last `count` frames of a video; of a shorter one all.

    Raises:
        StateError: no such file, no picture in it, or one that cannot be decoded.
    """
    import av

    place = check_input_file(path, "video", StateError)
    try:
        with open_video(place, str(path), StateError, _NEAREST) as video:
            return _last(video, place, count)
    except (OSError, ValueError, MemoryError, av.error.FFmpegError) as error:
        raise StateError(f"{path} is not a video that can be read ({error}).", _NEAREST) from error


def _last(video: VideoStream, path: Path, count: int) -> LastFrames:
    container, stream = video.container, video.stream
    if stream.width * stream.height > MAX_AREA:
        raise StateError(f"{path} is {stream.width}x{stream.height}, larger than any video of ours.", _NEAREST)
    fps = Fraction(stream.average_rate or FPS)
    first = next(container.decode(stream), None)
    if first is None:
        raise StateError(f"{path} holds no picture.", _NEAREST)
    start = stream.start_time or 0
    back = int((count / fps + Fraction(_MARGIN_SECONDS)) / stream.time_base)
    container.seek(max(start, start + (stream.duration or 0) - back), stream=stream)
    kept: deque[Any] = deque(container.decode(stream), maxlen=count)
    return LastFrames(np.stack([_rgb(frame) for frame in kept]), _rgb(first), float(fps))


def _rgb(frame: Any) -> np.ndarray:
    """A frame as uint8 [H, W, 3], upright; where it does not say what its colours mean, as players take them."""
    colours = frame.colorspace
    if colours == _UNKNOWN_COLOURS:
        colours = _BT709 if frame.height >= 720 else _BT601
    return upright(frame, src_colorspace=int(colours))
