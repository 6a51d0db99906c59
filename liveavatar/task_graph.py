"""The task graph: which task may run where and when (the paced order), as pure functions, and its simulation."""

from __future__ import annotations

import bisect
import dataclasses
import heapq
import itertools
import re
from collections.abc import Callable, Iterator, Sequence

from .config import CLIP_BLOCKS
from .errors import PlanError


@dataclasses.dataclass(frozen=True)
class Denoise:
    """One step of one block in one shard of the layers."""

    block: int
    step: int
    shard: int


@dataclasses.dataclass(frozen=True)
class Prefill:
    """The sink passing one shard of the layers for one group of steps.

    Version 0 is made of the reference image; version 1, after the first clip, of the first latent frame of block 0;
    further ones of images that take the reference's place from a block on.
    """

    version: int
    group: int
    shard: int


Task = Denoise | Prefill


@dataclasses.dataclass(frozen=True)
class Partition:
    """A partition of the work into stages: step groups times layer shards.

    Attributes:
        step_groups: contiguous ranges that cover all steps.
        layer_shards: contiguous ranges that cover all layers.
    """

    step_groups: tuple[range, ...]
    layer_shards: tuple[range, ...]

    @classmethod
    def even(cls, groups: int, parts: int, steps: int, layers: int) -> Partition:
        """The most even cut.

        Raises:
            PlanError: more groups than steps, or more parts than layers.
        """
        near = f"{min(max(groups, 1), steps)}x{min(max(parts, 1), layers)}"
        if not 1 <= groups <= steps:
            raise PlanError(f"{steps} steps cannot be cut into {groups} groups.", f"The nearest cut is {near}.")
        if not 1 <= parts <= layers:
            raise PlanError(f"{layers} layers cannot be cut into {parts} parts.", f"The nearest cut is {near}.")
        return cls(_even(steps, groups), _even(layers, parts))

    @classmethod
    def parse(cls, text: str, steps: int, layers: int) -> Partition:
        """Read "SxP": S groups of steps times P parts of layers.

        Raises:
            PlanError: not understood, or impossible.
        """
        numbers = re.fullmatch(r"\s*(\d{1,4})\s*[xX×*]\s*(\d{1,4})\s*", str(text))
        if not numbers:
            raise PlanError(
                f"The stages {text!r} are not understood.",
                "Write groups of steps x parts of layers, for example 1x4 for four layer parts.",
            )
        return cls.even(int(numbers[1]), int(numbers[2]), steps, layers)

    @property
    def stages(self) -> int:
        """How many stages there are."""
        return len(self.step_groups) * len(self.layer_shards)

    @property
    def last_step(self) -> int:
        """The step that ends a block."""
        return self.step_groups[-1][-1]

    def group_of(self, step: int) -> int:
        """The group a step belongs to."""
        return next(g for g, steps in enumerate(self.step_groups) if step in steps)

    def stage_of(self, task: Task) -> int:
        """The stage that runs a task; stages are numbered group by group."""
        group = task.group if isinstance(task, Prefill) else self.group_of(task.step)
        return group * len(self.layer_shards) + task.shard

    def __str__(self) -> str:
        return f"{len(self.step_groups)}x{len(self.layer_shards)}"


