"""The backend whose engines work in other processes."""

from __future__ import annotations

from ...codec import Place
from ...components import Components
from ...errors import PlanError
from ...placement import Placement
from ...planner import Plan
from .cluster import the_ray
from .codec import Desk, RayCodec
from .crew import Crew
from .engine import RayEngine
from .turns import Turns

HUNG_SECONDS = 120.0
RESTARTS = 2


class RayBackend:
    """Worker processes on this machine (see `liveavatar.engines.backend.Backend`).

    They are started by the first run, stay warm with their weights, and are ended by `release`, with the backend
    itself, or with this process, however it ends.

    Args:
        placement: which devices, and how work is cut over them; one worker per stage.
        address: "local"; other machines cannot be used yet.
        deadline: seconds after which a task that does not end, or a worker that does not answer, counts as hung.
        restarts: how many workers that were lost or hung may be replaced while a video is made; it goes on from the
            latest snapshot that all stages have (see `Plan.snapshot_blocks`), or from its beginning. 0: the loss of
            one ends the video.

    Raises:
        PlanError: Ray is not installed; a device is not here; another address; less than no restarts.
    """

    def __init__(
        self,
        placement: Placement | None = None,
        address: str = "local",
        deadline: float = HUNG_SECONDS,
        restarts: int = RESTARTS,
    ):
        if restarts < 0:
            raise PlanError(f"Workers cannot be replaced {restarts} times.", "Use 0 for never, or more.")
        if address != "local":
            raise PlanError(f"Workers cannot be started at {address!r} yet.", "Use 'local', this machine.")
        self.placement = placement or Placement()
        self.placement.check_devices()
        the_ray()
        self._crew, self._turns = Crew(deadline, restarts), Turns()
        self._desk = Desk(lambda: self.deadline, lambda: self.restarts)

    def engine(self, components: Components, plan: Plan) -> RayEngine:
        """An engine for one plan; workers that hold its weights already are used again."""
        return RayEngine(components, plan, self._crew, self._turns)

    def codec(self, components: Components, place: Place) -> RayCodec:
        """Encoders and VAE, in a worker of their own."""
        return RayCodec(components, place, self._desk)

    @property
    def deadline(self) -> float:
        """Seconds of silence after which something counts as hung; may be changed at any time."""
        return self._crew.deadline

    @deadline.setter
    def deadline(self, seconds: float) -> None:
        self._crew.deadline = seconds

    @property
    def restarts(self) -> int:
        """How many workers may be replaced while a video is made; may be changed between videos."""
        return self._crew.restarts

    @restarts.setter
    def restarts(self, count: int) -> None:
        self._crew.restarts = count

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The processes of stages that are there now, in their order."""
        return tuple(member.pid for member in self._crew.members)

    @property
    def codec_pid(self) -> int | None:
        """The process of encoders and VAE, while there is one."""
        return self._desk.member.pid if self._desk.member else None

    def bytes_by_device(self) -> dict[str, int]:
        """Bytes of weights that the workers hold now."""
        held: dict[str, int] = self._desk.bytes_by_device()
        for member in self._crew.members:
            for device, nbytes in member.loaded.items():
                held[device] = held.get(device, 0) + nbytes
        return held

    def release(self) -> None:
        """End all workers; the next engine starts them again. May be called again."""
        self._crew.give_back()
        self._desk.release()
