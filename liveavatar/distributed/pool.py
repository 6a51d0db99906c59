"""The worker pool of one backend: processes started, loaded and wired for a plan, kept warm, replaced when lost."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..codec import ExecConfig
from ..device_names import DeviceName, Machine, check_device, find_machine
from ..engine.compile import without_compiling
from ..errors import LiveAvatarError
from ..events import LOADING_NETWORK, Callback, ignore, share_event
from ..planner import Plan
from . import cluster, ray_compat
from .cluster import LOCAL, PROBE_SECONDS, is_listening
from .registry import WorkerFile
from .snapshots import remove
from .topology import Endpoint, link_specs
from .wire import Handshake, LoadSpec, ModelSpec
from .worker_handle import (
    MACHINE_LOST,
    STAGE_WORKER_CLASS,
    START_ANEW,
    FaultLimits,
    WorkerError,
    WorkerHandle,
    all_compiled,
    answer,
    compile_layers,
    compile_problem,
    log_tail_text,
    loss_from,
    remove_logs,
    worker_error,
)

_log = logging.getLogger("liveavatar")
_numbers = itertools.count(1)
"""Of workers: all that a process starts log into one folder."""


CODEC = -1
"""The key of the worker of encoders and VAE; those of stages have the numbers of their stages."""


class PoolResources:
    """What a worker pool holds: Ray, worker processes, their folder and their line in the registry.

    Args:
        address, token: see `RayBackend`.

    Attributes:
        workers: by stage, and at `CODEC`.
        folder: for what they write on this machine.
        snapshots: folder of the latest video's; empty where there are none.
    """

    def __init__(self, address: str, token: str | None):
        self.workers: dict[int, WorkerHandle] = {}
        self.folder = Path()
        self.snapshots = ""
        self._address, self._token = address, token
        self._worker_file = WorkerFile(self.folder)
        self._acquired = False
        self._lock = threading.RLock()  # stages and codec are started, and idle ones released, by several threads

    def acquire_ray(self) -> None:
        """Start or join Ray, unless that was done.

        Raises:
            PlanError: the cluster cannot be joined.
        """
        with self._lock:
            if not self._acquired:
                self.folder = cluster.acquire_ray(self._address, self._token)
                self._worker_file = WorkerFile(self.folder)
                self._acquired = True

    def find_machines(self, devices: tuple[str, ...]) -> list[Machine]:
        """The machines of some devices, which all exist. Ray is started anew where its process on this machine is lost.

        Raises:
            PlanError: a machine or a device that is not there; the cluster cannot be joined.
            NodeLostError: this machine has dropped out of a cluster that is not ours.
        """
        self.acquire_ray()
        try:
            there, own = cluster.machines()
        except cluster.NodeLostError as error:
            if self._address != LOCAL:
                raise
            _log.warning("%s It is started anew.", error.what)
            self.release(lost=True)
            self.acquire_ray()
            there, own = cluster.machines()
        if any(DeviceName.parse(device).machine for device in devices):
            # Ray lists a machine that has died for a while.
            there = [m for m in there if m.id == own.id or is_listening(m.address, m.port, PROBE_SECONDS)]
        found = []
        for name in map(DeviceName.parse, devices):
            found.append(own if name.machine is None else find_machine(name.machine, there))
            if name.machine is not None:
                check_device(name, found[-1])
        return found

    def start_worker(self, key: int, machine: Machine, threads: int, worker_class: str = STAGE_WORKER_CLASS) -> None:
        """Start a worker; see `launch_worker`."""
        folder = self.folder if machine.id == cluster.machines()[1].id else None
        alone = self._address == LOCAL
        self.workers[key] = WorkerHandle.start(next(_numbers), machine, folder, threads, alone, worker_class)

    def stop_worker(self, key: int) -> None:
        """End a worker, if it is there."""
        worker = self.workers.pop(key, None)
        if worker is not None:
            worker.kill()

    def record_workers(self) -> None:
        """Write the workers of this machine into the registry."""
        with self._lock:
            if not self._acquired:
                return
            there = [(key, worker) for key, worker in sorted(self.workers.items()) if worker.log and worker.handshake]
            self._worker_file.write(
                (worker.pid, None if key == CODEC else key, worker.device, worker.log)
                for key, worker in there
                if worker.log is not None
            )

    def remove_snapshots(self) -> None:
        """Remove the snapshots that are here."""
        if self.snapshots:
            remove(self.snapshots)
            self.snapshots = ""

    def release(self, lost: bool = False) -> None:
        """End all workers, remove what they wrote, and leave or end Ray; `lost`: see `cluster.release_ray`."""
        with self._lock:
            there = list(self.workers.values())
            if not lost:
                remove_logs(there)
            for worker in there:
                worker.kill()
            self.workers.clear()
            self.remove_snapshots()
            if self._acquired:
                self._acquired = False
                self._worker_file.remove()
                cluster.release_ray(lost)

    def release_unused(self) -> None:
        """The same, if there are no workers."""
        with self._lock:
            if not self.workers and not self.snapshots:
                self.release()


START_TIMEOUT_SECONDS = 180.0
LOAD_TIMEOUT_SECONDS = 1800.0
CODEC_WORKER_CLASS = "liveavatar.distributed.codec_worker:CodecWorker"
PROBE_AFTER_SECONDS = 2.5
"""Seconds without an answer after which a worker's machine is probed."""
_POLL_SECONDS = 0.5


