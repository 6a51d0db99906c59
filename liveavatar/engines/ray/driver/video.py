"""One video from its first block to its last, across workers that are lost and replaced."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable

import torch

from ....planner import Plan
from ....session import Job, OnNotice, OnTask
from ..plain import PlainModel
from ..worker.snapshots import latest_common
from .crew import Crew, Member
from .faults import Restarts, WorkerError
from .pause import Pause
from .run import Beginning, Received, Run

_numbers = itertools.count(1)
"""Of videos and runs, in this process."""
_log = logging.getLogger(__name__)


class Video:
    """A job that a crew works at, in one run or several.

    When a worker is lost, all stages go back to the latest boundary of which each has a snapshot, or to the beginning,
    and compute from there; blocks that had come in before come in no second time.

    Args:
        crew: who works.
        plan, model, job: at what.
        pause: holds further blocks back.
    """

    def __init__(self, crew: Crew, plan: Plan, model: PlainModel, job: Job, pause: Pause):
        self._crew, self._plan, self._model, self._job, self._pause = crew, plan, model, job, pause
        self._received, self._restarts = Received(), Restarts(crew.limits.restarts)
        self._run: Run | None = None
        self._folder = ""
        self._lost: list[WorkerError] = []
        """Those whose replacement was not told yet."""
        self._seconds = (0.0,) * len(plan.stages)
        """Of the runs before this one."""

    @property
    def seconds(self) -> tuple[float, ...]:
        """Busy seconds of each stage."""
        return _sums(self._seconds, self._run.seconds) if self._run else self._seconds

    def take(self, block: int, on_task: OnTask, on_notice: OnNotice) -> torch.Tensor:
        """Block number `block`, in order; with the last one all tasks are done and reported.

        Raises:
            WorkerError: a worker failed, or was lost and may not be replaced.
        """
        while True:
            try:
                run = self._run or self._begin(on_notice)
                return run.take(block, on_task, on_notice)
            except WorkerError as error:
                self._seconds, self._run = self.seconds, None
                if not self._restarts.allow(error, delivered=block):
                    raise
                _log.warning("A worker is replaced: %s", error)
                self._lost.append(error)

    def _begin(self, on_notice: OnNotice) -> Run:
        members = self._crew.ready(self._plan, self._model, on_notice)
        number = next(_numbers)
        if not self._folder:
            self._folder = self._crew.open_folder(number)
        first = self._latest_boundary(members) if self._lost else 0
        beginning = Beginning(number, first, self._folder)
        self._run = Run(self._crew, members, self._plan, self._job, beginning, self._received, self._pause)
        lost, self._lost = self._lost, []
        for error in lost:
            on_notice(f"{error.what.rstrip('.')}; it was replaced, going on from block {first}.")
        return self._run

    def _latest_boundary(self, members: list[Member]) -> int:
        """Where all can go on: what every stage has kept, and whose blocks have all come in."""
        if not self._plan.snapshot_blocks:
            return 0
        asked = {}
        for stage, member in enumerate(members):
            steps = self._plan.stages[stage].steps
            asked[stage] = member.ask("kept", self._folder, stage, (steps.start, steps.stop))
        kept = self._crew.gather(self._plan, asked, self._crew.limits.deadline, "look for its snapshots")
        return latest_common(kept.values(), self._received.count)


def _sums(left: Iterable[float], right: Iterable[float]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))
