"""The backend whose engines work in other processes."""

from __future__ import annotations

import dataclasses

from ...codec import Place
from ...components import Components
from ...errors import PlanError
from ...machines import DeviceName
from ...placement import Placement
from ...planner import Plan
from .cluster.joining import LOCAL, check_address, keep_token
from .cluster.service import the_ray
from .driver.codec import RayCodec
from .driver.crew import Crew
from .driver.faults import Limits
from .driver.idle import Idle
from .driver.pause import Pause
from .driver.status import BackendStatus, Observer
from .driver.turns import Turns
from .engine import RayEngine

HUNG_SECONDS = 120.0
RESTARTS = 2
IDLE_SECONDS = 900.0


class RayBackend:
    """Worker processes on this machine or several (see `liveavatar.engines.backend.Backend`).

    They are started by the first run, stay warm with their weights, and are ended by `release`, when no run has used
    them for long, with the backend itself, or with this process, however it ends.

    Args:
        placement: which devices, and how work is cut over them; one worker per stage. "MACHINE/DEVICE" is a device of
            another machine: its address, host name, node name, or the beginning of its node's id.
        address: "local", this machine alone; or a Ray cluster that this machine has joined: "auto", or "host:port" of
            its head. It is left at the end, not stopped.
        deadline: seconds after which a task that does not end, or a worker that does not answer, counts as hung.
        restarts: how many workers that were lost or hung may be replaced while a video is made; it goes on from the
            latest snapshot that all stages have (see `Plan.snapshot_blocks`), or from its beginning. 0: the loss of
            one ends the video.
        idle_seconds: seconds without a run after which the workers are ended, until the next one; None is never. A
            video that was begun counts as a run until it is whole, closed, or has lost its turn.
        token: of the cluster, where it wants one; None: what Ray finds by itself.

    Raises:
        PlanError: Ray is not installed; a machine or device is not there; the cluster cannot be joined; less than no
            restarts.
    """

    def __init__(
        self,
        placement: Placement | None = None,
        address: str = LOCAL,
        deadline: float = HUNG_SECONDS,
        restarts: int = RESTARTS,
        idle_seconds: float | None = IDLE_SECONDS,
        token: str | None = None,
    ):
        if restarts < 0:
            raise PlanError(f"Workers cannot be replaced {restarts} times.", "Use 0 for never, or more.")
        check_address(address)
        self.placement = dataclasses.replace(placement or Placement(), processes=True)
        self.placement.check_devices(elsewhere=address != LOCAL)
        keep_token(token)
        the_ray(address)
        self._crew, self._turns, self._pause = Crew(Limits(deadline, restarts), address), Turns(), Pause()
        self._idle = Idle(self._crew, self._turns, idle_seconds)
        self._observer = Observer(self._crew, self._turns, self._pause)
        if address != LOCAL:
            self._look_around()

    def _look_around(self) -> None:
        """Refuse what the cluster does not have, before anything is loaded."""
        try:
            self._crew.look_up(self.placement.devices)
        except BaseException:
            self._crew.give_back()
            raise

    def engine(self, components: Components, plan: Plan) -> RayEngine:
        """An engine for one plan; workers that hold its weights already are used again."""
        return RayEngine(components, plan, self._crew, self._turns, self._pause)

    def codec(self, components: Components, place: Place) -> RayCodec:
        """Encoders and VAE, in a worker of their own."""
        return RayCodec(components, place, self._crew.desk)

    @property
    def deadline(self) -> float:
        """Seconds of silence after which something counts as hung; may be changed at any time."""
        return self._crew.limits.deadline

    @deadline.setter
    def deadline(self, seconds: float) -> None:
        self._crew.limits.deadline = seconds

    @property
    def restarts(self) -> int:
        """How many workers may be replaced while a video is made; may be changed between videos."""
        return self._crew.limits.restarts

    @restarts.setter
    def restarts(self, count: int) -> None:
        self._crew.limits.restarts = count

    @property
    def idle_seconds(self) -> float | None:
        """Seconds without a run after which the workers are ended; may be changed at any time."""
        return self._idle.seconds

    @idle_seconds.setter
    def idle_seconds(self, seconds: float | None) -> None:
        self._idle.seconds = seconds

    def pause(self) -> None:
        """Let no further block begin, in this video and the next ones, until `resume`.

        Blocks that were allowed to begin go on as far as they can without later ones (at most as many blocks as there
        are stages, and two, are under way). Whoever waits for more is told "Paused." about every second, and can be
        cancelled then. Workers, weights, keys and values stay where they are.
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
        return self._observer.look()

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The processes of stages that are there now, in their order."""
        return tuple(member.pid for member in self._crew.members)

    @property
    def codec_pid(self) -> int | None:
        """The process of encoders and VAE, while there is one."""
        return self._crew.desk.member.pid if self._crew.desk.member else None

    def bytes_by_device(self) -> dict[str, int]:
        """Bytes of weights that the workers hold now; what workers of one machine share counts once."""
        held, known = self._crew.desk.bytes_by_device(), set[str]()
        for member in self._crew.members:
            again = sum(nbytes for name, nbytes in member.shared.items() if name in known)
            known.update(member.shared)
            for device, nbytes in member.loaded.items():
                new = nbytes - (again if DeviceName.parse(device).device == "cpu" else 0)
                held[device] = held.get(device, 0) + new
        return {device: nbytes for device, nbytes in held.items() if nbytes}

    def release(self) -> None:
        """End all workers; the next engine starts them again. May be called again."""
        self._crew.give_back()
