"""Machines that are not here: reports as the probes would make them."""

from __future__ import annotations

import dataclasses
from typing import Any

from liveavatar.doctor.report import (
    Accelerators,
    AttentionSpeed,
    Compute,
    Copies,
    Device,
    Disk,
    Handshake,
    Host,
    Model,
    Network,
    Peer,
    Report,
    Versions,
)

CPU = Device("cpu", "A Processor", 64 * 10**9, 50 * 10**9, "")
FAST = Compute(
    {"float32": 60.0, "bfloat16": 150.0, "float16": 150.0, "float8": 290.0, "float8 rows": 270.0},
    (AttentionSpeed("sdpa", "flash, in parts", "bfloat16", 0.002, 130.0),),
    {},
)


def card(index: int = 0, **changed: Any) -> Device:
    """A card with 24 GB in a good slot."""
    made = Device(
        id=f"cuda:{index}",
        name="NVIDIA GeForce RTX 4090",
        total=25_400_000_000,
        free=24_900_000_000,
        capability="8.9",
        compute=FAST,
        copies=Copies(25.0, 25.5, 9.0, 8.0, 900.0),
    )
    return dataclasses.replace(made, **changed)


def machine(*cards: Device, **changed: Any) -> Report:
    """A healthy machine with these cards, or with one."""
    devices = (*(cards or (card(),)), CPU)
    names = tuple(d.name for d in devices if d.is_gpu)
    pairs = [(a.id, b.id) for a in cards for b in cards if a is not b]
    made = Report(
        host=Host("Linux", "6.1.0", False, "A Processor", 16, 16, 64 * 10**9, 50 * 10**9, None),
        versions=Versions(
            "0.1.0",
            "3.12.1",
            {"torch": "2.9.0+cu128", "av": "15.0", "ray": "2.60.0", "dlib": "20.0.1"},
            {"av": "14.2", "ray": "2.52"},
        ),
        disks=(Disk("temporary", 10**11, True, "", 1.5, 2.5), Disk("current", 10**11, True)),
        accelerators=Accelerators("CUDA 12.8", "570.1", names, devices),
        devices=devices,
        peers=tuple(Peer(a, b, True, 20.0) for a, b in pairs),
        network=Network(True, "", ()),
        handshakes=(Handshake("gloo", True, "", 0.1, 1.0),),
        model=Model(True, {"VAE": "Wan 2.1"}, ()),
    )
    return dataclasses.replace(made, **changed)


def without_gpu(build: str, driver: str = "", cards: tuple[str, ...] = (), **changed: Any) -> Report:
    """A machine where PyTorch finds the CPU only."""
    found = Accelerators(build, driver, cards, (CPU,))
    return machine(accelerators=found, devices=(CPU,), **changed)
