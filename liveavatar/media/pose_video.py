"""A pose video: what the body does. Pictures are read in a stream, 25 a second, and brought to the video's size."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from ..config import FPS
from ..errors import LiveAvatarError, PoseError
from ..request import PoseEnd
from ..utils import check_input_file
from .image import Fit, fit_image
from .image_formats import check_sides
from .video_stream import VideoStream, open_video, upright

Pictures = Generator[np.ndarray, None, None]
"""Pictures uint8 [H, W, 3], one after the other."""
T = TypeVar("T")
_SLACK = 0.005
"""Seconds by which a picture may be late and still counts: containers round time stamps to milliseconds."""
_NEAREST = "Give a video of the pose as MP4, MOV, WebM or MKV."


class PoseSource(Protocol):
    """Where the pictures of a pose video come from."""

    def pictures(self) -> Pictures:
        """All of them from the first one on, uint8 [H, W, 3], 25 a second."""
        ...

    @property
    def seconds(self) -> float | None:
        """How long they last; None where nobody says it."""
        ...


class PoseFile:
    """A video file as a pose video; only a few of its pictures are in memory at a time.

    Args:
        file: its path, or its content.
        start, length: the part of it that is shown, in seconds; without a length all of the rest.

    Raises:
        PoseError: nothing there, no video, or no picture that can be read in that part.
    """

    def __init__(self, file: str | os.PathLike[str] | io.BytesIO, start: float = 0.0, length: float | None = None):
        self._start, self._length = start, length
        self._file = file if isinstance(file, io.BytesIO) else check_input_file(file, "pose video", PoseError)
        self._name = "The pose video" if isinstance(file, io.BytesIO) else str(file)
        self.seconds: float | None = None
        with contextlib.closing(self.pictures()) as pictures:
            if (first := next(pictures, None)) is None:
                raise PoseError(f"{self._name} holds no picture.", _NEAREST)
        check_pose_size(first)

    @property
    def path(self) -> Path | None:
        """The file, where it has a path."""
        return self._file if isinstance(self._file, Path) else None

    def pictures(self) -> Pictures:
        """See `PoseSource`.

        Raises:
            PoseError: damaged.
        """
        with open_video(self._file, self._name, PoseError, _NEAREST) as video:
            self.seconds = video.seconds(self._start, self._length)
            yield from at_25_fps(self._timed(video))

    def _timed(self, video: VideoStream) -> Iterator[tuple[float, float, np.ndarray]]:
        """Begin and end of each picture of the part in seconds, and the picture, upright."""
        first: float | None = None
        for now, frame in video.frames():
            first = now if first is None else first
            if self._length is not None and now - first >= self._start + self._length - _SLACK:
                return
            if now + video.frame_seconds - first > self._start + _SLACK:
                yield now, now + video.frame_seconds, upright(frame)


class PosePictures:
    """Pictures in memory as a pose video, 25 a second.

    Args:
        pictures: uint8 [n, H, W, 3].

    Raises:
        PoseError: none, or another shape or type.
    """

    def __init__(self, pictures: np.ndarray):
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or not pictures.size:
            raise PoseError(
                f"Pose pictures of type {pictures.dtype} and shape {list(pictures.shape)} are not understood.",
                "Give at least one, uint8 [pictures, height, width, 3].",
            )
        check_pose_size(pictures[0])
        self._pictures = pictures

    @property
    def seconds(self) -> float:
        """See `PoseSource`."""
        return len(self._pictures) / FPS

    def pictures(self) -> Pictures:
        """See `PoseSource`."""
        yield from self._pictures


def open_pose(given: object) -> PoseSource | None:
    """A pose video that was given as a file, as pictures, or as a source already; None where none was.

    Raises:
        PoseError: it is none of these, or as `PoseFile` and `PosePictures`.
    """
    if given is None:
        return None
    if isinstance(given, str | os.PathLike | io.BytesIO):
        return PoseFile(given)
    if isinstance(given, np.ndarray):
        return PosePictures(given)
    if callable(getattr(given, "pictures", None)):
        source: PoseSource = given  # type: ignore[assignment]
        return source
    raise PoseError(f"A pose video of type {type(given).__name__} is not understood.", "Give a file or pictures.")


def check_pose_size(picture: np.ndarray) -> None:
    """Refuse pictures that are too small.

    Raises:
        PoseError: a side under 16 pixels.
    """
    try:
        check_sides(picture.shape[1], picture.shape[0], "The pose video")
    except LiveAvatarError as error:
        raise PoseError(error.what, error.nearest) from None


def at_25_fps(timed: Iterator[tuple[float, float, T]]) -> Iterator[T]:
    """At each 1/25 s the latest of those that have begun by then.

    Args:
        timed: begin and end in seconds, and what is shown between them; the first one's begin counts as 0.
    """
    shown, start, end, number = None, None, 0.0, 0
    for begin, until, value in timed:
        start = begin if start is None else start
        while shown is not None and number / FPS < begin - start - _SLACK:
            yield shown
            number += 1
        shown, end = value, until - start
    while shown is not None and number / FPS < end - _SLACK:
        yield shown
        number += 1


def endless_pictures(source: PoseSource, end: PoseEnd, width: int, height: int, fit: Fit) -> Pictures:
    """The pictures of a pose video at the size of the video, and what follows when they end; without end.

    Args:
        end: "hold" shows the last one, "loop" all again, "black" black as published.
        fit: as of `fit_image`.

    Raises:
        PoseError: there is none.
    """
    after = yield from _fitted(source, width, height, fit)
    while end == "loop":
        yield from _fitted(source, width, height, fit)
    after = np.zeros_like(after) if end == "black" else after
    while True:
        yield after


def _fitted(source: PoseSource, width: int, height: int, fit: Fit) -> Generator[np.ndarray, None, np.ndarray]:
    """All pictures at the size of the video; returns the last one."""
    latest: np.ndarray | None = None
    for picture in source.pictures():
        latest = fit_image(np.ascontiguousarray(picture), width, height, fit)
        yield latest
    if latest is None:
        raise PoseError("The pose video holds no picture.", _NEAREST)
    return latest


def pose_note(source: PoseSource, end: PoseEnd, seconds: float) -> str | None:
    """What is to be told of a pose video of another length than the video; None where nothing is known of that."""
    lasts = source.seconds
    if lasts is None or abs(lasts - seconds) < 1 / FPS:
        return None
    if lasts > seconds:
        return f"of the pose video, the first {seconds:.2f} s of {lasts:.2f} s are used"
    then = {"hold": "its last picture is held", "loop": "it is repeated", "black": "black pictures follow"}[end]
    return f"the pose video ends after {lasts:.2f} s of {seconds:.2f} s: {then}"
