"""Who lends engines: the choice of where work runs, kept apart from the work itself."""

from __future__ import annotations

from typing import Protocol

from ..components import Components
from ..placement import Placement
from ..planner import Plan
from ..session import Engine
from .local import LocalEngine
from .nets import Nets


class Backend(Protocol):
    """Devices that work for one caller at a time.

    Attributes:
        placement: which devices, and how work is cut over them.
    """

    placement: Placement

    def engine(self, components: Components, plan: Plan) -> Engine:
        """An engine for one plan; weights that are loaded already are used again."""
        ...

    def bytes_by_device(self) -> dict[str, int]:
        """Bytes of weights that are loaded now."""
        ...

    def release(self) -> None:
        """Give back all memory; the next engine loads again."""
        ...


class LocalBackend:
    """The devices of this process.

    Raises:
        PlanError: a device is not here.
    """

    def __init__(self, placement: Placement | None = None):
        self.placement = placement or Placement()
        self.placement.check_devices()
        self._nets = Nets()

    def engine(self, components: Components, plan: Plan) -> LocalEngine:
        """See `Backend`."""
        return LocalEngine(components, plan, self._nets)

    def bytes_by_device(self) -> dict[str, int]:
        """See `Backend`."""
        return self._nets.bytes_by_device

    def release(self) -> None:
        """See `Backend`."""
        self._nets.release()
