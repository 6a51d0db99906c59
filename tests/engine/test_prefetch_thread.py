"""A thread that runs ahead: never too far, never longer than it is wanted, and never noticed by who is told."""

import contextlib
import contextvars
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from liveavatar.engine.prefetch import PrefetchThread
from liveavatar.events import GENERATING, Callback, Event
from liveavatar.task_graph import Denoise

PROJECT = Path(__file__).parents[2]
PATIENCE = 20.0
TASKS = 2
"""Of every result."""


def left_behind() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "liveavatar-ahead"]


def report(result: int, task: int) -> Event:
    return Event(GENERATING, 1 + task + TASKS * result, task=Denoise(result, task, 0), stage=0)


class Work:
    """Makes numbers; notes its tasks, and lets the test say when each one may begin."""

    def __init__(self, count: int = 5, gated: bool = False, fails_at: int | None = None):
        self.count, self.fails_at = count, fails_at
        self.begun: list[tuple[int, int]] = []
        self.threads: set[threading.Thread] = set()
        self.closed = threading.Event()
        self.reached = threading.Semaphore(0)
        self.gate = threading.Semaphore(0 if gated else 10_000)

    def __call__(self, callback: Callback) -> Generator[int, None, None]:
        try:
            for result in range(self.count):
                for task in range(TASKS):
                    self.begun.append((result, task))
                    self.threads.add(threading.current_thread())
                    self.reached.release()
                    assert self.gate.acquire(timeout=PATIENCE)
                    if result == self.fails_at:
                        raise ArithmeticError("a task failed")
                    callback(report(result, task))
                yield result
        finally:
            self.closed.set()

    def reach(self, tasks: int) -> None:
        """Wait until so many more tasks have begun."""
        for _ in range(tasks):
            assert self.reached.acquire(timeout=PATIENCE)


def unheard(event: Event) -> None:
    """For tests of other things."""


def until(true: Callable[[], bool]) -> None:
    """Wait for what another thread does by itself."""
    for _ in range(2000):
        if true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen")


def test_all_results_come_in_order_and_the_thread_goes():
    work, heard = Work(), []
    assert list(PrefetchThread(work, heard.append)) == [0, 1, 2, 3, 4]
    assert heard == [report(result, task) for result in range(5) for task in range(TASKS)]
    assert work.threads and threading.current_thread() not in work.threads
    assert not left_behind()


def test_nothing_starts_before_a_pull_or_after_a_close():
    work = Work()
    never, closed = PrefetchThread(work, unheard), PrefetchThread(work, unheard)
    closed.close()
    assert list(closed) == [] and not work.begun and not left_behind()
    never.close()


def test_at_most_one_result_waits_for_who_does_not_pull():
    work = Work()
    results = PrefetchThread(work, unheard)
    assert next(results) == 0
    until(lambda: len(work.begun) == 2 * TASKS)
    threading.Event().wait(0.2)
    assert work.begun == [(0, 0), (0, 1), (1, 0), (1, 1)] and not work.closed.is_set()
    assert next(results) == 1
    until(lambda: len(work.begun) == 3 * TASKS)
    results.close()
    assert work.closed.is_set() and not left_behind()


def test_the_next_result_is_made_while_the_last_one_is_used():
    work = Work(gated=True)
    results = PrefetchThread(work, unheard)
    for result in range(4):
        work.gate.release(TASKS)
        assert next(results) == result
        # The consumer is busy with this result; the thread begins the next one all the same.
        while work.begun[-1][0] <= result:
            work.reach(1)
    work.gate.release(2 * TASKS)
    assert list(results) == [4]


