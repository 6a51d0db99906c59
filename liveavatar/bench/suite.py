"""The suite: everything about one device in one process, part by part, each under a time limit and reported at once."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import gc
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from ..doctor.known import write_json
from ..doctor.plain import from_plain, plain
from ..errors import LiveAvatarError, OutputError
from ..files import refuse_foreign_json
from ..receipt import versions
from ..session import cpu_threads
from .time_limit import Overrun, time_limit

if TYPE_CHECKING:
    from .suite_parts import SuiteState

SCHEMA = 1
"""Of the file; rises when a field changes its meaning."""
FILE_NAME = "suite.json"
BUDGET_SECONDS, QUICK_SECONDS = 480.0, 180.0
"""Of a whole suite and of a quick one, by default."""
_LEAST_SECONDS = 0.5
"""That a part is begun with."""

Status = Literal["running", "done", "failed", "overran", "left out"]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: what of, within its part.
        value: None where it could not be had; then `note` says why.
        unit: of value and prediction.
        predicted: what the planner said before anything was measured; None: it says nothing of this.
        note: what else to know, one line.
    """

    name: str
    value: float | None
    unit: str = ""
    predicted: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Measured against predicted."""
        return self.value / self.predicted if self.value is not None and self.predicted else None


@dataclasses.dataclass(frozen=True)
class PartReport:
    """One part.

    Attributes:
        name: of the part.
        status: "done", or why not all of it is there.
        seconds: it took.
        limit: seconds it was given.
        figures: as far as it came.
        why: of a failure, with the place in the code.
    """

    name: str
    status: Status
    seconds: float
    limit: float
    figures: tuple[Figure, ...] = ()
    why: str = ""


@dataclasses.dataclass(frozen=True)
class SuiteReport:
    """All that was measured so far, and on what.

    Attributes:
        model, size, steps, dtype: of the network.
        device, device_name: which.
        memory: bytes of the device; None on the CPU.
        driver: of the device; "" on the CPU.
        versions: of the libraries.
        cores: of the host.
        date: ISO 8601.
        quick: whether only the first half was asked for.
        budget, seconds: that the parts may take together, and took.
        finished: whether all parts had their turn.
        parts: in their order.
    """

    schema: int
    model: str
    size: tuple[int, int]
    steps: int
    dtype: str
    device: str
    device_name: str
    memory: int | None
    driver: str
    versions: Mapping[str, str]
    cores: int
    date: str
    quick: bool
    budget: float
    seconds: float = 0.0
    finished: bool = False
    parts: tuple[PartReport, ...] = ()

    @property
    def good(self) -> bool:
        """Whether every part that was begun came to its end."""
        return self.finished and all(part.status in ("done", "left out") for part in self.parts)


@dataclasses.dataclass(frozen=True)
class SuitePart:
    """A part of the suite.

    Attributes:
        name: unique.
        share: of the budget, in seconds of one of `BUDGET_SECONDS`; what a part leaves is the later ones'.
        run: yields figures as they are measured.
        quick: whether a quick suite has it.
        wanted: whether it is begun; else it is left out, for the reason that is returned.
    """

    name: str
    share: float
    run: Callable[[SuiteState], Iterator[Figure]]
    quick: bool = False
    wanted: Callable[[SuiteState], str] = lambda state: ""


OnReport = Callable[[SuiteReport], None]


def run_suite(
    state: SuiteState, parts: Sequence[SuitePart], budget: float, quick: bool, on_report: OnReport
) -> SuiteReport:
    """Run the parts, one after the other; one that fails or overruns does not keep the next from running.

    Args:
        state: what parts share.
        parts: in their order.
        budget: seconds for all of them. A part may take its share of what is left, by the shares of those to come.
        quick: only the quick parts.
        on_report: called with the report after every figure and every part.

    Raises:
        KeyboardInterrupt: after the part in hand was reported as cut off.
    """
    chosen = [part for part in parts if part.quick or not quick]
    report = _opened(state, budget, quick)
    begun = time.monotonic()
    for place, part in enumerate(chosen):
        left = budget - (time.monotonic() - begun)
        limit = left * part.share / sum(p.share for p in chosen[place:])
        done = report.parts

        def show(current: PartReport, done: tuple[PartReport, ...] = done) -> None:
            nonlocal report
            seconds = time.monotonic() - begun
            report = dataclasses.replace(report, parts=(*done, current), seconds=seconds)
            on_report(report)

        _run_part(state, part, limit, show)
    report = dataclasses.replace(report, finished=True, seconds=time.monotonic() - begun)
    on_report(report)
    return report


def _run_part(state: SuiteState, part: SuitePart, limit: float, show: Callable[[PartReport], None]) -> None:
    """Run one part under its limit, and show it after each figure and at its end."""
    report = PartReport(part.name, "running", 0.0, limit)
    if why := part.wanted(state) or ("" if limit >= _LEAST_SECONDS else "the budget was spent before its turn"):
        show(dataclasses.replace(report, status="left out", why=why))
        return
    state.say(f"{part.name} (at most {limit:.0f} s)")
    figures: list[Figure] = []
    begun = time.monotonic()

    def ended(status: Status, why: str = "") -> PartReport:
        return dataclasses.replace(
            report, status=status, seconds=time.monotonic() - begun, figures=tuple(figures), why=why
        )

    try:
        with time_limit(limit), cpu_threads(state.threads):
            for figure in part.run(state):
                figures.append(figure)
                show(ended("running"))
        show(ended("done"))
    except Overrun:
        show(ended("overran", f"it was cut off after {limit:.0f} s"))
    except KeyboardInterrupt:
        show(ended("overran", "it was interrupted"))
        raise
    except Exception as error:
        show(ended("failed", _reason(error)))
    finally:
        state.clean_up()


def _reason(error: Exception) -> str:
    """The sentence of a refusal; of anything else its kind, first line and place in this library."""
    if isinstance(error, LiveAvatarError):
        return str(error)
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "liveavatar" in Path(frame.filename).parts]
    where = f" ({Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name})" if own else ""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}{where}"


def _opened(state: SuiteState, budget: float, quick: bool) -> SuiteReport:
    """A report without parts."""
    device = state.device.type == "cuda"
    return SuiteReport(
        schema=SCHEMA,
        model=state.components.name,
        size=(state.resolved.width, state.resolved.height),
        steps=state.resolved.steps,
        dtype=state.dtype,
        device=str(state.device),
        device_name=state.device_name,
        memory=torch.cuda.get_device_properties(state.device).total_memory if device else None,
        driver=state.driver,
        versions=versions() | ({"cuda": str(torch.version.cuda)} if device else {}),
        cores=os.cpu_count() or 1,
        date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        quick=quick,
        budget=budget,
    )


def make_folder(folder: Path) -> None:
    """Make sure of a folder for reports, before anything is measured.

    Raises:
        OutputError: it cannot be made, or not be written to; another file lies where the report would.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        refuse_foreign_json(folder / FILE_NAME, "The report", lambda content: content.keys() >= {"schema", "parts"})
    except OSError as error:
        raise OutputError(
            f"The folder {folder} cannot be made or written ({error.strerror or error}).", "Choose another place."
        ) from error


def write_suite(folder: Path, report: SuiteReport) -> Path:
    """Write or replace the report in a folder, in one step; returns the file.

    Raises:
        OutputError: it cannot be written.
    """
    make_folder(folder)
    path = folder / FILE_NAME
    write_json(path, plain(report))
    return path


def read_suite(path: Path) -> SuiteReport:
    """A report as `write_suite` wrote it; `path` is the file, or its folder.

    Raises:
        OutputError: not readable, or of another kind or version.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        report: SuiteReport = from_plain(SuiteReport, json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, LiveAvatarError) as error:
        raise OutputError(
            f"{file} is no report of `bench suite` ({error}).", "Give a suite.json as this version writes it."
        ) from error
    if report.schema != SCHEMA:
        raise OutputError(
            f"{file} is of version {report.schema} of the report; this is {SCHEMA}.",
            "Measure again, or an older version.",
        )
    return report


def free_memory(device: torch.device) -> None:
    """Let go of what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
