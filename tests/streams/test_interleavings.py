"""Blocks are never reordered, lost, repeated or mixed, whoever consumes, leaves, cancels or fails."""

import threading
import time

from hypothesis import given
from hypothesis import strategies as st
from streams.producers import Broken, Producer, label, labels

from liveavatar.errors import Cancelled
from liveavatar.streams import LatentStream

OPERATIONS = st.one_of(
    st.tuples(st.just("next"), st.integers(0, 1)),
    st.tuples(st.just("next"), st.integers(0, 1)),
    st.tuples(st.just("leave"), st.integers(0, 1)),
    st.tuples(st.just("cancel"), st.just(0)),
    st.tuples(st.just("fail"), st.just(0)),
)


@given(blocks=st.integers(1, 5), operations=st.lists(OPERATIONS, max_size=40))
def test_any_order_of_two_consumers_cancels_and_failures_keeps_the_blocks_in_order(blocks, operations):
    producer = Producer(blocks)
    stream = LatentStream(blocks, producer)
    iterators: list = [None, None]
    seen: list[list[tuple[int, int]]] = [[], []]
    for operation, who in operations:
        if operation == "cancel":
            unfinished = not stream.done
            stream.cancel()
            assert stream.produced == 0 if unfinished else stream.done
        elif operation == "fail":
            producer.fail_at.add((max(producer.runs - 1, 0), stream.produced))
        elif operation == "leave":
            kept = stream.produced
            iterators[who] = None
            assert stream.produced == kept
        else:
            if iterators[who] is None:
                iterators[who], seen[who] = iter(stream), []
            try:
                seen[who].append(label(next(iterators[who])))
            except (StopIteration, Broken, Cancelled) as end:
                assert len(seen[who]) == blocks or not isinstance(end, StopIteration)
                iterators[who] = None
            assert [i for _, i in seen[who]] == list(range(len(seen[who]))), "lost, repeated or out of order"
            assert len({run for run, _ in seen[who]}) <= 1, "two runs mixed"
    assert len(set(producer.made)) == len(producer.made), "a block was produced twice in one run"
    assert producer.most_open <= 1
    producer.fail_at.clear()
    assert [i for _, i in labels(stream)] == list(range(blocks))
    stream.close()
    assert producer.open == 0


@given(seed=st.integers(0, 10**6), threads=st.integers(2, 4), cancels=st.integers(0, 2), failures=st.integers(0, 2))
def test_threads_share_one_producer(seed, threads, cancels, failures):
    blocks = 6
    producer = Producer(blocks)
    producer.fail_at = {(run, (seed + run) % blocks) for run in range(failures)}
    stream = LatentStream(blocks, producer)
    ends: list = []

    def consume(who: int) -> None:
        while True:  # starts again after every cut, as a user would
            mine = []
            try:
                for block in stream:
                    mine.append(label(block))
                    time.sleep((seed * (who + 3) + len(mine) * 7) % 5 * 1e-4)
                ends.append(mine)
                return
            except (Broken, Cancelled):
                assert len({run for run, _ in mine}) <= 1

    workers = [threading.Thread(target=consume, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for i in range(cancels):
        time.sleep((seed + i) % 4 * 1e-3)
        stream.cancel()
    for worker in workers:
        worker.join(60)
    assert len(ends) == threads
    for end in ends:
        assert [i for _, i in end] == list(range(blocks)) and len({run for run, _ in end}) == 1
    assert len(set(producer.made)) == len(producer.made)
    assert producer.most_open == 1 and producer.open == 0
