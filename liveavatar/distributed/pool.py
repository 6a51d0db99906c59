"""The worker pool of one backend: processes started, loaded and wired for a plan, kept warm, replaced when lost."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..codec import ExecConfig
from ..device_names import DeviceName, Machine, check_device, find_machine
from ..errors import LiveAvatarError
from ..events import Callback, ignore
from ..planner import Plan
from . import cluster, ray_compat
from .cluster import LOCAL, PROBE_SECONDS, is_listening
from .registry import WorkerFile
from .snapshots import remove
from .topology import Endpoint, link_specs
from .wire import OUT_OF_MEMORY_NEAREST, Handshake, LoadSpec, WireModel, to_wire
from .worker_handle import (
    STAGE_WORKER_CLASS,
    FaultLimits,
    WorkerError,
    WorkerHandle,
    all_compiled,
    compile_layers,
    compile_problem,
    log_tail_text,
    remove_logs,
    worker_error,
)

_numbers = itertools.count(1)
"""Of workers: all that a process starts write into one folder."""


class PoolResources:
    """What one owner of workers has.

    Args:
        address: see `RayBackend`.

    Attributes:
        workers: its workers; None for one that was lost.
        folder: for what they write on this machine.
        snapshots: folder of the latest video's; empty where there are none.
    """

    def __init__(self, address: str):
        self.workers: list[WorkerHandle | None] = []
        self.folder = Path()
        self.snapshots = ""
        self._address = address
        self._worker_file = WorkerFile(self.folder)
        self._acquired = False
        self._lock = threading.RLock()  # who is idle too long is released by another thread

    def acquire_ray(self) -> None:
        """Have Ray.

        Raises:
            PlanError: the cluster cannot be joined.
        """
        if not self._acquired:
            self.folder = cluster.acquire_ray(self._address)
            self._worker_file = WorkerFile(self.folder)
            self._acquired = True

    def find_machines(self, devices: tuple[str, ...]) -> list[Machine]:
        """The machines of some devices, which all exist.

        Raises:
            PlanError: a machine or a device that is not there; the cluster cannot be joined.
        """
        self.acquire_ray()
        there, own = cluster.machines()
        if any(DeviceName.parse(device).machine for device in devices):
            # Ray counts a machine that has died for a while yet.
            there = [m for m in there if m.id == own.id or is_listening(m.address, m.port, PROBE_SECONDS)]
        found = []
        for name in map(DeviceName.parse, devices):
            found.append(own if name.machine is None else find_machine(name.machine, there))
            if name.machine is not None:
                check_device(name, found[-1])
        return found

    def start_worker(self, machine: Machine, threads: int, worker_class: str = STAGE_WORKER_CLASS) -> WorkerHandle:
        """A new worker; see `launch_worker`."""
        folder = self.folder if machine.id == cluster.machines()[1].id else None
        return WorkerHandle.start(next(_numbers), machine, folder, threads, self._address == LOCAL, worker_class)

    def record_workers(self, workers: Iterable[tuple[WorkerHandle, int | None, str]]) -> None:
        """Write down which workers of this machine there are, with their stages and devices."""
        self._worker_file.write((m.pid, stage, device, m.log) for m, stage, device in workers if m.log is not None)

    def remove_snapshots(self) -> None:
        """Remove the snapshots that are here."""
        if self.snapshots:
            remove(self.snapshots)
            self.snapshots = ""

    def release(self) -> None:
        """Let all of it go."""
        with self._lock:
            there = [worker for worker in self.workers if worker is not None]
            remove_logs(there)
            for worker in there:
                worker.kill()
            self.workers.clear()
            self.remove_snapshots()
            if self._acquired:
                self._acquired = False
                self._worker_file.remove()
                cluster.release_ray()


START_TIMEOUT_SECONDS = 180.0
LOAD_TIMEOUT_SECONDS = 1800.0
CODEC_WORKER_CLASS = "liveavatar.distributed.codec_worker:CodecWorker"
PROBE_AFTER_SECONDS = 2.5
"""Silence after which it is asked whether a worker's machine is still there."""
_POLL_SECONDS = 0.5


Heartbeat = Callable[[], object]
"""Called about twice a second while an answer is waited for; what it raises ends the wait."""


def no_heartbeat() -> None:
    """The heartbeat of a wait that nobody can end."""


