"""Progress on the terminal: one living line, or now and then a line where nobody watches."""

from __future__ import annotations

import sys
import textwrap
import time
from typing import TYPE_CHECKING

from ..errors import LiveAvatarError

if TYPE_CHECKING:
    from ..recording import Progress

BROKEN_OFF, REFUSED, CANCELLED = 1, 2, 130
"""Exit codes besides 0, which means that the work is complete."""

_LIVE_SECONDS = 0.1
_LOG_SECONDS = 10.0


class ProgressLine:
    """Shows progress on stderr; remembers how many frames are in the file."""

    def __init__(self, quiet: bool = False):
        self.frames = 0
        self._quiet = quiet
        self._live = sys.stderr.isatty()
        self._shown = 0.0
        self._phase = ""

    def __call__(self, progress: Progress) -> None:
        self.frames = progress.frames
        now = time.monotonic()
        news = progress.phase != self._phase or progress.done == progress.total
        if self._quiet or not (news or now - self._shown > (_LIVE_SECONDS if self._live else _LOG_SECONDS)):
            return
        self._phase, self._shown = progress.phase, now
        text = self._text(progress)
        print(f"\r{text:<79}" if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the living line."""
        if self._live and self._shown and not self._quiet:
            print(file=sys.stderr)

    def _text(self, p: Progress) -> str:
        share = f"{100 * p.done // max(p.total, 1):3d} %"
        frames = f", {p.frames / 25:.1f} s of video" if p.frames else ""
        left = f", {_clock(p.seconds_left)} left" if p.seconds_left is not None else ""
        return f"{share}  {p.phase}{frames}{left}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def say_error(error: LiveAvatarError) -> None:
    """One readable paragraph on stderr."""
    print("\n".join(textwrap.wrap(f"liveavatar: {error}", 100, break_long_words=False)), file=sys.stderr)
