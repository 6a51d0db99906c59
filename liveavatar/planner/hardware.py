"""The devices and the memory at hand, measured or asked for, and how fast they are."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from ..attention_choice import PYTORCH
from ..errors import PlanError
from ..gpus import gpu_count
from ..utils import cgroup_memory

GIB = 1024**3
CUDA_CONTEXT_BYTES = 600_000_000
"""Bytes the driver and the libraries take on a device before the first tensor."""
USABLE_SHARE = 0.92
"""Of a device's nominal memory; a desktop, the driver and what allocators round up take the rest."""
FRAGMENTED_SHARE = 0.03
"""Of the memory that was free: what allocators round up, and holes that nothing fits into."""
HOST_SHARE = 0.8
"""Of the host's memory that may be pinned."""
_DEFAULT_HOST_BYTES = 64 * GIB
MAX_DEVICES = 16


@dataclasses.dataclass(frozen=True)
class DeviceSpeed:
    """What a device really reaches in this network, and what it copies.

    Attributes:
        plain, fp8, attention: TFLOP/s of matrices in the working dtype, in fp8, and of attention.
        copy: GB/s from pinned host memory.
        memory: GB/s that its own memory is read and written with, together.
        supports_fp8: whether matrices are worked in fp8.
    """

    plain: float
    fp8: float
    attention: float
    copy: float
    memory: float
    supports_fp8: bool = True


ASSUMED_SPEEDS = {
    16: DeviceSpeed(70, 135, 65, 25, 450),  # half of the class of 24
    24: DeviceSpeed(140, 270, 130, 25, 900),  # RTX 4090: bf16 (140, 130), fp8 270; PCIe 4 x16; 1,008 GB/s on paper
    32: DeviceSpeed(210, 420, 200, 50, 1600),  # RTX 5090: fp8 420, bf16 half of that; PCIe 5 x16; 1,792 GB/s
    48: DeviceSpeed(150, 300, 140, 25, 780),  # L40S: fp8 300, bf16 half of that; 864 GB/s
    80: DeviceSpeed(700, 1150, 600, 50, 3000),  # H100: 3,350 GB/s
    96: DeviceSpeed(210, 420, 200, 50, 1600),  # RTX Pro 6000: taken as the 5090, whose chip it is
    141: DeviceSpeed(700, 1150, 600, 50, 4300),  # H200, the chip of the H100: 4,800 GB/s
}
"""Effective figures by GiB of the device, assumed: estimates for the best-known card of each size with PyTorch's
attention and nine tenths of the memory's speed, to be replaced by a `MeasuredSpeed`. A card takes those of the nearest
size."""
ASSUMED_GAINS = {"sage": 1.9}
"""How many times faster than PyTorch's own a backend of attention is: sage, as others have measured it with heads as
this network has them on a Blackwell workstation card (SageAttention's issue 378: 395 beside 207 TFLOP/s). Of the rest
no figure is known: they are assumed to be as fast."""
_HOPPER = (80, 141)
"""GiB of cards where no figure is known of sage either, and PyTorch's own kernel was written for the card."""


@dataclasses.dataclass(frozen=True)
class MeasuredSpeed:
    """What a device was measured to reach.

    Attributes:
        plain, fp8: TFLOP/s of matrices; fp8 None: it cannot multiply them.
        attention: TFLOP/s by backend, in pairs; of those that were there.
        copy, memory: see `DeviceSpeed`.
    """

    plain: float
    fp8: float | None
    attention: tuple[tuple[str, float], ...]
    copy: float
    memory: float


