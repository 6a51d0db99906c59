"""Measure a live talk in real time on this machine: pace, delay, interruptions, memory."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ..cli.options import add_request_arguments, check_placement_options, parts_of, placement_of, request_of
from ..cli.parser import number
from ..cli.tables import aligned
from ..cli.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench live`."""
    parser.add_argument("--image", metavar="P", help="the portrait (default: that of the demo)")
    parser.add_argument("--audio", metavar="W", help="the voice, said again and again (default: that of the demo)")
    parser.add_argument("--prompt", default="A person talks.", metavar="T")
    parser.add_argument("--minutes", type=number(0.01), default=10.0, help="of the talk (default: 10)")
    parser.add_argument("--json", metavar="FILE", help="write it down for machines, with versions and the date")
    add_request_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, show a table, and write it down where that was asked."""
    from ..cli.demo import ASSETS
    from ..media.audio_file import read_audio
    from ..media.image import read_image
    from ..pipeline import LiveAvatarPipeline
    from .live import bench_live
    from .report import check_report, write_report

    check_placement_options(arguments)
    if arguments.json:
        check_report(Path(arguments.json))
    image = read_image(Path(arguments.image or ASSETS / "portrait.png"))
    voice = read_audio(Path(arguments.audio or ASSETS / "voice.wav"))
    pipeline = LiveAvatarPipeline.from_pretrained(
        arguments.model, placement=placement_of(arguments), **parts_of(arguments)
    )
    request = dataclasses.replace(request_of(arguments), seconds=None)
    figures = bench_live(pipeline, image, voice, request, 60 * arguments.minutes)
    rows = [
        ("what", "measured"),
        ("blocks on time", f"{figures.on_time:.2%} of {figures.blocks}"),
        ("first images, weights loaded", f"{figures.first:.2f} s"),
        ("sample to its image", f"{figures.lag:.2f} s, 95 %: {figures.lag_95:.2f} s"),
        ("interruption to a silent block", _range(figures.interrupts)),
        ("memory added after 12 s", f"{figures.growth / 1e6:.1f} MB"),
        ("picture against sound", f"{figures.drift:.2f} frames"),
    ]
    say(aligned(rows))
    if arguments.json:
        write_report(Path(arguments.json), "live", {}, figures)
    return 0


def _range(seconds: Sequence[float]) -> str:
    if not seconds:
        return "none"
    return f"{min(seconds):.2f} to {max(seconds):.2f} s, {len(seconds)} times"
