"""The worker processes of one backend: hired, loaded and wired for a plan, kept warm, replaced when lost."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import signal
import socket
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from ...planner import Plan
from . import cluster
from .boot import start_worker
from .faults import WorkerError, worker_error
from .plain import Duty, PlainModel, plain
from .register import Page
from .routes import links
from .snapshots import remove

START_SECONDS = 180.0
LOAD_SECONDS = 1800.0
WIRE_SECONDS = 40.0
SETTLE_SECONDS = 1.5
"""How long a broken-off run is waited for; what is in the middle of a task then is waited for by the next run."""
_LOOPBACK = "127.0.0.1"
_AGAIN = "Run it again: the worker is started anew."
_logs = itertools.count(1)
"""Numbers of log files: all crews of a process write into one folder."""


@dataclasses.dataclass
class Member:
    """One worker process.

    Attributes:
        actor: its Ray handle.
        log: its file.
        pid: of the process, once it has started.
        duty, loaded: the weights it holds, and their bytes by device.
        stopping: the answer that it is still owing.
    """

    actor: Any
    log: Path
    pid: int = 0
    duty: Duty | None = None
    loaded: dict[str, int] = dataclasses.field(default_factory=dict)
    stopping: Any = None

    def ask(self, name: str, *given: Any) -> Any:
        """Call the worker; a reference to ("ok", result) or to (kind of fault, words)."""
        return self.actor.call.remote(name, *given)

    def kill(self) -> None:
        """End the process, even one that hears nothing."""
        with contextlib.suppress(Exception):
            cluster.the_ray().kill(self.actor, no_restart=True)
        if self.pid:
            with contextlib.suppress(OSError):
                os.kill(self.pid, getattr(signal, "SIGKILL", signal.SIGTERM))


class Crew:
    """The workers, by the number of their stage.

    Args:
        deadline: seconds after which a task that does not end, or a worker that does not answer, counts as hung.
        restarts: how many workers may be replaced while a video is made.

    Attributes:
        plan: the latest one that the workers were made ready for.
    """

    def __init__(self, deadline: float, restarts: int):
        self.deadline, self.restarts = deadline, restarts
        self.plan: Plan | None = None
        self._hold = Hold()
        self._wired: tuple[Any, ...] | None = None
        self._epoch = 0
        self._store: Any = None
        self._finalizer = weakref.finalize(self, self._hold.release)

    @property
    def members(self) -> list[Member]:
        """Those that are there, in the order of the stages."""
        return [m for m in self._hold.members if m is not None]

    @property
    def places(self) -> list[tuple[int, Member]]:
        """The same with the numbers of their stages."""
        return [(number, m) for number, m in enumerate(list(self._hold.members)) if m is not None]

    def holds(self, plan: Plan, model: PlainModel) -> bool:
        """Whether all workers of a plan are there with its weights, as far as is known."""
        return [m.duty for m in self.members] == _duties(plan, model)

    def ready(self, plan: Plan, model: PlainModel) -> list[Member]:
        """One loaded worker per stage of a plan, all wired.

        Raises:
            WorkerError: one did not start, load or meet its neighbours.
            PlanError: Ray is missing.
        """
        self._hold.enter()
        self.settle(self.deadline, give_up=True)
        self.plan = plan
        self._hire(plan)
        self._hold.page.write((m.pid, s.device, m.log) for m, s in zip(self.members, plan.stages, strict=True))
        self._load(plan, model)
        self._wire(plan)
        return self.members

    def settle(self, seconds: float, give_up: bool = False) -> None:
        """End what still runs. Workers that need longer are asked again later, or replaced."""
        ray = cluster.the_ray()
        if not ray.is_initialized():  # the process is ending
            return
        for member in self.members:
            member.stopping = member.stopping or member.ask("stop")
        until = time.monotonic() + seconds
        for number in range(len(self._hold.members)):
            asked = self._member(number)
            if asked is None or asked.stopping is None:
                continue
            try:
                ray.get(asked.stopping, timeout=max(0.0, until - time.monotonic()))
                asked.stopping = None
            except ray.exceptions.GetTimeoutError:
                if give_up:
                    self.retire(number)
            except ray.exceptions.RayError:
                self.retire(number)

    def retire(self, number: int) -> None:
        """End one worker; the next plan hires another."""
        member = self._member(number)
        if member is not None:
            member.kill()
            self._hold.members[number] = None
        self._wired = None

    def _member(self, number: int) -> Member | None:
        """A worker; None for one that was lost or given back."""
        members = self._hold.members
        return members[number] if number < len(members) else None

    def give_back(self) -> None:
        """End all workers, and Ray with the last crew."""
        self._wired = self._store = None
        self._hold.release()

    def open_folder(self, number: int) -> str:
        """Where the snapshots of video number `number` go. One video is made at a time: those of others are removed."""
        self.forget()
        self._hold.snapshots = str(self._hold.folder / f"video-{number}")
        return self._hold.snapshots

    def forget(self) -> None:
        """Remove the snapshots of the latest video, on all machines."""
        ray, folder = cluster.the_ray(), self._hold.snapshots
        if folder and self.members and ray.is_initialized():
            asked = [member.ask("forget", folder) for member in self.members]
            ray.wait(asked, num_returns=len(asked), timeout=SETTLE_SECONDS)  # who needs longer does it later
        self._hold.forget()

    def lost(
        self, plan: Plan, number: int, happened: str, nearest: str = _AGAIN, replaceable: bool = False
    ) -> WorkerError:
        """The error for a worker that is of no use any more; it is ended, the others stop and stay warm."""
        member = self._member(number)
        error = worker_error(plan, number, happened, nearest, member.log if member else None, replaceable)
        self.retire(number)
        self.settle(SETTLE_SECONDS)
        return error

    def gather(self, plan: Plan, refs: dict[int, Any], seconds: float, doing: str) -> dict[int, Any]:
        """What workers answered, by stage.

        Raises:
            WorkerError: one failed, was lost, or needed longer than `seconds`.
        """
        ray = cluster.the_ray()
        owing, answers, until = {ref: number for number, ref in refs.items()}, {}, time.monotonic() + seconds
        second_hand: int | None = None
        while owing:
            done, _ = ray.wait(list(owing), timeout=0.5)
            for ref in done:
                number = owing.pop(ref)
                kind, value = self.answer(plan, number, ref)
                if kind == "link":
                    second_hand = number
                elif kind != "ok":
                    raise self.lost(plan, number, f"could not {doing}: {value[0].rstrip('.')}", value[1] or _AGAIN)
                answers[number] = value
            if owing and time.monotonic() > until:
                raise self.lost(
                    plan, min(owing.values()), f"could not {doing} within {seconds:.0f} s", replaceable=True
                )
        if second_hand is not None:
            raise self.lost(plan, second_hand, f"could not {doing}: {answers[second_hand][0]}")
        return answers

    def answer(self, plan: Plan, number: int, ref: Any) -> Any:
        """What a finished call gave.

        Raises:
            WorkerError: the worker's process is gone.
        """
        ray = cluster.the_ray()
        try:
            return ray.get(ref)
        except ray.exceptions.RayError as error:
            happened = "was lost: its process ended (killed from outside, crashed, or out of host memory)"
            if not isinstance(error, ray.exceptions.RayActorError):
                happened = f"could not be reached ({type(error).__name__})"
            out_of_memory = isinstance(error, ray.exceptions.OutOfMemoryError)
            raise self.lost(plan, number, happened, replaceable=not out_of_memory) from None

    def _hire(self, plan: Plan) -> None:
        count, members = len(plan.stages), self._hold.members
        for surplus in range(count, len(members)):
            self.retire(surplus)
        del members[count:]
        members += [None] * (count - len(members))
        for number in range(count):
            if members[number] is None:
                log = self._hold.folder / f"worker-{next(_logs)}.log"
                members[number] = Member(start_worker(cluster.the_ray(), str(log), plan.threads), log)
        fresh = {number: m.ask("pid") for number, m in enumerate(self.members) if not m.pid}
        for number, pid in self.gather(plan, fresh, START_SECONDS, "start").items():
            self.members[number].pid = pid

    def _load(self, plan: Plan, model: PlainModel) -> None:
        refs, duties = {}, _duties(plan, model)
        for number, (member, duty) in enumerate(zip(self.members, duties, strict=True)):
            if member.duty != duty:
                member.duty, member.loaded = None, {}
                refs[number] = member.ask("load", *plain(duty))
        for number, loaded in self.gather(plan, refs, LOAD_SECONDS, "load its weights").items():
            self.members[number].duty, self.members[number].loaded = duties[number], loaded

    def _wire(self, plan: Plan) -> None:
        pairs, wiring = links(plan.cut), (plan.cut, tuple(m.pid for m in self.members))
        if self._wired == wiring:
            return
        self._epoch += 1
        port = self._meeting_point()
        given = (_LOOPBACK, port, self._epoch)
        refs = {number: m.ask("wire", *given, number, pairs, _LOOPBACK) for number, m in enumerate(self.members)}
        self.gather(plan, refs, WIRE_SECONDS, "meet its neighbours")
        self._wired = wiring

    def _meeting_point(self) -> int:
        """The port of the store where links meet: a free one, on loopback only."""
        import torch.distributed as dist

        if self._store is None:
            listening = socket.socket()
            listening.bind((_LOOPBACK, 0))
            listening.listen(64)
            port = listening.getsockname()[1]
            self._store = dist.TCPStore(
                _LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
            )
        return int(self._store.port)


def _duties(plan: Plan, model: PlainModel) -> list[Duty]:
    """What each stage's worker holds; the first one embeds text, time and sound for all."""
    return [
        Duty(model, (s.layers.start, s.layers.stop), s.device, plan.dtype, plan.threads, conditions=number == 0)
        for number, s in enumerate(plan.stages)
    ]


class Hold:
    """What must be given back even when the crew is only forgotten."""

    def __init__(self) -> None:
        self.members: list[Member | None] = []
        self.folder = Path()
        self.snapshots = ""
        """Folder of the latest video's; empty where there are none."""
        self.page = Page(self.folder)
        self._inside = False
        self._lock = threading.RLock()  # who is idle too long is released by another thread

    def enter(self) -> None:
        """Have Ray."""
        if not self._inside:
            self.folder = cluster.enter()
            self.page = Page(self.folder)
            self._inside = True

    def forget(self) -> None:
        """Remove the snapshots that are here."""
        if self.snapshots:
            remove(self.snapshots)
            self.snapshots = ""

    def release(self) -> None:
        """Let all of it go."""
        with self._lock:
            for member in self.members:
                if member is not None:
                    member.kill()
            self.members.clear()
            self.forget()
            if self._inside:
                self._inside = False
                self.page.remove()
                cluster.leave()
