"""The meter: a finished video in, lip sync and likeness by the minute out. It is read in a stream."""

from __future__ import annotations

import dataclasses
import math
import os

import numpy as np

from ..errors import MeterError
from ..events import Callback, PhaseProgress, ignore, share_event
from ..media.audio import mono_16k
from .faces import FaceReader, LandmarkReader
from .likeness import Likeness, drift, likeness
from .lip_sync import RATE, LipSync, lip_sync, loudness, on_clock
from .video_file import VideoFile

LISTENING, WATCHING = "reading the sound", "watching the face"
"""Phases."""
MINUTE = 60.0
_REST = 10.0
"""Seconds at the end that are no row of their own."""
_EMBED_EVERY = 1.0
"""Seconds between two looks at who it is; in the first second there are several, which make the reference."""
_FIRST, _FIRST_EVERY = 1.0, 0.2


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A part of a video.

    Attributes:
        start, stop: seconds.
        seen: share of its frames that show a face.
        lips, likeness: what was measured.
    """

    start: float
    stop: float
    seen: float
    lips: LipSync
    likeness: Likeness


@dataclasses.dataclass(frozen=True)
class Report:
    """What the meter says of a video.

    Attributes:
        video: its name.
        seconds, frames: how much was measured.
        reader: what read the face.
        reference: what faces were compared with: "the portrait", or "the first second".
        same_person: largest distance of two faces that the reader takes for one person.
        whole: all of it.
        minutes: one after the other.
        drift: how much the distance grows in a minute; None of a short video.
        notes: what is to be told of the sound, a sentence each.
    """

    video: str
    seconds: float
    frames: int
    reader: str
    reference: str
    same_person: float
    whole: Stretch
    minutes: tuple[Stretch, ...]
    drift: float | None
    notes: tuple[str, ...] = ()


class _Seen:
    """What was read of the frames: a few numbers of each."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.openings: list[float] = []
        self.embedded: list[float] = []
        self.distances: list[float] = []

    def lacks_faces(self) -> bool:
        """Whether no frame had one."""
        return not np.isfinite(self.openings).any()


def measure(
    video: VideoFile | str | os.PathLike[str],
    portrait: np.ndarray | None = None,
    reader: FaceReader | None = None,
    callback: Callback = ignore,
) -> Report:
    """Measure lip sync and likeness of a finished video.

    Args:
        video: the file.
        portrait: uint8 [H, W, 3], whom the face should be like; None: the face of the first second.
        reader: of the face; None: landmarks, for photographs.
        callback: called with events; what it raises (`Cancelled`) stops the work.

    Raises:
        MeterError: no video, no sound, no face in it or in the portrait, or what reads faces is not installed.
    """
    video = video if isinstance(video, VideoFile) else VideoFile(video)
    reader = reader or LandmarkReader()
    reference = None
    if portrait is not None and (reference := reader.embedding(portrait)) is None:
        raise MeterError("No face is found in the portrait.", "Give one that shows a face from the front, or none.")
    callback(share_event(LISTENING, 0.0))
    audio = video.audio()
    decibels = loudness(mono_16k(audio))
    seen = _watch(video, reader, reference, PhaseProgress(callback, WATCHING))
    if seen.lacks_faces():
        raise MeterError(
            f"No face is found in {video.path}.",
            f"The meter reads {reader.name}: give a video of a person who is seen from the front.",
        )
    compared = "the first second" if portrait is None else "the portrait"
    return _report(video, reader, compared, seen, decibels, audio.notes)


def _watch(video: VideoFile, reader: FaceReader, reference: np.ndarray | None, progress: PhaseProgress) -> _Seen:
    """Read all frames."""
    seen, due = _Seen(), 0.0
    first: list[np.ndarray] = []
    for time, frame in video.frames():
        embed = time >= due
        face = reader.read(frame, embed)
        seen.times.append(time)
        seen.openings.append(np.nan if face is None else face.opening)
        if face is not None and face.embedding is not None:
            beginning = reference is None and (not first or time < _FIRST)
            due = time + (_FIRST_EVERY if beginning else _EMBED_EVERY)
            if beginning:
                first.append(face.embedding)
                continue
            reference = np.mean(first, axis=0) if reference is None else reference
            seen.embedded.append(time)
            seen.distances.append(reader.distance(face.embedding, reference))
        progress(time / (video.seconds or math.inf))
    return seen


def _report(
    video: VideoFile, reader: FaceReader, reference: str, seen: _Seen, decibels: np.ndarray, notes: tuple[str, ...]
) -> Report:
    seconds = seen.times[-1] + (seen.times[-1] - seen.times[0]) / max(len(seen.times) - 1, 1)
    opening = on_clock(seen.times, seen.openings, round(seconds * RATE))
    heard = np.full(len(opening), np.nan, np.float32)
    heard[: len(decibels)] = decibels[: len(heard)]

    times, embedded = np.array(seen.times), np.array(seen.embedded)
    is_seen, distances = np.isfinite(seen.openings), np.array(seen.distances)

    def stretch(start: float, stop: float) -> Stretch:
        shown = is_seen[slice(*np.searchsorted(times, (start, stop)))]
        share = shown.mean() if len(shown) else 0.0
        lips = lip_sync(opening, heard, round(start * RATE), round(stop * RATE))
        apart = distances[slice(*np.searchsorted(embedded, (start, stop)))]
        return Stretch(round(start, 2), round(stop, 2), round(float(share), 3), lips, likeness(apart))

    return Report(
        video=video.path.name,
        seconds=round(seconds, 2),
        frames=len(seen.times),
        reader=reader.name,
        reference=reference,
        same_person=reader.same_person,
        whole=stretch(0.0, seconds),
        minutes=tuple(stretch(start, stop) for start, stop in minutes(seconds)),
        drift=drift(seen.embedded, seen.distances),
        notes=notes,
    )


def minutes(seconds: float) -> list[tuple[float, float]]:
    """Begin and end of each minute of a video; a short rest belongs to the one before."""
    count = max(1, int((seconds + MINUTE - _REST) // MINUTE))
    return [(MINUTE * i, seconds if i == count - 1 else MINUTE * (i + 1)) for i in range(count)]
