"""The diagonal pipeline: which task may run where and when, as pure functions.

A video is blocks; a block passes every denoising step; a step passes every part of the layers. A task is (block, step,
part). A `Cut` says which stage owns which (step, part) pairs; `paced_order` plays the pipeline in virtual time and
lists the tasks in the order in which they start. Any cut gives the same numbers; the order decides only when.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import re
from collections.abc import Callable, Iterator

from .config import CLIP_BLOCKS
from .errors import PlanError


@dataclasses.dataclass(frozen=True)
class Denoise:
    """One step of one block in one part of the layers."""

    block: int
    step: int
    part: int


@dataclasses.dataclass(frozen=True)
class Prefill:
    """The sink passing one part of the layers for one group of steps.

    Version 0 is made of the reference picture; version 1, after the first clip, of the first latent frame of block 0.
    """

    version: int
    group: int
    part: int


Task = Denoise | Prefill


@dataclasses.dataclass(frozen=True)
class Cut:
    """How the work is cut into stages: groups of steps times parts of layers.

    Attributes:
        steps: contiguous ranges that cover all steps.
        layers: contiguous ranges that cover all layers.
    """

    steps: tuple[range, ...]
    layers: tuple[range, ...]

    @classmethod
    def even(cls, groups: int, parts: int, steps: int, layers: int) -> Cut:
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
    def parse(cls, text: str, steps: int, layers: int) -> Cut:
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
        return len(self.steps) * len(self.layers)

    @property
    def last_step(self) -> int:
        """The step that ends a block."""
        return self.steps[-1][-1]

    def group_of(self, step: int) -> int:
        """The group a step belongs to."""
        return next(g for g, steps in enumerate(self.steps) if step in steps)

    def stage_of(self, task: Task) -> int:
        """The stage that runs a task; stages are numbered group by group."""
        group = task.group if isinstance(task, Prefill) else self.group_of(task.step)
        return group * len(self.layers) + task.part

    def __str__(self) -> str:
        return f"{len(self.steps)}x{len(self.layers)}"


def _even(count: int, pieces: int) -> tuple[range, ...]:
    edges = [i * count // pieces for i in range(pieces + 1)]
    return tuple(range(a, b) for a, b in itertools.pairwise(edges))


def sink_version(block: int, clip_blocks: int = CLIP_BLOCKS) -> int:
    """The sink a block attends to: the reference in the first clip, the first generated frame after it."""
    return int(block >= clip_blocks)


def task_count(cut: Cut, blocks: int, first: int = 0, clip_blocks: int = CLIP_BLOCKS) -> int:
    """Tasks of a video from block `first` on: every block at every step in every part, and, from the beginning, the
    prefills of its sink versions."""
    prefills = 0 if first else (1 + sink_version(blocks - 1, clip_blocks)) * cut.stages
    return (blocks - first) * (cut.last_step + 1) * len(cut.layers) + prefills


def begins(task: Task) -> bool:
    """Whether no task comes before it: it takes up noise, or the reference."""
    return task.part == 0 and (task.step == 0 if isinstance(task, Denoise) else task.version == 0)


def followers(cut: Cut, blocks: int, task: Task, clip_blocks: int = CLIP_BLOCKS) -> tuple[Task, ...]:
    """The tasks that take up what `task` leaves.

    The last latent of block 0 starts the second version of the sink in every group of steps.
    """
    within = task.part + 1 < len(cut.layers)
    if isinstance(task, Prefill):
        return (Prefill(task.version, task.group, task.part + 1),) if within else ()
    if within:
        return (Denoise(task.block, task.step, task.part + 1),)
    if task.step < cut.last_step:
        return (Denoise(task.block, task.step + 1, 0),)
    if task.block == 0 and blocks > clip_blocks:
        return tuple(Prefill(1, group, 0) for group in range(len(cut.steps)))
    return ()


def ends_block(cut: Cut, task: Task) -> bool:
    """Whether a task leaves a finished latent."""
    return isinstance(task, Denoise) and (task.step, task.part) == (cut.last_step, len(cut.layers) - 1)


@dataclasses.dataclass(frozen=True)
class Start:
    """A task starting in virtual time, in units of the costs."""

    task: Task
    stage: int
    start: float
    end: float


def paced_order(
    cut: Cut, blocks: int, cost: Callable[[Task], float] | None = None, first: int = 0, clip_blocks: int = CLIP_BLOCKS
) -> Iterator[Start]:
    """The tasks of a video in the order in which they start.

    A block is admitted when the busiest stage has had time for the one before, and while at most stages + 1 blocks are
    open. Among the tasks that are ready a stage takes a prefill, then the earlier step, then the older block.

    Args:
        cut: who owns what.
        blocks: how many blocks the video has.
        cost: virtual duration of a task; by default its share of the layers.
        first: the block to begin with: 0, or beyond the first clip, where the stages hold all that blocks before left.
        clip_blocks: blocks of a clip; the first block of the second clip waits for the sink that block 0 renews.
    """
    return _Pipeline(cut, blocks, cost or (lambda task: len(cut.layers[task.part])), first, clip_blocks).play()


class _Pipeline:
    """State of the pipeline in virtual time; its size does not grow with the number of blocks."""

    def __init__(self, cut: Cut, blocks: int, cost: Callable[[Task], float], first: int, clip_blocks: int):
        if 0 < first <= clip_blocks:
            raise ValueError(f"Block {first} cannot come first: the sink is renewed before block {clip_blocks}.")
        self.cut, self.blocks, self.cost, self.first, self.clip_blocks = cut, blocks, cost, first, clip_blocks
        self.groups, self.parts = len(cut.steps), len(cut.layers)
        self.waiting: dict[int, Task] = {}
        """Open blocks, by number, with the task each needs next; negative numbers are prefills."""
        self.running: list[tuple[float, tuple[int, int], Task]] = []
        self.idle = set(range(cut.stages))
        self.done = {(s, p): first - 1 for s in range(cut.last_step + 1) for p in range(self.parts)}
        """The last block that each (step, part) finished."""
        sink = sink_version(first, clip_blocks) if first else -1
        self.sinks = {(g, p): sink for g in range(self.groups) for p in range(self.parts)}
        self.admitted = self.started = first
        self.open = 0
        self.next_admission = 0.0
        self.period = self._busiest()

    def play(self) -> Iterator[Start]:
        now, finished = 0.0, self.first
        if not self.first:
            self._offer_sink(0)
        while finished < self.blocks:
            if self._may_admit(now):
                self.waiting[self.admitted] = Denoise(self.admitted, 0, 0)
                self.admitted += 1
                self.open += 1
            yield from self._start_ready(now)
            if self._may_admit(now):
                continue
            now = self._next_time(now)
            while self.running and self.running[0][0] <= now:
                finished += self._finish(heapq.heappop(self.running)[2])

    def _may_admit(self, now: float) -> bool:
        """Paced by when the block before really started, and bounded by how many are open."""
        if not self.admitted < self.blocks or self.open > self.cut.stages:
            return False
        return self.started == self.admitted and now >= self.next_admission

    def _next_time(self, now: float) -> float:
        times = [self.running[0][0]] if self.running else []
        if self.admitted < self.blocks and self.started == self.admitted and self.next_admission > now:
            times.append(self.next_admission)
        return min(times)

    def _start_ready(self, now: float) -> Iterator[Start]:
        ready = sorted((t for t in self.waiting.values() if self._ready(t)), key=_priority)
        for task in ready:
            stage = self.cut.stage_of(task)
            if stage not in self.idle:
                continue
            end = now + self.cost(task)
            self.idle.remove(stage)
            del self.waiting[_owner(task, self.groups)]
            heapq.heappush(self.running, (end, _tie(task), task))
            if isinstance(task, Denoise) and task.step == task.part == 0:
                self.started, self.next_admission = task.block + 1, now + self.period
            yield Start(task, stage, now, end)

    def _ready(self, task: Task) -> bool:
        if isinstance(task, Prefill):
            return True
        sink = self.sinks[self.cut.group_of(task.step), task.part]
        return self.done[task.step, task.part] == task.block - 1 and sink >= sink_version(task.block, self.clip_blocks)

    def _finish(self, task: Task) -> int:
        """Record the end of a task and offer what follows it; 1 when it ends a block."""
        self.idle.add(self.cut.stage_of(task))
        more = task.part + 1 < self.parts
        if isinstance(task, Prefill):
            self.sinks[task.group, task.part] = task.version
            if more:
                self._wait(Prefill(task.version, task.group, task.part + 1))
            return 0
        self.done[task.step, task.part] = task.block
        if more:
            self._wait(Denoise(task.block, task.step, task.part + 1))
        elif task.step < self.cut.last_step:
            self._wait(Denoise(task.block, task.step + 1, 0))
        else:
            self.open -= 1
            if task.block == 0 and self.blocks > self.clip_blocks:
                self._offer_sink(1)
            return 1
        return 0

    def _offer_sink(self, version: int) -> None:
        for group in range(self.groups):
            self._wait(Prefill(version, group, 0))

    def _wait(self, task: Task) -> None:
        self.waiting[_owner(task, self.groups)] = task

    def _busiest(self) -> float:
        """Virtual time the busiest stage spends on one block."""
        load = [0.0] * self.cut.stages
        for step, part in self.done:
            task = Denoise(0, step, part)
            load[self.cut.stage_of(task)] += self.cost(task)
        return max(load)


def _owner(task: Task, groups: int) -> int:
    """The line a task waits in: its block, or a negative number per prefill."""
    return task.block if isinstance(task, Denoise) else -1 - task.group - task.version * groups


def _priority(task: Task) -> tuple[int, int, int]:
    return (0, task.version, task.group) if isinstance(task, Prefill) else (1, task.step, task.block)


def _tie(task: Task) -> tuple[int, int]:
    """Breaks ties between tasks that end together, so that the order never depends on chance."""
    return (task.block, task.step) if isinstance(task, Denoise) else (-1, task.group)
