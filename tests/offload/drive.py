"""Runs a job through stages that keep their memories as a `StorageConfig` says, and counts what they allocate."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from engine.tiny import TinyComponents, tiny_plan
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from liveavatar.config import ModelConfig
from liveavatar.engine.local import ModelCache
from liveavatar.model.transformer import EMBEDDERS, ModelSlice
from liveavatar.noise_schedule import NoiseSchedule
from liveavatar.session import VideoTask
from liveavatar.stage import InitialInputs, Stage, StageConditioning, StageInput
from liveavatar.storage import PLAIN, StorageConfig
from liveavatar.task_graph import Partition, Task, ends_block, followers, is_first, paced_order

CPU = torch.device("cpu")


@dataclasses.dataclass
class Drive:
    """A job and the stages that run it.

    Attributes:
        latents: [16, 3 blocks, h, w] once it ran.
    """

    job: VideoTask
    cut: Partition
    stages: list[Stage]
    nets: ModelCache
    latents: torch.Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))

    @torch.inference_mode()
    def run(self, watch: Callable[[Task], None] = lambda task: None) -> Drive:
        """All of it; `watch` is called after each task."""
        effective = self.job.resolved
        origin = InitialInputs(
            self.job.conditioning.reference, effective.seed, effective.latent_size, self.stages[0].dtype
        )
        flows: dict[Task, StageInput] = {}
        finished = []
        for start in paced_order(self.cut, effective.blocks):
            task = start.task
            left = self.stages[start.stage].run(task, origin.stage_input(task) if is_first(task) else flows.pop(task))
            flows |= {f: left.for_follower(task, f) for f in followers(self.cut, effective.blocks, task)}
            finished += [left.latent.float()] if ends_block(self.cut, task) else []
            watch(task)
        self.latents = torch.cat(finished, 1)
        return self


@torch.inference_mode()
def drive(
    config: ModelConfig,
    job: VideoTask,
    storage: StorageConfig = PLAIN,
    cut: str = "1x1",
    nets: ModelCache | None = None,
    components: TinyComponents | None = None,
    dtype: torch.dtype = torch.float32,
) -> Drive:
    """The stages of a job on the CPU, ready to run."""
    nets, components = nets or ModelCache(), components or TinyComponents(config)
    plan = tiny_plan(config, job.resolved, cut)
    conditions = conditions_of(job, nets.get(components, "cpu", EMBEDDERS, dtype))
    stages = [
        Stage(
            nets.get(components, "cpu", ModelSlice.of(planned.layers, config), dtype, storage),
            planned.steps,
            conditions,
            CPU,
            dtype,
            storage,
        )
        for planned in plan.stages
    ]
    return Drive(job, plan.partition, stages, nets)


def conditions_of(job: VideoTask, conditioner: Any) -> StageConditioning:
    """What every stage knows of a job."""
    schedule = NoiseSchedule.flow_matching(job.resolved.steps)
    rows, columns = (n // 2 for n in job.resolved.latent_size)

    @functools.lru_cache
    def audio(block: int) -> Any:
        return conditioner.embed_audio(job.conditioning.audio.block(block))

    return StageConditioning(
        rows=rows,
        columns=columns,
        schedule=schedule,
        seed=job.resolved.seed,
        distance=job.distance,
        prompt=conditioner.embed_text(job.conditioning.prompt),
        time=conditioner.embed_timesteps([*schedule.timesteps, 0.0]),
        motion=job.conditioning.motion,
        audio=audio,
    )


class Allocations(TorchDispatchMode):
    """Counts the bytes of the tensors that torch allocates within, and their largest sum.

    The host's memory of rings and layers is not torch's and does not count: on the CPU what is counted stands for the
    device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[torch.UntypedStorage, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {s._cdata for s in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given and storage not in self._seen:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        nbytes = storage.nbytes()
        self._seen[storage] = None
        self.now += nbytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, nbytes)

    def _gone(self, nbytes: int) -> None:
        self.now -= nbytes


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [t.untyped_storage() for t in tree_leaves(tree) if isinstance(t, torch.Tensor) and t.device.type == "cpu"]
