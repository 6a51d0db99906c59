"""What the system tells of another process (nothing outside of Linux: the answer is None), and what that said last."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from pathlib import Path

_LOG_LINES = 8
_LINE_BYTES = 1024
"""Longer lines are rare."""


def birth(pid: int) -> str | None:
    """What tells a process from any other that has or had its number; None when it is gone, or nobody tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # The name, in brackets, may hold spaces and brackets itself.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        state, started = fields[0], fields[19]
    except (OSError, IndexError):
        return None
    return None if state in "ZX" else f"{boot}/{started}"


def output_of(pid: int) -> Path | None:
    """The file that gets what the process says; None when it is gone, is another user's, or nobody tells."""
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


class Grip:
    """A process that keeps its number as long as it is held, so that a signal reaches it or nobody.

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

    def __enter__(self) -> Grip:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def last_lines(log: Path, count: int = _LOG_LINES) -> list[str]:
    """The end of a log file: so many lines, as far as they are of usual length; nothing where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - count * _LINE_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]
