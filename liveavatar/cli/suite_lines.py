"""What `bench suite` measured, for people: on the terminal, and as a table of a document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .tables import gigabytes

if TYPE_CHECKING:
    from ..bench.suite import Figure, SuiteReport

_COLUMNS = ("part", "what", "measured", "predicted", "ratio", "")


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
