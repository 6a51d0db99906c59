"""The engine of this process, watched: its times, its traffic and what it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, cast

import torch

from ..engine.local import LocalEngine, ModelCache
from ..events import Callback, Event, ignore
from ..model.transformer import CausalS2VTransformer
from ..offload.kv_cache import OffloadedKVCache
from ..offload.layers import LayerPrefetcher
from ..offload.streams import TransferStats
from ..planner import Plan, StagePlan
from ..session import VideoTask
from ..stage import Stage, StageConditioning, StageInput
from ..storage import MemoryUse
from ..task_graph import Task, ends_block
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

    def __init__(self, components: RandomComponents, plan: Plan, nets: ModelCache, naive: bool = False):
        super().__init__(components, plan, nets, prefetch=False)  # what is noted is noted between the tasks
        self.naive, self.device = naive, torch.device(plan.stages[0].device)
        self.stages: list[Stage] = []
        self._timeline = Timeline(self.device)

    def watch(
        self,
        job: VideoTask,
        callback: Callback = ignore,
    ) -> Run:
        """Make a video and note everything; the callback is not part of what is timed on CUDA."""
        self._timeline = timeline = Timeline(self.device)
        moved: list[TransferStats] = []

        def note(event: Event) -> None:
            if event.task is not None and ends_block(self.plan.partition, event.task):
                timeline.end_block()
                moved.append(self.transfer_bytes())
            callback(event)

        latents = tuple(self.run(job, note))
        self.stages = []
        return Run(
            timeline.task_times(),
            timeline.block_ends(),
            tuple(t.to_device for t in moved),
            tuple(t.to_host for t in moved),
            latents,
        )

    def unwatched(self, prefetch: bool | None = None) -> LocalEngine:
        """An engine as users have it, with the same weights; `prefetch` as of `LocalEngine`."""
        return LocalEngine(self.components, self.plan, self.models, prefetch)

    def networks(self) -> list[CausalS2VTransformer]:
        """Every loaded part, once."""
        return list(dict.fromkeys(self._network(*where) for where in self._slices()))

    def transfer_bytes(self) -> TransferStats:
        """Bytes copied between host and device: of the present run's KV caches, and of the weights since they are
        there."""
        leads = [net.layers_on_device for net in self.networks()]
        counted = [s.traffic for s in self.stages] + [
            p.streams.transfer_stats for p in leads if isinstance(p, LayerPrefetcher)
        ]
        return TransferStats(sum(t.to_device for t in counted), sum(t.to_host for t in counted))

    def resident(self) -> dict[str, MemoryUse]:
        """What stays between two tasks of the present run, counted tensor by tensor."""
        kv_caches = [kv_cache for stage in self.stages for step in stage.kv_caches.values() for kv_cache in step]
        near = _bytes(
            t for kv_cache in kv_caches if not isinstance(kv_cache, OffloadedKVCache) for t in kv_cache.tensors()
        )
        far = _bytes(
            t for kv_cache in kv_caches if isinstance(kv_cache, OffloadedKVCache) for t in kv_cache.host_cache.tensors()
        )
        slots = 0
        for stage in self.stages:
            first = next(iter(stage.kv_caches.values()))[0]
            slots += 2 * _bytes(first.host_cache.tensors()) if isinstance(first, OffloadedKVCache) else 0
        sinks = [sink for stage in self.stages for version in stage.sinks.values() for sink in version]
        text_kv = [kv for stage in self.stages for version in stage.text_kv.values() for kv in version]
        return {
            "KV cache": MemoryUse(near, far),
            "slots": MemoryUse(slots),
            "sink": MemoryUse(_bytes(t for sink in sinks for t in vars(sink).values())),
            "text": MemoryUse(
                _bytes(t for kv in text_kv for t in vars(kv).values())
                + _bytes(t for stage in self.stages for t in stage.modulation)
            ),
        }

    def _stages(self, job: VideoTask, at_work: Callback = ignore) -> list[Stage]:
        self.stages = super()._stages(job, at_work)
        timeline = self._timeline
        for stage in self.stages:
            stage.net = cast(CausalS2VTransformer, TimedNet(stage.net, timeline))
        timeline.restart()
        return [cast(Stage, _TimedStage(stage, timeline)) for stage in self.stages]

    def _stage(self, planned: StagePlan, conditions: StageConditioning) -> Stage:
        if not self.naive:
            return super()._stage(planned, conditions)
        net = self._network(planned.device, self._slice(planned.layers), planned.storage)
        return NaiveStage(net, planned.steps, conditions, self.device, self._dtype, self._ops(planned))


class _TimedStage:
    """Stands in for a stage: what it does is noted as tasks."""

    def __init__(self, stage: Stage, timeline: Timeline):
        self._stage, self._timeline = stage, timeline

    def run(self, task: Task, stage_input: StageInput) -> StageInput:
        with self._timeline.task(task):
            return self._stage.run(task, stage_input)


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(t.nbytes for t in tensors)
