"""A limit on how long a piece of work may take, in the thread that does it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

_AGAIN_SECONDS = 5.0
"""After which an overrun that was swallowed (in a destructor, say) is raised once more."""


class Overrun(BaseException):
    """A time limit has passed. No `Exception`, so that nothing takes it for a failure of its own and goes on."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `Overrun` in what is inside once it has taken too long, as soon as the interpreter has its turn.

    A call into a library that does not come back cannot be broken off. Outside of the main thread and on Windows there
    are no timers that could; there the limit says nothing.

    Args:
        seconds: above 0.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def strike(number: int, frame: FrameType | None) -> None:
        raise Overrun

    begun = time.monotonic()
    handler = signal.signal(signal.SIGALRM, strike)
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if remaining:  # somebody else's timer goes on
            signal.setitimer(signal.ITIMER_REAL, max(0.001, remaining - (time.monotonic() - begun)), interval)
