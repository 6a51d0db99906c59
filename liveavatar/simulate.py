"""The pipeline in virtual time: what a cut would deliver, and where it would wait.

It plays the very order that engines follow (`pipeline.paced_order`) with the seconds each stage takes, so what it says
of throughput, delay and waiting holds for the real run as far as those seconds do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from .config import CLIP_BLOCKS
from .pipeline import Cut, Denoise, Start, Task, paced_order

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
    def even(cls, cut: Cut, seconds_per_step: float) -> StageSpeed:
        """Stages that are equally fast, one block at one step in all layers taking `seconds_per_step`."""
        return cls((seconds_per_step / cut.layers[-1].stop,) * cut.stages)

    def seconds(self, cut: Cut, task: Task) -> float:
        """Of one task; the sink's prefill, with fewer tokens, is taken to cost as much."""
        layers = len(cut.layers[task.part])
        return layers * self.seconds_per_layer[cut.stage_of(task)] + self.seconds_per_task


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


def simulate(cut: Cut, blocks: int, speed: StageSpeed, clip_blocks: int = CLIP_BLOCKS) -> Simulation:
    """Play a video of so many blocks.

    Args:
        cut: who owns what.
        blocks: at least 1.
        speed: of the stages.
        clip_blocks: blocks of a clip.

    Raises:
        ValueError: no block, or not one speed per stage.
    """
    if blocks < 1 or len(speed.seconds_per_layer) != cut.stages:
        raise ValueError(f"{blocks} blocks and {len(speed.seconds_per_layer)} speeds for {cut.stages} stages.")
    whole, second = _in_ticks(cut, speed)
    starts = tuple(
        Start(s.task, s.stage, s.start / second, s.end / second)
        for s in paced_order(cut, blocks, lambda task: whole.seconds(cut, task), clip_blocks=clip_blocks)
    )
    began, ended = _spans(cut, starts)
    ends = [ended[b] for b in range(blocks)]
    load = [0.0] * cut.stages
    for s in starts:
        load[s.stage] += s.end - s.start
    bound = max(_seconds_per_block(cut, speed))
    return Simulation(
        blocks=blocks,
        seconds=max(ends),
        first_block=ends[0],
        period=_steady_gap(ends, cut.stages) or bound,
        bound=bound,
        latency=max(ended[b] - began[b] for b in range(blocks)),
        busy=tuple(seconds / max(ends) for seconds in load),
        most_open=_most_open(began, ended),
        starts=starts,
    )


def _in_ticks(cut: Cut, speed: StageSpeed) -> tuple[StageSpeed, float]:
    """The speed in ticks, whole numbers, and how many ticks a second has.

    Sums of fractions would part by a rounding error what ends at the same time, and a block that comes that much too
    late waits for a whole task: the ring would seem to lose a fifth of its pace.
    """
    most = max(len(layers) for layers in cut.layers)
    second = _TICKS / (most * max(speed.seconds_per_layer) + speed.seconds_per_task)
    whole = tuple(float(round(seconds * second)) for seconds in speed.seconds_per_layer)
    return StageSpeed(whole, float(round(speed.seconds_per_task * second))), second


def _spans(cut: Cut, starts: Sequence[Start]) -> tuple[dict[int, float], dict[int, float]]:
    """When each block began and ended."""
    began: dict[int, float] = {}
    ended: dict[int, float] = {}
    for s in starts:
        if isinstance(s.task, Denoise):
            began.setdefault(s.task.block, s.start)
            ended[s.task.block] = s.end
    return began, ended


def _seconds_per_block(cut: Cut, speed: StageSpeed) -> list[float]:
    """What each stage spends on one block."""
    load = [0.0] * cut.stages
    for step in range(cut.last_step + 1):
        for part in range(len(cut.layers)):
            task = Denoise(0, step, part)
            load[cut.stage_of(task)] += speed.seconds(cut, task)
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
