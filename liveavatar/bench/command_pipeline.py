"""Measure how much faster several stages are than one, with a network that mostly sleeps."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli.options import ENGINES, check_engine
from ..cli.parser import number, whole_number
from ..cli.tables import aligned, counted
from ..cli.terminal import say

if TYPE_CHECKING:
    from ..engine.backend import Backend
    from .pipeline import PipelineBench

_STAGES = "1x1,1x2,1x4,4x1,2x2"
_BLOCKS = 40
_SECONDS = 0.03
_COLUMNS = ("stages", "s per block", "longest", "times 1x1", "efficiency", "first block", "lost at start")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench pipeline`."""
    parser.add_argument(
        "--stages", default=_STAGES, metavar="SxP,SxP,...", help=f"the cuts, 1x1 always first (default: {_STAGES})"
    )
    parser.add_argument(
        "--blocks", type=whole_number(_BLOCKS), default=_BLOCKS, metavar="N", help=f"of the video (default: {_BLOCKS})"
    )
    parser.add_argument(
        "--sleep",
        type=number(_SECONDS),
        default=_SECONDS,
        metavar="S",
        help=f"seconds that each of the 4 layers takes at each step of a block (default: {_SECONDS:g})",
    )
    parser.add_argument(
        "--engine",
        default="ray",
        metavar="|".join(ENGINES),
        help="who runs the stages (default: ray, worker processes)",
    )
    parser.add_argument("--json", metavar="FILE", help="write it down for machines, with versions and the date")


def run(arguments: argparse.Namespace) -> int:
    """Measure, show a table, and write it down where that was asked."""
    check_engine(arguments.engine)
    from .pipeline import bench_pipeline
    from .report import check_report, write_report

    if arguments.json:
        check_report(Path(arguments.json))
    stages = [text.strip() for text in arguments.stages.split(",")]
    with _backend(arguments.engine) as backend:
        found = bench_pipeline(backend, stages, arguments.blocks, arguments.sleep, _print_progress)
    say(bench_lines(found))
    if arguments.json:
        write_report(Path(arguments.json), "pipeline", {"engine": arguments.engine}, found)
    return 0


def bench_lines(found: PipelineBench) -> list[str]:
    """What was measured, and beside it, in brackets, what the simulator says."""
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for c in found.cuts:
        m, p = c.measured, c.predicted
        rows.append(
            (
                c.cut,
                f"{m.period:.3f} ({p.period:.3f})",
                f"{c.longest_gap:.3f}",
                f"{c.multiple:.2f}",
                f"{100 * c.efficiency:.0f} %",
                f"{m.first_block:.3f} ({p.first_block:.3f})",
                f"{m.start_bubble:.2f} ({p.start_bubble:.2f})",
            )
        )
    return [
        f"video   {counted(found.blocks, 'block')}, {counted(found.steps, 'step')} each, layers of "
        f"{found.layer_seconds:g} s; one stage shows {1000 * found.seconds_per_layer:.1f} ms per layer and "
        f"{1000 * found.seconds_per_task:.1f} ms between tasks",
        *aligned(rows),
        "        (in brackets: simulated with the speed of one stage; lost at start: in blocks' time)",
    ]


def _print_progress(line: str) -> None:
    print(f"measuring {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _backend(engine: str) -> Iterator[Backend]:
    """One thread per stage, for the sleepers need no more."""
    from ..placement import Placement

    placement = Placement(("cpu",), threads=1)
    if engine == "local":
        from ..engine.backend import LocalBackend

        yield LocalBackend(placement)
        return
    from ..distributed import RayBackend

    backend = RayBackend(placement)
    try:
        yield backend
    finally:
        backend.release()
