"""All that is asked of Ray while it runs, by any thread.

Ray ends the whole process when it is asked for something after its own end. So whoever calls it goes through a gate,
and the gate is shut, and everybody out, before Ray is ended.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ....errors import LiveAvatarError

_LONGEST = 0.5
"""Seconds that one call stays inside: that long the gate may have to wait."""
_LEAVING_SECONDS = 10.0


class Ended(LiveAvatarError):
    """Ray is not there (any more)."""

    def __init__(self) -> None:
        super().__init__("The workers were ended while they were needed.", "Run it again: they are started anew.")


class _Gate:
    """Who is inside, and whether others may come in."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: dict[int, int] = {}
        """Threads, and how often each is inside."""
        self._open = False

    def open(self) -> None:
        """Let callers in."""
        with self._changed:
            self._open = True

    def shut(self) -> None:
        """Let nobody in, and wait until all other threads are out."""
        me = threading.get_ident()
        with self._changed:
            self._open = False
            self._changed.wait_for(lambda: not self._inside.keys() - {me}, _LEAVING_SECONDS)

    @contextmanager
    def through(self) -> Iterator[Any]:
        """Inside, Ray does not end.

        Raises:
            Ended: it has.
        """
        me = threading.get_ident()
        with self._changed:
            if not self._open and me not in self._inside:
                raise Ended()
            self._inside[me] = self._inside.get(me, 0) + 1
        try:
            yield importlib.import_module("ray")
        finally:
            with self._changed:
                self._inside[me] -= 1
                if not self._inside[me]:
                    del self._inside[me]
                self._changed.notify_all()


gate = _Gate()


def ask(actor: Any, name: str, *given: Any) -> Any:
    """Call a worker's method; the reference of its answer."""
    with gate.through():
        return actor.call.remote(name, *given)


def wait(refs: Iterable[Any], seconds: float, most: int = 1) -> list[Any]:
    """The answers that are there, as soon as there are `most`, at last after some seconds; they are not fetched."""
    refs, until = list(refs), time.monotonic() + seconds
    while True:
        left = until - time.monotonic()
        with gate.through() as ray:
            count = min(most, len(refs))
            done, _ = ray.wait(refs, num_returns=count, timeout=max(0.0, min(left, _LONGEST)), fetch_local=False)
            if len(done) >= count or left <= 0:
                done, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
                return list(done)


def get(ref: Any, seconds: float | None = None) -> Any:
    """An answer that is there, or comes within some seconds.

    Raises:
        GetTimeoutError (of Ray): it does not.
        RayError (of Ray): whoever owed it is gone.
    """
    if seconds is not None:
        wait([ref], seconds)
    with gate.through() as ray:
        return ray.get(ref, timeout=None if seconds is None else 0.001)


def kill(actor: Any) -> None:
    """End a worker's process."""
    with gate.through() as ray:
        ray.kill(actor, no_restart=True)
