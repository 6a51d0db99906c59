"""The timeline that a user writes: prompts and portraits by time, and the blocks at which they begin."""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from .config import BLOCK_FRAMES, FPS
from .errors import RequestError, shown

MAX_CHANGES = 1000
"""Lines of a timeline; what they are encoded to lies in memory."""
MAX_TEXT = 1 << 20
"""Letters of a timeline."""
_LINE = re.compile(r"\s*(?P<time>\d{1,7}(?:[:：]\d{1,2}){0,2}(?:\.\d{1,6})?)\s*[:：](?P<text>.*)")
_IMAGE = re.compile(r"image\s*[:：]\s*(?P<file>.*)", re.IGNORECASE)
_EXAMPLE = 'Write a time, a colon and the prompt: "12.5: She laughs." or "1:05: She laughs."'


@dataclasses.dataclass(frozen=True)
class TimedChange:
    """A line of a timeline: either a prompt or a portrait.

    Attributes:
        seconds: of the video, from which on it holds.
        prompt: that takes the place of the one before.
        image: file of the portrait that takes the place of the one before.
    """

    seconds: float
    prompt: str | None = None
    image: Path | None = None


@dataclasses.dataclass(frozen=True)
class BlockChanges:
    """A timeline on the blocks of a video.

    Attributes:
        first_prompt: that of block 0; None where the timeline names none.
        prompts, images: `(block, what)` from block 1 on, ascending.
        notes: what has no effect, a sentence each.
    """

    first_prompt: str | None = None
    prompts: tuple[tuple[int, str], ...] = ()
    images: tuple[tuple[int, Path], ...] = ()
    notes: tuple[str, ...] = ()


def parse_timeline(text: str, folder: Path | None = None) -> tuple[TimedChange, ...]:
    """Read lines of a time, a colon and a prompt: `12.5: She laughs.`, `1:05: ...`, `1:02:03.5: ...`.

    Empty lines and those that begin with # are left out. The prompt may hold colons.

    Args:
        text: of the lines.
        folder: that files of portraits (`20: image: FILE`) are named from; None: there may be none.

    Raises:
        RequestError: naming the line and what is wrong with it.
    """
    if not isinstance(text, str):
        raise RequestError(f"The timeline is of type {type(text).__name__}.", "Give a text.")
    if len(text) > MAX_TEXT:
        raise RequestError(f"The timeline has {len(text):,} letters.", f"The most are {MAX_TEXT:,}.")
    changes: list[TimedChange] = []
    times: dict[bool, tuple[int, float]] = {}
    latest = (0, 0.0)
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        change = _parse_line(number, line, folder)
        if change.seconds < latest[1]:
            raise _wrong(number, f"({change.seconds:g} s) is earlier than line {latest[0]}", "Order the lines by time.")
        kind = change.image is None
        if kind in times and times[kind][1] == change.seconds:
            raise _wrong(number, f"has the same time as line {times[kind][0]}", "Leave one of them out.")
        latest = times[kind] = number, change.seconds
        changes.append(change)
    check_timeline(changes)
    return tuple(changes)


