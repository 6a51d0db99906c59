"""Small videos that worker processes can make: their model is opened by name."""

import dataclasses
from collections.abc import Callable
from functools import cached_property

from engine.tiny import tiny_effective, tiny_job
from torch import Tensor, cat, equal

from liveavatar.components import Components, open_components
from liveavatar.config import CLIP_BLOCKS
from liveavatar.distributed import RayBackend, RayEngine
from liveavatar.engine.local import LocalEngine
from liveavatar.events import Callback, Event, ignore
from liveavatar.planner import Plan, make_plan
from liveavatar.session import VideoTask


def notices(hear: Callable[[str], object]) -> Callback:
    """A callback that passes on the texts of notices, and nothing else."""

    def on_event(event: Event) -> None:
        if event.notice:
            hear(event.phase)

    return on_event


class Video:
    """A job of some blocks, made in this process and by workers."""

    def __init__(
        self,
        blocks: int,
        model: str = "untrained",
        seed: int = 5,
        steps: int = 4,
        size: str = "64x64",
        clip_blocks: int = CLIP_BLOCKS,
    ):
        self.components: Components = open_components(model)
        effective = dataclasses.replace(tiny_effective(blocks, steps, size, seed), clip_blocks=clip_blocks)
        self.job: VideoTask = tiny_job(self.components.config, effective)

    @cached_property
    def expected(self) -> Tensor:
        engine = LocalEngine(self.components, self.plan("1x1"))
        latents = cat(list(engine.run(self.job)), 1)
        (self.attention,) = engine.attention()
        return latents

    def engine(
        self,
        backend: RayBackend,
        stages: str,
        snapshot_blocks: int | None = None,
        devices: tuple[str, ...] = ("cpu",),
    ) -> RayEngine:
        return backend.engine(self.components, self.plan(stages, snapshot_blocks, devices))

    def is_made_by(
        self,
        backend: RayBackend,
        stages: str,
        callback: Callback = ignore,
        devices: tuple[str, ...] = ("cpu",),
    ) -> bool:
        """Whether the workers make the same latents, bit for bit."""
        return equal(self.latents(backend, stages, callback, devices), self.expected)

    def latents(
        self,
        backend: RayBackend,
        stages: str,
        callback: Callback = ignore,
        devices: tuple[str, ...] = ("cpu",),
    ) -> Tensor:
        return cat(list(self.engine(backend, stages, devices=devices).run(self.job, callback)), 1)

    def plan(self, stages: str, snapshot_blocks: int | None = None, devices: tuple[str, ...] = ("cpu",)) -> Plan:
        effective, config, model = self.job.resolved, self.components.config, self.components.name
        return make_plan(
            effective, config, model=model, stages=stages, devices=devices, snapshot_blocks=snapshot_blocks
        )
