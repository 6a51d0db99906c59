"""The cards that a plan may be chosen for: what is free on them now, and how fast they were measured to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from .doctor import Device, known_speeds
from .doctor.report import FLOAT8_ROWS
from .model.linear import computes_float8
from .planner import Hardware, Speed

Cards = Callable[[Mapping[str, int]], Hardware]
"""Looks at the cards; given the bytes per device that the caller holds and can give back."""


def hardware_here(held: Mapping[str, int]) -> Hardware:
    """The cards of this machine, as fast as `liveavatar doctor` found them where it was asked to keep that.

    Args:
        held: bytes per device of the caller's weights, wherever they are held. What this process itself holds counts
            as free in any case.

    Raises:
        PlanError: there are none.
    """
    cards = Hardware.here().giving_back(held).as_fast_as(measured_speeds(known_speeds() or ()))
    return cards.computing_fp8({c.name: computes_float8(torch.device(c.name), by_row=True) for c in cards.cards})


def measured_speeds(devices: tuple[Device, ...]) -> dict[str, Speed]:
    """Speeds of the GPUs that were measured in all that a forecast rests on, by name.

    Args:
        devices: as `liveavatar.doctor.known_speeds` gives them.
    """
    found = {}
    for device in devices:
        if not device.is_gpu or device.compute is None or device.copies is None:
            continue
        plain, attention = (by.get("bfloat16") for by in (device.compute.matmul, device.compute.attention))
        fp8, copy = device.compute.matmul.get(FLOAT8_ROWS), device.copies.pinned_in
        if plain and attention and copy:
            found[device.id] = Speed(plain, fp8 or plain, attention, copy, computes_fp8=fp8 is not None)
    return found


class Seen:
    """Cards that are looked at once: a plan of what is loaded must not change because it is loaded.

    Args:
        look: at them.
    """

    def __init__(self, look: Cards):
        self._look = look
        self._seen: Hardware | None = None

    def hardware(self, held: Mapping[str, int]) -> Hardware:
        """As they were at the first look since `forget`."""
        if self._seen is None:
            self._seen = self._look(held)
        return self._seen

    def forget(self) -> None:
        """Look again the next time."""
        self._seen = None
