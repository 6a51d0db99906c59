"""Several speakers on the command line: `--speaker AUDIO:MASK`, once for each; in a live talk, `--speaker MASK`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RequestError, shown
from .parser import whole_number

if TYPE_CHECKING:
    from ..speakers import GivenAudio, OpenedMask, Speaker, SpeakerReport

_ONE_BY_ONE = "Name several speakers one by one: --speaker a.wav:left.png --speaker b.wav:right.png."


def add_audio_arguments(parser: argparse.ArgumentParser) -> None:
    """What is said, by one or by several."""
    parser.add_argument("--audio", metavar="W", help="the voice, any sound file")
    parser.add_argument(
        "--speaker",
        action="append",
        metavar="AUDIO[:MASK]",
        help="in place of --audio, once for each of several speakers: their sound, and a picture of any size in the "
        "portrait's shape that is white where their face is; or a half of it: left, right. Of one alone the mask may "
        "be left out",
    )


def add_mask_argument(parser: argparse.ArgumentParser) -> None:
    """Who speaks where their sounds are not known yet."""
    parser.add_argument(
        "--speaker",
        action="append",
        default=[],
        metavar="MASK",
        help="once for each of several speakers: a picture of any size in the portrait's shape that is white where "
        "their face is; or a half of it: left, right",
    )


def add_speaker_count_argument(parser: argparse.ArgumentParser) -> None:
    """How many will speak, where only that is known."""
    parser.add_argument(
        "--speakers", type=whole_number(2), default=1, metavar="N", help="how many speak in one picture (default: 1)"
    )


def check_speaker_count(count: int) -> None:
    """Make sure that so many can speak.

    Raises:
        RequestError: they cannot.
    """
    from ..speakers import MAX_SPEAKERS

    if not 1 <= count <= MAX_SPEAKERS:
        raise RequestError(f"--speakers {count} is not possible.", f"Use 1 to {MAX_SPEAKERS}.")


def spoken_of(arguments: argparse.Namespace) -> GivenAudio:
    """What the video is spoken by, as it was named.

    Raises:
        RequestError: nothing, or both a voice and speakers.
    """
    audio, speakers = arguments.audio, arguments.speaker
    if audio is not None and speakers:
        raise RequestError(
            "--audio and --speaker were both given.", "Use --audio for one voice, or --speaker for each of several."
        )
    if speakers:
        return [parse_speaker(text) for text in speakers]
    if audio is None:
        raise RequestError(
            "The following arguments are required: --audio.",
            "Name a sound file, or several speakers with --speaker; see generate --help.",
        )
    parts = audio.split("+")
    if len(parts) > 1 and not _is_file(audio) and all(map(_is_file, parts)):
        raise RequestError(f"There is no sound at {audio}.", _ONE_BY_ONE)
    return str(audio)


def parse_speaker(text: str) -> Speaker:
    """A speaker as it is written: AUDIO:MASK, or AUDIO alone.

    Names may have colons: what is a file as a whole has no mask; else the colon counts that has a sound and a mask on
    its sides, or the sound alone, or the mask alone; and where nothing is there, the last one that does not follow the
    letter of a drive.

    Raises:
        RequestError: nothing is named before or behind the colon.
    """
    from ..speakers import HALVES, Speaker

    if _is_file(text):
        return Speaker(text)
    if not text.strip() or text.startswith(":") or (text.endswith(":") and _is_file(text[:-1])):
        lacks = "mask after its colon" if text.endswith(":") and text != ":" else "sound"
        raise RequestError(f"--speaker {shown(text)} names no {lacks}.", "Write --speaker AUDIO:MASK.")
    colons = [i for i, letter in enumerate(text) if letter == ":" and text[i + 1 :]]
    sounds = [i for i in colons if _is_file(text[:i])]
    masks = [i for i in colons if text[i + 1 :] in HALVES or _is_file(text[i + 1 :])]
    both = [i for i in sounds if i in masks]
    likely = both or sounds or masks or [i for i in colons if not _is_drive(text, i)]
    return Speaker(text[: likely[-1]], text[likely[-1] + 1 :]) if likely else Speaker(text)


def speaker_lines(reports: Iterable[SpeakerReport]) -> list[str]:
    """Who speaks where, a line each."""
    return [
        f"speaker {number}: {r.audio}, {r.seconds:.2f} s, at {r.mask} ({r.share:.0%} of the picture)"
        for number, r in enumerate(reports, 1)
    ]


def mask_lines(masks: Iterable[OpenedMask], shares: Iterable[float]) -> list[str]:
    """Who will speak where, a line each."""
    each = enumerate(zip(masks, shares, strict=True), 1)
    return [f"speaker {number}: at {mask.source} ({share:.0%} of the picture)" for number, (mask, share) in each]


def _is_file(name: str) -> bool:
    """Whether there is a file of this name; what cannot be a name is none."""
    with contextlib.suppress(OSError, ValueError):
        return Path(name).is_file()
    return False


def _is_drive(text: str, colon: int) -> bool:
    """Whether a colon follows the letter of a drive: C:\\voice.wav."""
    begins = colon == 1 or text[colon - 2] == ":"
    return begins and text[colon - 1].isalpha() and text[colon + 1] in "\\/"
