"""Measure the way of frames from latents to the file, part by part, on this CPU."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..cli.tables import aligned
from ..cli.terminal import say

_SIZES = ("704x384", "128x128")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench frames`."""
    parser.add_argument("--size", default=_SIZES[0], choices=_SIZES, help=f"of the frames (default: {_SIZES[0]})")
    parser.add_argument("--json", metavar="FILE", help="write it down for machines, with versions and the date")


def run(arguments: argparse.Namespace) -> int:
    """Measure, show a table, and write it down where that was asked."""
    from .frames import bench_frames
    from .report import check_report, write_report

    if arguments.json:
        check_report(Path(arguments.json))
    width, height = map(int, arguments.size.split("x"))
    costs = bench_frames(width, height)
    rows = [
        ("part", "CPU ms per frame"),
        (f"floats to bytes, {arguments.size}", f"{costs.to_bytes:.2f}"),
        ("SHA-256", f"{costs.hashing:.2f}"),
        ("colours, x264, file", f"{costs.writing:.2f}"),
        ("decode, small VAE, 64x64", f"{costs.decode:.2f}"),
        ("the same by diffusers", f"{costs.diffusers:.2f}"),
    ]
    least, *_, most = sorted(costs.ratios)
    say(
        [
            *aligned(rows),
            f"conversion and writing, a thread for each: {costs.frames_per_second:.0f} frames per second",
            f"diffusers / ours: {costs.diffusers / costs.decode:.2f} ({least:.2f} to {most:.2f})",
        ]
    )
    if arguments.json:
        write_report(Path(arguments.json), "frames", {}, costs)
    return 0
