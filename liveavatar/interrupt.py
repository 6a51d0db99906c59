"""Ctrl-C at the right moment: at once almost everywhere, but never while a file is half-way through a frame."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

_INSIST_SECONDS = 5.0
"""A second Ctrl-C this long after the first strikes wherever it is; an earlier one is impatience."""


class Interrupts:
    """Decides when a signal becomes a KeyboardInterrupt.

    Attributes:
        asked: whether somebody wants the work to end. Checked between tasks, it also catches an interrupt that was
            swallowed by code which must not raise.
    """

    def __init__(self) -> None:
        self.asked = False
        self._first = 0.0
        self._held = 0

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

    def strike(self, number: int, frame: FrameType | None) -> None:
        """The handler of a signal."""
        now = time.monotonic()
        first, self.asked = not self.asked, True
        if first:
            self._first = now
        insists = now - self._first > _INSIST_SECONDS
        if insists or (first and not self._held):
            raise KeyboardInterrupt


@contextlib.contextmanager
def interrupts(terminate: bool = False) -> Iterator[Interrupts]:
    """Those that are in force already, or new ones while inside.

    New ones take over a Ctrl-C that would raise KeyboardInterrupt anywhere, as Python does by default, and only in the
    main thread, where Python delivers it. Where the application has a handler of its own, that one stays.

    Args:
        terminate: being told to terminate (SIGTERM) is the same as Ctrl-C, unless it is handled or ignored already.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Interrupts()
        return
    present = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    if isinstance(present, Interrupts):
        yield present
        return
    new = Interrupts()
    defaults: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler}
    if terminate:
        defaults[signal.SIGTERM] = signal.SIG_DFL
    taken = [number for number, default in defaults.items() if signal.getsignal(number) is default]
    for number in taken:
        signal.signal(number, new.strike)
    try:
        yield new
    finally:
        for number in taken:
            signal.signal(number, defaults[number])