def read_timeline(file: str) -> tuple[TimedChange, ...]:
    """A timeline from a file in UTF-8; portraits are named from its folder.

    Raises:
        RequestError: it cannot be read, or as `parse_timeline`.
    """
    place = Path(file)
    try:
        with place.open("rb") as opened:
            content = opened.read(4 * MAX_TEXT + 4)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise RequestError(f"The timeline {file} cannot be read ({why}).", "Give a text file.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"The timeline {file} is no text in UTF-8.", "Save it as UTF-8.") from error
    return parse_timeline(text, place.parent)


def check_timeline(changes: Sequence[TimedChange]) -> None:
    """Refuse a timeline that no video can have.

    Raises:
        RequestError: naming the change and what is wrong with it.
    """
    if not isinstance(changes, Sequence) or not all(isinstance(change, TimedChange) for change in changes):
        raise RequestError(f"The timeline {shown(changes)} is not understood.", "Give a tuple of TimedChange.")
    if len(changes) > MAX_CHANGES:
        raise RequestError(f"The timeline has {len(changes):,} changes.", f"The most are {MAX_CHANGES:,}.")
    before = 0.0
    for change in changes:
        seconds = change.seconds
        if isinstance(seconds, bool) or not isinstance(seconds, numbers.Real) or not 0 <= seconds < math.inf:
            raise RequestError(f"The timeline has a change at {shown(seconds)}.", "Give seconds from 0 on.")
        if (change.prompt is None) == (change.image is None):
            raise RequestError(f"The change at {seconds:g} s is not one thing.", "Give a prompt, or a portrait's file.")
        if not isinstance(change.prompt, str | None) or not isinstance(change.image, Path | None):
            raise RequestError(f"The change at {seconds:g} s is {shown(change)}.", "Give a text, or a pathlib.Path.")
        if seconds < before:
            raise RequestError(f"The change at {seconds:g} s comes after a later one.", "Order the timeline by time.")
        before = seconds


def changes_by_block(changes: Sequence[TimedChange], blocks: int, drop: int = 0) -> BlockChanges:
    """A timeline on the blocks of a video: each change begins with the block whose beginning is nearest to it.

    Args:
        changes: in order.
        blocks: of the video.
        drop: frames of block 0 that are not seen.

    Raises:
        RequestError: two of a kind begin with the same block; a portrait begins with the video.
    """
    starts = [block_at(change.seconds, drop) for change in changes]
    seen = [(block, change) for block, change in zip(starts, changes, strict=True) if block < blocks]
    for is_prompt in (True, False):
        _check_apart([(block, change) for block, change in seen if (change.image is None) == is_prompt])
    prompts = [(block, change.prompt) for block, change in seen if change.prompt is not None]
    images = [(block, change.image) for block, change in seen if change.image is not None]
    if images and images[0][0] == 0:
        raise RequestError(
            f"The timeline names the portrait {images[0][1]} for the beginning of the video.",
            "Give it as the portrait of the video, or a time after 0.24 s.",
        )
    late = [change for block, change in zip(starts, changes, strict=True) if block >= blocks]
    has_first = bool(prompts) and prompts[0][0] == 0
    return BlockChanges(
        first_prompt=prompts[0][1] if has_first else None,
        prompts=tuple(prompts[has_first:]),
        images=tuple(images),
        notes=tuple(_late_notes(late)),
    )


def block_at(seconds: float, drop: int = 0) -> int:
    """The block whose beginning is nearest to a time of the video."""
    return math.floor((seconds * FPS + drop) / BLOCK_FRAMES + 0.5)


def _late_notes(late: Sequence[TimedChange]) -> Iterator[str]:
    if late:
        count = "1 change" if len(late) == 1 else f"{len(late)} changes"
        yield f"{count} of the timeline, from {late[0].seconds:g} s on, would come after the end of the video"


def _check_apart(changes: Sequence[tuple[int, TimedChange]]) -> None:
    """Refuse two changes of one kind that begin with the same block."""
    for (block, first), (following, second) in itertools.pairwise(changes):
        if block == following:
            raise RequestError(
                f"The changes at {first.seconds:g} s and {second.seconds:g} s fall on the same block of "
                f"{BLOCK_FRAMES / FPS:g} s.",
                "Leave one of them out, or give them times that are further apart.",
            )


def _parse_line(number: int, line: str, folder: Path | None) -> TimedChange:
    found = _LINE.fullmatch(line.rstrip())
    if not found:
        raise _wrong(number, f"is {shown(line.strip())}, and begins with no time and colon", _EXAMPLE)
    text = found["text"]
    if text[:1].isdigit():  # 12:30 people: a time without its colon, or a prompt that begins with a number
        time, rest = found["time"], text.strip()
        raise _wrong(number, f"({shown(line.strip())}) can be read in two ways", f'Write "{time}: {rest}", spaced so.')
    seconds, text = _seconds(number, found["time"]), text.strip()
    if image := _IMAGE.fullmatch(text):
        return TimedChange(seconds, image=_image_file(number, image["file"].strip(), folder))
    if not text:
        raise _wrong(number, f"({shown(line.strip())}) has no prompt after its time", _EXAMPLE)
    return TimedChange(seconds, prompt=text)


def _image_file(number: int, name: str, folder: Path | None) -> Path:
    if folder is None:
        raise _wrong(
            number,
            "names the file of a portrait, which only a timeline of the command line may",
            "Write prompts alone.",
        )
    if not name:
        raise _wrong(number, "names no file after image:", 'Write "20: image: other.png", for example.')
    return folder / name


def _seconds(number: int, time: str) -> float:
    """12.5, 1:05 or 1:02:03.5."""
    *above, last = re.split("[:：]", time)
    parts = [float(part) for part in (*above, last)]
    if any(part >= 60 for part in parts[1:]):
        raise _wrong(number, f"has the time {time}, with 60 minutes or seconds or more", "Use 0 to 59, as in 1:05.")
    seconds = 0.0
    for part in parts:
        seconds = 60 * seconds + part
    return seconds


def _wrong(number: int, what: str, nearest: str) -> RequestError:
    return RequestError(f"Line {number} of the timeline {what}.", nearest)
