"""Measure everything about one device in one go: peaks, kernels, pace, VAE, small devices; with random weights."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import PRESETS
from ..errors import ModelError, RequestError
from .parser import number, whole_number
from .suite_lines import suite_lines
from .terminal import BROKEN_OFF, say

if TYPE_CHECKING:
    from ..bench.suite import SuiteReport

_BIG, _SMALL = "wan2.2-s2v-14b", "mini"
_SIZES = {_BIG: "704x384"}
_SIZE = "128x128"
_BUDGET, _QUICK = 480, 180
_LONGEST = 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench suite`."""
    parser.add_argument("--quick", action="store_true", help=f"the first half, in {_QUICK} s")
    parser.add_argument(
        "--budget", type=number(_BUDGET), metavar="S", help=f"seconds for all parts (default: {_BUDGET})"
    )
    parser.add_argument("--model", metavar="|".join(PRESETS), help=f"shapes (default: {_BIG} on a GPU, else {_SMALL})")
    parser.add_argument("--size", metavar="WxH", help=f"width x height (default: {_SIZES[_BIG]}; small ones: {_SIZE})")
    parser.add_argument("--device", metavar="D", help="cuda:0 or cpu (default: the first GPU, else the CPU)")
    parser.add_argument("--dtype", metavar="T", help="float32, bfloat16 or float16 (default: bfloat16 on a GPU)")
    parser.add_argument("--threads", type=whole_number(1), metavar="N", help="CPU threads (default: all, at most 8)")
    parser.add_argument(
        "--original", metavar="DIR", help="a checkout of the published code, to be measured on the same weights"
    )
    parser.add_argument("--json", metavar="DIR", help="a folder for suite.json, written anew after every figure")
    parser.add_argument("--show", metavar="FILE", help="measure nothing: show the table of a suite.json")


def run(arguments: argparse.Namespace) -> int:
    """Measure part by part, and show a table; 1 where a part did not come to its end."""
    if arguments.show:
        from ..bench.suite import read_suite

        say(suite_lines(read_suite(Path(arguments.show))))
        return 0
    budget = arguments.budget if arguments.budget is not None else (_QUICK if arguments.quick else _BUDGET)
    if not 0 < budget < _LONGEST or not math.isfinite(budget):
        raise RequestError(f"A budget of {budget:g} s is not possible.", f"Give seconds above 0, such as {_BUDGET}.")
    original = _checkout(arguments.original)
    from ..bench.suite import make_folder, run_suite, write_suite
    from ..bench.suite_parts import PARTS, SuiteState
    from ..placement import Placement, default_devices

    device = arguments.device or default_devices()[0]
    if "," in device:
        raise RequestError("One device is measured at a time.", "Give one, such as cuda:0.")
    place = Placement((device,), dtype=arguments.dtype, threads=arguments.threads)
    place.check_devices()
    model = arguments.model or (_SMALL if device == "cpu" else _BIG)
    if model not in PRESETS:
        raise ModelError(f"The shapes of {model!r} are not known.", f"Use {', '.join(PRESETS)}.")
    size = arguments.size or _SIZES.get(model, _SIZE)
    folder = Path(arguments.json) if arguments.json else None
    if folder:
        make_folder(folder)
    state = SuiteState(model, device, size, place.resolved_dtype, place.resolved_threads, original, _tell)

    def told(report: SuiteReport) -> None:
        if folder:
            write_suite(folder, report)

    report = run_suite(state, PARTS, budget, arguments.quick, told)
    say(suite_lines(report))
    return 0 if report.good else BROKEN_OFF


def _checkout(folder: str | None) -> Path | None:
    """The folder of the published code.

    Raises:
        RequestError: there is no such folder.
    """
    if folder is None:
        return None
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise RequestError(f"There is no folder {folder}.", "Give the checkout of the published code.")
    return path


def _tell(line: str) -> None:
    print(f"measuring {line}", file=sys.stderr, flush=True)