def test_tasks_are_told_to_who_pulls_in_its_own_thread_and_context():
    node = contextvars.ContextVar("node")
    heard = []
    results = PrefetchThread(Work(), lambda task: heard.append((task.done, node.get(), threading.current_thread())))
    pulled = []

    def pull(name: str) -> None:
        node.set(name)
        pulled.append(next(results))

    for name in "abcde":
        thread = threading.Thread(target=contextvars.copy_context().run, args=(pull, name))
        thread.start()
        thread.join()
    assert pulled == [0, 1, 2, 3, 4]
    assert [(done, name) for done, name, _ in heard] == [(n, "abcde"[(n - 1) // TASKS]) for n in range(1, 11)]
    assert len({thread for *_, thread in heard}) == 5
    results.close()


class Interrupted(BaseException):
    """What an application may raise where it is told of progress."""


def test_what_the_listener_raises_ends_the_work_before_the_next_task():
    work = Work(gated=True)

    def stop(event: Event) -> None:
        work.gate.release(10)  # the task after this one has begun already
        raise Interrupted

    work.gate.release(1)
    results = PrefetchThread(work, stop)
    with pytest.raises(Interrupted):
        next(results)
    assert work.begun in ([(0, 0)], [(0, 0), (0, 1)])
    assert work.closed.is_set() and not left_behind() and list(results) == []


def test_a_close_in_the_middle_waits_for_the_task_and_no_more():
    work = Work(gated=True)
    results = PrefetchThread(work, unheard)
    work.gate.release(TASKS)
    next(results)
    work.reach(TASKS + 1)
    closing = threading.Thread(target=results.close)
    closing.start()
    until(lambda: results._worker._closed)
    assert closing.is_alive() and left_behind()
    work.gate.release(1)
    closing.join(PATIENCE)
    assert not closing.is_alive() and not left_behind()
    assert work.begun == [(0, 0), (0, 1), (1, 0)]
    results.close()


def test_an_error_comes_as_it_was_raised_after_what_came_before():
    work, heard = Work(fails_at=2), []
    results = PrefetchThread(work, heard.append)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ArithmeticError, match="a task failed") as failed:
        next(results)
    assert [entry.name for entry in failed.traceback][-1] == "__call__", "where it happened"
    assert len(heard) == 2 * TASKS and not left_behind() and list(results) == []


def test_a_failed_run_is_not_kept_by_its_own_error():
    """What the work held, on a device perhaps, is free once the error is dealt with, without a garbage collection."""

    freed = threading.Event()

    def work(callback: Callback) -> Generator[int, None, None]:
        held = threading.Event()
        weakref.finalize(held, freed.set)
        yield 0
        raise ArithmeticError(held.is_set())

    gc.disable()
    try:
        results = PrefetchThread(work, unheard)
        next(results)
        with contextlib.suppress(ArithmeticError):
            next(results)
        assert freed.is_set()
    finally:
        gc.enable()


def test_one_that_is_forgotten_ends():
    work = Work()
    results = PrefetchThread(work, unheard)
    next(results)
    assert left_behind()
    del results
    assert work.closed.is_set() and not left_behind()


def test_one_that_is_collected_in_its_own_thread_ends():
    """Garbage in a cycle is collected wherever the collector happens to run."""
    collected = threading.Event()

    def work(callback: Callback) -> Generator[int, None, None]:
        yield 0
        assert forgotten.wait(PATIENCE)
        gc.collect()
        collected.set()
        callback(report(1, 0))
        yield 1

    forgotten = threading.Event()
    gc.disable()  # until the thread does it
    try:
        results = PrefetchThread(work, unheard)
        results.itself = results
        next(results)
        del results
        forgotten.set()
        assert collected.wait(PATIENCE)
        until(lambda: not left_behind())
    finally:
        gc.enable()


@pytest.mark.skipif(os.name != "posix", reason="signals to oneself")
def test_ctrl_c_strikes_who_waits():
    work = Work(gated=True)
    results = PrefetchThread(work, unheard)

    def press() -> None:
        work.reach(1)
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: results._end.alive is False)  # it has struck while the task still goes on
        work.gate.release(10)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        next(results)
    pressing.join()
    assert work.begun[-1][0] == 0 and not left_behind()


FORGETFUL = """
import threading
from liveavatar.engine.prefetch import PrefetchThread

def work(callback):
    try:
        yield from range(9)
    finally:
        print("closed", flush=True)

results = PrefetchThread(work, print)
print(next(results), [t.name for t in threading.enumerate()][1:], flush=True)
"""


def test_the_interpreter_ends_with_one_at_rest():
    ran = subprocess.run([sys.executable, "-c", FORGETFUL], capture_output=True, text=True, timeout=60, cwd=PROJECT)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "0 ['liveavatar-ahead']\nclosed\n"
