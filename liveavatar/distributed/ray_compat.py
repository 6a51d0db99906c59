"""All calls of Ray while it runs, from any thread; and the thread that starts Ray and stays as long as Ray does."""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import LiveAvatarError

_LONGEST = 0.5
"""Seconds that one call stays inside: that long the gate may have to wait."""
_LEAVING_SECONDS = 10.0


class RayEnded(LiveAvatarError):
    """Ray is not there (any more)."""

    def __init__(self) -> None:
        super().__init__("The workers were ended while they were needed.", "Run it again: they are started anew.")


class _RayGate:
    """Who is inside, and whether others may come in."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._entered: dict[int, int] = {}
        """Threads, and how often each is inside."""
        self._open = False

    def open(self) -> None:
        """Let callers in."""
        with self._changed:
            self._open = True

    def close(self) -> None:
        """Let nobody in, and wait until all other threads are out."""
        me = threading.get_ident()
        with self._changed:
            self._open = False
            self._changed.wait_for(lambda: not self._entered.keys() - {me}, _LEAVING_SECONDS)

    @contextmanager
    def entered(self) -> Iterator[Any]:
        """Inside, Ray does not end.

        Raises:
            Ended: it has.
        """
        me = threading.get_ident()
        with self._changed:
            if not self._open and me not in self._entered:
                raise RayEnded()
            self._entered[me] = self._entered.get(me, 0) + 1
        try:
            yield importlib.import_module("ray")
        finally:
            with self._changed:
                self._entered[me] -= 1
                if not self._entered[me]:
                    del self._entered[me]
                self._changed.notify_all()


ray_gate = _RayGate()


def call(actor: Any, name: str, *given: Any) -> Any:
    """Call a worker's method; the reference of its answer."""
    with ray_gate.entered():
        return actor.call.remote(name, *given)


def wait(refs: Iterable[Any], seconds: float, most: int = 1) -> list[Any]:
    """The answers that are there, as soon as there are `most`, at last after some seconds; they are not fetched."""
    refs, until = list(refs), time.monotonic() + seconds
    while True:
        left = until - time.monotonic()
        with ray_gate.entered() as ray:
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
    with ray_gate.entered() as ray:
        return ray.get(ref, timeout=None if seconds is None else 0.001)


def kill(actor: Any) -> None:
    """End a worker's process."""
    with ray_gate.entered() as ray:
        ray.kill(actor, no_restart=True)


class RayThread:
    """One such thread.

    Args:
        start: starts Ray.

    Raises:
        Whatever `start` raises.
    """

    def __init__(self, start: Callable[[], object]):
        self._started, self._over = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(start,), name="liveavatar-ray", daemon=True).start()
        self._started.wait()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ray has ended."""
        self._over.set()

    def _run(self, start: Callable[[], object]) -> None:
        log = logging.getLogger("ray._private.worker")
        log.addFilter(_is_relevant)
        try:
            start()
        except BaseException as error:
            self._error = error
            return
        finally:
            log.removeFilter(_is_relevant)
            self._started.set()
        self._over.wait()


def _is_relevant(record: logging.LogRecord) -> bool:
    """That signals are left alone is what is wanted."""
    return "SIGTERM handler" not in record.getMessage()
