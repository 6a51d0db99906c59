"""Workers serve one video at a time, in the order in which the videos came, and whoever waits knows why."""

import random
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.distributed.queue import JobQueue, JobTicket
from liveavatar.errors import Cancelled
from liveavatar.events import Event

SOON = 60.0
"""Far more than anything here needs."""


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


class Queuer:
    """A thread that waits for its turn, gives up when told, and keeps the turn until told."""

    def __init__(self, turns: JobQueue, gone: list["Queuer"] | None = None):
        self.notices: list[str] = []
        self.turn: JobTicket | None = None
        self.error: Cancelled | None = None
        self.give_up, self.let_go = threading.Event(), threading.Event()
        self._turns, self._served = turns, gone
        waiting = turns.waiting
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()
        until(lambda: self.turn is not None or turns.waiting > waiting)

    def _work(self) -> None:
        try:
            self.turn = self._turns.acquire(self._on_event)
        except Cancelled as error:
            self.error = error
            return
        if self._served is not None:
            self._served.append(self)
        assert self.let_go.wait(SOON)
        self.turn.release()

    def _on_event(self, event: Event) -> None:
        self.notices.append(event.phase)
        if self.give_up.is_set():
            raise Cancelled("given up")


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_first_come_first_served_whoever_gives_up_in_between(patient: list[bool]) -> None:
    turns, served = JobQueue(), []
    first = turns.acquire()
    queue = [Queuer(turns, served) for _ in patient]
    assert turns.waiting == len(patient)
    for queuer, stays in zip(queue, patient, strict=True):
        if not stays:
            queuer.give_up.set()
    until(lambda: turns.waiting == sum(patient))
    assert turns.is_current(first) and not served
    staying = [queuer for queuer, stays in zip(queue, patient, strict=True) if stays]
    if staying:
        until(lambda: "Waiting for the workers: 1 video comes first." in staying[0].notices)
    first.release()
    for number, queuer in enumerate(staying):
        until(lambda known=number: len(served) == known + 1)
        assert served[-1] is queuer and turns.waiting == len(staying) - number - 1
        queuer.let_go.set()
    for queuer in queue:
        queuer.thread.join(SOON)
    assert not turns.is_busy and not turns.waiting
    assert all(queuer.error is not None for queuer, stays in zip(queue, patient, strict=True) if not stays)


def test_many_threads_never_overlap() -> None:
    turns, inside, most = JobQueue(), [0], [0]

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(20):
            turn = turns.acquire()
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(dice.random() / 2000)
            inside[0] -= 1
            turn.release()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1] and inside == [0] and not turns.is_busy and not turns.waiting


def test_whoever_waits_is_told_at_once_and_again_with_the_number_that_comes_first() -> None:
    turns = JobQueue()
    first = turns.acquire()
    second, third = Queuer(turns), Queuer(turns)
    until(lambda: len(second.notices) >= 2 and len(third.notices) >= 2)
    assert set(second.notices) == {"Waiting for the workers: 1 video comes first."}
    assert set(third.notices) == {"Waiting for the workers: 2 videos come first."}
    first.release()
    until(lambda: second.turn is not None and "Waiting for the workers: 1 video comes first." in third.notices)
    second.let_go.set()
    until(lambda: third.turn is not None)
    third.let_go.set()


def test_a_wait_that_is_given_up_ends_and_disturbs_nobody() -> None:
    turns = JobQueue()
    first = turns.acquire()
    queuer = Queuer(turns)
    queuer.give_up.set()
    queuer.thread.join(SOON)
    assert queuer.error is not None
    assert turns.waiting == 0 and first.is_current
    first.release()
    assert turns.acquire().is_current


def test_what_the_same_thread_left_half_made_loses_its_turn_also_to_those_who_waited_longer() -> None:
    turns, served = JobQueue(), []
    left = turns.acquire()
    queuer = Queuer(turns, served)
    mine: list[JobTicket] = []

    def let_go(event: Event) -> None:
        queuer.let_go.set()

    mine.append(turns.acquire(let_go))
    assert served == [queuer] and not left.is_current and mine[0].is_current
    left.release()
    assert mine[0].is_current, "who has lost a turn cannot end another's"


def test_what_an_ended_thread_left_half_made_loses_its_turn() -> None:
    turns, taken = JobQueue(), []
    thread = threading.Thread(target=lambda: taken.append(turns.acquire()))
    thread.start()
    thread.join()
    mine = turns.acquire()
    assert mine.is_current and not taken[0].is_current


@pytest.mark.parametrize("wanted", [True, False])
def test_free_seconds_count_from_the_last_that_wanted_the_workers(wanted: bool) -> None:
    turns = JobQueue()
    time.sleep(0.02)
    assert turns.idle_seconds >= 0.02
    turn = turns.acquire()
    assert turns.idle_seconds == 0 and turns.acquire_idle(0.0) is None
    turn.release()
    assert turns.acquire_idle(5.0) is None
    time.sleep(0.01)
    resting = turns.acquire_idle(0.01)
    assert resting is not None and resting.is_current
    if wanted:
        queuer = Queuer(turns)
        resting.release()
        until(lambda: queuer.turn is not None)
        assert turns.acquire_idle(0.0) is None
        queuer.let_go.set()
