"""The end of what Ray leaves when this process is killed: its agents look for its centre for a minute, with 170 MB.

A process of its own, run as `reaper.py FOLDER` without any package, waits for the end of its standard input, whose
other end only the process that it watches has. Linux only; elsewhere Ray's agents end by themselves.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_LOOK_SECONDS = 5.0
"""Between two looks at what runs; agents that Ray has replaced since are not known."""
_GRACE_SECONDS = 2.0
"""For Ray to end what it can by itself."""
_PROC = Path("/proc")


class OrphanReaper:
    """Ends, after this process, all that runs below Ray's processes of one folder, however this process ends.

    Args:
        folder: of the cluster; it stands in the commands of Ray's processes.
    """

    def __init__(self, folder: Path):
        self._process: subprocess.Popen[bytes] | None = None
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", __file__, str(folder)]
            with contextlib.suppress(OSError):  # it is a help, and Ray works without it
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # what ends the others of this process group must not end it
                )

    def stop(self) -> None:
        """Ray was ended by itself."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def watch(folder: str) -> None:
    """Wait for the end of the standard input, then end what was below Ray's processes of a folder."""
    driver = os.getppid()
    known: set[tuple[int, str]] = set()
    while True:
        known |= below(driver, folder)
        known = {(pid, started) for pid, started in known if started_at(pid) == started}
        if select.select([0], [], [], _LOOK_SECONDS)[0] and not os.read(0, 1):
            break
    known |= below(driver, folder)
    time.sleep(_GRACE_SECONDS)
    for pid, started in known:
        if pid != os.getpid() and started_at(pid) == started:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def below(driver: int, folder: str) -> set[tuple[int, str]]:
    """Processes of Ray that a process has started, and all below them: number and time of start of each."""
    parents = {pid: parent for pid in _pids() if (parent := _stat(pid, 1)) is not None}
    found = {pid for pid, parent in parents.items() if parent == str(driver) and folder in _command(pid)}
    while more := {pid for pid, parent in parents.items() if int(parent) in found} - found:
        found |= more
    return {(pid, started) for pid in found if (started := started_at(pid)) is not None}


def started_at(pid: int) -> str | None:
    """When a process was started, in ticks of the machine: with it a number is one process. None: there is none."""
    return _stat(pid, 19)


def _pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal()]


def _stat(pid: int, field: int) -> str | None:
    """A field of what the kernel says of a process, counted from its state on, which follows its name in brackets."""
    try:
        return (
            (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[field]
        )
    except (OSError, IndexError):
        return None


def _command(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    watch(sys.argv[1])
