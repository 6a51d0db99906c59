"""What the front door is given: a request by its fields, devices, LoRAs, paths, and the files of a video."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .config import BLOCK_FRAMES
from .errors import LiveAvatarError, LoRAError, PlanError, RequestError, shown
from .media.audio import AudioClip
from .media.image import check_image, read_image
from .media.pose_video import PoseFile, PoseSource, pose_note
from .placement import devices_named
from .request import Request, ResolvedRequest, check_request, frame_count, sample_count
from .speakers import GivenAudio, OpenedSpeakers, files_of_audio, open_audio
from .timed_changes import TimedChange
from .weights.lora import ExtraLoRA

GivenLoRA = str | os.PathLike[str] | tuple[str | os.PathLike[str], float] | ExtraLoRA
"""A further LoRA: its file, alone or with its strength."""
GivenPose = str | os.PathLike[str] | np.ndarray | PoseSource
"""A pose video: its file, or its pictures."""


def request_with(request: Request, options: dict[str, Any]) -> Request:
    """A request with other values in some of its fields.

    Raises:
        RequestError: it is none, or has no such field.
    """
    if not isinstance(request, Request):
        raise RequestError(f"The request is {shown(request)}.", "Give a Request, or its fields by name.")
    known = [field.name for field in dataclasses.fields(Request)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise RequestError(
                f"A request has no {name!r}.", f"Did you mean {near[0]}?" if near else f"It has {', '.join(known)}."
            )
    return dataclasses.replace(request, **options)


def with_pose(resolved: ResolvedRequest, request: Request, pose: PoseSource) -> ResolvedRequest:
    """What will be made where a pose video is followed."""
    note = pose_note(pose, request.pose_end, resolved.seconds)
    return dataclasses.replace(resolved, pose=True, notes=(*resolved.notes, *([note] if note else [])))


def pose_files(pose: PoseSource | None) -> tuple[Path, ...]:
    """The file that a pose video is read from, which nothing may replace; none where it is none."""
    path = pose.path if isinstance(pose, PoseFile) else None
    return () if path is None else (path,)


def devices_of(given: str | Sequence[str]) -> tuple[str, ...]:
    """Devices by name, from a text or a sequence.

    Raises:
        PlanError: they are neither.
    """
    if isinstance(given, str):
        return devices_named(given)
    if isinstance(given, Sequence) and not isinstance(given, bytes):
        return tuple(given)
    raise PlanError(f"The devices {shown(given)} are not understood.", "Give their names: ['cuda:0', 'cuda:1'].")


def extra_lora_of(given: object) -> ExtraLoRA:
    """A further LoRA, given as a path or with its strength.

    Raises:
        LoRAError: it is neither.
    """
    if isinstance(given, ExtraLoRA):
        return given
    file, strength = given if isinstance(given, tuple) and len(given) == 2 else (given, 1.0)
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise LoRAError(f"The strength {shown(strength)} of a LoRA is no number.", "Give 1, for example.")
    return ExtraLoRA(Path(path_given(file, "The LoRA", LoRAError)), float(strength))


def path_given(given: object, what: str, kind: type[LiveAvatarError]) -> str:
    """The path of something that is read.

    Raises:
        LiveAvatarError: of that kind; it is no path.
    """
    if isinstance(given, str | os.PathLike) and isinstance(path := os.fspath(given), str):
        return path
    raise kind(f"{what} of type {type(given).__name__} is no path.", "Give a text or a pathlib.Path.")


def read_portraits(timeline: Sequence[TimedChange], notes: list[str] | None = None) -> dict[Path, np.ndarray]:
    """The portraits of a timeline, uint8 [H, W, 3], by their files.

    Args:
        timeline: of a request.
        notes: as of `read_inputs`.

    Raises:
        ImageError: one cannot be read or used.
    """
    files = dict.fromkeys(change.image for change in timeline if change.image is not None)
    return {file: read_image(file, notes) for file in files}


def read_inputs(
    image: str | os.PathLike[str] | np.ndarray | None,
    audio: GivenAudio,
    seconds: float | None = None,
    notes: list[str] | None = None,
) -> tuple[np.ndarray | None, AudioClip | OpenedSpeakers, tuple[Path, ...]]:
    """The image as uint8 [H, W, 3], (the first seconds of) the audio, and the files they were read from.

    Args:
        image, audio: files, or what is decoded already; the image may be left out, and speakers be given for audio.
        seconds: of the audio that are used; None: all.
        notes: a sentence is added for everything of the image that is left out or altered.

    Raises:
        ImageError, AudioError, SpeakerError: what cannot be read or used.
    """
    pixels = (
        None if image is None else check_image(image) if isinstance(image, np.ndarray) else read_image(image, notes)
    )
    files = [image, *files_of_audio(audio)]
    return pixels, open_audio(audio, seconds), tuple(Path(f) for f in files if isinstance(f, str | os.PathLike))


def used_audio(audio: AudioClip, seconds: float | None) -> tuple[AudioClip, int]:
    """The part of audio that is used, and the blocks that cover it."""
    request = Request(seconds=seconds)
    check_request(request)
    used = sample_count(request, len(audio.samples), audio.rate)
    return audio.limited(used / audio.rate), -(-frame_count(used, audio.rate) // BLOCK_FRAMES)
