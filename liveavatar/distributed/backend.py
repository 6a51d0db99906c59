"""The Ray backend: engines whose stages are worker processes, on this machine or several."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Iterator

import torch

from ..attention_choice import AttentionUse
from ..codec import ExecConfig
from ..components import Components
from ..device_names import DeviceName
from ..errors import PlanError
from ..events import Callback, ignore
from ..placement import Placement
from ..planner import Plan
from ..session import EngineState, VideoTask
from .cluster import LOCAL, check_address, ray_module
from .cluster_token import checked_token
from .encoders import RayEncoders
from .kept_state import KeptState
from .monitor import VideoRun, superseded
from .pool import STOP_TIMEOUT_SECONDS, WorkerPool
from .queue import IdleReaper, JobQueue, PauseFlag
from .status import BackendStatus, StatusReader
from .wire import ModelSpec
from .worker_handle import FaultLimits


class RayEngine:
    """Runs a plan in worker processes, one per stage (see `liveavatar.session.Engine`).

    A run that is closed, or broken off by an error, leaves its workers warm: within two seconds they stop before
    their next task and keep their weights. One video at a time is made; see `JobQueue`. A worker that is lost is
    replaced and the run goes on; see `VideoRun`.

    Args:
        components: the model; the workers open it from its files.
        plan: what runs where; without compiled layers once they could not be compiled and need not be.
        pool, jobs, pause: shared with the other engines of a backend.

    Raises:
        PlanError: the model exists in this process only.
    """

    def __init__(self, components: Components, plan: Plan, pool: WorkerPool, jobs: JobQueue, pause: PauseFlag):
        self.plan = plan
        self._model = ModelSpec.of(components)
        self.pool, self._jobs, self._pause = pool, jobs, pause
        self._video: VideoRun | None = None
        self._kept: KeptState | None = None
        """Of the latest run, where its job wants what it leaves."""

    @property
    def loaded(self) -> bool:
        """Whether the next run begins without starting workers, loading weights or compiling."""
        return self.pool.holds(self.plan, self._model)

    def load(self, callback: Callback = ignore) -> None:
        """Start the workers, load their weights and compile for them now, when other videos are done.

        Args:
            callback: called with notices of other videos that come first, and of what is compiled.

        Raises:
            WorkerError: one of them could not.
        """
        ticket = self._jobs.acquire(callback)
        try:
            self.plan, _ = self.pool.start(self.plan, self._model, callback)
        finally:
            ticket.release()

    def release(self) -> None:
        """End the workers."""
        self.pool.stop()

    def stage_seconds(self) -> tuple[float, ...]:
        """Busy seconds of each stage in the latest run."""
        return self._video.seconds if self._video else (0.0,) * len(self.plan.stages)

    def attention(self) -> tuple[AttentionUse, ...]:
        """What self-attention was done with on each device in the latest run, as its workers have told."""
        return self._video.attention if self._video else ()

    def take_state(self) -> EngineState | None:
        """See `Engine`. Where a worker is lost before all is read, reading raises `WorkerError`."""
        kept, self._kept = self._kept, None
        return None if kept is None else EngineState(kept.block, kept.tensors(), kept.close)

    def run(self, job: VideoTask, callback: Callback = ignore) -> Iterator[torch.Tensor]:
        """The finished latents [16, 3, h, w] of each block, in order, on the CPU.

        Args:
            job: what is made.
            callback: called after every task, also of those that are run again, and with notices of every worker that
                was replaced, and about every second of other videos that come first and of a pause.

        Raises:
            WorkerError: a worker failed; or it was lost or hung, and `restarts` does not allow to replace it.
            LiveAvatarError: another video took the workers meanwhile.
        """
        self._kept = None
        ticket = self._jobs.acquire(callback)
        video = None
        try:
            self._video = video = VideoRun(self.pool, self.plan, self._model, job, self._pause)
            first = job.resolved.first_block
            for block in itertools.count(first) if job.blocks is None else range(first, job.blocks):
                if not ticket.is_current:
                    raise superseded()
                ticket.thread = threading.current_thread()
                latent = video.next_latent(block, callback)
                self.plan = video.plan
                if latent is None:
                    break
                yield latent
        finally:
            if video is not None:
                video.close()
            if ticket.is_current:
                self._kept = video.kept_state() if video is not None and job.keep_state else None
                if self._kept is None:
                    self.pool.wait_until_idle(STOP_TIMEOUT_SECONDS)
                    self.pool.remove_snapshots()
                ticket.release()


HUNG_TIMEOUT_SECONDS = 120.0
RESTARTS = 2
IDLE_SECONDS = 900.0


class RayBackend:
    """Worker processes on this machine or several (see `liveavatar.engine.backend.Backend`).

    They are started by the first run, stay warm with their weights, and are ended by `release`, when no run has used
    them for long, with the backend itself, or with this process, however it ends.

    Args:
        placement: which devices, and how work is cut over them; one worker per stage. "MACHINE/DEVICE" is a device of
            another machine: its address, host name, node name, or the beginning of its node's id.
        address: "local", this machine alone; or a Ray cluster that this machine has joined: "host:port" of its head, or
            "auto", the one that `LIVEAVATAR_ADDRESS` names or that this user has joined. It is left at the end, not
            stopped.
        deadline: seconds after which a task that does not end, or a worker that does not answer, counts as hung.
        restarts: how many workers that were lost or hung may be replaced while a video is made; it goes on from the
            latest snapshot that all stages have (see `Plan.snapshot_blocks`), or from its beginning. 0: the loss of
            one ends the video.
        idle_seconds: seconds without a run after which the workers are ended, until the next one; None is never. A
            video that was begun counts as a run until it is whole, closed, or has lost its turn.
        token: of the cluster; None: what the file holds that `LIVEAVATAR_TOKEN_FILE` names. This machine alone needs
            none: it gets a new one each time.

    Raises:
        PlanError: Ray is not installed; a machine or device is not there; the cluster cannot be joined; less than no
            restarts.
    """

    def __init__(
        self,
        placement: Placement | None = None,
        address: str = LOCAL,
        deadline: float = HUNG_TIMEOUT_SECONDS,
        restarts: int = RESTARTS,
        idle_seconds: float | None = IDLE_SECONDS,
        token: str | None = None,
    ):
        if restarts < 0:
            raise PlanError(f"Workers cannot be replaced {restarts} times.", "Use 0 for never, or more.")
        check_address(address)
        self.placement = dataclasses.replace(placement or Placement(), processes=True)
        self.placement.check_devices(elsewhere=address != LOCAL)
        if token is not None:
            token = checked_token(token.strip(), "The token")
        ray_module()
        self.pool, self._jobs, self._pause = (
            WorkerPool(FaultLimits(deadline, restarts), address, token),
            JobQueue(),
            PauseFlag(),
        )
        self._reaper = IdleReaper(self.pool, self._jobs, idle_seconds)
        self._status_reader = StatusReader(self.pool, self._jobs, self._pause)
        if address != LOCAL:
            self._check_cluster()

    def _check_cluster(self) -> None:
        """Refuse what the cluster does not have, before anything is loaded."""
        try:
            self.pool.find_machines(self.placement.devices)
        except BaseException:
            self.pool.stop()
            raise

    def engine(self, components: Components, plan: Plan) -> RayEngine:
        """An engine for one plan; workers that hold its weights already are used again."""
        return RayEngine(components, plan, self.pool, self._jobs, self._pause)

    def codec(self, components: Components, exec_config: ExecConfig) -> RayEncoders:
        """Encoders and VAE, in a worker of their own."""
        return RayEncoders(components, exec_config, self.pool)

    @property
    def deadline(self) -> float:
        """Seconds of silence after which something counts as hung; may be changed at any time."""
        return self.pool.limits.deadline

    @deadline.setter
    def deadline(self, seconds: float) -> None:
        self.pool.limits.deadline = seconds

    @property
    def restarts(self) -> int:
        """How many workers may be replaced while a video is made; may be changed between videos."""
        return self.pool.limits.restarts

    @restarts.setter
    def restarts(self, count: int) -> None:
        self.pool.limits.restarts = count

    @property
    def idle_seconds(self) -> float | None:
        """Seconds without a run after which the workers are ended; may be changed at any time."""
        return self._reaper.seconds

    @idle_seconds.setter
    def idle_seconds(self, seconds: float | None) -> None:
        self._reaper.seconds = seconds

    def pause(self) -> None:
        """Let no further block begin, in this video and the next ones, until `resume`.

        Blocks that were allowed to begin go on as far as they can without later ones (at most as many blocks as there
        are stages, and two, are under way). Whoever waits for more gets the notice "Paused." about every
        second, and can be cancelled then. Workers, weights, keys and values stay where they are.
        """
        self._pause.on = True

    def resume(self) -> None:
        """Go on, with the same numbers as if there had been no pause."""
        self._pause.on = False

    @property
    def paused(self) -> bool:
        """Whether further blocks must wait."""
        return self._pause.on

    def status(self) -> BackendStatus:
        """What the workers are doing now: from any thread, within a second, and without disturbing them."""
        return self._status_reader.read()

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The processes of stages that are there now, in their order."""
        return tuple(worker.pid for worker in self.pool.workers)

    @property
    def codec_pid(self) -> int | None:
        """The process of encoders and VAE, while there is one."""
        return self.pool.codec_worker.pid

    def bytes_by_device(self) -> dict[str, int]:
        """Bytes of weights that the workers hold now; what workers of one machine share counts once."""
        held, known = dict[str, int](), set[str]()
        for worker in self.pool.all_workers:
            again = sum(nbytes for name, nbytes in worker.shared_bytes.items() if name in known)
            known.update(worker.shared_bytes)
            for device, nbytes in worker.loaded_bytes.items():
                new = nbytes - (again if DeviceName.parse(device).device == "cpu" else 0)
                held[device] = held.get(device, 0) + new
        return {device: nbytes for device, nbytes in held.items() if nbytes}

    def release(self) -> None:
        """End all workers; the next engine starts them again. May be called again."""
        self.pool.stop()
