"""The driver's handle of a worker process: launching it, calling it, compiling on it, and the errors that name it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import compiler
from ..codec import ExecConfig
from ..device_names import DeviceName, Machine
from ..engine.compile import compiled_notice, compiling_notice, forms
from ..errors import LiveAvatarError
from ..events import Callback, notice_event
from ..planner import Plan, suggest_next
from ..utils import brief_spinning
from . import ray_compat
from .cluster import PROBE_SECONDS, is_listening, process_exists
from .registry import last_lines
from .wire import OUT_OF_MEMORY_NEAREST, Handshake, LoadSpec, ModelSpec, decode, encode

_PACK = Path(__file__).parents[2]
"""The folder that holds `liveavatar`."""
STAGE_WORKER_CLASS = "liveavatar.distributed.worker:StageWorker"
_CALLS = 16
"""Calls a worker answers side by side: one waits for events, others allow blocks or stop."""
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def _log_opener() -> Callable[[str], str]:
    """A function for `_actor_class`, made here so that Ray sends its code: a machine may not have this library."""

    def open_log(log: str) -> str:
        """Send all output into a new file, which only this user can read; its path."""
        import faulthandler
        import logging
        import os
        import sys
        import tempfile

        if not log:
            short = "/tmp" if os.name == "posix" and os.access("/tmp", os.W_OK) else None
            log = os.path.join(tempfile.mkdtemp(prefix=f"la-{os.getpid()}-", dir=short), "worker.log")  # noqa: PTH118
        new = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        file = os.open(log, new, 0o600)
        for stream in (1, 2):
            os.dup2(file, stream)
        faulthandler.enable(file)
        form = "%(asctime)s %(levelname)s %(message)s"
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=form, force=True)
        return log

    return open_log


def _actor_class() -> type:
    """The class of all workers' Ray actors, made here so that Ray sends its code and not its name."""
    open_log = _log_opener()

    class RemoteWorker:
        """The Ray actor of a worker. It raises nothing, because a driver may not know its classes."""

        def __init__(self, log: str, path: str):
            import importlib
            import logging
            import os

            os.environ.pop("RAY_AUTH_TOKEN", None)  # Ray has read it; compilers and others that start here need it not
            self._worker = None
            try:
                log = open_log(log)
                # Pickled by value, this class has no package of its own to import from relatively.
                module, _, name = path.partition(":")
                self._worker = getattr(importlib.import_module(module), name)(log)
                self._wire = importlib.import_module("liveavatar.distributed.wire")
            except ImportError as error:
                self._missing = f"the library is not there or not whole ({error})"
                logging.exception("the library is missing")
            except OSError as error:
                self._missing = f"it could not start ({error})"

        def call(self, name: str, *given: Any) -> tuple[str, Any]:
            """("ok", what the worker's method returns) or ("refused" | "failed" | "link", (what, nearest)).

            Arguments are encoded, or answers of other workers; so is what is returned.
            """
            import logging

            if self._worker is None:
                install = "Install the same version of this library, with its requirements, on that machine."
                return "refused", (self._missing, install if "library" in self._missing else "Run it again.")
            if any(isinstance(item[0], str) and item[0] != "ok" for item in given):
                return "link", ("got nothing from another stage", "")
            try:
                decoded = [self._wire.decode(item[1] if isinstance(item[0], str) else item) for item in given]
                return "ok", self._wire.encode(getattr(self._worker, name)(*decoded))
            except BaseException as error:
                logging.getLogger("liveavatar.worker").exception("%s failed", name)
                fault = self._wire.fault_from(error)
                return fault.kind, (fault.what, fault.nearest)

    return RemoteWorker


def launch_worker(ray: Any, machine: str, log: str, threads: int, alone: bool, path: str = STAGE_WORKER_CLASS) -> Any:
    """A worker process, as the handle of its Ray actor.

    Args:
        machine: id of the one where it works.
        log: the file that its output goes to; "" for one in a folder of its own, on another machine.
        threads: CPU threads, before a load spec sets its own.
        alone: whether it meets workers of this machine only.
        path: "module:class" of what it does.
    """

    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": _CALLS, "max_restarts": 0, "max_task_retries": 0}
    options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(machine, soft=False)
    own = _runtime_env(threads, alone, here=bool(log))
    return ray.remote(_actor_class()).options(runtime_env=own, **options).remote(log, path)


