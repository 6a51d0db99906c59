"""Measure lip sync and likeness of a finished video, by the minute."""

from __future__ import annotations

import argparse
import dataclasses
import json

from ..cli.terminal import ProgressLine, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meter`."""
    parser.add_argument("path", metavar="FILE", help="the video, with its sound")
    parser.add_argument(
        "--portrait", metavar="IMAGE", help="whom the face should be like (default: the face of the first second)"
    )
    parser.add_argument("--json", action="store_true", help="all figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Measure and show; 0 whatever the figures say."""
    from ..media.image import read_image
    from .measure import measure
    from .report import report_lines, verdict

    portrait = read_image(arguments.portrait) if arguments.portrait else None
    line = ProgressLine()
    try:
        report = measure(arguments.path, portrait, callback=line)
    finally:
        line.end()
    if arguments.json:
        say([json.dumps(dataclasses.asdict(report) | {"verdict": verdict(report)}, indent=2)])
    else:
        say(report_lines(report))
    return 0
