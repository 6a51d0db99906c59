"""Ctrl-C at the right moment: at once almost everywhere, but never while a file is half-way through a frame."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INSIST_SECONDS = 5.0
"""A second Ctrl-C this long after the first strikes wherever it is; an earlier one is impatience."""


class Interrupts:
    """While entered, decides when a signal becomes a KeyboardInterrupt.

    It takes over those of `SIGNALS` that would raise one anywhere (Python's default for Ctrl-C), and only in the main
    thread, where Python delivers them. Everything else is left to the application; then this does nothing.

    Attributes:
        asked: whether somebody wants the work to end. Checked between tasks, it also catches an interrupt that was
            swallowed by code which must not raise.
    """

    def __init__(self) -> None:
        self.asked = False
        self._first = 0.0
        self._held = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            ours = [s for s in SIGNALS if signal.getsignal(s) is signal.default_int_handler]
            self._before = {s: signal.signal(s, self._strike) for s in ours}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """What is inside is finished first; an interrupt that came meanwhile strikes at its end."""
        before = self.asked
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if self.asked and not before:
            raise KeyboardInterrupt

    def hold(self) -> None:
        """From here on only an insistent interrupt strikes."""
        self._held += 1

    def _strike(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        first, self.asked = not self.asked, True
        if first:
            self._first = now
        insists = now - self._first > _INSIST_SECONDS
        if insists or (first and not self._held):
            raise KeyboardInterrupt
