"""The engine whose stages are worker processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch

from ...components import Components
from ...planner import Plan
from ...session import Job, OnNotice, OnTask, unnoticed
from .driver.crew import SETTLE_SECONDS, Crew
from .driver.pause import Pause
from .driver.run import taken_away
from .driver.turns import Turns
from .driver.video import Video
from .plain import plain_model


class RayEngine:
    """Runs a plan in worker processes, one per stage (see `liveavatar.session.Engine`).

    A run that is closed, or broken off by an error, leaves its workers warm: within two seconds they stop before
    their next task and keep their weights. One video at a time is made; see `Turns`. A worker that is lost is
    replaced and the run goes on; see `Video`.

    Args:
        components: the model; the workers open it from its files.
        plan: what runs where.
        crew, turns, pause: shared with the other engines of a backend.

    Raises:
        PlanError: the model exists in this process only.
    """

    def __init__(self, components: Components, plan: Plan, crew: Crew, turns: Turns, pause: Pause):
        self.plan = plan
        self._model = plain_model(components)
        self._crew, self._turns, self._pause = crew, turns, pause
        self._video: Video | None = None

    @property
    def loaded(self) -> bool:
        """Whether the next run begins without starting workers, loading weights or compiling."""
        return self._crew.holds(self.plan, self._model)

    def load(self, on_notice: OnNotice = unnoticed) -> None:
        """Start the workers, load their weights and compile for them now, when other videos are done.

        Args:
            on_notice: told of other videos that come first, and of what is compiled.

        Raises:
            WorkerError: one of them could not.
        """
        turn = self._turns.take(on_notice)
        try:
            self._crew.ready(self.plan, self._model, on_notice)
        finally:
            turn.end()

    def release(self) -> None:
        """End the workers."""
        self._crew.give_back()

    def stage_seconds(self) -> tuple[float, ...]:
        """Busy seconds of each stage in the latest run."""
        return self._video.seconds if self._video else (0.0,) * len(self.plan.stages)

    def run(self, job: Job, on_task: OnTask, on_notice: OnNotice = unnoticed) -> Iterator[torch.Tensor]:
        """The finished latents [16, 3, h, w] of each block, in order, on the CPU.

        Args:
            job: what is made.
            on_task: called after every task, also of those that are run again.
            on_notice: told of every worker that was replaced, and about every second of other videos that come first
                and of a pause.

        Raises:
            WorkerError: a worker failed; or it was lost or hung, and `restarts` does not allow to replace it.
            LiveAvatarError: another video took the workers meanwhile.
        """
        turn = self._turns.take(on_notice)
        try:
            self._video = video = Video(self._crew, self.plan, self._model, job, self._pause)
            for block in range(job.effective.blocks):
                if not turn.held:
                    raise taken_away()
                turn.thread = threading.current_thread()
                yield video.take(block, on_task, on_notice)
        finally:
            if turn.held:
                self._crew.settle(SETTLE_SECONDS)
                self._crew.forget()
                turn.end()
