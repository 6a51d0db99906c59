"""Who may use the workers now, and who comes next."""

from __future__ import annotations

import dataclasses
import threading
import time

from ....session import OnNotice, unnoticed

NOTICE_SECONDS = 1.0
"""Whoever waits is told so about this often, and can be cancelled then."""


class Turns:
    """One video at a time per backend; first come, first served.

    A video that the same thread (or one that has ended) left half made cannot go on by itself, so it loses its turn.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._present: Turn | None = None
        self._queue: list[Turn] = []
        self._free_since = time.monotonic()

    @property
    def taken(self) -> bool:
        """Whether a video is being made, or was left half made."""
        with self._changed:
            return self._present is not None

    @property
    def waiting(self) -> int:
        """Videos that wait for their turn."""
        with self._changed:
            return len(self._queue)

    @property
    def free_seconds(self) -> float:
        """For how long nobody has wanted the workers; 0 while somebody does."""
        with self._changed:
            return 0.0 if self._present or self._queue else time.monotonic() - self._free_since

    def take(self, on_notice: OnNotice = unnoticed) -> Turn:
        """Wait for it.

        Args:
            on_notice: told at once and then about every second who comes first; what it raises gives the place up.
        """
        mine = Turn(self, threading.current_thread())
        try:
            self._queue_up(mine)
            while before := self._admit(mine):
                on_notice(_waiting_for(before))
                with self._changed:
                    self._changed.wait_for(lambda known=before: self._before(mine) != known, NOTICE_SECONDS)  # type: ignore[misc]
        except BaseException:
            self.end(mine)
            raise
        return mine

    def take_free(self, seconds: float) -> Turn | None:
        """The turn, if nobody has wanted the workers for so long."""
        with self._changed:
            if self._present or self._queue or time.monotonic() - self._free_since < seconds:
                return None
            self._present = Turn(self, threading.current_thread())
            return self._present

    def holds(self, turn: Turn) -> bool:
        """Whether the turn is still the present one."""
        with self._changed:
            return self._present is turn

    def end(self, turn: Turn) -> None:
        """Let the next one come; or leave the queue."""
        with self._changed:
            if self._present is turn:
                self._present = None
            elif turn in self._queue:
                self._queue.remove(turn)
            else:
                return
            self._free_since = time.monotonic()
            self._changed.notify_all()

    def _queue_up(self, mine: Turn) -> None:
        with self._changed:
            # Its thread is here and not at work on it: those in the queue must not wait for what waits behind them.
            if self._present is not None and self._present.thread is mine.thread:
                self._present = None
            self._queue.append(mine)
            self._changed.notify_all()

    def _admit(self, mine: Turn) -> int:
        """Take the turn when nobody comes first; how many do."""
        with self._changed:
            before = self._before(mine)
            if not before:
                self._queue.remove(mine)
                self._present = mine
                self._changed.notify_all()
            return before

    def _before(self, mine: Turn) -> int:
        working = self._present is not None and self._present.thread.is_alive()
        return self._queue.index(mine) + working


@dataclasses.dataclass(eq=False)
class Turn:
    """One video's claim on the workers; `thread` is whoever pulled last."""

    turns: Turns
    thread: threading.Thread

    @property
    def held(self) -> bool:
        """Whether nobody else has taken it."""
        return self.turns.holds(self)

    def end(self) -> None:
        """Give it back."""
        self.turns.end(self)


def _waiting_for(videos: int) -> str:
    return f"Waiting for the workers: {videos} {'video comes' if videos == 1 else 'videos come'} first."
