"""What a backend and its workers are doing, for anybody who asks at any time."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ....planner import StagePlan
from ..cluster import calls
from ..cluster.processes import resident_bytes
from ..plain import Look
from .crew import Crew
from .member import Member
from .pause import Pause
from .turns import Turns

_ANSWER_SECONDS = 0.6
"""Who has not answered then is silent for this time."""


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
        shared: bytes of them in host memory that other workers of its machine can share: for all that do they are
            there once.
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
    shared: int
    host_bytes: int | None
    allocated: int | None
    reserved: int | None


@dataclasses.dataclass(frozen=True)
class BackendStatus:
    """A backend.

    Attributes:
        state: "released" (no workers), "warm" (workers, but no video has them), "running" (a video has the
            workers, or is about to start them), or "paused".
        waiting: videos that wait for their turn.
        workers: in the order of their stages.
        codec: process of encoders and VAE; None where there is none.
        codec_bytes: of weights that it keeps.
    """

    state: Literal["released", "warm", "running", "paused"]
    waiting: int
    workers: tuple[WorkerStatus, ...]
    codec: int | None
    codec_bytes: int


class Observer:
    """Looks at a crew.

    Args:
        crew, turns, pause: of the backend.
    """

    def __init__(self, crew: Crew, turns: Turns, pause: Pause):
        self._crew, self._turns, self._pause = crew, turns, pause
        self._owed: dict[int, Any] = {}
        """Answers that silent workers still owe, by their processes: they are not asked again and again."""

    def look(self) -> BackendStatus:
        """The status now; takes well below a second."""
        plan, places = self._crew.plan, self._crew.places
        asked = {number: self._ask(member) for number, member in places if member.pid}
        there = self._wait([ref for ref in asked.values() if ref is not None])
        self._owed = {m.pid: ref for number, m in places if (ref := asked.get(number)) and ref not in there}
        workers = tuple(
            _status(number, plan.stages[number], member, *_seen(member, asked.get(number), there))
            for number, member in places
            if plan is not None and number < len(plan.stages)
        )
        desk = self._crew.desk
        codec = desk.member.pid if desk.member else None
        return BackendStatus(self._state(self._crew.is_there), self._turns.waiting, workers, codec, desk.nbytes)

    def _state(self, workers: bool) -> Literal["released", "warm", "running", "paused"]:
        taken = self._turns.taken
        if not workers and not taken:
            return "released"
        return "paused" if self._pause.on else "running" if taken else "warm"

    def _ask(self, member: Member) -> Any:
        """The reference of an answer to come; None where nobody can be asked."""
        owed = self._owed.get(member.pid)
        if owed is not None:
            return owed
        try:
            return member.ask("look")
        except Exception:
            return None

    def _wait(self, refs: list[Any]) -> list[Any]:
        """The answers that are there in time."""
        try:
            return calls.wait(refs, _ANSWER_SECONDS, len(refs)) if refs else []
        except calls.Ended:
            return []


def _status(number: int, stage: StagePlan, member: Member, state: str, seen: Look | None) -> WorkerStatus:
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
        shared=sum(member.shared.values()),
        host_bytes=resident_bytes(member.pid) if member.pid else None,
        allocated=seen.allocated if seen else None,
        reserved=seen.reserved if seen else None,
    )


def _seen(member: Member, asked: Any, there: list[Any]) -> tuple[str, Look | None]:
    """The worker's state, and its answer if there is one."""
    if not member.pid:
        return "starting", None
    if asked is None:
        return "lost", None
    if asked not in there:
        return "silent", None
    try:
        kind, given = calls.get(asked)
    except Exception:
        return "lost", None
    if kind != "ok":
        return "silent", None
    look = Look(*given)
    return ("loading" if member.duty is None else look.state), look
