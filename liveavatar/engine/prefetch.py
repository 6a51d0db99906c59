"""Prefetching results in a thread of its own.

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

from ..events import Callback, Event
from ..planner import Plan

T = TypeVar("T")
Make = Callable[[Callback], Generator[T, None, None]]
"""Makes results one by one and calls back after every task."""

_POLL_SECONDS = 0.1
"""The longest wait without a look around: on Windows Ctrl-C is noticed only between two waits."""


def all_on_accelerators(plan: Plan) -> bool:
    """Whether all stages are on accelerators, so that making blocks in a thread of its own helps.

    A stage on the CPU would take cores from the decoder, and two threads cannot choose their numbers of CPU threads
    freely, on which the bits of sums depend: those numbers are partly the whole process's.
    """
    return all(torch.device(stage.device).type != "cpu" for stage in plan.stages)


class PrefetchThread(Iterator[T]):
    """Results of a thread that works at most one result ahead of its consumer.

    The thread starts with the first pull. Closing this, an error on either side, forgetting this object and the end of
    the interpreter stop it before its next task and wait until it is gone. Pulls may come from different threads, one
    at a time; each is called with the tasks until its result.

    Args:
        make: what the thread does. It must not know this object, nor whoever consumes it: what a running thread knows
            is never forgotten.
        callback: called in the thread that pulls, in the order of the tasks; what it raises ends the work.
        devices: where the thread works, in the streams of whoever pulls first.

    Raises:
        Whatever `make` raises, while iterating.
    """

    def __init__(self, make: Make[T], callback: Callback, devices: Iterable[torch.device] = ()):
        self._callback, self._devices = callback, tuple(devices)
        self._worker = _WorkerThread(make)
        self._end = weakref.finalize(self, self._worker.end)

    def __next__(self) -> T:
        if not self._end.alive:
            raise StopIteration
        try:
            self._worker.begin(self._devices)
            return self._pull()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the work; may be called again."""
        self._end()

    def _pull(self) -> T:
        while True:
            message = self._worker.next_message()
            if isinstance(message, Event):
                self._callback(message)
            elif isinstance(message, _Result):
                self._worker.request_next()
                return message.result
            elif isinstance(message, _Failed):
                message.reraise()
            else:
                raise StopIteration


@dataclasses.dataclass(frozen=True)
class _Result(Generic[T]):
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


class _Closed(Exception):
    """Nobody wants the results any more."""


_Message = Event | _Result[T] | _Failed | None
"""What the thread reports; None is the end."""


class _WorkerThread(Generic[T]):
    """The thread, and what passes between it and its consumer.

    Both directions are queues whose `put` may interrupt itself, because garbage may be collected, and this be ended by
    it, at any point of any thread.
    """

    def __init__(self, make: Make[T]):
        self._make = make
        self._messages: queue.SimpleQueue[_Message[T]] = queue.SimpleQueue()
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._closed = False
        self._thread: threading.Thread | None = None

    def begin(self, devices: Iterable[torch.device]) -> None:
        """Start the thread, unless it was."""
        if self._thread is None:
            arguments = (_thread_settings(devices),)
            self._thread = threading.Thread(target=self._run, args=arguments, name="liveavatar-ahead", daemon=True)
            self._thread.start()

    def next_message(self) -> _Message[T]:
        """The next report, when there is any."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._messages.get(timeout=_POLL_SECONDS)

    def request_next(self) -> None:
        """The latest result was taken."""
        self._requests.put(True)

    def end(self) -> None:
        """Stop before the next task; returns when the thread is gone, unless it is this one."""
        self._closed = True
        self._requests.put(False)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            while thread.is_alive():
                thread.join(_POLL_SECONDS)

    def _run(self, adopt_settings: Callable[[], None]) -> None:
        try:
            adopt_settings()
            with contextlib.closing(self._make(self._report)) as results:
                for result in results:
                    self._messages.put(_Result(result))
                    if not self._requests.get():
                        return
            self._messages.put(None)
        except _Closed:
            pass
        except BaseException as error:  # raised by whoever pulls
            self._messages.put(_Failed(error))

    def _report(self, event: Event) -> None:
        if self._closed:
            raise _Closed
        self._messages.put(event)


def _thread_settings(devices: Iterable[torch.device]) -> Callable[[], None]:
    """What makes another thread work as this one does: with as many CPU threads, and giving CUDA devices their work in
    the same streams and from the same current device."""
    # Layers that were compiled here would be compiled again for another number of CPU threads, wherever they work.
    threads = torch.get_num_threads()
    gpus = [device for device in devices if device.type == "cuda"]
    streams = [torch.cuda.current_stream(gpu) for gpu in gpus]
    present = torch.cuda.current_device() if gpus else None

    def adopt() -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        for stream in streams:
            torch.cuda.set_stream(stream)
        if present is not None:
            torch.cuda.set_device(present)

    return adopt
