"""How much faster several stages are than one, measured, and beside it what the simulator says.

The same video is made with one cut after the other, by a network whose layers mostly sleep: then stages are equally
slow and do not compete for processors, and what is lost is lost by the pipeline alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence

from ..engine.backend import Backend
from ..errors import RequestError
from ..events import Event
from ..mini.slow import SlowComponents
from ..planner import make_plan
from ..task_graph import Partition, StageSpeed, ends_block, simulate, steady, task_count
from .material import noise_job

STEPS = 4
"""What the published model is for."""
ONE_STAGE = "1x1"
_LEAST_GAPS = 4
"""Between blocks in the full pipeline, so that their mean says something."""


@dataclasses.dataclass(frozen=True)
class Pace:
    """How blocks follow each other.

    Attributes:
        period: mean seconds between two blocks in the full pipeline.
        first_block: seconds until the first one is finished.
        start_bubble: periods lost after it, against a pipeline that goes on at its full pace from there.
    """

    period: float
    first_block: float
    start_bubble: float


@dataclasses.dataclass(frozen=True)
class CutPace:
    """One cut.

    Attributes:
        cut: "SxP".
        stages: how many that are.
        measured, predicted: its pace.
        longest_gap: seconds, the longest between two blocks in the full pipeline.
        multiple: its throughput as a multiple of that of one stage.
        efficiency: the multiple as a share of the stages.
        busy: share of the video's time in which each stage worked.
    """

    cut: str
    stages: int
    measured: Pace
    predicted: Pace
    longest_gap: float
    multiple: float
    efficiency: float
    busy: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class PipelineBench:
    """What was measured.

    Attributes:
        blocks, steps: of the video.
        layer_seconds: the time each layer takes at each task.
        seconds_per_layer, seconds_per_task: as one stage showed them; what predictions are made with.
        cuts: "1x1" first.
    """

    blocks: int
    steps: int
    layer_seconds: float
    seconds_per_layer: float
    seconds_per_task: float
    cuts: tuple[CutPace, ...]


@dataclasses.dataclass(frozen=True)
class _Timed:
    """One run: when each block had ended, in seconds from the start, and how long each stage was busy."""

    partition: Partition
    ends: tuple[float, ...]
    stage_seconds: tuple[float, ...]

    @property
    def gaps(self) -> list[float]:
        """Seconds between blocks in the full pipeline."""
        return [after - before for before, after in itertools.pairwise(steady(self.ends, self.partition.stages))]

    @property
    def pace(self) -> Pace:
        """As it was."""
        period = sum(self.gaps) / len(self.gaps)
        return Pace(period, self.ends[0], (self.ends[-1] - self.ends[0]) / period - (len(self.ends) - 1))


def bench_pipeline(
    backend: Backend,
    stages: Sequence[str],
    blocks: int,
    layer_seconds: float,
    say: Callable[[str], None] = lambda line: None,
) -> PipelineBench:
    """Make the same video with every cut.

    Args:
        backend: who runs the stages.
        stages: cuts, "SxP"; "1x1" is measured first in any case.
        blocks: of the video.
        layer_seconds: the time each layer takes at each task.
        say: called with what is being measured.

    Raises:
        RequestError: an impossible cut, or too few blocks to fill it; nothing has been started then.
        ModelError: no time that anything can take.
        LiveAvatarError: what the backend raises.
    """
    components = SlowComponents(layer_seconds)
    layers = components.config.num_layers
    cuts = list(dict.fromkeys(Partition.parse(text, STEPS, layers) for text in (ONE_STAGE, *stages)))
    _check_blocks(blocks, cuts)
    timed = []
    for partition in cuts:
        say(f"{partition}: {blocks} blocks")
        timed.append(_time(backend, components, partition, blocks))
    speed = _speed(timed[0])
    return PipelineBench(
        blocks, STEPS, layer_seconds, *speed, tuple(_beside(run, timed[0].pace.period, *speed) for run in timed)
    )


def fewest_blocks(stages: int) -> int:
    """The shortest video that fills so many stages for long enough to measure their pace."""
    return next(n for n in itertools.count(1) if len(steady([0.0] * n, stages)) > _LEAST_GAPS)


def _check_blocks(blocks: int, cuts: Sequence[Partition]) -> None:
    most = max(cuts, key=lambda partition: partition.stages)
    if blocks < (fewest := fewest_blocks(most.stages)):
        raise RequestError(
            f"{blocks} blocks are too few to see {most} stages at their full pace.", f"Give at least {fewest}."
        )


def _time(backend: Backend, components: SlowComponents, partition: Partition, blocks: int) -> _Timed:
    """Make the video with one cut, by stages that have worked before."""
    job = noise_job(components.config, blocks, STEPS)
    plan = make_plan(job.resolved, components.config, model=components.name, stages=str(partition))
    engine = backend.engine(components, plan)
    for _ in engine.run(noise_job(components.config, 1, STEPS)):
        pass
    ends: list[float] = []
    start = time.perf_counter()

    def note(event: Event) -> None:
        if event.task is not None and ends_block(partition, event.task):
            ends.append(time.perf_counter() - start)

    for _ in engine.run(job, note):
        pass
    return _Timed(partition, tuple(ends), engine.stage_seconds())


def _speed(one: _Timed) -> tuple[float, float]:
    """What one stage shows: seconds per layer, and seconds that pass between its tasks."""
    task = one.stage_seconds[0] / task_count(one.partition, len(one.ends))
    return task / len(one.partition.layer_shards[0]), max(0.0, one.pace.period / STEPS - task)


def _beside(run: _Timed, one: float, seconds_per_layer: float, seconds_per_task: float) -> CutPace:
    """What was measured beside what the simulator says; `one`: the period of one stage."""
    partition = run.partition
    said = simulate(partition, len(run.ends), StageSpeed((seconds_per_layer,) * partition.stages, seconds_per_task))
    return CutPace(
        cut=str(partition),
        stages=partition.stages,
        measured=run.pace,
        predicted=Pace(said.period, said.first_block, said.start_bubble),
        longest_gap=max(run.gaps),
        multiple=one / run.pace.period,
        efficiency=one / run.pace.period / partition.stages,
        busy=tuple(seconds / run.ends[-1] for seconds in run.stage_seconds),
    )
