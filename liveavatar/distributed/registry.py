"""The registry of worker processes on this machine: written by every pool, readable by the same user alone.

What another user can have written is not believed, because a page in it says which processes are to be ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import logging
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..private_files import is_private_folder, open_private, replace_private
from .cluster import driver_pid, process_exists, short_folder

_LOG_LINES = 8
_LINE_BYTES = 1024
"""Longer lines are rare."""


def process_start_time(pid: int) -> str | None:
    """The boot and start time of a process, unlike any other with its number; None when it is gone, or not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # The name, in brackets, may hold spaces and brackets itself.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        state, started = fields[0], fields[19]
    except (OSError, IndexError):
        return None
    return None if state in "ZX" else f"{boot}/{started}"


def process_owner(pid: int) -> int | None:
    """The user of a process; None when it is gone, or not known."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("Uid:")), None)


def process_program(pid: int) -> str | None:
    """The file of the program that a process runs; None when it is gone, is another user's, or not known."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115
    return None


def output_file(pid: int) -> Path | None:
    """The file of a process's standard output; None when it is gone, is another user's, or not known."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/fd/1").readlink()
    return None


def resident_bytes(pid: int) -> int | None:
    """Host memory of a process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), None)


class PidHandle:
    """A process that keeps its number as long as it is held, so that a signal reaches it or no process.

    Args:
        pid: its number.

    Raises:
        ProcessLookupError: there is none.
    """

    def __init__(self, pid: int):
        self.pid = pid
        self._handle: int | None = None
        try:
            self._handle = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):  # old kernels and some sandboxes have no handles
                raise ProcessLookupError(pid) from error

    def kill(self, seconds: float) -> bool:
        """End it at once; whether it was gone within so many seconds."""
        with contextlib.suppress(ProcessLookupError):
            if self._handle is None:
                os.kill(self.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        return self._handle is None or bool(select.select([self._handle], [], [], seconds)[0])

    def __enter__(self) -> PidHandle:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def last_lines(log: Path, count: int = _LOG_LINES) -> list[str]:
    """The end of a log file: so many lines, as far as they are of usual length; nothing where there is none, or others
    can have written it."""
    try:
        with open_private(log) as file:
            file.seek(max(0, file.seek(0, 2) - count * _LINE_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]


_log = logging.getLogger("liveavatar")
_numbers = itertools.count(1)
_COMMAND_LETTERS = 60
_END_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class WorkerRecord:
    """A worker as its worker pool has written it down.

    Attributes:
        pid, start_time: of its process; see `process_start_time`.
        stage: its number, from 0; None for encoders and VAE.
        device: "cpu", "cuda:0".
        log: the file that its output goes to.
        since: when it was started, in seconds since 1970.
        program: the file of the program that it runs.
    """

    pid: int
    start_time: str | None
    stage: int | None
    device: str
    log: Path
    since: float
    program: str | None

    @property
    def state(self) -> str:
        """ "alive", "dead", or "unknown" where the system does not identify processes."""
        if self.is_alive:
            return "alive"
        return "dead" if self.start_time is not None or not process_exists(self.pid) else "unknown"

    @property
    def is_alive(self) -> bool:
        """Whether the process of this number surely is the worker: its user, start time, program and log."""
        return (
            self.start_time is not None
            and process_owner(self.pid) == os.getuid()
            and process_start_time(self.pid) == self.start_time
            and process_program(self.pid) == self.program
            and output_file(self.pid) == self.log
        )

    @property
    def memory(self) -> int | None:
        """Its host memory in bytes, as far as that is known."""
        return resident_bytes(self.pid) if self.is_alive else None

    def end(self) -> bool:
        """End it, if it surely is the worker; whether it was, and is gone."""
        try:
            with PidHandle(self.pid) as handle:
                return self.is_alive and handle.kill(_END_SECONDS)
        except ProcessLookupError:
            return False


@dataclasses.dataclass(frozen=True)
class Driver:
    """A process that has, or had, workers.

    Attributes:
        pid, command: of that process; what was typed to start it, in short.
        folder: where its workers write.
        left_over: whether the process has ended, so that the folder is of no use.
        workers: in the order of their stages; encoders and VAE come last.
    """

    pid: int
    command: str
    folder: Path
    left_over: bool
    workers: tuple[WorkerRecord, ...]


class WorkerFile:
    """Where one worker pool is listed.

    Args:
        folder: of the process's workers.
    """

    def __init__(self, folder: Path):
        self._file = folder / f"workers-{next(_numbers)}.json"

    def write(self, workers: Iterable[tuple[int, int | None, str, Path]]) -> None:
        """List these workers, and no others: (pid, stage, device, log). No video fails because of that."""
        listed = [
            WorkerRecord(
                pid, process_start_time(pid), stage, device, log, self._listed_since(pid), process_program(pid)
            )
            for pid, stage, device, log in workers
        ]
        rows = [dataclasses.asdict(worker) | {"log": str(worker.log)} for worker in listed]
        own = {"pid": os.getpid(), "birth": process_start_time(os.getpid()), "command": _own_command()}
        try:
            replace_private(self._file, json.dumps({"driver": own, "workers": rows}))
        except OSError as error:
            _log.warning("The workers cannot be listed in %s (%s).", self._file, error)

    def remove(self) -> None:
        """The worker pool has no workers any more."""
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)

    def _listed_since(self, pid: int) -> float:
        """When a worker was listed first."""
        known = {worker.pid: worker.since for _, _, workers in [_read(self._file)] for worker in workers}
        return known.get(pid, time.time())


def drivers() -> list[Driver]:
    """All processes of this user whose workers' folder is there, by their number."""
    found = []
    for folder in short_folder().glob("la-*"):
        pid = driver_pid(folder)
        if pid is not None and is_private_folder(folder):
            found.append(_driver(pid, folder))
    return sorted(found, key=lambda driver: (driver.pid, driver.folder))


def stop(chosen: Sequence[Driver]) -> Iterator[tuple[WorkerRecord, bool]]:
    """End their workers, each with whether it was there and ended, and remove what dead drivers have left."""
    for driver in chosen:
        for worker in driver.workers:
            yield worker, worker.end()
        if driver.left_over:
            shutil.rmtree(driver.folder, ignore_errors=True)


def _driver(pid: int, folder: Path) -> Driver:
    pages = [_read(file) for file in sorted(folder.glob("workers-*.json"))]
    start_times = {born for born, _, _ in pages if born is not None}
    gone = not process_exists(pid) or bool(start_times and process_start_time(pid) not in start_times)
    workers = sorted((w for _, _, listed in pages for w in listed), key=lambda w: (w.stage is None, w.stage, w.pid))
    return Driver(pid, next((c for _, c, _ in pages if c), ""), folder, gone, tuple(workers))


def _read(file: Path) -> tuple[str | None, str, list[WorkerRecord]]:
    """Birth and command of the driver, and its workers; nothing of what cannot be understood, or others can have
    written."""
    try:
        with open_private(file) as page:
            data: dict[str, Any] = json.loads(page.read())
        workers = [_record(row, file.parent) for row in data["workers"]]
        return data["driver"]["birth"], str(data["driver"]["command"]), workers
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, "", []


def _record(row: dict[str, Any], folder: Path) -> WorkerRecord:
    """A worker as it was written down.

    Raises:
        ValueError, TypeError, KeyError: it is none, or its log is in another folder.
    """
    kinds = {"pid": int, "start_time": str | None, "stage": int | None, "device": str, "log": str}
    for name, kind in (kinds | {"since": float | int, "program": str | None}).items():
        if not isinstance(row[name], kind):
            raise TypeError(f"{name} is {row[name]!r}")
    record = WorkerRecord(**{**row, "log": Path(row["log"])})
    if record.log.parent != folder:
        raise ValueError(f"{record.log} is not in {folder}")
    return record


def _own_command() -> str:
    command = " ".join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]] if sys.orig_argv else sys.argv)
    line = " ".join(command.split())
    return line if len(line) <= _COMMAND_LETTERS else f"{line[: _COMMAND_LETTERS - 3]}..."