def _runtime_env(threads: int, alone: bool, here: bool) -> dict[str, Any]:
    """Ray's runtime environment of a worker; `here`: whether it works on this machine."""
    own: dict[str, Any] = {"env_vars": worker_environment(dict(os.environ), threads, alone)}
    if here and os.name == "posix" and shlex.quote(sys.executable) != sys.executable:
        own["py_executable"] = shlex.quote(sys.executable)  # Ray writes the path into a shell's command line as it is
    return own


def worker_environment(own: dict[str, str], threads: int, alone: bool = True) -> dict[str, str]:
    """What a worker's environment has that differs from this process's, or from that of its machine.

    This library comes before all else on the path; where its folder does not exist, on another machine, the library
    that is installed there is found. Workers that are alone on one machine meet on loopback, also for NCCL. An
    allocator that the host chose for itself is not passed on, because it must be known before CUDA starts and is not
    for workers to share; all devices stay visible. A run brings threads of its own, and an arena for each would keep
    what they freed: 40 to 50 MB of a worker, for nothing. Its threads spin briefly: see `brief_spinning`.
    """
    path = os.pathsep.join([str(_PACK), *filter(None, [own.get("PYTHONPATH", "")])])
    changed = {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": str(threads),
        "MALLOC_ARENA_MAX": own.get("MALLOC_ARENA_MAX", "1"),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
        **brief_spinning(own),
    }
    if alone:
        changed["NCCL_SOCKET_IFNAME"] = "lo"
    for name in _ALLOCATOR:
        if name in own:
            kept = [part for part in own[name].split(",") if "cudamallocasync" not in part.lower()]
            changed[name] = ",".join(kept)
    return changed


_DEVICE_FULL = "OutOfMemoryError"
"""What PyTorch calls it, as `wire.fault_from` reports it; a full host has other names."""


class WorkerError(LiveAvatarError):
    """A worker was lost, fell silent or failed; the next run starts it anew.

    Attributes:
        stage: which, from 0; -1 where no single one is to blame.
        replaceable: whether another worker in its place may well do better: it was lost, hung or out of reach, and
            neither its computation nor its memory was the cause.
    """

    def __init__(self, what: str, nearest: str = "", stage: int = -1, replaceable: bool = False):
        super().__init__(what, nearest)
        self.stage, self.replaceable = stage, replaceable


@dataclasses.dataclass
class FaultLimits:
    """Limits of waiting and replacing; may be changed at any time.

    Attributes:
        deadline: seconds after which a task that does not end, or a worker that does not answer, counts as hung.
        restarts: how many workers may be replaced while a video is made.
    """

    deadline: float
    restarts: int


class Restarts:
    """The count of workers that may still be replaced in a video.

    Args:
        most: times at all. The same stage is not replaced again before another block was delivered, because what
            happened to it twice in a row happens a third time.
    """

    def __init__(self, most: int):
        self._left = most
        self._latest: dict[int, int] = {}
        """By stage: how many blocks had been delivered when it was replaced."""

    def allow(self, error: WorkerError, delivered: int) -> bool:
        """Whether the worker may be replaced; if so, it counts as done.

        Args:
            error: what happened to it.
            delivered: blocks that the caller has by now.
        """
        again = self._latest.get(error.stage) == delivered
        if not error.replaceable or again or not self._left:
            return False
        self._left -= 1
        self._latest[error.stage] = delivered
        return True


def stage_name(plan: Plan, stage: int) -> str:
    """A stage in words: "Stage 2 of 3 (steps 0-3, layers 4-7, on cuda:1)"."""
    s = plan.stages[stage]
    return (
        f"Stage {stage + 1} of {len(plan.stages)} ({_span('step', s.steps)}, {_span('layer', s.layers)}, on {s.device})"
    )


def worker_error(
    plan: Plan, stage: int, happened: str, nearest: str, lines: list[str], replaceable: bool
) -> WorkerError:
    """One error that names the stage, what happened and its last log lines.

    Args:
        happened: a sentence's end, after the name of the stage.
        nearest: what to do.
        lines: the last of its log.
        replaceable: see `WorkerError`.
    """
    if _DEVICE_FULL in happened:
        nearest = f"{suggest_next(plan)} {nearest}"
    return WorkerError(f"{stage_name(plan, stage)} {happened}.", f"{nearest}{log_tail_text(lines)}", stage, replaceable)


