"""Which workers there are on this machine: every crew writes it down, anybody of the same user may read it.

A crew's page is a small JSON file beside the logs of its workers, in the folder `la-<pid>-*` of the process that they
work for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .processes import Grip, birth, output_of, resident_bytes
from .service import driver_of, lives, short_folder

_log = logging.getLogger("liveavatar")
_numbers = itertools.count(1)
_COMMAND_LETTERS = 60
_END_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Listed:
    """A worker as its crew has written it down.

    Attributes:
        pid, birth: of its process; see `processes.birth`.
        stage: its number, from 0; None for encoders and VAE.
        device: "cpu", "cuda:0".
        log: the file that gets all it says.
        since: when it was started, in seconds since 1970.
    """

    pid: int
    birth: str | None
    stage: int | None
    device: str
    log: Path
    since: float

    @property
    def state(self) -> str:
        """ "alive", "dead", or "unknown" where the system does not tell who a process is."""
        if self.is_there:
            return "alive"
        return "dead" if self.birth is not None or not lives(self.pid) else "unknown"

    @property
    def is_there(self) -> bool:
        """Whether the process of this number surely is the worker: born when it was, and speaking into its log."""
        return self.birth is not None and birth(self.pid) == self.birth and output_of(self.pid) == self.log

    @property
    def memory(self) -> int | None:
        """Its host memory in bytes, as far as that is known."""
        return resident_bytes(self.pid) if self.is_there else None

    def end(self) -> bool:
        """End it, if it surely is the worker; whether it was, and is gone."""
        try:
            with Grip(self.pid) as grip:
                return self.is_there and grip.kill(_END_SECONDS)
        except ProcessLookupError:
            return False


@dataclasses.dataclass(frozen=True)
class Driver:
    """A process that has, or had, workers.

    Attributes:
        pid, command: of that process; what was typed to start it, in short.
        folder: where its workers write.
        left_over: whether the process has ended, so that the folder is of no use.
        workers: in the order of their stages.
    """

    pid: int
    command: str
    folder: Path
    left_over: bool
    workers: tuple[Listed, ...]


class Page:
    """Where one crew is listed.

    Args:
        folder: of the process's workers.
    """

    def __init__(self, folder: Path):
        self._file = folder / f"crew-{next(_numbers)}.json"

    def write(self, workers: Iterable[tuple[int, int | None, str, Path]]) -> None:
        """List these workers, and no others: (pid, stage, device, log). No video fails because of that."""
        listed = [Listed(pid, birth(pid), stage, device, log, self._since(pid)) for pid, stage, device, log in workers]
        rows = [dataclasses.asdict(worker) | {"log": str(worker.log)} for worker in listed]
        own = {"pid": os.getpid(), "birth": birth(os.getpid()), "command": _own_command()}
        beside = self._file.with_suffix(".part")
        try:
            beside.write_text(json.dumps({"driver": own, "workers": rows}), encoding="utf-8")
            beside.replace(self._file)
        except OSError as error:
            _log.warning("The workers cannot be listed in %s (%s).", self._file, error)

    def remove(self) -> None:
        """The crew has no workers any more."""
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)

    def _since(self, pid: int) -> float:
        """When a worker was listed first."""
        known = {worker.pid: worker.since for _, _, workers in [_read(self._file)] for worker in workers}
        return known.get(pid, time.time())


def drivers() -> list[Driver]:
    """All processes of this user whose workers' folder is there, by their number."""
    found = []
    for folder in short_folder().glob("la-*"):
        pid = driver_of(folder)
        if pid is not None and _is_mine(folder):
            found.append(_driver(pid, folder))
    return sorted(found, key=lambda driver: (driver.pid, driver.folder))


def stop(chosen: Sequence[Driver]) -> Iterator[tuple[Listed, bool]]:
    """End their workers, each with whether it was there and ended, and remove what dead drivers have left."""
    for driver in chosen:
        for worker in driver.workers:
            yield worker, worker.end()
        if driver.left_over:
            shutil.rmtree(driver.folder, ignore_errors=True)


def _driver(pid: int, folder: Path) -> Driver:
    pages = [_read(file) for file in sorted(folder.glob("crew-*.json"))]
    births = {born for born, _, _ in pages if born is not None}
    gone = not lives(pid) or bool(births and birth(pid) not in births)
    workers = sorted((w for _, _, listed in pages for w in listed), key=lambda w: (w.stage, w.pid))
    return Driver(pid, next((c for _, c, _ in pages if c), ""), folder, gone, tuple(workers))


def _read(file: Path) -> tuple[str | None, str, list[Listed]]:
    """Birth and command of the driver, and its workers; nothing of what cannot be understood."""
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        workers = [Listed(**{**row, "log": Path(row["log"]), "pid": int(row["pid"])}) for row in data["workers"]]
        return data["driver"]["birth"], str(data["driver"]["command"]), workers
    except (OSError, ValueError, KeyError, TypeError):
        return None, "", []


def _is_mine(folder: Path) -> bool:
    """Whether nobody else can have written there: what another user says of processes is not believed."""
    if not hasattr(os, "getuid"):
        return folder.is_dir()
    with contextlib.suppress(OSError):
        return folder.is_dir() and not folder.is_symlink() and folder.lstat().st_uid == os.getuid()
    return False


def _own_command() -> str:
    command = " ".join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]] if sys.orig_argv else sys.argv)
    line = " ".join(command.split())
    return line if len(line) <= _COMMAND_LETTERS else f"{line[: _COMMAND_LETTERS - 3]}..."
