"""Turn a video that a crash has left in fragments into an ordinary MP4."""

from __future__ import annotations

import argparse

from ..utils import format_bytes
from .tables import counted
from .terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `repair`."""
    parser.add_argument(
        "path",
        metavar="FILE.mp4",
        help="the video; its pictures and sound stay as they are, only the order in the file changes",
    )


def run(arguments: argparse.Namespace) -> int:
    """Repair; 0 when the file is an ordinary MP4, by this or already."""
    from ..files import path_of
    from ..media.mp4 import repair
    from ..media.video import probe

    path = path_of(arguments.path, "The video")
    repaired = repair(path)
    found = probe(path)
    sound = "no sound" if found.audio_seconds is None else f"{found.audio_seconds:.2f} s of sound"
    lines = [
        f"done    {path} is an ordinary MP4{' now' if repaired.changed else ' already'}",
        f"holds   {found.width}x{found.height}, {counted(found.frames, 'frame')} at {found.fps:g} fps, "
        f"{found.video_seconds:.2f} s, {sound}",
    ]
    if repaired.lost_bytes:
        lost = format_bytes(repaired.lost_bytes, ".2g")
        lines.append(f"note    {lost} at its end were not written to the end and cannot be played; they are left out")
    say(lines)
    return 0
