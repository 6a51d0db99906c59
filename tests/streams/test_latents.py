"""When blocks are made, how a run ends, and who waits for whom."""

import threading
import time

import pytest
import torch
from streams.producers import SHAPE, Broken, Producer, label, labels

from liveavatar.errors import Cancelled, LiveAvatarError
from liveavatar.streams import LatentStream


def test_nothing_is_computed_before_it_is_asked_for():
    producer = Producer(3)
    stream = LatentStream(3, producer)
    blocks = iter(stream)
    assert producer.runs == 0 and stream.produced == 0
    next(blocks)
    assert producer.made == [(0, 0)] and stream.produced == 1 and not stream.done
    assert len(list(blocks)) == 2 and stream.done and producer.open == 0


def test_a_consumer_that_leaves_pauses_the_producer_and_loses_nothing():
    producer = Producer(4)
    stream = LatentStream(4, producer)
    for block in stream:
        if label(block) == (0, 1):
            break
    assert producer.open == 1
    assert labels(stream) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert producer.runs == 1


def test_a_failure_reaches_every_consumer_and_the_next_one_starts_over():
    producer = Producer(3)
    producer.fail_at = {(0, 2)}
    stream = LatentStream(3, producer)
    slow, quick = iter(stream), iter(stream)
    assert label(next(slow)) == (0, 0)
    with pytest.raises(Broken):
        list(quick)
    with pytest.raises(Broken):
        next(slow)
    assert stream.produced == 0
    assert labels(stream) == [(1, 0), (1, 1), (1, 2)]


def test_ctrl_c_inside_a_step_starts_over_and_cancels_the_others():
    def produce():
        yield torch.zeros(SHAPE)
        raise KeyboardInterrupt

    stream = LatentStream(2, produce)
    other = iter(stream)
    next(other)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    with pytest.raises(Cancelled):
        next(other)


def test_cancel_does_not_wait_and_a_new_run_waits_for_the_old_step():
    inside, go, events = threading.Event(), threading.Event(), []

    def produce():
        run = len([e for e in events if e.startswith("open")])
        events.append(f"open {run}")
        try:
            if run == 0:
                inside.set()
                go.wait(60)
            yield torch.full(SHAPE, 100.0 * run)
        finally:
            events.append(f"close {run}")

    stream = LatentStream(1, produce)
    outcome = {}

    def first():
        try:
            outcome["first"] = labels(stream)
        except Cancelled as e:
            outcome["first"] = e

    one = threading.Thread(target=first)
    one.start()
    inside.wait(60)
    stream.cancel()  # returns while the producer is still inside
    two = threading.Thread(target=lambda: outcome.update(second=labels(stream)))
    two.start()
    time.sleep(0.05)
    assert events == ["open 0"]
    go.set()
    one.join(60), two.join(60)
    assert events == ["open 0", "close 0", "open 1", "close 1"]
    assert isinstance(outcome["first"], Cancelled) and outcome["second"] == [(1, 0)]


def test_a_replayer_is_not_held_up_by_a_step():
    inside, go = threading.Event(), threading.Event()

    def produce():
        yield torch.zeros(SHAPE)
        inside.set()
        go.wait(60)
        yield torch.ones(SHAPE)

    stream = LatentStream(2, produce)
    worker = threading.Thread(target=lambda: list(stream))
    worker.start()
    inside.wait(60)
    assert label(next(iter(stream))) == (0, 0)
    go.set()
    worker.join(60)
    assert stream.done


def test_a_finished_stream_survives_cancel_but_not_close():
    stream = LatentStream(2, Producer(2))
    list(stream)
    stream.cancel()
    assert labels(stream) == [(0, 0), (0, 1)]
    late = iter(stream)
    next(late)
    stream.close()
    stream.close()
    for consumer in (late, iter(stream)):
        with pytest.raises(LiveAvatarError, match="closed"):
            next(consumer)


def test_a_producer_that_ends_early_or_changes_shape_fails_the_run():
    with pytest.raises(RuntimeError, match="1 of 2"):
        list(LatentStream(2, lambda: iter([torch.zeros(SHAPE)])))
    with pytest.raises(ValueError, match="Block 1"):
        list(LatentStream(2, lambda: iter([torch.zeros(SHAPE), torch.zeros(1)])))
    with pytest.raises(ValueError, match="at least 1"):
        LatentStream(0, Producer(0))