class CodecWorkerHandle:
    """One worker of encoders and VAE.

    Args:
        limits: of patience.
        address: see `RayBackend`.

    Attributes:
        nbytes: of weights that the worker keeps.
    """

    def __init__(self, limits: FaultLimits, address: str):
        self.limits, self.nbytes = limits, 0
        self._resources = PoolResources(address)
        self._opened: tuple[Any, ...] | None = None
        self._used = time.monotonic()
        self._finalizer = weakref.finalize(self, self._resources.release)

    @property
    def worker(self) -> WorkerHandle | None:
        """The worker, while it is there."""
        return self._resources.workers[0] if self._resources.workers else None

    @property
    def idle_seconds(self) -> float:
        """How long nobody has asked it anything."""
        return time.monotonic() - self._used

    def open(self, model: WireModel, exec_config: ExecConfig, heartbeat: Heartbeat = no_heartbeat) -> None:
        """Have a worker for this model at this place.

        Raises:
            WorkerError: it does not start.
            PlanError: there is no such machine or device.
            LiveAvatarError: the model is not where the worker is.
        """
        name = DeviceName.parse(exec_config.device)
        wanted = (model, exec_config.device, exec_config.dtype, exec_config.threads, exec_config.cap)
        if self.worker is None or (self._opened is not None and self._opened[1] != exec_config.device):
            self._start(exec_config, heartbeat)
        if self._opened != wanted:
            self.nbytes = 0
            self.call(
                exec_config,
                "open the model",
                LOAD_TIMEOUT_SECONDS,
                heartbeat,
                "open",
                model,
                name.device,
                exec_config.dtype,
                exec_config.threads,
                exec_config.cap,
            )
            self._opened = wanted

    def call(
        self, exec_config: ExecConfig, doing: str, seconds: float, heartbeat: Heartbeat, name: str, *given: Any
    ) -> Any:
        """Call the worker and wait.

        Raises:
            WorkerError: it was lost, is silent or failed.
            LiveAvatarError: the library refused in it.
            Whatever `heartbeat` raises.
        """
        errors, worker = cluster.ray_module().exceptions, self.worker
        if worker is None:
            raise self._worker_lost(exec_config, "was given back")
        ref, since = worker.call(name, *given), time.monotonic()
        while not ray_compat.wait([ref], _POLL_SECONDS):
            heartbeat()
            waited = time.monotonic() - since
            if waited > PROBE_AFTER_SECONDS and not worker.is_reachable:
                raise self._worker_lost(exec_config, "was lost: its machine does not answer", replaceable=False)
            if waited > seconds:
                raise self._worker_lost(exec_config, f"could not {doing} within {seconds:.0f} s")
        self._used = time.monotonic()
        try:
            kind, value = ray_compat.get(ref)
        except errors.RayError as error:
            out_of_memory = isinstance(error, errors.OutOfMemoryError)
            happened = "was lost: its process ended (killed from outside, crashed, or out of host memory)"
            raise self._worker_lost(exec_config, happened, replaceable=not out_of_memory) from None
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

    def bytes_by_device(self) -> dict[str, int]:
        """Bytes of weights that the worker keeps."""
        return {self._opened[1]: self.nbytes} if self._opened and self.nbytes else {}

    def release(self) -> None:
        """End the worker."""
        self._opened, self.nbytes = None, 0
        self._resources.release()

    def _start(self, exec_config: ExecConfig, heartbeat: Heartbeat) -> None:
        self._stop()
        (machine,) = self._resources.find_machines((exec_config.device,))
        worker = self._resources.start_worker(machine, exec_config.threads, CODEC_WORKER_CLASS)
        self._resources.workers[:] = [worker]
        handshake = Handshake(*self.call(exec_config, "start", START_TIMEOUT_SECONDS, heartbeat, "handshake"))
        if problem := handshake.incompatibility():
            raise self._worker_lost(exec_config, problem, replaceable=False)
        worker.handshake = handshake
        self._resources.record_workers([(worker, None, exec_config.device)])

    def _stop(self) -> None:
        for worker in self._resources.workers:
            if worker is not None:
                worker.kill()
        self._resources.workers.clear()
        self._opened, self.nbytes = None, 0

    def _worker_lost(self, exec_config: ExecConfig, happened: str, replaceable: bool = True) -> WorkerError:
        lines = self.worker.log_lines() if self.worker and self.worker.is_reachable else []
        self._stop()
        nearest = f"Run it again: the worker is started anew.{log_tail_text(lines)}"
        return WorkerError(f"{_named(exec_config)} {happened}.", nearest, replaceable=replaceable)


def _named(exec_config: ExecConfig) -> str:
    return f"The worker of encoders and VAE (on {exec_config.device})"


WIRE_TIMEOUT_SECONDS = 40.0
STOP_TIMEOUT_SECONDS = 1.5
"""How long a broken-off run is waited for; what is in the middle of a task then is waited for by the next run."""
_LOOPBACK = "127.0.0.1"
_AGAIN = "Run it again: the worker is started anew."
_ELSEWHERE = "Bring the machine back, or plan without it."


