"""List the worker processes of this machine, show what they say, or end them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from typing import TYPE_CHECKING

from ..errors import RequestError
from .parser import whole_number
from .tables import worker_lines
from .terminal import BROKEN_OFF, say

if TYPE_CHECKING:
    from ..distributed.registry import Driver, WorkerRecord

_LINES = 50
_ALL = -1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `workers`."""
    what = parser.add_mutually_exclusive_group()
    pid = whole_number(4711)
    what.add_argument(
        "--log", nargs="?", type=pid, const=_ALL, metavar="PID", help="the last lines of one worker's log, or of all"
    )
    what.add_argument(
        "--stop",
        nargs="?",
        type=pid,
        const=_ALL,
        metavar="PID",
        help="end one worker, all workers of one process, or all; remove what ended processes have left",
    )
    parser.add_argument(
        "--lines", type=whole_number(_LINES), default=_LINES, metavar="N", help=f"of a log (default: {_LINES})"
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def run(arguments: argparse.Namespace) -> int:
    """List, show or end; 1 when something was to be ended and is still there."""
    from ..distributed.registry import drivers

    if arguments.lines < 1:
        raise RequestError(f"A log has no last {arguments.lines} lines.", "Give a number from 1.")
    found = drivers()
    if arguments.log is not None:
        _show_logs(_chosen(found, arguments.log), arguments.lines, arguments.json)
    elif arguments.stop is not None:
        return _stop(_chosen(found, arguments.stop), arguments.json)
    elif arguments.json:
        _print_json([_told(driver) for driver in found])
    else:
        say(worker_lines(found, time.time()))
    return 0


def _chosen(found: list[Driver], pid: int) -> list[Driver]:
    """Drivers, with the workers that a number means: one, those of one process, or all.

    Raises:
        RequestError: it is the number of none of them.
    """
    if pid == _ALL:
        return found
    of_driver = [driver for driver in found if driver.pid == pid]
    if of_driver:
        return of_driver
    for driver in found:
        own = tuple(worker for worker in driver.workers if worker.pid == pid)
        if own:  # whatever else a dead driver has left stays
            return [dataclasses.replace(driver, workers=own, left_over=False)]
    known = sorted({driver.pid for driver in found} | {w.pid for driver in found for w in driver.workers})
    raise RequestError(
        f"{pid} is neither a worker nor a process with workers.",
        f"There are {', '.join(map(str, known))}." if known else "There are no workers.",
    )


def _show_logs(chosen: list[Driver], count: int, as_json: bool) -> None:
    from ..distributed.registry import last_lines

    logs = [(worker, last_lines(worker.log, count)) for driver in chosen for worker in driver.workers]
    if as_json:
        _print_json([{"pid": worker.pid, "stage": worker.stage, "lines": lines} for worker, lines in logs])
        return
    for worker, lines in logs:
        say([f"worker {worker.pid}, stage {worker.stage} on {worker.device}: {worker.log}", *(f"  {x}" for x in lines)])
    if not logs:
        say(["No worker has a log."])


def _stop(chosen: list[Driver], as_json: bool) -> int:
    from ..distributed.registry import stop

    if not as_json:
        say(worker_lines(chosen, time.time()))
    refused = 0
    ended = []
    for worker, is_gone in stop(chosen):
        ended.append({"pid": worker.pid, "ended": is_gone})
        refused += not is_gone and worker.state != "dead"
        if not as_json:
            say([f"{worker.pid} {_outcome(worker, is_gone)}"])
    removed = [driver.folder for driver in chosen if driver.left_over]
    if as_json:
        _print_json({"workers": ended, "removed": list(map(str, removed))})
    else:
        say([*(f"{folder} removed" for folder in removed), f"{sum(row['ended'] for row in ended)} ended"])
    return BROKEN_OFF if refused else 0


def _outcome(worker: WorkerRecord, is_gone: bool) -> str:
    if is_gone:
        return "ended"
    return {
        "dead": "had ended before",
        "alive": "does not end",
        "unknown": "was left alone: this system does not tell whether it is the worker",
    }[worker.state]


def _told(driver: Driver) -> dict[str, object]:
    """A driver as JSON."""
    workers = [
        {**dataclasses.asdict(w), "log": str(w.log), "state": w.state, "memory": w.memory} for w in driver.workers
    ]
    return {**dataclasses.asdict(driver), "folder": str(driver.folder), "workers": workers}


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
