"""A short-lived Python process that answers in lines: what crashes or hangs in it is lost alone."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ..errors import LiveAvatarError

_PACK = Path(__file__).parents[2]
"""The folder that holds `liveavatar`."""
_MARK = "liveavatar-doctor: "
"""Begins what is meant for the parent; all else is noise of libraries, kept as last words."""
_LONGEST = 300


class ChildLost(LiveAvatarError):
    """The process ended, or said nothing in time."""


def entry(module: str, *arguments: str) -> list[str]:
    """The command that runs `main(*arguments)` of a module of this package in a process of its own.

    The library is found by its folder, because inside ComfyUI it is not importable under its own name.
    """
    code = (
        f"import sys; sys.path.insert(0, sys.argv[1]); from liveavatar.doctor.{module} import main; main(*sys.argv[2:])"
    )
    return [sys.executable, "-c", code, str(_PACK), *arguments]


def answer(data: Any) -> None:
    """In the child: say something to the parent."""
    sys.stdout.write(f"\n{_MARK}{json.dumps(data)}\n")
    sys.stdout.flush()


class Child:
    """The parent's side.

    Args:
        command: see `entry`.
        group: whether what it starts itself ends with it.
    """

    def __init__(self, command: list[str], group: bool = False):
        self._group = group and os.name == "posix"
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._last_words = ""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=self._group,
        )
        self._reader = threading.Thread(target=self._read_lines, name="liveavatar-doctor", daemon=True)
        self._reader.start()

    def send(self, data: Any) -> None:
        """Send one line. Whether the child still reads is seen by `receive`."""
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(data) + "\n")
            self._process.stdin.flush()

    def receive(self, seconds: float) -> Any:
        """The next answer.

        Raises:
            ChildLost: none came in so many seconds, or none will come.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise ChildLost(f"It took longer than {seconds:g} s.") from None
            if line is None:
                raise ChildLost(self._how_it_ended())
            noise, mark, data = line.partition(_MARK)
            if mark:
                return json.loads(data)
            self._last_words = noise.strip()[:_LONGEST] or self._last_words

    def end(self) -> None:
        """At once, whatever it does; with what it started, where it has a group."""
        if self._group:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=5)  # a grandchild may hold the pipe open where there are no groups
        if not self._reader.is_alive():
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):  # the last line had no reader
                    assert pipe
                    pipe.close()

    def _read_lines(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "Its process fell silent."
        try:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        except ValueError:
            how = f"ended with code {code}"
        return f"Its process {how}{': ' + self._last_words if self._last_words else ''}."
