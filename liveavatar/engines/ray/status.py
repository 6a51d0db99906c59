"""What a backend and its workers are doing, for anybody who asks at any time."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from typing import Literal

from ...planner import StagePlan
from . import cluster
from .crew import Crew, Member
from .pause import Pause
from .plain import Look
from .processes import resident_bytes
from .turns import Turns

_ANSWER_SECONDS = 0.6
"""Who has not answered then is silent for this time."""
_Asked = concurrent.futures.Future


@dataclasses.dataclass(frozen=True)
class WorkerStatus:
    """One worker.

    Attributes:
        stage: its number, from 0.
        steps, layers, device: of its stage.
        pid: of its process; 0 until that has started.
        state: "starting", "loading" weights, "idle", "running" a video, "done" with it, "stopped" in it, "silent" (it
            gives no answer now), or "lost" (its process is gone).
        tasks: done in the present run.
        task_seconds: what one of them takes on average; None before the first.
        weights: bytes of weights it holds.
        host_bytes: host memory of its process; None where the system does not tell.
        allocated, reserved: bytes of its device's memory, in tensors and in all; 0 on the CPU; None when it is silent.
    """

    stage: int
    steps: range
    layers: range
    device: str
    pid: int
    state: str
    tasks: int
    task_seconds: float | None
    weights: int
    host_bytes: int | None
    allocated: int | None
    reserved: int | None


@dataclasses.dataclass(frozen=True)
class BackendStatus:
    """A backend.

    Attributes:
        state: "released" (no workers), "warm" (workers, no video), "running" (a video has the workers, or is about to
            start them), or "paused".
        waiting: videos that wait for their turn.
        workers: in the order of their stages.
    """

    state: Literal["released", "warm", "running", "paused"]
    waiting: int
    workers: tuple[WorkerStatus, ...]


class Observer:
    """Looks at a crew.

    Args:
        crew, turns, pause: of the backend.
    """

    def __init__(self, crew: Crew, turns: Turns, pause: Pause):
        self._crew, self._turns, self._pause = crew, turns, pause
        self._owed: dict[int, _Asked] = {}
        """Answers that silent workers still owe, by their processes: they are not asked again and again."""

    def look(self) -> BackendStatus:
        """The status now; takes well below a second."""
        plan, places = self._crew.plan, self._crew.places
        asked = {number: self._ask(member) for number, member in places if member.pid}
        concurrent.futures.wait([answer for answer in asked.values() if answer], _ANSWER_SECONDS)
        self._owed = {m.pid: a for number, m in places if (a := asked.get(number)) and not a.done()}
        workers = tuple(
            _status(number, plan.stages[number], member, asked.get(number))
            for number, member in places
            if plan is not None and number < len(plan.stages)
        )
        return BackendStatus(self._state(bool(places)), self._turns.waiting, workers)

    def _state(self, workers: bool) -> Literal["released", "warm", "running", "paused"]:
        taken = self._turns.taken
        if not workers and not taken:
            return "released"
        return "paused" if self._pause.on else "running" if taken else "warm"

    def _ask(self, member: Member) -> _Asked | None:
        """An answer to come; None where nobody can be asked."""
        owed = self._owed.get(member.pid)
        if owed is not None and not owed.done():
            return owed
        try:
            if not cluster.the_ray().is_initialized():
                return None
            # Not `ray.wait`, which would start a new Ray where another thread has just ended this one.
            asked: _Asked = member.ask("look").future()
        except Exception:
            return None
        return asked


def _status(number: int, stage: StagePlan, member: Member, asked: _Asked | None) -> WorkerStatus:
    state, seen = _seen(member, asked)
    return WorkerStatus(
        stage=number,
        steps=stage.steps,
        layers=stage.layers,
        device=stage.device,
        pid=member.pid,
        state=state,
        tasks=seen.tasks if seen else 0,
        task_seconds=seen.seconds / seen.tasks if seen and seen.tasks else None,
        weights=sum(member.loaded.values()),
        host_bytes=resident_bytes(member.pid) if member.pid else None,
        allocated=seen.allocated if seen else None,
        reserved=seen.reserved if seen else None,
    )


def _seen(member: Member, asked: _Asked | None) -> tuple[str, Look | None]:
    """The worker's state, and its answer if there is one."""
    if not member.pid:
        return "starting", None
    if asked is None:
        return "lost", None
    if not asked.done():
        return "silent", None
    try:
        kind, given = asked.result()
    except Exception:
        return "lost", None
    if kind != "ok":
        return "silent", None
    look = Look(*given)
    return ("loading" if member.duty is None else look.state), look
