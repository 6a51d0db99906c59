"""Blocks are never reordered, lost, repeated or mixed, whoever consumes, leaves, cancels or fails."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liveavatar.errors import Cancelled, LiveAvatarError, OutputError
from liveavatar.streams import LatentStream

PROJECT = Path(__file__).parents[2]
SHAPE = (16, 3, 2, 2)


class Broken(Exception):
    """What a failing producer raises."""


class Producer:
    """Counts what is asked of it. Blocks hold (run, index), so a mixed or repeated one shows."""

    def __init__(self, blocks: int, dtype: torch.dtype = torch.float32):
        self.blocks, self.dtype = blocks, dtype
        self.runs = self.open = self.most_open = 0
        self.made: list[tuple[int, int]] = []
        self.fail_at: set[tuple[int, int]] = set()

    def __call__(self):
        run = self.runs
        self.runs += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            for index in range(self.blocks):
                if (run, index) in self.fail_at:
                    raise Broken(f"run {run} block {index}")
                self.made.append((run, index))
                yield torch.full(SHAPE, 100 * run + index, dtype=self.dtype)
        finally:
            self.open -= 1


def label(block: torch.Tensor) -> tuple[int, int]:
    assert block.shape == SHAPE and (block == block.flatten()[0]).all()
    return divmod(int(block.flatten()[0]), 100)


def labels(stream) -> list[tuple[int, int]]:
    return [label(b) for b in stream]


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


@settings(max_examples=15)
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
        worker.join(20)
    assert len(ends) == threads
    for end in ends:
        assert [i for _, i in end] == list(range(blocks)) and len({run for run, _ in end}) == 1
    assert len(set(producer.made)) == len(producer.made)
    assert producer.most_open == 1 and producer.open == 0


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
                go.wait(10)
            yield torch.full(SHAPE, 100.0 * run)
        finally:
            events.append(f"close {run}")

    stream = LatentStream(1, produce)
    outcome = []

    def first():
        try:
            outcome.append(labels(stream))
        except Cancelled as e:
            outcome.append(e)

    one = threading.Thread(target=first)
    one.start()
    inside.wait(10)
    start = time.perf_counter()
    stream.cancel()
    assert time.perf_counter() - start < 1
    two = threading.Thread(target=lambda: outcome.append(labels(stream)))
    two.start()
    time.sleep(0.05)
    assert events == ["open 0"]
    go.set()
    one.join(10), two.join(10)
    assert events == ["open 0", "close 0", "open 1", "close 1"]
    assert isinstance(outcome[0], Cancelled) and outcome[1] == [(1, 0)]


def test_a_replayer_is_not_held_up_by_a_step():
    inside, go = threading.Event(), threading.Event()

    def produce():
        yield torch.zeros(SHAPE)
        inside.set()
        go.wait(10)
        yield torch.ones(SHAPE)

    stream = LatentStream(2, produce)
    worker = threading.Thread(target=lambda: list(stream))
    worker.start()
    inside.wait(10)
    assert label(next(iter(stream))) == (0, 0)
    go.set()
    worker.join(10)
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


def test_a_dropped_stream_closes_its_producer_and_its_file():
    gc.collect()  # what other tests left
    producer = Producer(3)
    stream = LatentStream(3, producer)
    blocks = iter(stream)
    next(blocks)
    handles = len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else None
    del blocks, stream
    gc.collect()
    assert producer.open == 0
    if handles is not None:
        assert len(list(Path("/proc/self/fd").iterdir())) == handles - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_blocks_come_back_bit_equal_in_their_dtype(dtype):
    made = [torch.randn(16, 3, 4, 6).to(dtype) for _ in range(3)]
    made[1] = made[1].transpose(2, 3).contiguous().transpose(2, 3)
    stream = LatentStream(3, lambda: iter(made))
    with torch.inference_mode():
        first = list(stream)
    again = list(stream)
    for block, a, b in zip(made, first, again, strict=True):
        assert a.dtype == dtype and torch.equal(a, block) and torch.equal(b, block)
    again[0].zero_()
    assert torch.equal(next(iter(stream)), made[0])


def test_a_producer_that_ends_early_or_changes_shape_fails_the_run():
    with pytest.raises(RuntimeError, match="1 of 2"):
        list(LatentStream(2, lambda: iter([torch.zeros(SHAPE)])))
    with pytest.raises(ValueError, match="Block 1"):
        list(LatentStream(2, lambda: iter([torch.zeros(SHAPE), torch.zeros(1)])))
    with pytest.raises(ValueError, match="at least 1"):
        LatentStream(0, Producer(0))


def test_an_unusable_spool_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="temporary"):
        list(LatentStream(1, Producer(1), tmp_path / "missing"))


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from liveavatar.errors import OutputError
from liveavatar.streams import LatentStream
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
stream = LatentStream(20, lambda: (torch.full((16, 3, 8, 8), float(i)) for i in range(20)), Path(sys.argv[1]))
try:
    list(stream)
except OutputError as e:
    assert "cannot be written" in str(e) and stream.produced == 0, e
else:
    sys.exit("no error")
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
assert [int(b.max()) for b in stream] == list(range(20))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on file sizes")
def test_a_full_disk_is_an_output_error_and_the_stream_reopens(tmp_path):
    assert _run(FULL_DISK, tmp_path) == 0


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from liveavatar.streams import LatentStream
blocks = iter(LatentStream(3, lambda: (torch.zeros(16, 3, 8, 8) for _ in range(3)), Path(sys.argv[1])))
next(blocks)
os.kill(os.getpid(), signal.SIGKILL)
"""
EXITS = """
import sys, torch
from pathlib import Path
from liveavatar.streams import LatentStream
def produce():
    try:
        while True:
            yield torch.zeros(16, 3, 8, 8)
    finally:
        Path(sys.argv[1], "closed").touch()
stream = LatentStream(3, produce, Path(sys.argv[1]))
blocks = iter(stream)
next(blocks)
keep = sys.modules["liveavatar.streams"].kept = [stream, blocks]
keep.append(keep)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals")
@pytest.mark.parametrize(
    ("program", "code", "left"), [(KILLED, -9, []), (EXITS, 0, ["closed"])], ids=["kill -9", "exit"]
)
def test_a_process_that_ends_leaves_no_spool(tmp_path, program, code, left):
    assert _run(program, tmp_path) == code
    assert [p.name for p in tmp_path.iterdir()] == left


def test_memory_stays_flat():
    size = 16 * 3 * 32 * 32 * 4
    stream = LatentStream(200, lambda: (torch.zeros(16, 3, 32, 32) for _ in range(200)), None)
    before = _resident()
    tracemalloc.start()
    for _ in stream:
        pass
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < size and _resident() - before < 20 * size


def _run(program: str, folder: Path) -> int:
    command = [sys.executable, "-c", program, str(folder)]
    return subprocess.run(command, timeout=60, check=False, cwd=PROJECT).returncode


def _resident() -> int:
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
