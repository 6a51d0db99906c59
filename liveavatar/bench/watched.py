"""The engine of this process, watched: its times, its traffic and what it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch

from ..engines.local import LocalEngine
from ..engines.nets import Nets
from ..memory.copies import Traffic
from ..memory.passage import Passage
from ..memory.rings import HostRing
from ..model.transformer import CausalS2VTransformer
from ..pipeline import Task, ends_block
from ..planner import Plan, StagePlan
from ..session import Job, TaskReport
from ..stage import Conditions, Flow, Stage
from ..storage import Held
from .naive import NaiveStage
from .random_model import RandomComponents
from .timeline import TaskTime, TimedNet, Timeline


@dataclasses.dataclass(frozen=True)
class Run:
    """One video.

    Attributes:
        tasks: in their order.
        ends: seconds from the first task to the end of each block.
        to_device, to_host: bytes that had been copied at the end of each block.
        latents: of every block [16, 3, h, w], float32 on the CPU.
    """

    tasks: tuple[TaskTime, ...]
    ends: tuple[float, ...]
    to_device: tuple[int, ...]
    to_host: tuple[int, ...]
    latents: tuple[torch.Tensor, ...]


class WatchedEngine(LocalEngine):
    """Runs a plan of one device, ours or naively.

    Args:
        components, plan, nets: as of `LocalEngine`.
        naive: whether stages are those of `liveavatar.bench.naive`.
    """

    def __init__(self, components: RandomComponents, plan: Plan, nets: Nets, naive: bool = False):
        super().__init__(components, plan, nets, ahead=False)  # what is noted is noted between the tasks
        self.naive, self.device = naive, torch.device(plan.stages[0].device)
        self.stages: list[Stage] = []
        self._timeline = Timeline(self.device)

    def watch(
        self,
        job: Job,
        on_task: Callable[[], None] = lambda: None,
        on_block: Callable[[torch.Tensor], None] = lambda latents: None,
    ) -> Run:
        """Make a video and note everything; `on_task` and `on_block` are not part of what is timed on CUDA."""
        self._timeline = timeline = Timeline(self.device)
        moved: list[Traffic] = []

        def note(report: TaskReport) -> None:
            if ends_block(self.plan.cut, report.task):
                timeline.end_block()
                moved.append(self.traffic())
            on_task()

        latents = []
        for finished in self.run(job, note):
            latents.append(finished)
            on_block(finished)
        self.stages = []
        return Run(
            timeline.task_times(),
            timeline.block_ends(),
            tuple(t.to_device for t in moved),
            tuple(t.to_host for t in moved),
            tuple(latents),
        )

    def unwatched(self, ahead: bool | None = None) -> LocalEngine:
        """An engine as users have it, with the same weights; `ahead` as of `LocalEngine`."""
        return LocalEngine(self.components, self.plan, self._nets, ahead)

    def nets(self) -> list[CausalS2VTransformer]:
        """Every loaded part, once."""
        return list(dict.fromkeys(self._net(*where) for where in self._parts()))

    def traffic(self) -> Traffic:
        """Bytes copied between host and device: of the present run's rings, and of the weights since they are there."""
        leads = [net.lead for net in self.nets()]
        counted = [s.traffic for s in self.stages] + [p.copies.traffic for p in leads if isinstance(p, Passage)]
        return Traffic(sum(t.to_device for t in counted), sum(t.to_host for t in counted))

    def held(self) -> dict[str, Held]:
        """What stays between two tasks of the present run, counted tensor by tensor."""
        rings = [ring for stage in self.stages for step in stage.rings.values() for ring in step]
        near = _bytes(t for ring in rings if not isinstance(ring, HostRing) for t in ring.tensors())
        far = _bytes(t for ring in rings if isinstance(ring, HostRing) for t in ring.kept.tensors())
        slots = 0
        for stage in self.stages:
            first = next(iter(stage.rings.values()))[0]
            slots += 2 * _bytes(first.kept.tensors()) if isinstance(first, HostRing) else 0
        sinks = [sink for stage in self.stages for version in stage.sinks.values() for sink in version]
        return {
            "KV rings": Held(near, far),
            "slots": Held(slots),
            "sink": Held(_bytes(t for sink in sinks for t in vars(sink).values())),
            "text": Held(_bytes(t for stage in self.stages for kv in stage.text for t in vars(kv).values())),
        }

    def _stages(self, job: Job) -> list[Stage]:
        self.stages = super()._stages(job)
        timeline = self._timeline
        for stage in self.stages:
            stage.net = cast(CausalS2VTransformer, TimedNet(stage.net, timeline))
        timeline.restart()
        return [cast(Stage, _TimedStage(stage, timeline)) for stage in self.stages]

    def _stage(self, planned: StagePlan, conditions: Conditions) -> Stage:
        if not self.naive:
            return super()._stage(planned, conditions)
        net = self._net(planned.device, self._part(planned.layers), planned.storage)
        return NaiveStage(net, planned.steps, conditions, self.device, self._dtype, self._work(planned))


class _TimedStage:
    """Stands in for a stage: what it does is noted as tasks."""

    def __init__(self, stage: Stage, timeline: Timeline):
        self._stage, self._timeline = stage, timeline

    def run(self, task: Task, flow: Flow) -> Flow:
        with self._timeline.task(task):
            return self._stage.run(task, flow)


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(t.nbytes for t in tensors)
