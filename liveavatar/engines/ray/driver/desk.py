"""The worker of encoders and VAE: hired when first needed, replaced when lost, kept warm."""

from __future__ import annotations

import contextlib
import time
import weakref
from typing import Any

from ....codec import Check, Place
from ....errors import LiveAvatarError
from ....machines import DeviceName
from ..cluster import calls, service
from ..plain import Greeting, PlainModel
from .faults import Limits, WorkerError, last_words
from .hold import Hold
from .member import Member

START_SECONDS = 180.0
LOAD_SECONDS = 1800.0
WORKS = "liveavatar.engines.ray.worker.codec_worker:CodecWorker"
SUSPICIOUS_SECONDS = 2.5
"""Silence after which it is asked whether a worker's machine is still there."""
_PATIENCE = 0.5


def nothing() -> None:
    """Nobody looks up meanwhile."""


class Desk:
    """One worker of encoders and VAE.

    Args:
        limits: of patience.
        address: see `RayBackend`.

    Attributes:
        nbytes: of weights that the worker keeps.
    """

    def __init__(self, limits: Limits, address: str):
        self.limits, self.nbytes = limits, 0
        self._hold = Hold(address)
        self._opened: tuple[Any, ...] | None = None
        self._used = time.monotonic()
        self._finalizer = weakref.finalize(self, self._hold.release)

    @property
    def member(self) -> Member | None:
        """The worker, while it is there."""
        return self._hold.members[0] if self._hold.members else None

    @property
    def free_seconds(self) -> float:
        """How long nobody has asked it anything."""
        return time.monotonic() - self._used

    def open(self, model: PlainModel, place: Place, check: Check = nothing) -> None:
        """Have a worker for this model at this place.

        Raises:
            WorkerError: it does not start.
            PlanError: there is no such machine or device.
            LiveAvatarError: the model is not where the worker is.
        """
        name = DeviceName.parse(place.device)
        wanted = (model, place.device, place.dtype, place.threads, place.cap)
        if self.member is None or (self._opened is not None and self._opened[1] != place.device):
            self._hire(place, check)
        if self._opened != wanted:
            self.nbytes = 0
            self.ask(
                place,
                "open the model",
                LOAD_SECONDS,
                check,
                "open",
                model,
                name.device,
                place.dtype,
                place.threads,
                place.cap,
            )
            self._opened = wanted

    def ask(self, place: Place, doing: str, seconds: float, check: Check, name: str, *given: Any) -> Any:
        """Call the worker and wait.

        Raises:
            WorkerError: it was lost, is silent or failed.
            LiveAvatarError: the library refused in it.
            Whatever `check` raises.
        """
        errors, member = service.the_ray().exceptions, self.member
        if member is None:
            raise self._lost(place, "was given back")
        ref, since = member.ask(name, *given), time.monotonic()
        while not calls.wait([ref], _PATIENCE):
            check()
            waited = time.monotonic() - since
            if waited > SUSPICIOUS_SECONDS and not member.reachable:
                raise self._lost(place, "was lost: its machine does not answer", replaceable=False)
            if waited > seconds:
                raise self._lost(place, f"could not {doing} within {seconds:.0f} s")
        self._used = time.monotonic()
        try:
            kind, value = calls.get(ref)
        except errors.RayError as error:
            out_of_memory = isinstance(error, errors.OutOfMemoryError)
            happened = "was lost: its process ended (killed from outside, crashed, or out of host memory)"
            raise self._lost(place, happened, replaceable=not out_of_memory) from None
        if kind == "refused":
            raise LiveAvatarError(*value)
        if kind != "ok":
            nearest = f"{value[1]}{last_words(member.lines())}"
            raise WorkerError(f"{_named(place)} could not {doing}: {value[0].rstrip('.')}.", nearest)
        return value

    def tell(self, name: str, *given: Any) -> None:
        """Call the worker, if there is one, without waiting."""
        member = self.member
        if member is not None:
            with contextlib.suppress(calls.Ended):
                member.ask(name, *given)

    def bytes_by_device(self) -> dict[str, int]:
        """Bytes of weights that the worker keeps."""
        return {self._opened[1]: self.nbytes} if self._opened and self.nbytes else {}

    def release(self) -> None:
        """End the worker."""
        self._opened, self.nbytes = None, 0
        self._hold.release()

    def _hire(self, place: Place, check: Check) -> None:
        self._end()
        (machine,) = self._hold.look_up((place.device,))
        hired = self._hold.hire(machine, place.threads, WORKS)
        self._hold.members[:] = [hired]
        greeting = Greeting(*self.ask(place, "start", START_SECONDS, check, "greet"))
        if strange := greeting.strange():
            raise self._lost(place, strange, replaceable=False)
        hired.greeting = greeting
        self._hold.list([(hired, None, place.device)])

    def _end(self) -> None:
        for member in self._hold.members:
            if member is not None:
                member.kill()
        self._hold.members.clear()
        self._opened, self.nbytes = None, 0

    def _lost(self, place: Place, happened: str, replaceable: bool = True) -> WorkerError:
        lines = self.member.lines() if self.member and self.member.reachable else []
        self._end()
        nearest = f"Run it again: the worker is started anew.{last_words(lines)}"
        return WorkerError(f"{_named(place)} {happened}.", nearest, replaceable=replaceable)


def _named(place: Place) -> str:
    return f"The worker of encoders and VAE (on {place.device})"