class WorkerPool:
    """The workers of stages, by their number, and the one of encoders and VAE.

    Args:
        limits: of patience.
        address: see `RayBackend`.

    Attributes:
        codec_worker: encoders and VAE.
        plan: the latest one that the workers were made ready for.
    """

    def __init__(self, limits: FaultLimits, address: str = LOCAL):
        self.limits, self._address = limits, address
        self.codec_worker = CodecWorkerHandle(limits, address)
        self.plan: Plan | None = None
        self._resources = PoolResources(address)
        self._wired: tuple[Any, ...] | None = None
        self._epoch = 0
        self._finalizer = weakref.finalize(self, self._resources.release)

    @property
    def workers(self) -> list[WorkerHandle]:
        """Those that are there, in the order of the stages."""
        return [m for m in self._resources.workers if m is not None]

    @property
    def numbered_workers(self) -> list[tuple[int, WorkerHandle]]:
        """The same with the numbers of their stages."""
        return [(number, m) for number, m in enumerate(list(self._resources.workers)) if m is not None]

    @property
    def has_workers(self) -> bool:
        """Whether there is any worker at all."""
        return bool(self.workers) or self.codec_worker.worker is not None

    def holds(self, plan: Plan, model: WireModel) -> bool:
        """Whether all workers of a plan are there with its weights and what was compiled, as far as is known."""
        return [m.load_spec for m in self.workers] == _load_specs(plan, model) and all_compiled(plan, self.workers)

    def find_machines(self, devices: tuple[str, ...]) -> list[Machine]:
        """See `PoolResources.find_machines`."""
        return self._resources.find_machines(devices)

    def start(self, plan: Plan, model: WireModel, callback: Callback = ignore) -> list[WorkerHandle]:
        """One loaded worker per stage of a plan, all wired; `callback` is called with what they compile.

        Raises:
            WorkerError: one did not start, load, meet its neighbours or compile.
            PlanError: Ray is missing, or a machine.
        """
        machines = self.find_machines(tuple(s.device for s in plan.stages))
        self.wait_until_idle(self.limits.deadline, give_up=True)
        self.plan = plan
        self._start_workers(plan, machines)
        self._resources.record_workers(
            (m, n, s.device) for n, (m, s) in enumerate(zip(self.workers, plan.stages, strict=True))
        )
        if error := compile_problem(plan, self.workers):
            raise error
        self._load(plan, model)
        self._wire(plan)
        compile_layers(plan, self.workers, self.gather, callback)
        return self.workers

    def wait_until_idle(self, seconds: float, give_up: bool = False) -> None:
        """End what still runs. Workers that need longer are asked again later, or replaced."""
        with contextlib.suppress(ray_compat.RayEnded):
            self._wait_until_idle(seconds, give_up)

    def _wait_until_idle(self, seconds: float, give_up: bool) -> None:
        errors = cluster.ray_module().exceptions
        for worker in self.workers:
            worker.pending_stop = worker.pending_stop or worker.call("stop")
        until = time.monotonic() + seconds
        for number in range(len(self._resources.workers)):
            asked = self._worker(number)
            if asked is None or asked.pending_stop is None:
                continue
            try:
                ray_compat.get(asked.pending_stop, max(0.0, until - time.monotonic()))
                asked.pending_stop = None
            except errors.GetTimeoutError:
                if give_up:
                    self.stop_worker(number)
            except errors.RayError:
                self.stop_worker(number)

    def stop_worker(self, number: int) -> None:
        """End one worker; the next plan starts another."""
        worker = self._worker(number)
        if worker is not None:
            worker.kill()
            self._resources.workers[number] = None
        self._wired = None

    def _worker(self, number: int) -> WorkerHandle | None:
        """A worker; None for one that was lost or given back."""
        workers = self._resources.workers
        return workers[number] if number < len(workers) else None

    def stop(self) -> None:
        """End all workers, and Ray with the last worker pool; a cluster that is not ours is left."""
        self._wired = None
        self._resources.release()
        self.codec_worker.release()

    def open_folder(self, number: int) -> str:
        """Where the snapshots of video number `number` go. One video is made at a time: those of others are removed."""
        self.remove_snapshots()
        self._resources.snapshots = str(self._resources.folder / f"video-{number}")
        return self._resources.snapshots

    def remove_snapshots(self) -> None:
        """Remove the snapshots of the latest video, on all machines."""
        folder = self._resources.snapshots
        if folder and self.workers:
            with contextlib.suppress(ray_compat.RayEnded):
                asked = [worker.call("remove_snapshots", folder) for worker in self.workers]
                ray_compat.wait(asked, STOP_TIMEOUT_SECONDS, len(asked))  # who needs longer does it later
        self._resources.remove_snapshots()

    def worker_lost(
        self, plan: Plan, number: int, happened: str, nearest: str = _AGAIN, replaceable: bool = False
    ) -> WorkerError:
        """The error for a worker that is of no use any more; it is ended, the others stop and stay warm."""
        worker = self._worker(number)
        lines = worker.log_lines() if worker and nearest != _ELSEWHERE else []
        error = worker_error(plan, number, happened, nearest, lines, replaceable)
        self.stop_worker(number)
        self.wait_until_idle(STOP_TIMEOUT_SECONDS)
        return error

    def check_machines(self, plan: Plan, numbers: Iterable[int]) -> None:
        """Find out about machines that fell silent, before Ray does.

        Raises:
            WorkerError: one does not answer.
        """
        for number in numbers:
            worker = self._worker(number)
            if worker is not None and not worker.is_reachable:
                raise self.worker_lost(plan, number, "was lost: its machine does not answer", _ELSEWHERE)

    def gather(self, plan: Plan, refs: dict[int, Any], seconds: float, doing: str) -> dict[int, Any]:
        """What workers answered, by stage.

        Raises:
            WorkerError: one failed, was lost, or needed longer than `seconds`.
        """
        owing, given, begun = {ref: number for number, ref in refs.items()}, {}, time.monotonic()
        second_hand: int | None = None
        while owing:
            for ref in ray_compat.wait(owing, 0.5):
                number = owing.pop(ref)
                kind, value = self.result(plan, number, ref)
                if kind == "link":
                    second_hand = number
                elif kind != "ok":
                    raise self.worker_lost(
                        plan, number, f"could not {doing}: {value[0].rstrip('.')}", value[1] or _AGAIN
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
        """What a finished call gave.

        Raises:
            WorkerError: the worker's process is gone.
        """
        errors = cluster.ray_module().exceptions
        try:
            return ray_compat.get(ref)
        except errors.RayError as error:
            self.check_machines(plan, [number])
            happened = "was lost: its process ended (killed from outside, crashed, or out of host memory)"
            if not isinstance(error, errors.RayActorError) and "MemoryError" in str(error):
                happened = "failed: out of memory (MemoryError while it took in a message)"
                raise self.worker_lost(plan, number, happened, OUT_OF_MEMORY_NEAREST) from None
            if not isinstance(error, errors.RayActorError):
                happened = f"could not be reached ({type(error).__name__})"
            out_of_memory = isinstance(error, errors.OutOfMemoryError)
            raise self.worker_lost(plan, number, happened, replaceable=not out_of_memory) from None

    def _start_workers(self, plan: Plan, machines: list[Machine]) -> None:
        count, workers = len(plan.stages), self._resources.workers
        for number, worker in enumerate(workers):
            if number >= count or (worker and worker.machine.id != machines[number].id):
                self.stop_worker(number)
        del workers[count:]
        workers += [None] * (count - len(workers))
        for number, machine in enumerate(machines):
            if workers[number] is None:
                workers[number] = self._resources.start_worker(machine, plan.threads)
        fresh = {number: m.call("handshake") for number, m in enumerate(self.workers) if not m.handshake}
        for number, said in self.gather(plan, fresh, START_TIMEOUT_SECONDS, "start").items():
            self._check_handshake(plan, number, Handshake(*said))

    def _check_handshake(self, plan: Plan, number: int, handshake: Handshake) -> None:
        problem = handshake.incompatibility()
        if problem:
            raise self.worker_lost(plan, number, problem, "Install the same version on all machines.")
        self.workers[number].handshake = handshake

    def _load(self, plan: Plan, model: WireModel) -> None:
        refs, specs = {}, _load_specs(plan, model)
        for number, (worker, spec) in enumerate(zip(self.workers, specs, strict=True)):
            if worker.load_spec != spec:
                worker.load_spec, worker.loaded_bytes, worker.shared_bytes, worker.compiled = None, {}, {}, set()
                refs[number] = worker.call("load", *to_wire(spec))
        for number, (loaded, shared) in self.gather(plan, refs, LOAD_TIMEOUT_SECONDS, "load its weights").items():
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
        given, wire_specs = (here[0], port, self._epoch), tuple(map(to_wire, specs))
        refs = {
            number: m.call("wire", *given, number, wire_specs, here[number]) for number, m in enumerate(self.workers)
        }
        self.gather(plan, refs, WIRE_TIMEOUT_SECONDS, "meet its neighbours")
        self._wired = wiring


def _load_specs(plan: Plan, model: WireModel) -> list[LoadSpec]:
    """What each stage's worker holds; the first one embeds text, timesteps and audio for all."""
    return [
        LoadSpec(
            model,
            (s.layers.start, s.layers.stop),
            device,
            plan.dtype,
            plan.threads,
            embedders=number == 0,
            storage=to_wire(s.storage),
            cap=plan.cap,
        )
        for number, s in enumerate(plan.stages)
        for device in [DeviceName.parse(s.device).device]
    ]
