"""The worker processes of one backend: hired, loaded and wired for a plan, kept warm, replaced when lost."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Iterable
from typing import Any

from ....machines import DeviceName, Machine
from ....planner import Plan
from ....session import OnNotice, unnoticed
from ..cluster import calls, service
from ..cluster.joining import LOCAL
from ..plain import OUT_OF_MEMORY_NEAREST, Duty, Greeting, PlainModel, plain
from ..routes import Seat, routes
from .compiling import all_compiled, compile_layers, unable
from .desk import LOAD_SECONDS, START_SECONDS, SUSPICIOUS_SECONDS, Desk
from .faults import Limits, WorkerError, worker_error
from .hold import Hold
from .member import Member

WIRE_SECONDS = 40.0
SETTLE_SECONDS = 1.5
"""How long a broken-off run is waited for; what is in the middle of a task then is waited for by the next run."""
_LOOPBACK = "127.0.0.1"
_AGAIN = "Run it again: the worker is started anew."
_ELSEWHERE = "Bring the machine back, or plan without it."


class Crew:
    """The workers of stages, by their number, and the one of encoders and VAE.

    Args:
        limits: of patience.
        address: see `RayBackend`.

    Attributes:
        desk: encoders and VAE.
        plan: the latest one that the workers were made ready for.
    """

    def __init__(self, limits: Limits, address: str = LOCAL):
        self.limits, self._address = limits, address
        self.desk = Desk(limits, address)
        self.plan: Plan | None = None
        self._hold = Hold(address)
        self._wired: tuple[Any, ...] | None = None
        self._epoch = 0
        self._finalizer = weakref.finalize(self, self._hold.release)

    @property
    def members(self) -> list[Member]:
        """Those that are there, in the order of the stages."""
        return [m for m in self._hold.members if m is not None]

    @property
    def places(self) -> list[tuple[int, Member]]:
        """The same with the numbers of their stages."""
        return [(number, m) for number, m in enumerate(list(self._hold.members)) if m is not None]

    @property
    def is_there(self) -> bool:
        """Whether there is any worker at all."""
        return bool(self.members) or self.desk.member is not None

    def holds(self, plan: Plan, model: PlainModel) -> bool:
        """Whether all workers of a plan are there with its weights and what was compiled, as far as is known."""
        return [m.duty for m in self.members] == _duties(plan, model) and all_compiled(plan, self.members)

    def look_up(self, devices: tuple[str, ...]) -> list[Machine]:
        """See `Hold.look_up`."""
        return self._hold.look_up(devices)

    def ready(self, plan: Plan, model: PlainModel, on_notice: OnNotice = unnoticed) -> list[Member]:
        """One loaded worker per stage of a plan, all wired; `on_notice` hears of what they compile.

        Raises:
            WorkerError: one did not start, load, meet its neighbours or compile.
            PlanError: Ray is missing, or a machine.
        """
        machines = self.look_up(tuple(s.device for s in plan.stages))
        self.settle(self.limits.deadline, give_up=True)
        self.plan = plan
        self._hire(plan, machines)
        self._hold.list((m, n, s.device) for n, (m, s) in enumerate(zip(self.members, plan.stages, strict=True)))
        if error := unable(plan, self.members):
            raise error
        self._load(plan, model)
        self._wire(plan)
        compile_layers(plan, self.members, self.gather, on_notice)
        return self.members

    def settle(self, seconds: float, give_up: bool = False) -> None:
        """End what still runs. Workers that need longer are asked again later, or replaced."""
        with contextlib.suppress(calls.Ended):
            self._settle(seconds, give_up)

    def _settle(self, seconds: float, give_up: bool) -> None:
        errors = service.the_ray().exceptions
        for member in self.members:
            member.stopping = member.stopping or member.ask("stop")
        until = time.monotonic() + seconds
        for number in range(len(self._hold.members)):
            asked = self._member(number)
            if asked is None or asked.stopping is None:
                continue
            try:
                calls.get(asked.stopping, max(0.0, until - time.monotonic()))
                asked.stopping = None
            except errors.GetTimeoutError:
                if give_up:
                    self.retire(number)
            except errors.RayError:
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
        """End all workers, and Ray with the last crew; a cluster that is not ours is left."""
        self._wired = None
        self._hold.release()
        self.desk.release()

    def open_folder(self, number: int) -> str:
        """Where the snapshots of video number `number` go. One video is made at a time: those of others are removed."""
        self.forget()
        self._hold.snapshots = str(self._hold.folder / f"video-{number}")
        return self._hold.snapshots

    def forget(self) -> None:
        """Remove the snapshots of the latest video, on all machines."""
        folder = self._hold.snapshots
        if folder and self.members:
            with contextlib.suppress(calls.Ended):
                asked = [member.ask("forget", folder) for member in self.members]
                calls.wait(asked, SETTLE_SECONDS, len(asked))  # who needs longer does it later
        self._hold.forget()

    def lost(
        self, plan: Plan, number: int, happened: str, nearest: str = _AGAIN, replaceable: bool = False
    ) -> WorkerError:
        """The error for a worker that is of no use any more; it is ended, the others stop and stay warm."""
        member = self._member(number)
        lines = member.lines() if member and nearest != _ELSEWHERE else []
        error = worker_error(plan, number, happened, nearest, lines, replaceable)
        self.retire(number)
        self.settle(SETTLE_SECONDS)
        return error

    def look_for_machines(self, plan: Plan, numbers: Iterable[int]) -> None:
        """Find out about machines that fell silent, before Ray does.

        Raises:
            WorkerError: one does not answer.
        """
        for number in numbers:
            member = self._member(number)
            if member is not None and not member.reachable:
                raise self.lost(plan, number, "was lost: its machine does not answer", _ELSEWHERE)

    def gather(self, plan: Plan, refs: dict[int, Any], seconds: float, doing: str) -> dict[int, Any]:
        """What workers answered, by stage.

        Raises:
            WorkerError: one failed, was lost, or needed longer than `seconds`.
        """
        owing, given, begun = {ref: number for number, ref in refs.items()}, {}, time.monotonic()
        second_hand: int | None = None
        while owing:
            for ref in calls.wait(owing, 0.5):
                number = owing.pop(ref)
                kind, value = self.answer(plan, number, ref)
                if kind == "link":
                    second_hand = number
                elif kind != "ok":
                    raise self.lost(plan, number, f"could not {doing}: {value[0].rstrip('.')}", value[1] or _AGAIN)
                given[number] = value
            if owing and time.monotonic() - begun > SUSPICIOUS_SECONDS:
                self.look_for_machines(plan, sorted(owing.values()))
            if owing and time.monotonic() - begun > seconds:
                happened = f"could not {doing} within {seconds:.0f} s"
                raise self.lost(plan, min(owing.values()), happened, replaceable=True)
        if second_hand is not None:
            raise self.lost(plan, second_hand, f"could not {doing}: {given[second_hand][0]}")
        return given

    def answer(self, plan: Plan, number: int, ref: Any) -> Any:
        """What a finished call gave.

        Raises:
            WorkerError: the worker's process is gone.
        """
        errors = service.the_ray().exceptions
        try:
            return calls.get(ref)
        except errors.RayError as error:
            self.look_for_machines(plan, [number])
            happened = "was lost: its process ended (killed from outside, crashed, or out of host memory)"
            if not isinstance(error, errors.RayActorError) and "MemoryError" in str(error):
                happened = "failed: out of memory (MemoryError while it took in a message)"
                raise self.lost(plan, number, happened, OUT_OF_MEMORY_NEAREST) from None
            if not isinstance(error, errors.RayActorError):
                happened = f"could not be reached ({type(error).__name__})"
            out_of_memory = isinstance(error, errors.OutOfMemoryError)
            raise self.lost(plan, number, happened, replaceable=not out_of_memory) from None

    def _hire(self, plan: Plan, machines: list[Machine]) -> None:
        count, members = len(plan.stages), self._hold.members
        for number, member in enumerate(members):
            if number >= count or (member and member.machine.id != machines[number].id):
                self.retire(number)
        del members[count:]
        members += [None] * (count - len(members))
        for number, machine in enumerate(machines):
            if members[number] is None:
                members[number] = self._hold.hire(machine, plan.threads)
        fresh = {number: m.ask("greet") for number, m in enumerate(self.members) if not m.greeting}
        for number, said in self.gather(plan, fresh, START_SECONDS, "start").items():
            self._welcome(plan, number, Greeting(*said))

    def _welcome(self, plan: Plan, number: int, greeting: Greeting) -> None:
        strange = greeting.strange()
        if strange:
            raise self.lost(plan, number, strange, "Install the same version on all machines.")
        self.members[number].greeting = greeting

    def _load(self, plan: Plan, model: PlainModel) -> None:
        refs, duties = {}, _duties(plan, model)
        for number, (member, duty) in enumerate(zip(self.members, duties, strict=True)):
            if member.duty != duty:
                member.duty, member.loaded, member.shared, member.compiled = None, {}, {}, set()
                refs[number] = member.ask("load", *plain(duty))
        for number, (loaded, shared) in self.gather(plan, refs, LOAD_SECONDS, "load its weights").items():
            named, member = DeviceName.parse(plan.stages[number].device).machine, self.members[number]
            member.duty, member.shared = duties[number], shared
            member.loaded = {str(DeviceName(device, named)): n for device, n in loaded.items()}

    def _wire(self, plan: Plan) -> None:
        seats = [Seat(m.machine, m.duty.device, m.greeting.nccl) for m in self.members if m.duty and m.greeting]
        ways = routes(plan.cut, seats)
        wiring = (ways, tuple((m.number, m.duty) for m in self.members))
        if self._wired == wiring:
            return
        self._epoch += 1
        # Without a cluster, everything listens on loopback only, whatever Ray calls this machine.
        here = [_LOOPBACK if self._address == LOCAL else m.machine.address for m in self.members]
        port = self.gather(plan, {0: self.members[0].ask("host", here[0])}, WIRE_SECONDS, "host the meeting")[0]
        given, plain_ways = (here[0], port, self._epoch), tuple(map(plain, ways))
        refs = {
            number: m.ask("wire", *given, number, plain_ways, here[number]) for number, m in enumerate(self.members)
        }
        self.gather(plan, refs, WIRE_SECONDS, "meet its neighbours")
        self._wired = wiring


def _duties(plan: Plan, model: PlainModel) -> list[Duty]:
    """What each stage's worker holds; the first one embeds text, time and sound for all."""
    return [
        Duty(
            model,
            (s.layers.start, s.layers.stop),
            device,
            plan.dtype,
            plan.threads,
            conditions=number == 0,
            storage=plain(s.storage),
            cap=plan.cap,
        )
        for number, s in enumerate(plan.stages)
        for device in [DeviceName.parse(s.device).device]
    ]