MACHINE_LOST = "was lost: its machine does not answer"
START_ANEW = "Run it again: the worker is started anew."


@dataclasses.dataclass(frozen=True)
class WorkerLoss:
    """Why a worker gives no answer.

    Attributes:
        happened: a sentence's end, after the name of the worker.
        nearest: what to do.
        replaceable: see `WorkerError`.
    """

    happened: str
    nearest: str
    replaceable: bool


def loss_from(error: Exception) -> WorkerLoss:
    """The loss that a `RayError` means."""
    errors = ray_compat.import_ray().exceptions
    replaceable = not isinstance(error, errors.OutOfMemoryError)
    if isinstance(error, errors.RayActorError):
        happened = "was lost: its process ended (killed from outside, crashed, or out of host memory)"
        return WorkerLoss(happened, START_ANEW, replaceable)
    if "MemoryError" in str(error):
        happened = "failed: out of memory (MemoryError while it took in a message)"
        return WorkerLoss(happened, OUT_OF_MEMORY_NEAREST, False)
    return WorkerLoss(f"could not be reached ({type(error).__name__})", START_ANEW, replaceable)


def log_tail_text(lines: list[str]) -> str:
    """The end of a log as the end of an error's text."""
    return "\nIts last log lines:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""


def _span(name: str, numbers: range) -> str:
    return f"{name} {numbers[0]}" if len(numbers) == 1 else f"{name}s {numbers[0]}-{numbers[-1]}"


_LINES_SECONDS = 1.0
_END_SECONDS = 0.5
"""How long Ray is given to end a process."""