@dataclasses.dataclass(frozen=True)
class DeviceSpec:
    """One device.

    Attributes:
        name: as PyTorch calls it.
        total: bytes.
        free: bytes that may be used; None: not measured, `USABLE_SHARE` of the total is taken.
        measured: how fast it is; None: as `ASSUMED_SPEEDS` has it.
        supports_fp8: whether it multiplies fp8 matrices; None: as `measured`, or assumed.
        cap: bytes that may be used at most, the context among them; None: all.
        attention: backend that it will attend with.
    """

    name: str
    total: int
    free: int | None = None
    measured: MeasuredSpeed | None = None
    supports_fp8: bool | None = None
    cap: int | None = None
    attention: str = PYTORCH

    @functools.cached_property
    def usable(self) -> int:
        """Bytes that a plan may use."""
        free = int(USABLE_SHARE * self.total if self.free is None else (1 - FRAGMENTED_SHARE) * self.free)
        return max(0, (free if self.cap is None else min(free, self.cap)) - CUDA_CONTEXT_BYTES)

    @functools.cached_property
    def speed(self) -> DeviceSpeed:
        """Measured where it was, assumed elsewhere."""
        size = min(ASSUMED_SPEEDS, key=lambda size: abs(size - self.total / GIB))
        assumed, found = ASSUMED_SPEEDS[size], self.measured
        gain = 1.0 if size in _HOPPER else ASSUMED_GAINS.get(self.attention, 1.0)
        if found is None:
            can = assumed.supports_fp8 if self.supports_fp8 is None else self.supports_fp8
            return dataclasses.replace(assumed, attention=gain * assumed.attention, supports_fp8=can)
        attention = dict(found.attention)
        return DeviceSpeed(
            plain=found.plain,
            fp8=found.fp8 or found.plain,
            attention=attention.get(self.attention) or gain * attention.get(PYTORCH, assumed.attention),
            copy=found.copy,
            memory=found.memory,
            supports_fp8=found.fp8 is not None if self.supports_fp8 is None else self.supports_fp8,
        )

    @property
    def attention_source(self) -> Literal["measured", "assumed"]:
        """Where the speed of its attention is from."""
        return "measured" if self.measured and self.attention in dict(self.measured.attention) else "assumed"

    @property
    def is_measured(self) -> bool:
        """Whether nothing of its speed is assumed."""
        return self.measured is not None and self.attention_source == "measured"


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a plan may use.

    Attributes:
        devices: all on one machine.
        host: bytes of its memory.
        source: whether the devices are here ("measured") or were only named ("asked").
    """

    devices: tuple[DeviceSpec, ...]
    host: int
    source: Literal["measured", "asked"] = "asked"

    @classmethod
    def parse(cls, text: str, host: int | None = None) -> Hardware:
        """Cards by their nominal GiB: "4x24", "2x24,1x48", "24+16".

        Args:
            text: counts and sizes.
            host: bytes of the host's memory; None: twice that of the devices, at least 64 GiB.

        Raises:
            PlanError: not understood, no card or more than `MAX_DEVICES`.
        """
        sizes: list[float] = []
        for piece in re.split(r"[,+;]", text):
            read = re.fullmatch(r"\s*(?:(\d{1,3})\s*[xX×*]\s*)?(\d{1,4}(?:\.\d{1,3})?)\s*", piece)
            if not read or float(read[2]) <= 0:
                raise PlanError(f"The cards {text!r} are not understood.", "Write 1x24, 4x24 or 2x24,1x48, in GiB.")
            sizes += [float(read[2])] * int(read[1] or 1)
        if not 1 <= len(sizes) <= MAX_DEVICES:
            raise PlanError(f"{len(sizes)} cards cannot be planned for.", f"Name 1 to {MAX_DEVICES}.")
        devices = tuple(DeviceSpec(f"cuda:{i}", int(size * GIB)) for i, size in enumerate(sizes))
        return cls(devices, max(_DEFAULT_HOST_BYTES, 2 * sum(c.total for c in devices)) if host is None else host)

    @classmethod
    def detect(cls) -> Hardware:
        """The devices of this machine, with what is free on them now.

        Raises:
            PlanError: there are none.
        """
        found = range(gpu_count())
        if not found:
            raise PlanError("There is no GPU here.", "Name cards, for example --gpus 1x24, or work on the CPU.")
        import torch

        memory = [torch.cuda.mem_get_info(i) for i in found]
        devices = tuple(DeviceSpec(f"cuda:{i}", total, free) for i, (free, total) in zip(found, memory, strict=True))
        return cls(devices, host_bytes(), "measured")

    def restricted_to(self, names: Sequence[str]) -> Hardware:
        """The same without the devices that are not named."""
        return dataclasses.replace(self, devices=tuple(c for c in self.devices if c.name in names))

    def with_freed(self, held: Mapping[str, int]) -> Hardware:
        """The same with free what this process holds on its devices, or `held` bytes of other processes, if more."""
        import torch

        def free(device: DeviceSpec) -> int | None:
            own = torch.cuda.memory_reserved(device.name) if device.name.startswith("cuda") else 0
            return None if device.free is None else min(device.total, device.free + max(own, held.get(device.name, 0)))

        return self._map_devices(lambda device: dataclasses.replace(device, free=free(device)))

    def with_speeds(self, speeds: Mapping[str, MeasuredSpeed]) -> Hardware:
        """The same with the measured speeds of some devices, by name."""
        return self._map_devices(lambda c: dataclasses.replace(c, measured=speeds.get(c.name, c.measured)))

    def with_attention(self, backends: Mapping[str, str]) -> Hardware:
        """The same with the backends of attention of some devices, by name."""
        return self._map_devices(lambda c: dataclasses.replace(c, attention=backends.get(c.name, c.attention)))

    def with_fp8_support(self, by_card: Mapping[str, bool]) -> Hardware:
        """The same, knowing of some devices whether they compute in fp8."""
        return self._map_devices(lambda c: dataclasses.replace(c, supports_fp8=by_card.get(c.name, c.supports_fp8)))

    def with_cap(self, most: int | None) -> Hardware:
        """The same with at most so many bytes used per device, the context among them; None: all."""
        return self._map_devices(lambda device: dataclasses.replace(device, cap=most))

    @property
    def cap(self) -> int | None:
        """The most that is used of any card, where that is capped."""
        return max((device.cap for device in self.devices if device.cap is not None), default=None)

    def _map_devices(self, changed: Callable[[DeviceSpec], DeviceSpec]) -> Hardware:
        return dataclasses.replace(self, devices=tuple(map(changed, self.devices)))

    @property
    def usable_host(self) -> int:
        """Bytes that may be pinned."""
        return int(HOST_SHARE * self.host)

    def __str__(self) -> str:
        counts: dict[str, int] = {}
        for device in self.devices:
            size = f"{device.total / GIB:.4g}"
            counts[size] = counts.get(size, 0) + 1
        return ",".join(f"{count}x{size}" for size, count in counts.items())


def host_bytes() -> int:
    """Memory of this machine, or what of it a container may use; 64 GiB where the system does not tell."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        total = _DEFAULT_HOST_BYTES
    return min(total, cgroup_memory("memory.max") or total)
