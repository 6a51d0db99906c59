"""Progress on the terminal: one living line, or now and then a line where nobody watches."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import LiveAvatarError
from .tables import clock

if TYPE_CHECKING:
    from ..events import Event

BROKEN_OFF, REFUSED, CANCELLED = 1, 2, 130
"""Exit codes besides 0, which means that the work is complete."""

_LIVE_SECONDS = 0.1
_LOG_SECONDS = 10.0
_WIDEST = 100


class ProgressLine:
    """Shows progress on stderr.

    Attributes:
        generating: whether the video itself was begun.
    """

    def __init__(self, quiet: bool = False):
        self.generating = False
        self._quiet = quiet
        self._live = sys.stderr.isatty()
        self._shown = 0.0
        self._phase = ""

    def __call__(self, event: Event) -> None:
        from ..events import GENERATING

        self.generating = self.generating or event.phase == GENERATING
        self.show(event.phase, event_text(event))

    def show(self, phase: str, text: str) -> None:
        """Show a line of any kind: a new phase at once, the same one now and then."""
        now = time.monotonic()
        is_new = phase != self._phase
        if is_new or now - self._shown > (_LIVE_SECONDS if self._live else _LOG_SECONDS):
            self._phase, self._shown = phase, now
            self._write(f"\r{text[: _columns()]:<{_columns()}}" if self._live else f"{text}\n")

    def end(self) -> None:
        """Wipe the living line away."""
        if self._live and self._shown:
            self._write(f"\r{'':<{_columns()}}\r")

    def _write(self, text: str) -> None:
        if self._quiet:
            return
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:  # nobody reads any more; the video is worth finishing all the same
            self._quiet = True


def say(lines: Iterable[str]) -> None:
    """Print, unless nobody reads it any more (as after `| head`)."""
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        forget_output()


def forget_output() -> None:
    """From here on what is printed goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def event_text(event: Event) -> str:
    """What is being done, how much of it is finished, and how long the rest may take."""
    percent = 100 * event.done // max(event.total, 1)
    share = f"{percent:3d} %  " if percent else " " * 7
    frames = f", {event.frames / 25:.1f} s of video" if event.frames else ""
    left = f", {clock(event.seconds_left)} left" if event.seconds_left is not None else ""
    return f"{share}{event.phase}{frames}{left}"


def say_error(error: LiveAvatarError) -> None:
    """One readable paragraph on stderr: as wide as the terminal, or one line where it goes to a file."""
    text = " ".join(f"liveavatar: {error}".split())
    if sys.stderr.isatty():
        text = textwrap.fill(text, min(_columns(), _WIDEST), break_long_words=False, break_on_hyphens=False)
    print(text, file=sys.stderr)


def _columns() -> int:
    """Letters that fit in a line; one is left over, because some terminals break the line at the last."""
    return max(20, shutil.get_terminal_size().columns - 1)
