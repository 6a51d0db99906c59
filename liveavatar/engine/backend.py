"""Backends: they make engines and encoders for the devices that a placement names."""

from __future__ import annotations

from typing import Protocol

from ..codec import Encoders, ExecConfig, LocalEncoders
from ..components import Components
from ..placement import Placement
from ..planner import Plan
from ..session import Engine
from .local import LocalEngine, ModelCache


class Backend(Protocol):
    """Devices that work for one caller at a time.

    Attributes:
        placement: which devices, and how work is cut over them.
    """

    placement: Placement

    def engine(self, components: Components, plan: Plan) -> Engine:
        """An engine for one plan; weights that are loaded already are used again."""
        ...

    def codec(self, components: Components, exec_config: ExecConfig) -> Encoders:
        """Encoders and VAE of a model; the latest one is kept with what it has loaded."""
        ...

    def bytes_by_device(self) -> dict[str, int]:
        """Bytes of weights that are loaded now."""
        ...

    def release(self) -> None:
        """Give back all memory; the next engine and the next codec load again."""
        ...


class LocalBackend:
    """The devices of this process.

    Raises:
        PlanError: a device is not here.
    """

    def __init__(self, placement: Placement | None = None):
        self.placement = placement or Placement()
        self.placement.check_devices()
        self._models = ModelCache()
        self._codec: LocalEncoders | None = None

    def engine(self, components: Components, plan: Plan) -> LocalEngine:
        """See `Backend`."""
        return LocalEngine(components, plan, self._models)

    def codec(self, components: Components, exec_config: ExecConfig) -> LocalEncoders:
        """See `Backend`."""
        kept = self._codec
        if kept is None or (kept.components, kept.exec_config) != (components, exec_config):
            self._codec = kept = LocalEncoders(components, exec_config)
        return kept

    def bytes_by_device(self) -> dict[str, int]:
        """See `Backend`."""
        held = self._models.bytes_by_device
        if self._codec is not None and self._codec.nbytes:
            device = self._codec.exec_config.device
            held[device] = held.get(device, 0) + self._codec.nbytes
        return held

    def release(self) -> None:
        """See `Backend`."""
        self._models.release()
        if self._codec is not None:
            self._codec.release()
