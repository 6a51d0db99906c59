"""Who may use the workers now."""

from __future__ import annotations

import dataclasses
import threading


class Turns:
    """One video at a time per backend.

    Whoever comes second waits until the first is made or given up. A video that the same thread (or one that has
    ended) left half made cannot go on by itself, so it loses its turn.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._present: Turn | None = None

    def take(self) -> Turn:
        """Wait for it."""
        mine = Turn(self, threading.current_thread())
        with self._changed:
            while (other := self._present) and other.thread is not mine.thread and other.thread.is_alive():
                self._changed.wait(0.5)
            self._present = mine
        return mine

    def holds(self, turn: Turn) -> bool:
        """Whether the turn is still the present one."""
        with self._changed:
            return self._present is turn

    def end(self, turn: Turn) -> None:
        """Let the next one come."""
        with self._changed:
            if self._present is turn:
                self._present = None
                self._changed.notify_all()


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
