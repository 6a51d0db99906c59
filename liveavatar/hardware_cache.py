"""The devices that a plan may be chosen for: what is free on them now, and how fast they were measured to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .doctor import KeptSpeed, known_speeds
from .doctor.report import FLOAT8_ROWS
from .planner import Hardware, MeasuredSpeed

DetectHardware = Callable[[Mapping[str, int]], Hardware]
"""Looks at the devices; given the bytes per device that the caller holds and can give back."""


def detect_hardware(loaded: Mapping[str, int]) -> Hardware:
    """The devices of this machine, as fast as `doctor` or `bench suite` has found them.

    Args:
        loaded: bytes per device of the caller's weights, wherever they are held. What this process itself holds counts
            as free in any case.

    Raises:
        PlanError: there are none.
    """
    hardware = Hardware.detect().with_freed(loaded).with_speeds(measured_speeds(known_speeds()))
    import torch

    from .model.quantize import supports_fp8_matmul

    return hardware.with_fp8_support(
        {c.name: supports_fp8_matmul(torch.device(c.name), by_row=True) for c in hardware.devices}
    )


def measured_speeds(kept: Mapping[str, KeptSpeed]) -> dict[str, MeasuredSpeed]:
    """Speeds of the GPUs that were measured in all that a forecast rests on, by name.

    Args:
        kept: as `liveavatar.doctor.known_speeds` gives them.
    """
    found = {}
    for device, speed in kept.items():
        if device == "cpu" or speed.compute is None or speed.copies is None:
            continue
        plain, attention = speed.compute.matmul.get("bfloat16"), speed.compute.attention_tflops("bfloat16")
        fp8, copy = speed.compute.matmul.get(FLOAT8_ROWS), speed.copies.pinned_in
        if plain and attention and copy:
            memory = 2 * speed.copies.memory  # what is copied is read and written
            found[device] = MeasuredSpeed(plain, fp8, tuple(attention.items()), copy, memory)
    return found


class CachedHardware:
    """Hardware that is detected once: a plan must not change because its weights are loaded.

    Args:
        detect: at them.
    """

    def __init__(self, detect: DetectHardware):
        self._detect = detect
        self._hardware: Hardware | None = None

    def hardware(self, loaded: Mapping[str, int]) -> Hardware:
        """As they were at the first look since `clear`."""
        if self._hardware is None:
            self._hardware = self._detect(loaded)
        return self._hardware

    def clear(self) -> None:
        """Look again the next time."""
        self._hardware = None
