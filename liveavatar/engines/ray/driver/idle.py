"""Workers that nobody uses any more give their memory back."""

from __future__ import annotations

import logging
import threading
import weakref

from .crew import Crew
from .turns import Turns

_log = logging.getLogger("liveavatar")


class Idle:
    """Ends the workers of a crew when they have had nothing to do for long; the next run starts them again.

    A thread watches, that knows the crew by a weak reference only and ends with it.

    Args:
        crew: whose workers.
        turns: who uses them.
        seconds: how long is long; None is never.
    """

    def __init__(self, crew: Crew, turns: Turns, seconds: float | None):
        self._watch = _Watch(weakref.ref(crew), turns, seconds)
        weakref.finalize(crew, self._watch.leave)
        threading.Thread(target=self._watch.work, name="liveavatar-idle", daemon=True).start()

    @property
    def seconds(self) -> float | None:
        """How long is long; may be changed at any time."""
        return self._watch.seconds

    @seconds.setter
    def seconds(self, seconds: float | None) -> None:
        self._watch.seconds = seconds
        self._watch.wake.set()


class _Watch:
    """What the thread holds."""

    def __init__(self, crew: weakref.ref[Crew], turns: Turns, seconds: float | None):
        self._crew, self._turns, self.seconds = crew, turns, seconds
        self.wake = threading.Event()
        self._over = False

    def leave(self) -> None:
        """The crew is gone."""
        self._over = True
        self.wake.set()

    def work(self) -> None:
        """Until then."""
        while not self._over:
            self.wake.wait(self._left())
            self.wake.clear()
            crew = self._crew()
            if crew is not None and crew.is_there and self.seconds is not None:
                self._end_idle(crew, self.seconds)
            del crew  # or it would live until the next look

    def _left(self) -> float | None:
        """Seconds until it may be time; None until woken."""
        crew = self._crew()
        if self.seconds is None or crew is None:
            return None
        left = self.seconds - min(self._turns.free_seconds, crew.desk.free_seconds)
        return left if left > 0 else self.seconds  # long idle, and nothing to end

    def _end_idle(self, crew: Crew, seconds: float) -> None:
        turn = self._turns.take_free(seconds) if crew.desk.free_seconds >= seconds else None
        if turn is None:
            return
        try:
            _log.info("workers were idle for %.0f s and are ended", seconds)
            crew.give_back()
        except Exception:  # Ray may be ending with this process
            _log.warning("idle workers could not be ended", exc_info=True)
        finally:
            turn.end()
