"""The status of a backend and its workers, readable at any time."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ..planner import StagePlan
from . import ray_compat
from .pool import WorkerPool
from .queue import JobQueue, PauseFlag
from .registry import resident_bytes
from .wire import WorkerStats
from .worker_handle import WorkerHandle, answer

_ANSWER_SECONDS = 0.6
"""A worker that has not answered by then is reported as silent."""


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
        host_bytes: host memory of its process; None where the system does not report it.
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


class StatusReader:
    """Reads the status of a worker pool.

    Args:
        pool, jobs, pause: of the backend.
    """

    def __init__(self, pool: WorkerPool, jobs: JobQueue, pause: PauseFlag):
        self._pool, self._jobs, self._pause = pool, jobs, pause
        self._pending: dict[int, Any] = {}
        """Pending answers of silent workers, by process: they are not called again meanwhile."""

    def read(self) -> BackendStatus:
        """The status now; takes well below a second."""
        plan, places = self._pool.plan, self._pool.numbered_workers
        asked = {number: self._ask(worker) for number, worker in places if worker.pid}
        there = self._wait([ref for ref in asked.values() if ref is not None])
        self._pending = {m.pid: ref for number, m in places if (ref := asked.get(number)) and ref not in there}
        workers = tuple(
            _status(number, plan.stages[number], worker, *_observed(worker, asked.get(number), there))
            for number, worker in places
            if plan is not None and number < len(plan.stages)
        )
        codec_worker = self._pool.codec_worker
        state = self._state(bool(self._pool.all_workers))
        return BackendStatus(state, self._jobs.waiting, workers, codec_worker.pid, codec_worker.nbytes)

    def _state(self, workers: bool) -> Literal["released", "warm", "running", "paused"]:
        taken = self._jobs.is_busy
        if not workers and not taken:
            return "released"
        return "paused" if self._pause.on else "running" if taken else "warm"

    def _ask(self, worker: WorkerHandle) -> Any:
        """The reference of an answer to come; None for a worker that is gone."""
        owed = self._pending.get(worker.pid)
        if owed is not None:
            return owed
        try:
            return worker.call("stats")
        except Exception:
            return None

    def _wait(self, refs: list[Any]) -> list[Any]:
        """The answers that are there in time."""
        try:
            return ray_compat.wait(refs, _ANSWER_SECONDS, len(refs)) if refs else []
        except ray_compat.RayEnded:
            return []


def _status(number: int, stage: StagePlan, worker: WorkerHandle, state: str, seen: WorkerStats | None) -> WorkerStatus:
    return WorkerStatus(
        stage=number,
        steps=stage.steps,
        layers=stage.layers,
        device=stage.device,
        pid=worker.pid,
        state=state,
        tasks=seen.tasks if seen else 0,
        task_seconds=seen.seconds / seen.tasks if seen and seen.tasks else None,
        weights=sum(worker.loaded_bytes.values()),
        shared=sum(worker.shared_bytes.values()),
        host_bytes=resident_bytes(worker.pid) if worker.pid else None,
        allocated=seen.allocated if seen else None,
        reserved=seen.reserved if seen else None,
    )


def _observed(worker: WorkerHandle, asked: Any, there: list[Any]) -> tuple[str, WorkerStats | None]:
    """The worker's state, and its answer if there is one."""
    if not worker.pid:
        return "starting", None
    if asked is None:
        return "lost", None
    if asked not in there:
        return "silent", None
    try:
        kind, stats = answer(asked)
    except Exception:
        return "lost", None
    if kind != "ok":
        return "silent", None
    return ("loading" if worker.load_spec is None else stats.state), stats