Heartbeat = Callable[[], object]
"""Called about twice a second while an answer is waited for; what it raises ends the wait."""


def no_heartbeat() -> None:
    """The heartbeat of a wait that nobody can end."""


class CodecWorkerHandle:
    """The pool's worker of encoders and VAE.

    Args:
        limits: of waiting and replacing.
        resources: of the pool.
    """

    def __init__(self, limits: FaultLimits, resources: PoolResources):
        self.limits, self.resources = limits, resources
        self._used = time.monotonic()
        self._opening = threading.Lock()  # live, one thread encodes a prompt while another decodes

    @property
    def worker(self) -> WorkerHandle | None:
        """The worker, while it is there."""
        return self.resources.workers.get(CODEC)

    @property
    def pid(self) -> int | None:
        """The worker's process, while it is there."""
        worker = self.worker
        return worker.pid if worker else None

    @property
    def nbytes(self) -> int:
        """Bytes of weights that the worker keeps."""
        worker = self.worker
        return sum(worker.loaded_bytes.values()) if worker else 0

    @property
    def idle_seconds(self) -> float:
        """Seconds since the latest answer."""
        return time.monotonic() - self._used

    def open(self, model: ModelSpec, exec_config: ExecConfig, heartbeat: Heartbeat = no_heartbeat) -> None:
        """Have a worker that has opened this model on this device.

        Raises:
            WorkerError: it does not start.
            PlanError: there is no such machine or device.
            LiveAvatarError: the model is not where the worker is.
        """
        with self._opening:
            worker = self.worker
            if worker is None or worker.device != exec_config.device:
                worker = self._start(exec_config, heartbeat)
            if worker.opened != (model, exec_config):
                worker.loaded_bytes = {}
                there = dataclasses.replace(exec_config, device=DeviceName.parse(exec_config.device).device)
                self.call(exec_config, "open the model", LOAD_TIMEOUT_SECONDS, heartbeat, "open", model, there)
                worker.opened = (model, exec_config)

    def load_vae(self, exec_config: ExecConfig, heartbeat: Heartbeat) -> None:
        """Have the VAE loaded."""
        nbytes = self.call(exec_config, "load the VAE", LOAD_TIMEOUT_SECONDS, heartbeat, "load_vae")
        worker = self.worker
        if worker is not None:
            worker.loaded_bytes = {exec_config.device: nbytes}

    def call(
        self, exec_config: ExecConfig, doing: str, seconds: float, heartbeat: Heartbeat, name: str, *given: Any
    ) -> Any:
        """Call the worker and wait.

        Raises:
            WorkerError: it was lost, is silent or failed.
            LiveAvatarError: the library refused in it.
            Whatever `heartbeat` raises.
        """
        worker = self.worker
        if worker is None:
            raise self._worker_lost(worker, exec_config, "was given back")
        ref, since = worker.call(name, *given), time.monotonic()
        while not ray_compat.wait([ref], _POLL_SECONDS):
            heartbeat()
            waited = time.monotonic() - since
            if waited > PROBE_AFTER_SECONDS and not worker.is_reachable:
                raise self._worker_lost(worker, exec_config, MACHINE_LOST, replaceable=False)
            if waited > seconds:
                raise self._worker_lost(worker, exec_config, f"could not {doing} within {seconds:.0f} s")
        self._used = time.monotonic()
        try:
            kind, value = answer(ref)
        except ray_compat.import_ray().exceptions.RayError as error:
            loss = loss_from(error)
            raise self._worker_lost(worker, exec_config, loss.happened, loss.nearest, loss.replaceable) from None
        if kind == "refused":
            raise LiveAvatarError(*value)
        if kind != "ok":
            nearest = f"{value[1]}{log_tail_text(worker.log_lines())}"
            raise WorkerError(f"{_named(exec_config)} could not {doing}: {value[0].rstrip('.')}.", nearest)
        return value

    def call_async(self, name: str, *given: Any) -> None:
        """Call the worker, if there is one, without waiting."""
        worker = self.worker
        if worker is not None:
            with contextlib.suppress(ray_compat.RayEnded):
                worker.call(name, *given)

    def release(self) -> None:
        """End the worker, and Ray where that was the pool's only one."""
        self.resources.stop_worker(CODEC)
        self.resources.record_workers()
        self.resources.release_unused()

    def _start(self, exec_config: ExecConfig, heartbeat: Heartbeat) -> WorkerHandle:
        self.resources.stop_worker(CODEC)
        (machine,) = self.resources.find_machines((exec_config.device,))
        self.resources.start_worker(CODEC, machine, exec_config.threads, CODEC_WORKER_CLASS)
        worker = self.resources.workers[CODEC]
        worker.device = exec_config.device
        handshake: Handshake = self.call(exec_config, "start", START_TIMEOUT_SECONDS, heartbeat, "handshake")
        if problem := handshake.incompatibility():
            raise self._worker_lost(worker, exec_config, problem, replaceable=False)
        worker.handshake = handshake
        self.resources.record_workers()
        return worker

    def _worker_lost(
        self,
        worker: WorkerHandle | None,
        exec_config: ExecConfig,
        happened: str,
        nearest: str = START_ANEW,
        replaceable: bool = True,
    ) -> WorkerError:
        lines = worker.log_lines() if worker and worker.is_reachable else []
        if worker is self.worker:  # else another thread has replaced it already
            self.resources.stop_worker(CODEC)
        return WorkerError(
            f"{_named(exec_config)} {happened}.", f"{nearest}{log_tail_text(lines)}", replaceable=replaceable
        )


