"""A gate lets blocks in whose number is not known; what runs is what a video of that many blocks runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from task_graph.test_order import CLIPS, CUTS

from liveavatar.task_graph import Denoise, Partition, Prefill, paced_order, sink_version, task_count


class Gate:
    """Lets `blocks` blocks in, each at the n-th question about it, or at once when it is waited for."""

    def __init__(self, blocks: int, questions: list[int]):
        self.blocks, self.questions = blocks, list(questions)
        self.asked = 0
        self.let_in: list[int] = []
        self.waited: list[int] = []

    def __call__(self, block: int, wait: bool) -> bool | None:
        if block in self.let_in:
            return True
        self.asked += 1
        patience = self.questions[block % len(self.questions)]
        if not wait and self.asked < patience:
            return None
        if wait and self.asked < patience:
            self.waited.append(block)
        self.asked = 0
        if block == self.blocks:
            return False
        self.let_in.append(block)
        return True


@given(CUTS, st.integers(0, 10), CLIPS, st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_the_same_tasks_run_as_if_the_number_was_known(
    cut: Partition, blocks: int, clip: int, questions: list[int]
) -> None:
    gate = Gate(blocks, questions)
    starts = list(paced_order(cut, None, clip_blocks=clip, gate=gate))
    ran = {s.task for s in starts}
    assert len(ran) == len(starts)
    assert gate.let_in == list(range(blocks))
    known = {s.task for s in paced_order(cut, blocks, clip_blocks=clip)} if blocks else set()
    assert {t for t in ran if isinstance(t, Denoise)} == {t for t in known if isinstance(t, Denoise)}
    assert {t for t in known if isinstance(t, Prefill)} <= ran


def test_what_can_run_is_not_kept_waiting() -> None:
    cut = Partition.even(1, 3, 4, 6)
    gate = Gate(4, [10_000])
    order = paced_order(cut, None, gate=gate)
    ended = -1
    for start in order:
        if isinstance(start.task, Denoise) and (start.task.step, start.task.shard) == (3, 2):
            ended = start.task.block
        if gate.waited and gate.waited[-1] > 0:
            assert ended >= gate.waited[-1] - 1, "a block was waited for while the one before it was unfinished"
    assert ended == 3


@given(CUTS, st.integers(1, 12), CLIPS, st.sets(st.integers(0, 11), max_size=3), st.booleans())
def test_portraits_are_prefilled_before_their_blocks(
    cut: Partition, blocks: int, clip: int, portraits: set[int], gated: bool
) -> None:
    changes = sorted(portraits - {0})
    gate = Gate(blocks, [3]) if gated else None
    starts = list(paced_order(cut, None if gated else blocks, clip_blocks=clip, gate=gate, portraits=changes))
    end = {s.task: s.end for s in starts}
    for s in starts:
        if isinstance(s.task, Denoise):
            version = sink_version(s.task.block, clip, changes)
            assert end[Prefill(version, cut.group_of(s.task.step), s.task.shard)] <= s.start
    if not gated:
        assert len(starts) == task_count(cut, blocks, 0, clip, changes)