@dataclasses.dataclass
class WorkerHandle:
    """One worker process.

    Attributes:
        actor: its Ray handle.
        machine: where it is.
        log: its file; None on another machine.
        number: of all that were started.
        handshake: its first answer; None until it has started.
        device: where it computes; "MACHINE/DEVICE" on another machine.
        opened: of encoders and VAE: the model and where its parts run.
        load_spec: of a stage: the weights it holds.
        loaded_bytes: bytes of weights by device.
        shared_bytes: bytes among them in host memory that other workers of its machine can share, by the memory's name.
        compiled: for which width and height, by which compiler, for how many blocks of a clip, with which
            attention, for how many speakers.
        pending_stop: reference of the answer to `stop`, while it is pending.
    """

    actor: Any
    machine: Machine
    log: Path | None
    number: int
    handshake: Handshake | None = None
    device: str = ""
    opened: tuple[ModelSpec, ExecConfig] | None = None
    load_spec: LoadSpec | None = None
    loaded_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    shared_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    compiled: set[tuple[tuple[int, int], str, int, str, int]] = dataclasses.field(default_factory=set)
    pending_stop: Any = None

    @classmethod
    def start(
        cls, number: int, machine: Machine, folder: Path | None, threads: int, alone: bool, worker_class: str
    ) -> WorkerHandle:
        """Start one.

        Args:
            number: of all that were started.
            machine: where.
            folder: for its log; None on another machine.
            threads, alone, worker_class: see `launch_worker`.
        """
        log = folder / f"worker-{number}.log" if folder else None
        with ray_compat.ray_gate.entered() as ray:
            actor = launch_worker(ray, machine.id, str(log or ""), threads, alone, worker_class)
        return cls(actor, machine, log, number)

    @property
    def pid(self) -> int:
        """Of the process, on its machine; 0 until it has started."""
        return self.handshake.pid if self.handshake else 0

    def call(self, name: str, *given: Any) -> Any:
        """Call a method of the worker without waiting; the reference of its answer, see `answer`.

        Args:
            name: of the method.
            given: its arguments: what `encode` takes, or references of other workers' answers.
        """
        return ray_compat.call(self.actor, name, *(g if ray_compat.is_ref(g) else encode(g) for g in given))

    @property
    def is_reachable(self) -> bool:
        """Whether its machine is still there; asked of another machine only, within seconds."""
        return self.log is not None or is_listening(self.machine.address, self.machine.port, PROBE_SECONDS)

    def log_lines(self) -> list[str]:
        """Its last log lines; from another machine only while it lives."""
        if self.log is not None:
            return last_lines(self.log)
        with contextlib.suppress(Exception):
            kind, lines = answer(self.call("last_lines"), _LINES_SECONDS)
            return list(lines) if kind == "ok" else []
        return []

    def kill(self) -> None:
        """End the process, even one that does not answer."""
        with contextlib.suppress(Exception):
            ray_compat.kill(self.actor)
        if not (self.pid and self.log):  # a process of another machine, or none yet
            return
        until = time.monotonic() + _END_SECONDS
        while process_exists(self.pid):
            if time.monotonic() > until:
                with contextlib.suppress(OSError):
                    os.kill(self.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
                return
            time.sleep(0.01)  # Ray reports on the caller's terminal what it did not end itself


def answer(ref: Any, seconds: float | None = None) -> tuple[str, Any]:
    """A worker's answer, decoded: ("ok", result) or (kind of fault, (what, nearest)).

    Args:
        ref: of the answer.
        seconds: to wait for it; None where it is there.

    Raises:
        GetTimeoutError (of Ray): it does not.
        RayError (of Ray): the worker is gone.
        WireError: the answer is damaged.
    """
    kind, value = ray_compat.get(ref, seconds)
    return kind, decode(value) if kind == "ok" else value


def remove_logs(workers: list[WorkerHandle]) -> None:
    """Have workers of other machines remove their logs, before they are ended."""
    with contextlib.suppress(Exception):
        asked = [worker.call("remove_log") for worker in workers if worker.log is None]
        if asked:
            ray_compat.wait(asked, _LINES_SECONDS, len(asked))


COMPILE_TIMEOUT_SECONDS = 1800.0
"""How long one form may take."""
Gather = Callable[[Plan, dict[int, Any], float, str], dict[int, Any]]
"""See `WorkerPool.gather`."""


def compile_problem(plan: Plan, workers: list[WorkerHandle]) -> WorkerError | None:
    """What to say where a worker's machine lacks what compiling takes; known before it loads anything."""
    for number, (stage, worker) in enumerate(zip(plan.stages, workers, strict=True)):
        kind = DeviceName.parse(stage.device).device.partition(":")[0]
        lacks = worker.handshake.lacks.get(kind, "") if worker.handshake else ""
        if plan.compiled and lacks and compiler.COMPILER == "inductor":
            what = f"Stage {number + 1} of {len(workers)} ({stage.device}) cannot compile its layers: {lacks} missing."
            return WorkerError(what, compiler.WITHOUT_COMPILE, number)
    return None


def compile_layers(plan: Plan, workers: list[WorkerHandle], gather: Gather, callback: Callback) -> WorkerError | None:
    """Have all workers compile that have not yet, each form on all of them at once; what to say where one cannot.

    Args:
        callback: called with notices between the forms, and with what it took; what it raises ends it, and the next
            time goes on there.

    Raises:
        WorkerError: one was lost meanwhile.
    """
    if all_compiled(plan, workers):
        return None
    wanted = _wanted(plan)
    begun = time.monotonic()
    for form in range(forms(plan.clip_blocks)):
        callback(notice_event(compiling_notice()))
        asked = {number: worker.call("compile", *wanted, form) for number, worker in enumerate(workers)}
        for number, why in gather(plan, asked, COMPILE_TIMEOUT_SECONDS, "compile its layers").items():
            if why:
                return WorkerError(f"{stage_name(plan, number)}: {why}", compiler.WITHOUT_COMPILE, number)
    for worker in workers:
        worker.compiled.add(wanted)
    callback(notice_event(compiled_notice(time.monotonic() - begun)))
    return None


def all_compiled(plan: Plan, workers: list[WorkerHandle]) -> bool:
    """Whether nothing has to be compiled before a run, as far as is known."""
    return not plan.compiled or all(_wanted(plan) in worker.compiled for worker in workers)


def _wanted(plan: Plan) -> tuple[tuple[int, int], str, int, str, int]:
    """What layers are compiled for: the size of the image, the compiler, the blocks of a clip, the attention, and how
    many speak."""
    return plan.size, compiler.COMPILER, plan.clip_blocks, plan.attention, plan.speaker_count
