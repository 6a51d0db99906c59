"""Work that runs ahead of whoever wants its results, in a thread of its own.

An accelerator has to be given its work by somebody who does nothing else: while the caller decodes a block and writes
it, the thread already makes the next one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, TypeVar

import torch

from ..planner import Plan
from ..session import OnTask, TaskReport

T = TypeVar("T")
Make = Callable[[OnTask], Generator[T, None, None]]
"""Makes results one by one and tells of every task."""

_LOOK_SECONDS = 0.1
"""The longest wait without a look around: on Windows Ctrl-C is noticed only between two waits."""


def on_accelerators(plan: Plan) -> bool:
    """Whether all stages are on accelerators, so that making blocks in a thread of its own helps.

    A stage on the CPU would take cores from the decoder, and two threads cannot choose their numbers of CPU threads
    freely, on which the bits of sums depend: those numbers are partly the whole process's.
    """
    return all(torch.device(stage.device).type != "cpu" for stage in plan.stages)


class Ahead(Iterator[T]):
    """Results of a thread that is at most one of them ahead of what was taken.

    The thread starts with the first pull. Closing this, an error on either side, forgetting this object and the end of
    the interpreter stop it before its next task and wait until it is gone. Pulls may come from different threads, one
    at a time; each hears of the tasks until its result.

    Args:
        make: what the thread does. It must not know this object, nor whoever consumes it: what a running thread knows
            is never forgotten.
        on_task: called in the thread that pulls, in the order of the tasks; what it raises ends the work.
        devices: where the thread works, in the streams of whoever pulls first.

    Raises:
        Whatever `make` raises, while iterating.
    """

    def __init__(self, make: Make[T], on_task: OnTask, devices: Iterable[torch.device] = ()):
        self._on_task, self._devices = on_task, tuple(devices)
        self._work = _Work(make)
        self._end = weakref.finalize(self, self._work.end)

    def __next__(self) -> T:
        if not self._end.alive:
            raise StopIteration
        try:
            self._work.begin(self._devices)
            return self._pull()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the work; may be called again."""
        self._end()

    def _pull(self) -> T:
        while True:
            news = self._work.hear()
            if isinstance(news, TaskReport):
                self._on_task(news)
            elif isinstance(news, _Made):
                self._work.go_on()
                return news.result
            elif isinstance(news, _Failed):
                news.reraise()
            else:
                raise StopIteration


@dataclasses.dataclass(frozen=True)
class _Made(Generic[T]):
    """A result."""

    result: T


@dataclasses.dataclass
class _Failed:
    """How the work failed."""

    error: BaseException | None

    def reraise(self) -> None:
        """Raise it here. Nothing of this side keeps it, or it would keep all that it has seen on its way."""
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error


class _LeftError(Exception):
    """Nobody wants the results any more."""


_News = TaskReport | _Made[T] | _Failed | None
"""What the thread tells; None is the end."""


class _Work(Generic[T]):
    """The thread, and what passes between it and its consumer.

    Both directions are queues whose `put` may interrupt itself, because garbage may be collected, and this be ended by
    it, at any point of any thread.
    """

    def __init__(self, make: Make[T]):
        self._make = make
        self._news: queue.SimpleQueue[_News[T]] = queue.SimpleQueue()
        self._taken: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._left = False
        self._thread: threading.Thread | None = None

    def begin(self, devices: Iterable[torch.device]) -> None:
        """Start the thread, unless it was."""
        if self._thread is None:
            arguments = (_ways_here(devices),)
            self._thread = threading.Thread(target=self._run, args=arguments, name="liveavatar-ahead", daemon=True)
            self._thread.start()

    def hear(self) -> _News[T]:
        """The next news, when there is any."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._news.get(timeout=_LOOK_SECONDS)

    def go_on(self) -> None:
        """The latest result was taken."""
        self._taken.put(True)

    def end(self) -> None:
        """Stop before the next task; returns when the thread is gone, unless it is this one."""
        self._left = True
        self._taken.put(False)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            while thread.is_alive():
                thread.join(_LOOK_SECONDS)

    def _run(self, adopt_ways: Callable[[], None]) -> None:
        try:
            adopt_ways()
            with contextlib.closing(self._make(self._tell)) as results:
                for result in results:
                    self._news.put(_Made(result))
                    if not self._taken.get():
                        return
            self._news.put(None)
        except _LeftError:
            pass
        except BaseException as error:  # raised by whoever pulls
            self._news.put(_Failed(error))

    def _tell(self, report: TaskReport) -> None:
        if self._left:
            raise _LeftError
        self._news.put(report)


def _ways_here(devices: Iterable[torch.device]) -> Callable[[], None]:
    """What makes another thread work as this one does: with as many CPU threads, and giving CUDA devices their work in
    the same streams and from the same current device."""
    # Layers that were compiled here would be compiled again for another number of CPU threads, wherever they work.
    threads = torch.get_num_threads()
    cards = [device for device in devices if device.type == "cuda"]
    streams = [torch.cuda.current_stream(card) for card in cards]
    present = torch.cuda.current_device() if cards else None

    def adopt() -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        for stream in streams:
            torch.cuda.set_stream(stream)
        if present is not None:
            torch.cuda.set_device(present)

    return adopt
