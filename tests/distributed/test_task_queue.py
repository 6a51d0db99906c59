"""Stages of a run whose number of blocks is open run what is ready: all of it, in an order with the same numbers."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.distributed.task_queue import BlockInput, TaskQueue
from liveavatar.distributed.wire import RunSpec
from liveavatar.model.layer import AudioTokens
from liveavatar.noise_schedule import NoiseSchedule
from liveavatar.request import SinkDistance
from liveavatar.stage import Portrait, StageInput
from liveavatar.task_graph import (
    Denoise,
    Partition,
    Prefill,
    StageSpeed,
    Task,
    ends_block,
    followers,
    simulate,
    sink_version,
)

NOTHING = torch.zeros(16, 1, 2, 2)


def queues(cut: Partition, blocks: int | None, clip: int, first: int = 0, portraits: tuple = ()) -> list[TaskQueue]:
    def spec(stage: int) -> RunSpec:
        return RunSpec(
            run=1,
            stage=stage,
            partition=cut,
            blocks=blocks,
            portraits=portraits,
            prompt_start=0,
            clip_blocks=clip,
            first=first,
            from_state=False,
            keep_state=False,
            snapshot_blocks=0,
            folder="",
            seed=1,
            schedule=NoiseSchedule.flow_matching(cut.last_step + 1),
            size=(2, 2),
            distance=SinkDistance(),
            reference=NOTHING,
            motion=NOTHING,
            compiler="",
        )

    groups = [steps for steps in cut.step_groups for _ in cut.layer_shards]
    return [TaskQueue(spec(stage), groups[stage], torch.float32) for stage in range(cut.stages)]


def block_input(block: int, prompts: set[int], portraits: set[int]) -> BlockInput:
    audio = AudioTokens(NOTHING, NOTHING)
    return BlockInput(
        audio, NOTHING if block in prompts else None, Portrait(NOTHING, NOTHING) if block in portraits else None
    )


class Play:
    """All stages of a run, without their networks; what happens next is drawn."""

    def __init__(
        self,
        cut: Partition,
        clip: int,
        changes: tuple[set[int], set[int]],
        chance: random.Random,
        blocks: int | None = None,
        portraits: tuple[int, ...] = (),
    ):
        self.cut, self.clip, self.changes, self.chance, self.blocks = cut, clip, changes, chance, blocks
        self.stages = queues(cut, blocks, clip, portraits=portraits)
        self.end: int | None = None
        """Where it is told, at some time, that the video ends."""
        self.ran: list[list[Task]] = [[] for _ in self.stages]
        self.told: list[list[int]] = [[] for _ in self.stages]
        """By stage: blocks whose message is on its way; messages may overtake each other."""
        self.clock = 0.0

    def play(self, blocks: int) -> None:
        waiting = list(range(blocks))
        while True:
            able = [n for n, queue in enumerate(self.stages) if queue.next_ready(self.clock) is not None]
            late = [n for n, told in enumerate(self.told) if told]
            moves = [("run", n) for n in able] + [("tell", n) for n in late] + [("let in", 0)] * bool(waiting)
            moves += [("end", 0)] * (not waiting and self.end is not None)
            if not moves and all(q.seconds_to_begin(self.clock) is None for q in self.stages):
                return
            self.clock += 1.0
            if moves:
                self.move(*self.chance.choice(moves), waiting)

    def move(self, what: str, stage: int, waiting: list[int]) -> None:
        if what == "run":
            self.run(stage)
        elif what == "tell":
            told = self.told[stage]
            block = told.pop(self.chance.randrange(len(told)))
            self.stages[stage].allow(block, block_input(block, *self.changes))
        elif what == "end":
            for queue in self.stages:
                queue.limit(self.end)
            self.end = None
        else:
            block = waiting.pop(0)
            for told in self.told:
                told.append(block)

    def run(self, stage: int) -> None:
        queue = self.stages[stage]
        task = queue.next_ready(self.clock)
        queue.take(task, self.clock)
        left = StageInput(NOTHING)
        for follower in followers(self.cut, self.blocks, task, self.clip, queue.portraits):
            self.stages[self.cut.stage_of(follower)].receive(follower, left.for_follower(task, follower))
        if isinstance(task, Denoise):
            queue.audio(task.block)
        queue.add_ended(task, self.chance.random())
        self.ran[stage].append(task)


@st.composite
def cuts(draw: st.DrawFn) -> Partition:
    steps, layers = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return Partition.even(draw(st.integers(1, steps)), draw(st.integers(1, layers)), steps, layers)


BLOCKS = st.sets(st.integers(0, 11), max_size=4)


@given(cuts(), st.integers(0, 12), st.integers(1, 4), BLOCKS, BLOCKS, st.randoms(use_true_random=False))
def test_whatever_comes_first_all_blocks_pass_all_stages_in_their_order(
    cut: Partition, blocks: int, clip: int, prompts: set[int], portraits: set[int], chance: random.Random
) -> None:
    play = Play(cut, clip, (prompts, portraits), chance)
    play.play(blocks)
    starts = sorted(b for b in portraits if b < blocks)
    for stage, ran in enumerate(play.ran):
        assert len(set(ran)) == len(ran)
        shard = stage % len(cut.layer_shards)
        for step in cut.step_groups[stage // len(cut.layer_shards)]:
            passed = [task for task in ran if isinstance(task, Denoise) and task.step == step]
            assert passed == [Denoise(block, step, shard) for block in range(blocks)]
        sinks = set()
        for task in ran:
            if isinstance(task, Prefill):
                sinks.add(task.version)
            else:
                assert sink_version(task.block, clip, starts) in sinks


@given(cuts(), st.integers(1, 4), st.randoms(use_true_random=False))
def test_a_long_talk_keeps_no_more_than_a_short_one(cut: Partition, clip: int, chance: random.Random) -> None:
    changes = set(range(0, 60, 2)), set(range(1, 60, 3))
    play = Play(cut, clip, changes, chance)
    play.play(60)
    for queue in play.stages:
        kept = [*queue.changes.prompts, *queue.changes.portraits]
        assert len(kept) <= 2, "what holds now"
        assert queue.next_ready(play.clock) is None


def test_a_block_does_not_begin_before_the_stage_has_had_time_for_the_one_before() -> None:
    (queue,) = queues(Partition.even(1, 1, 2, 2), None, 4)
    for block in (0, 1):
        queue.allow(block, block_input(block, set(), set()))
    assert queue.next_ready(0.0) == Prefill(0, 0, 0)
    queue.take(Prefill(0, 0, 0), 0.0)
    queue.add_ended(Prefill(0, 0, 0), 3.0)
    assert queue.next_ready(3.0) == Denoise(0, 0, 0)
    queue.take(Denoise(0, 0, 0), 3.0)
    queue.add_ended(Denoise(0, 0, 0), 2.0)
    assert queue.next_ready(5.0) is None and queue.seconds_to_begin(5.0) == 2.0
    assert queue.next_ready(7.0) == Denoise(1, 0, 0)


def test_a_known_number_of_blocks_runs_in_the_paced_order() -> None:
    (queue,) = queues(Partition.even(1, 1, 1, 1), 2, 4, portraits=(1,))
    assert queue.next_ready(0.0) is None and not queue.finished
    queue.allow(1, block_input(1, set(), {1}))
    assert queue.next_ready(0.0) is None, "block 0 comes first"
    queue.allow(0, block_input(0, {0}, set()))
    ran = []
    while (task := queue.next_ready(0.0)) is not None:
        queue.take(task, 0.0)
        queue.add_ended(task, 1.0)
        ran.append(task)
    assert ran == [Prefill(0, 0, 0), Denoise(0, 0, 0), Prefill(2, 0, 0), Denoise(1, 0, 0)]
    assert queue.finished


class Simulation:
    """Blocks that wait to be let in, on stages whose tasks take as long as they have layers.

    So many blocks more than there are stages may be under way.
    """

    def __init__(self, cut: Partition, more: int):
        self.cut, self.most, self.clock = cut, cut.stages + more, 0.0
        self.stages, self.busy = queues(cut, None, 4), dict[int, tuple[float, Task]]()
        self.allowed, self.ends = 0, list[float]()

    def period(self, blocks: int) -> float:
        """Time from one block to the next in the full pipeline."""
        while len(self.ends) < blocks:
            self.begin()
            times = [end for end, _ in self.busy.values()]
            times += [self.clock + s for q in self.stages if (s := q.seconds_to_begin(self.clock)) is not None]
            self.clock = min(times)
            for stage in [n for n, (end, _) in self.busy.items() if end <= self.clock]:
                self.end(stage, self.busy.pop(stage)[1])
        full = self.ends[blocks // 2 : -2 * self.most]
        return (full[-1] - full[0]) / (len(full) - 1)

    def begin(self) -> None:
        for block in range(self.allowed, len(self.ends) + self.most):
            for queue in self.stages:
                queue.allow(block, block_input(block, set(), set()))
            self.allowed = block + 1
        for stage, queue in enumerate(self.stages):
            if stage not in self.busy and (task := queue.next_ready(self.clock)) is not None:
                queue.take(task, self.clock)
                self.busy[stage] = self.clock + len(self.cut.layer_shards[task.shard]), task

    def end(self, stage: int, task: Task) -> None:
        left = StageInput(NOTHING)
        for follower in followers(self.cut, None, task, 4, ()):
            self.stages[self.cut.stage_of(follower)].receive(follower, left.for_follower(task, follower))
        self.stages[stage].add_ended(task, len(self.cut.layer_shards[task.shard]))
        if ends_block(self.cut, task):
            self.ends.append(self.clock)


@pytest.mark.parametrize("stages", ["1x1", "1x2", "1x3", "1x4", "1x5", "2x1", "4x1", "2x2", "2x3", "2x4", "4x2"])
def test_an_open_number_of_blocks_comes_at_the_pace_of_the_busiest_stage(stages: str) -> None:
    cut = Partition.parse(stages, 4, 40)
    even = simulate(cut, 8, StageSpeed.even(cut, 40.0))
    assert Simulation(cut, 2).period(64) == pytest.approx(even.bound, rel=0.03)


@given(cuts(), st.integers(1, 12), st.integers(0, 12), st.integers(1, 4), BLOCKS, st.randoms(use_true_random=False))
def test_a_video_that_ends_earlier_than_was_known_is_finished_on_every_stage(
    cut: Partition, blocks: int, end: int, clip: int, portraits: set[int], chance: random.Random
) -> None:
    end, starts = min(end, blocks), tuple(sorted(b for b in portraits if b < blocks))
    play = Play(cut, clip, (set(), set(starts)), chance, blocks, starts)
    play.end = end
    play.play(end)
    for queue in play.stages:
        assert queue.finished and queue.boundary == end
    denoised = [task for ran in play.ran for task in ran if isinstance(task, Denoise)]
    assert len(denoised) == end * (cut.last_step + 1) * len(cut.layer_shards)
    assert all(task.block < end for task in denoised)