def _named(exec_config: ExecConfig) -> str:
    return f"The worker of encoders and VAE (on {exec_config.device})"


WIRE_TIMEOUT_SECONDS = 40.0
STOP_TIMEOUT_SECONDS = 1.5
"""How long a broken-off run is waited for; what is in the middle of a task then is waited for by the next run."""
_LOOPBACK = "127.0.0.1"
_ELSEWHERE = "Bring the machine back, or plan without it."


class WorkerPool:
    """The worker processes of one backend: those of stages, by their number, and the one of encoders and VAE.

    Args:
        limits: of waiting and replacing.
        address, token: see `RayBackend`.

    Attributes:
        codec_worker: encoders and VAE.
        plan: the latest one that the workers were made ready for.
        before_reuse: called once, before the workers are made ready for another run or ended.
    """

    def __init__(self, limits: FaultLimits, address: str = LOCAL, token: str | None = None):
        self.limits, self._address = limits, address
        self.plan: Plan | None = None
        self.before_reuse: Callable[[], None] | None = None
        self.resources = PoolResources(address, token)
        self.codec_worker = CodecWorkerHandle(limits, self.resources)
        self._wired: tuple[Any, ...] | None = None
        self._epoch = 0
        self._finalizer = weakref.finalize(self, self.resources.release)

    @property
    def workers(self) -> list[WorkerHandle]:
        """Those of stages that are there, in their order."""
        return [worker for _, worker in self.numbered_workers]

    @property
    def numbered_workers(self) -> list[tuple[int, WorkerHandle]]:
        """The same with the numbers of their stages."""
        return [(key, worker) for key, worker in sorted(self.resources.workers.items()) if key != CODEC]

    @property
    def all_workers(self) -> list[WorkerHandle]:
        """Those that are there, the one of encoders and VAE among them."""
        return list(self.resources.workers.values())

    def holds(self, plan: Plan, model: ModelSpec) -> bool:
        """Whether all workers of a plan are there with its weights and what was compiled, as far as is known."""
        return [m.load_spec for m in self.workers] == _load_specs(plan, model) and all_compiled(plan, self.workers)

    def find_machines(self, devices: tuple[str, ...]) -> list[Machine]:
        """See `PoolResources.find_machines`."""
        return self.resources.find_machines(devices)

    def start(self, plan: Plan, model: ModelSpec, callback: Callback = ignore) -> tuple[Plan, list[WorkerHandle]]:
        """One loaded worker per stage of a plan, all wired, and the plan that they will run: without compiled layers
        where these could not be compiled and need not be.

        Args:
            callback: called while they start and load, and with what they compile; what it raises ends the wait.

        Raises:
            WorkerError: one did not start, load, meet its neighbours or compile.
            PlanError: Ray is missing, or a machine.
        """
        self._prepare_reuse()
        machines = self.find_machines(tuple(s.device for s in plan.stages))
        self.wait_until_idle(self.limits.deadline, give_up=True)
        self.plan = plan

        def heartbeat() -> None:
            callback(share_event(LOADING_NETWORK, 0.0))

        self._start_workers(plan, machines, heartbeat)
        self.resources.record_workers()
        if problem := compile_problem(plan, self.workers):
            plan = without_compiling(plan, problem, callback)
        self._load(plan, model, heartbeat)
        self._wire(plan)
        if problem := compile_layers(plan, self.workers, self.gather, callback):
            plan = without_compiling(plan, problem, callback)
        self.plan = plan
        return plan, self.workers

    def wait_until_idle(self, seconds: float, give_up: bool = False) -> None:
        """End what still runs. Workers that need longer are asked again later, or replaced."""
        with contextlib.suppress(ray_compat.RayEnded):
            self._wait_until_idle(seconds, give_up)

    def _wait_until_idle(self, seconds: float, give_up: bool) -> None:
        errors = cluster.ray_module().exceptions
        workers = self.numbered_workers
        for _, worker in workers:
            worker.pending_stop = worker.pending_stop or worker.call("stop")
        until = time.monotonic() + seconds
        for number, worker in workers:
            try:
                ray_compat.get(worker.pending_stop, max(0.0, until - time.monotonic()))
                worker.pending_stop = None
            except errors.GetTimeoutError:
                if give_up:
                    self.stop_worker(number)
            except errors.RayError:
                self.stop_worker(number)

    def stop_worker(self, number: int) -> None:
        """End one worker; the next plan starts another."""
        self.resources.stop_worker(number)
        self._wired = None

    def stop(self) -> None:
        """End all workers, and Ray with the last worker pool; a cluster that is not ours is left."""
        self._prepare_reuse()
        self._wired = None
        self.resources.release()

    def _prepare_reuse(self) -> None:
        prepare, self.before_reuse = self.before_reuse, None
        if prepare is not None:
            prepare()

    def open_folder(self, number: int) -> str:
        """Where the snapshots of video number `number` go. One video is made at a time: those of others are removed."""
        self.remove_snapshots()
        self.resources.snapshots = str(self.resources.folder / f"video-{number}")
        return self.resources.snapshots

    def remove_snapshots(self) -> None:
        """Remove the snapshots of the latest video, on all machines."""
        folder = self.resources.snapshots
        if folder and self.workers:
            with contextlib.suppress(ray_compat.RayEnded):
                asked = [worker.call("remove_snapshots", folder) for worker in self.workers]
                ray_compat.wait(asked, STOP_TIMEOUT_SECONDS, len(asked))  # the others remove them later
        self.resources.remove_snapshots()

    def worker_lost(
        self, plan: Plan, number: int, happened: str, nearest: str = START_ANEW, replaceable: bool = False
    ) -> WorkerError:
        """The error for a worker that is of no use any more; it is ended, the others stop and stay warm."""
        worker = self.resources.workers.get(number)
        lines = worker.log_lines() if worker and nearest != _ELSEWHERE else []
        error = worker_error(plan, number, happened, nearest, lines, replaceable)
        self.stop_worker(number)
        self.wait_until_idle(STOP_TIMEOUT_SECONDS)
        return error

    def check_machines(self, plan: Plan, numbers: Iterable[int]) -> None:
        """Probe the machines of workers that do not answer, which finds a dead one before Ray does.

        Raises:
            WorkerError: one does not answer.
        """
        for number in numbers:
            worker = self.resources.workers.get(number)
            if worker is not None and not worker.is_reachable:
                raise self.worker_lost(plan, number, MACHINE_LOST, _ELSEWHERE)

    def gather(
        self, plan: Plan, refs: dict[int, Any], seconds: float, doing: str, heartbeat: Heartbeat = no_heartbeat
    ) -> dict[int, Any]:
        """The answers of workers, by stage.

        Raises:
            WorkerError: one failed, was lost, or needed longer than `seconds`.
        """
        owing, given, begun = {ref: number for number, ref in refs.items()}, {}, time.monotonic()
        second_hand: int | None = None
        while owing:
            heartbeat()
            for ref in ray_compat.wait(owing, 0.5):
                number = owing.pop(ref)
                kind, value = self.result(plan, number, ref)
                if kind == "link":
                    second_hand = number
                elif kind != "ok":
                    raise self.worker_lost(
                        plan, number, f"could not {doing}: {value[0].rstrip('.')}", value[1] or START_ANEW
                    )
                given[number] = value
            if owing and time.monotonic() - begun > PROBE_AFTER_SECONDS:
                self.check_machines(plan, sorted(owing.values()))
            if owing and time.monotonic() - begun > seconds:
                happened = f"could not {doing} within {seconds:.0f} s"
                raise self.worker_lost(plan, min(owing.values()), happened, replaceable=True)
        if second_hand is not None:
            raise self.worker_lost(plan, second_hand, f"could not {doing}: {given[second_hand][0]}")
        return given

    def result(self, plan: Plan, number: int, ref: Any) -> Any:
        """The answer of a finished call.

        Raises:
            WorkerError: the worker's process is gone.
        """
        try:
            return answer(ref)
        except ray_compat.import_ray().exceptions.RayError as error:
            self.check_machines(plan, [number])
            loss = loss_from(error)
            raise self.worker_lost(plan, number, loss.happened, loss.nearest, loss.replaceable) from None

    def _start_workers(self, plan: Plan, machines: list[Machine], heartbeat: Heartbeat) -> None:
        for number, worker in self.numbered_workers:
            if number >= len(machines) or worker.machine.id != machines[number].id:
                self.stop_worker(number)
        for number, (machine, stage) in enumerate(zip(machines, plan.stages, strict=True)):
            if number not in self.resources.workers:
                self.resources.start_worker(number, machine, plan.threads)
            self.resources.workers[number].device = stage.device
        fresh = {number: m.call("handshake") for number, m in enumerate(self.workers) if not m.handshake}
        for number, handshake in self.gather(plan, fresh, START_TIMEOUT_SECONDS, "start", heartbeat).items():
            self._check_handshake(plan, number, handshake)

    def _check_handshake(self, plan: Plan, number: int, handshake: Handshake) -> None:
        problem = handshake.incompatibility()
        if problem:
            raise self.worker_lost(plan, number, problem, "Install the same version on all machines.")
        self.workers[number].handshake = handshake

    def _load(self, plan: Plan, model: ModelSpec, heartbeat: Heartbeat) -> None:
        refs, specs = {}, _load_specs(plan, model)
        for number, (worker, spec) in enumerate(zip(self.workers, specs, strict=True)):
            if worker.load_spec != spec:
                worker.load_spec, worker.loaded_bytes, worker.shared_bytes, worker.compiled = None, {}, {}, set()
                refs[number] = worker.call("load", spec)
        answers = self.gather(plan, refs, LOAD_TIMEOUT_SECONDS, "load its weights", heartbeat)
        for number, (loaded, shared) in answers.items():
            named, worker = DeviceName.parse(plan.stages[number].device).machine, self.workers[number]
            worker.load_spec, worker.shared_bytes = specs[number], shared
            worker.loaded_bytes = {str(DeviceName(device, named)): n for device, n in loaded.items()}

    def _wire(self, plan: Plan) -> None:
        endpoints = [
            Endpoint(m.machine, m.load_spec.device, m.handshake.nccl)
            for m in self.workers
            if m.load_spec and m.handshake
        ]
        specs = link_specs(plan.partition, endpoints)
        wiring = (specs, tuple((m.number, m.load_spec) for m in self.workers))
        if self._wired == wiring:
            return
        self._epoch += 1
        # Without a cluster, everything listens on loopback only, whatever Ray calls this machine.
        here = [_LOOPBACK if self._address == LOCAL else m.machine.address for m in self.workers]
        port = self.gather(plan, {0: self.workers[0].call("host", here[0])}, WIRE_TIMEOUT_SECONDS, "host the meeting")[
            0
        ]
        given = (here[0], port, self._epoch)
        refs = {number: m.call("wire", *given, number, specs, here[number]) for number, m in enumerate(self.workers)}
        self.gather(plan, refs, WIRE_TIMEOUT_SECONDS, "meet its neighbours")
        self._wired = wiring


def _load_specs(plan: Plan, model: ModelSpec) -> list[LoadSpec]:
    """What each stage's worker holds; the first one embeds text, timesteps and audio for all."""
    return [
        LoadSpec(
            model,
            s.layers,
            device,
            plan.dtype,
            plan.threads,
            embedders=number == 0,
            storage=s.storage,
            cap=plan.cap,
        )
        for number, s in enumerate(plan.stages)
        for device in [DeviceName.parse(s.device).device]
    ]
