"""The engine whose stages are worker processes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import torch

from ...components import Components
from ...planner import Plan
from ...session import Job, OnTask
from .crew import SETTLE_SECONDS, Crew
from .plain import plain_model
from .run import Run, taken_away
from .turns import Turns

_numbers = itertools.count(1)


class RayEngine:
    """Runs a plan in worker processes, one per stage (see `liveavatar.session.Engine`).

    A run that is closed, or broken off by an error, leaves its workers warm: within two seconds they stop before
    their next task and keep their weights. One video at a time is made; see `Turns`.

    Args:
        components: the model; the workers open it from its files.
        plan: what runs where.
        crew, turns: shared with the other engines of a backend.

    Raises:
        PlanError: the model exists in this process only.
    """

    def __init__(self, components: Components, plan: Plan, crew: Crew, turns: Turns):
        self.plan = plan
        self._model = plain_model(components)
        self._crew, self._turns = crew, turns
        self._run: Run | None = None

    @property
    def loaded(self) -> bool:
        """Whether the next run begins without starting workers or loading weights."""
        return self._crew.holds(self.plan, self._model)

    def load(self) -> None:
        """Start the workers and load their weights now.

        Raises:
            WorkerError: one of them could not.
        """
        turn = self._turns.take()
        try:
            self._crew.ready(self.plan, self._model)
        finally:
            turn.end()

    def release(self) -> None:
        """End the workers."""
        self._crew.give_back()

    def stage_seconds(self) -> tuple[float, ...]:
        """Busy seconds of each stage in the latest run."""
        return self._run.seconds if self._run else (0.0,) * len(self.plan.stages)

    def run(self, job: Job, on_task: OnTask) -> Iterator[torch.Tensor]:
        """The finished latents [16, 3, h, w] of each block, in order, on the CPU.

        Raises:
            WorkerError: a worker was lost, hung or failed.
            LiveAvatarError: another video took the workers meanwhile.
        """
        turn = self._turns.take()
        try:
            members = self._crew.ready(self.plan, self._model)
            self._run = run = Run(self._crew, members, self.plan, job, next(_numbers))
            for block in range(job.effective.blocks):
                if not turn.held:
                    raise taken_away()
                turn.thread = threading.current_thread()
                yield run.take(block, on_task)
        finally:
            if turn.held:
                self._crew.settle(SETTLE_SECONDS)
                turn.end()