def _even(count: int, pieces: int) -> tuple[range, ...]:
    edges = [i * count // pieces for i in range(pieces + 1)]
    return tuple(range(a, b) for a, b in itertools.pairwise(edges))


def sink_version(block: int, clip_blocks: int = CLIP_BLOCKS, portraits: Sequence[int] = ()) -> int:
    """The sink a block attends to: the reference in the first clip, the first generated frame after it; and from the
    first of the blocks on at which another portrait begins, the latest of those."""
    changes = bisect.bisect_right(portraits, block)
    return 1 + changes if changes else int(block >= clip_blocks)


BlockGate = Callable[[int, bool], bool | None]
"""Lets blocks in whose number is not known beforehand: called with a block, in order, and whether to wait. True: it
begins, and is not asked for again; False: the block before it was the last; None, only without waiting: not known
yet."""


def task_count(
    partition: Partition, blocks: int, first: int = 0, clip_blocks: int = CLIP_BLOCKS, portraits: Sequence[int] = ()
) -> int:
    """Tasks of a video from block `first` on: every block at every step in every part, and the prefills of its sink
    versions."""
    versions = (not first) + (first <= clip_blocks and renews_sink(blocks, clip_blocks, portraits))
    versions += sum(first <= start < blocks for start in portraits)
    prefills = versions * partition.stages
    return (blocks - first) * (partition.last_step + 1) * len(partition.layer_shards) + prefills


def is_first(task: Task) -> bool:
    """Whether no task comes before it: it takes up noise, or an image."""
    return task.shard == 0 and (task.step == 0 if isinstance(task, Denoise) else task.version != 1)


def first_prefills(
    partition: Partition, block: int, clip_blocks: int = CLIP_BLOCKS, portraits: Sequence[int] = ()
) -> tuple[Prefill, ...]:
    """The prefills that begin with a block: of the first image with block 0, whose prompt they attend to, and of
    another one with the block from which it holds."""
    versions = [0] * (block == 0) + [sink_version(block, clip_blocks, portraits)] * (block in portraits)
    return tuple(Prefill(version, group, 0) for version in versions for group in range(len(partition.step_groups)))


def renews_sink(blocks: int | None, clip_blocks: int = CLIP_BLOCKS, portraits: Sequence[int] = ()) -> bool:
    """Whether there is (or may be: `blocks` is None) a block that attends to the second version of the sink."""
    return (blocks is None or blocks > clip_blocks) and not (portraits and portraits[0] <= clip_blocks)


def followers(
    partition: Partition,
    blocks: int | None,
    task: Task,
    clip_blocks: int = CLIP_BLOCKS,
    portraits: Sequence[int] = (),
) -> tuple[Task, ...]:
    """The tasks that take up what `task` leaves.

    The last latent of block 0 starts the second version of the sink in every group of steps, if that is used.
    """
    within = task.shard + 1 < len(partition.layer_shards)
    if isinstance(task, Prefill):
        return (Prefill(task.version, task.group, task.shard + 1),) if within else ()
    if within:
        return (Denoise(task.block, task.step, task.shard + 1),)
    if task.step < partition.last_step:
        return (Denoise(task.block, task.step + 1, 0),)
    if task.block == 0 and renews_sink(blocks, clip_blocks, portraits):
        return tuple(Prefill(1, group, 0) for group in range(len(partition.step_groups)))
    return ()


def ends_block(partition: Partition, task: Task) -> bool:
    """Whether a task leaves a finished latent."""
    return isinstance(task, Denoise) and (task.step, task.shard) == (
        partition.last_step,
        len(partition.layer_shards) - 1,
    )


@dataclasses.dataclass(frozen=True)
class Start:
    """A task starting in virtual time, in units of the costs."""

    task: Task
    stage: int
    start: float
    end: float


def paced_order(
    partition: Partition,
    blocks: int | None,
    cost: Callable[[Task], float] | None = None,
    first: int = 0,
    clip_blocks: int = CLIP_BLOCKS,
    gate: BlockGate | None = None,
    portraits: Sequence[int] = (),
) -> Iterator[Start]:
    """The tasks of a video in the order in which they start.

    A block is admitted when the busiest stage has had time for the one before, and while at most stages + 1 blocks are
    open. Among the tasks that are ready a stage takes a prefill, then the earlier step, then the older block.

    Args:
        partition: who owns what.
        blocks: how many blocks the video has; None: as many as the gate lets in.
        cost: virtual duration of a task; by default its share of the layers.
        first: the block to begin with; where it is not 0, the stages hold all that blocks before left. Within the first
            clip the sink is then renewed at once, and the inputs of that are there.
        clip_blocks: blocks of a clip; the first block of the second clip waits for the sink that block 0 renews.
        gate: asked before a block is admitted. It is waited for only when there is nothing else to do, and what runs
            meanwhile runs in an order of its own, with the same numbers.
        portraits: blocks at which another portrait begins, ascending; known when the gate lets the block in.
    """
    cost = cost or (lambda task: len(partition.layer_shards[task.shard]))
    return _PacedSchedule(partition, blocks, cost, first, clip_blocks, gate or _open_gate, portraits).play()


def _open_gate(block: int, wait: bool) -> bool:
    return True


class _PacedSchedule:
    """State of the pipeline in virtual time; its size does not grow with the number of blocks."""

    def __init__(
        self,
        partition: Partition,
        blocks: int | None,
        cost: Callable[[Task], float],
        first: int,
        clip_blocks: int,
        gate: BlockGate,
        portraits: Sequence[int],
    ):
        self.partition, self.cost, self.first, self.clip_blocks, self.gate = partition, cost, first, clip_blocks, gate
        self.portraits = portraits
        self.total = blocks
        """How many blocks there will be; None as long as that is not known."""
        self.groups, self.parts = len(partition.step_groups), len(partition.layer_shards)
        self.waiting: dict[int, Task] = {}
        """Open blocks, by number, with the task each needs next; negative numbers are prefills."""
        self.running: list[tuple[float, tuple[int, int], Task]] = []
        self.idle = set(range(partition.stages))
        self.done = {(s, p): first - 1 for s in range(partition.last_step + 1) for p in range(self.parts)}
        """The last block that each (step, part) finished."""
        sink = sink_version(first - 1, clip_blocks, portraits) if first else -1
        self.sinks = {(g, p): sink for g in range(self.groups) for p in range(self.parts)}
        self.admitted = self.started = first
        self.open = 0
        self.next_admission = 0.0
        self.period = self._busiest()

    def play(self) -> Iterator[Start]:
        now, finished = 0.0, self.first
        if self.first and self.first <= self.clip_blocks and renews_sink(self.total, self.clip_blocks, self.portraits):
            for group in range(self.groups):
                self._wait(Prefill(1, group, 0))
        while finished != self.total:
            if self._may_admit(now):
                self._admit()
            yield from self._start_ready(now)
            if self._may_admit(now, wait=not self.running):
                self._admit()
            elif self.running or finished != self.total:
                now = self._next_time(now)
                while self.running and self.running[0][0] <= now:
                    finished += self._finish(heapq.heappop(self.running)[2])

    def _admit(self) -> None:
        block = self.admitted
        for prefill in first_prefills(self.partition, block, self.clip_blocks, self.portraits):
            self._wait(prefill)
        self.waiting[block] = Denoise(block, 0, 0)
        self.admitted += 1
        self.open += 1

    def _may_admit(self, now: float, wait: bool = False) -> bool:
        """Paced by when the block before really started, bounded by how many are open, and let in by the gate."""
        if self.admitted == self.total or self.open > self.partition.stages:
            return False
        if self.started != self.admitted or now < self.next_admission:
            return False
        let_in = self.gate(self.admitted, wait)
        if let_in is False:
            self.total = self.admitted
        return bool(let_in)

    def _next_time(self, now: float) -> float:
        times = [self.running[0][0]] if self.running else []
        if self.admitted != self.total and self.started == self.admitted and self.next_admission > now:
            times.append(self.next_admission)
        return min(times)

    def _start_ready(self, now: float) -> Iterator[Start]:
        ready = sorted((t for t in self.waiting.values() if self._ready(t)), key=priority)
        for task in ready:
            stage = self.partition.stage_of(task)
            if stage not in self.idle:
                continue
            end = now + self.cost(task)
            self.idle.remove(stage)
            del self.waiting[_owner(task, self.groups)]
            heapq.heappush(self.running, (end, _tie(task), task))
            if isinstance(task, Denoise) and task.step == task.shard == 0:
                self.started, self.next_admission = task.block + 1, now + self.period
            yield Start(task, stage, now, end)

    def _ready(self, task: Task) -> bool:
        if isinstance(task, Prefill):
            return True
        sink = self.sinks[self.partition.group_of(task.step), task.shard]
        needed = sink_version(task.block, self.clip_blocks, self.portraits)
        return self.done[task.step, task.shard] == task.block - 1 and sink >= needed

    def _finish(self, task: Task) -> bool:
        """Record the end of a task and offer what follows it; whether it ends a block."""
        self.idle.add(self.partition.stage_of(task))
        if isinstance(task, Prefill):
            self.sinks[task.group, task.shard] = max(task.version, self.sinks[task.group, task.shard])
        else:
            self.done[task.step, task.shard] = task.block
        for follower in followers(self.partition, self.total, task, self.clip_blocks, self.portraits):
            self._wait(follower)
        ended = ends_block(self.partition, task)
        self.open -= ended
        return ended

    def _wait(self, task: Task) -> None:
        self.waiting[_owner(task, self.groups)] = task

    def _busiest(self) -> float:
        """Virtual time the busiest stage spends on one block."""
        load = [0.0] * self.partition.stages
        for step, part in self.done:
            task = Denoise(0, step, part)
            load[self.partition.stage_of(task)] += self.cost(task)
        return max(load)


def _owner(task: Task, groups: int) -> int:
    """The line a task waits in: its block, or a negative number per prefill."""
    return task.block if isinstance(task, Denoise) else -1 - task.group - task.version * groups


def priority(task: Task) -> tuple[int, int, int]:
    """Among the tasks that are ready a stage takes the one that is smallest by this: a prefill, then the earlier step,
    then the older block."""
    return (0, task.version, task.group) if isinstance(task, Prefill) else (1, task.step, task.block)


def _tie(task: Task) -> tuple[int, int]:
    """Breaks ties between tasks that end together, so that the order never depends on chance."""
    return (task.block, task.step) if isinstance(task, Denoise) else (-1 - task.version, task.group)


_TICKS = 2.0**30
"""Of the longest task, so that even hours of tasks add up exactly."""


@dataclasses.dataclass(frozen=True)
class StageSpeed:
    """How fast the stages of a cut work.

    Attributes:
        seconds_per_layer: of one block at one step, one number per stage.
        seconds_per_task: what a task costs besides (launching, sending), the same everywhere.
    """

    seconds_per_layer: tuple[float, ...]
    seconds_per_task: float = 0.0

    @classmethod
    def even(cls, partition: Partition, seconds_per_step: float) -> StageSpeed:
        """Stages that are equally fast, one block at one step in all layers taking `seconds_per_step`."""
        return cls((seconds_per_step / partition.layer_shards[-1].stop,) * partition.stages)

    def seconds(self, partition: Partition, task: Task) -> float:
        """Of one task; the sink's prefill, with fewer tokens, is taken to cost as much."""
        layers = len(partition.layer_shards[task.shard])
        return layers * self.seconds_per_layer[partition.stage_of(task)] + self.seconds_per_task


@dataclasses.dataclass(frozen=True)
class Simulation:
    """What a cut delivers.

    Attributes:
        blocks: of the video.
        seconds: until the last block is finished.
        first_block: seconds until the first one is.
        period: mean seconds between two blocks in the full pipeline; the bound where the video is too short to tell.
        bound: the least period possible: the busiest stage's seconds per block.
        latency: longest time from a block's start to its end.
        busy: share of the time in which each stage works.
        most_open: blocks that were under way at once.
        starts: every task, in order.
    """

    blocks: int
    seconds: float
    first_block: float
    period: float
    bound: float
    latency: float
    busy: tuple[float, ...]
    most_open: int
    starts: tuple[Start, ...]

    @property
    def efficiency(self) -> float:
        """Share of the greatest throughput that is reached in steady state, 0 to 1."""
        return self.bound / self.period

    @property
    def start_bubble(self) -> float:
        """Periods lost on the way: the time beyond an ideal pipeline that delivers from the first block on."""
        return (self.seconds - self.first_block) / self.period - (self.blocks - 1)


def simulate(partition: Partition, blocks: int, speed: StageSpeed, clip_blocks: int = CLIP_BLOCKS) -> Simulation:
    """Play a video of so many blocks.

    Args:
        partition: who owns what.
        blocks: at least 1.
        speed: of the stages.
        clip_blocks: blocks of a clip.

    Raises:
        ValueError: no block, or not one speed per stage.
    """
    if blocks < 1 or len(speed.seconds_per_layer) != partition.stages:
        raise ValueError(f"{blocks} blocks and {len(speed.seconds_per_layer)} speeds for {partition.stages} stages.")
    whole, second = _in_ticks(partition, speed)
    starts = tuple(
        Start(s.task, s.stage, s.start / second, s.end / second)
        for s in paced_order(partition, blocks, lambda task: whole.seconds(partition, task), clip_blocks=clip_blocks)
    )
    began, ended = _spans(partition, starts)
    ends = [ended[b] for b in range(blocks)]
    load = [0.0] * partition.stages
    for s in starts:
        load[s.stage] += s.end - s.start
    bound = max(_seconds_per_block(partition, speed))
    return Simulation(
        blocks=blocks,
        seconds=max(ends),
        first_block=ends[0],
        period=_steady_gap(ends, partition.stages) or bound,
        bound=bound,
        latency=max(ended[b] - began[b] for b in range(blocks)),
        busy=tuple(seconds / max(ends) for seconds in load),
        most_open=_most_open(began, ended),
        starts=starts,
    )


def _in_ticks(partition: Partition, speed: StageSpeed) -> tuple[StageSpeed, float]:
    """The speed in ticks, whole numbers, and how many ticks a second has.

    Sums of fractions would part by a rounding error what ends at the same time, and a block that comes that much too
    late waits for a whole task: the KV cache would seem to lose a fifth of its pace.
    """
    most = max(len(layers) for layers in partition.layer_shards)
    second = _TICKS / (most * max(speed.seconds_per_layer) + speed.seconds_per_task)
    whole = tuple(float(round(seconds * second)) for seconds in speed.seconds_per_layer)
    return StageSpeed(whole, float(round(speed.seconds_per_task * second))), second


def _spans(partition: Partition, starts: Sequence[Start]) -> tuple[dict[int, float], dict[int, float]]:
    """When each block began and ended."""
    began: dict[int, float] = {}
    ended: dict[int, float] = {}
    for s in starts:
        if isinstance(s.task, Denoise):
            began.setdefault(s.task.block, s.start)
            ended[s.task.block] = s.end
    return began, ended


def _seconds_per_block(partition: Partition, speed: StageSpeed) -> list[float]:
    """What each stage spends on one block."""
    load = [0.0] * partition.stages
    for step in range(partition.last_step + 1):
        for part in range(len(partition.layer_shards)):
            task = Denoise(0, step, part)
            load[partition.stage_of(task)] += speed.seconds(partition, task)
    return load


def steady(ends: Sequence[float], stages: int) -> Sequence[float]:
    """Of the times at which blocks end, those from the full pipeline.

    The first half are left out, and the last ones, which come faster while the pipeline runs empty.
    """
    return ends[len(ends) // 2 : max(0, len(ends) - 2 * stages)]


def _steady_gap(ends: Sequence[float], stages: int) -> float | None:
    """Mean gap between blocks in the full pipeline; None where there are too few blocks."""
    full = steady(ends, stages)
    return (full[-1] - full[0]) / (len(full) - 1) if len(full) > 1 else None


def _most_open(began: dict[int, float], ended: dict[int, float]) -> int:
    """Blocks that were under way at once; one that ends as another starts does not count with it."""
    events = sorted([(t, 1) for t in began.values()] + [(t, -1) for t in ended.values()])
    open_now = most = 0
    for _, change in events:
        open_now += change
        most = max(most, open_now)
    return most
