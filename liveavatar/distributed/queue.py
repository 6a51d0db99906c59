"""The queue of videos at one worker pool: one at a time, the pause between blocks, and stopping idle workers."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import weakref

from ..events import Callback, ignore, notice_event
from .pool import WorkerPool


class PauseFlag:
    """Whether new blocks must wait. Set and read from any thread; what has begun goes on.

    Attributes:
        on: whether they must.
    """

    def __init__(self) -> None:
        self.on = False
        self._notified = float("-inf")

    def notify(self, callback: Callback) -> None:
        """Notify of the pause, at most once a second; what `callback` raises passes through."""
        now = time.monotonic()
        if now - self._notified >= NOTICE_SECONDS:
            self._notified = now
            callback(notice_event("Paused."))


NOTICE_SECONDS = 1.0
"""Waiting callers are notified this often, and can be cancelled then."""


class JobQueue:
    """One video at a time per backend; first come, first served.

    A video that the same thread (or one that has ended) left half made cannot go on by itself, so it loses its turn.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._present: JobTicket | None = None
        self._queue: list[JobTicket] = []
        self._free_since = time.monotonic()

    @property
    def is_busy(self) -> bool:
        """Whether a video is being made, or was left half made."""
        with self._changed:
            return self._present is not None

    @property
    def waiting(self) -> int:
        """Videos that wait for their turn."""
        with self._changed:
            return len(self._queue)

    @property
    def idle_seconds(self) -> float:
        """Seconds without a video, made or waiting; 0 while there is one."""
        with self._changed:
            return 0.0 if self._present or self._queue else time.monotonic() - self._free_since

    def acquire(self, callback: Callback = ignore) -> JobTicket:
        """Wait for it.

        Args:
            callback: called at once and then about every second with a notice of who comes first; what it raises gives
                the place up.
        """
        mine = JobTicket(self, threading.current_thread())
        try:
            self._queue_up(mine)
            while before := self._admit(mine):
                callback(notice_event(_waiting_for(before)))
                with self._changed:
                    self._changed.wait_for(lambda known=before: self._before(mine) != known, NOTICE_SECONDS)  # type: ignore[misc]
        except BaseException:
            self.release(mine)
            raise
        return mine

    def acquire_idle(self, seconds: float) -> JobTicket | None:
        """A ticket, if there was no video for so long."""
        with self._changed:
            if self._present or self._queue or time.monotonic() - self._free_since < seconds:
                return None
            self._present = JobTicket(self, threading.current_thread())
            return self._present

    def is_current(self, ticket: JobTicket) -> bool:
        """Whether a ticket is still the present one."""
        with self._changed:
            return self._present is ticket

    def release(self, ticket: JobTicket) -> None:
        """Let the next one come; or leave the queue."""
        with self._changed:
            if self._present is ticket:
                self._present = None
            elif ticket in self._queue:
                self._queue.remove(ticket)
            else:
                return
            self._free_since = time.monotonic()
            self._changed.notify_all()

    def _queue_up(self, mine: JobTicket) -> None:
        with self._changed:
            # Its thread is here and not at work on it: those in the queue must not wait for what waits behind them.
            if self._present is not None and self._present.thread is mine.thread:
                self._present = None
            self._queue.append(mine)
            self._changed.notify_all()

    def _admit(self, mine: JobTicket) -> int:
        """Make a ticket the present one when no video comes first; how many do."""
        with self._changed:
            before = self._before(mine)
            if not before:
                self._queue.remove(mine)
                self._present = mine
                self._changed.notify_all()
            return before

    def _before(self, mine: JobTicket) -> int:
        working = self._present is not None and self._present.thread.is_alive()
        return self._queue.index(mine) + working


@dataclasses.dataclass(eq=False)
class JobTicket:
    """One video's claim on the workers; `thread` is whoever pulled last."""

    jobs: JobQueue
    thread: threading.Thread

    @property
    def is_current(self) -> bool:
        """Whether the workers are still this video's."""
        return self.jobs.is_current(self)

    def release(self) -> None:
        """Give it back."""
        self.jobs.release(self)


def _waiting_for(videos: int) -> str:
    return f"Waiting for the workers: {videos} {'video comes' if videos == 1 else 'videos come'} first."


_log = logging.getLogger("liveavatar")


class IdleReaper:
    """Ends the workers of a worker pool when they have had nothing to do for long; the next run starts them again.

    A thread watches, that knows the worker pool by a weak reference only and ends with it.

    Args:
        pool: of the workers.
        jobs: the queue of videos.
        seconds: how long is long; None is never.
    """

    def __init__(self, pool: WorkerPool, jobs: JobQueue, seconds: float | None):
        self._watch = _ReaperThread(weakref.ref(pool), jobs, seconds)
        weakref.finalize(pool, self._watch.stop)
        threading.Thread(target=self._watch.run, name="liveavatar-idle", daemon=True).start()

    @property
    def seconds(self) -> float | None:
        """How long is long; may be changed at any time."""
        return self._watch.seconds

    @seconds.setter
    def seconds(self, seconds: float | None) -> None:
        self._watch.seconds = seconds
        self._watch.wake.set()


class _ReaperThread:
    """The state of the thread."""

    def __init__(self, pool: weakref.ref[WorkerPool], jobs: JobQueue, seconds: float | None):
        self._pool, self._jobs, self.seconds = pool, jobs, seconds
        self.wake = threading.Event()
        self._over = False

    def stop(self) -> None:
        """The worker pool is gone."""
        self._over = True
        self.wake.set()

    def run(self) -> None:
        """Until then."""
        while not self._over:
            self.wake.wait(self._seconds_left())
            self.wake.clear()
            pool = self._pool()
            if pool is not None and pool.all_workers and self.seconds is not None:
                self._end_idle(pool, self.seconds)
            del pool  # or it would live until the thread wakes again

    def _seconds_left(self) -> float | None:
        """Seconds until it may be time; None until woken."""
        pool = self._pool()
        if self.seconds is None or pool is None:
            return None
        left = self.seconds - min(self._jobs.idle_seconds, pool.codec_worker.idle_seconds)
        return left if left > 0 else self.seconds  # long idle, and nothing to end

    def _end_idle(self, pool: WorkerPool, seconds: float) -> None:
        turn = self._jobs.acquire_idle(seconds) if pool.codec_worker.idle_seconds >= seconds else None
        if turn is None:
            return
        try:
            _log.info("workers were idle for %.0f s and are ended", seconds)
            pool.stop()
        except Exception:  # Ray may be ending with this process
            _log.warning("idle workers could not be ended", exc_info=True)
        finally:
            turn.release()
