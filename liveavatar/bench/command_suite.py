"""Measure everything about one device in one go: peaks, kernels, pace, VAE, small devices; with random weights."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli.parser import number, whole_number
from ..cli.tables import gigabytes
from ..cli.terminal import BROKEN_OFF, say
from ..config import PRESETS
from ..errors import ModelError, RequestError

if TYPE_CHECKING:
    from .suite import Figure, SuiteReport

_BIG, _SMALL = "wan2.2-s2v-14b", "mini"
_SIZES = {_BIG: "704x384"}
_SIZE = "128x128"
_BUDGET, _QUICK = 480, 180
_LONGEST = 86_400
_COLUMNS = ("part", "what", "measured", "predicted", "ratio", "")


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
        from .suite import read_suite

        say(suite_lines(read_suite(Path(arguments.show))))
        return 0
    budget = arguments.budget if arguments.budget is not None else (_QUICK if arguments.quick else _BUDGET)
    if not 0 < budget < _LONGEST or not math.isfinite(budget):
        raise RequestError(f"A budget of {budget:g} s is not possible.", f"Give seconds above 0, such as {_BUDGET}.")
    original = _checkout(arguments.original)
    from ..placement import Placement, default_devices
    from .suite import make_folder, run_suite, write_suite
    from .suite_parts import PARTS, SuiteState

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
    state = SuiteState(model, device, size, place.resolved_dtype, place.resolved_threads, original, _print_progress)

    def on_report(report: SuiteReport) -> None:
        if folder:
            write_suite(folder, report)

    report = run_suite(state, PARTS, budget, arguments.quick, on_report)
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


def _print_progress(line: str) -> None:
    print(f"measuring {line}", file=sys.stderr, flush=True)


def suite_lines(report: SuiteReport) -> list[str]:
    """On what it was measured, and every figure beside what was predicted."""
    rows = [_COLUMNS, *rows_of(report)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS) - 1)]
    lines = [f"suite   {heading(report)}"]
    for row in rows:
        left, right = row[:2], row[2:5]
        cells = [c.ljust(w) for c, w in zip(left, widths[:2], strict=True)]
        cells += [c.rjust(w) for c, w in zip(right, widths[2:], strict=True)]
        lines.append(f"        {'  '.join(cells)}  {row[5]}".rstrip())
    ended = "all parts had their turn" if report.finished else "cut off"
    return [*lines, f"        ({ended}; {report.seconds:.0f} s of {report.budget:.0f})"]


def suite_markdown(report: SuiteReport) -> str:
    """The same as a table in Markdown, under a line that names card, driver and versions."""
    head = ("part", "what", "measured", "predicted", "measured / predicted", "")
    rows = [head, ("---",) * len(head), *rows_of(report)]
    return "\n".join([f"{heading(report)}, {report.date[:10]}:", "", *(f"| {' | '.join(row)} |" for row in rows)])


def heading(report: SuiteReport) -> str:
    """The network, the device and the software."""
    r, known = report, report.versions
    memory = f", {gigabytes(r.memory)}" if r.memory else ""
    driver = f", driver {r.driver}" if r.driver else ""
    software = ", ".join(f"{name} {known[name]}" for name in ("torch", "cuda", "diffusers", "python") if name in known)
    return (
        f"{r.model} at {r.size[0]}x{r.size[1]}, {r.steps} steps, random weights, {r.dtype}, on "
        f"{r.device_name} ({r.device}{memory}{driver}; {r.cores} cores; {software})"
    )


def rows_of(report: SuiteReport) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Part, figure, measured, predicted, ratio, note; what is wrong with a part is a row of its own."""
    for part in report.parts:
        name = part.name
        for figure in part.figures:
            ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
            yield name, figure.name, _amount(figure), _plain(figure.predicted), ratio, figure.note
            name = ""
        if part.status != "done":
            yield name, part.status, "", "", "", part.why


def _amount(figure: Figure) -> str:
    return f"{_plain(figure.value)} {figure.unit}".strip() if figure.value is not None else "-" * bool(figure.unit)


def _plain(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"
