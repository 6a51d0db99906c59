"""The devices and the memory at hand, measured or asked for, and how long work takes on them."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from ..config import BLOCK_FRAMES, BLOCK_LATENTS, WINDOW_BLOCKS, ModelConfig
from ..errors import PlanError
from ..gpus import gpu_count
from ..storage import StorageConfig
from .memory import SINK_FRAMES

GIB = 1024**3
CUDA_CONTEXT_BYTES = 600_000_000
"""Bytes the driver and the libraries take on a device before the first tensor."""
USABLE_SHARE = 0.92
"""Of a device's nominal memory; a desktop, the driver and what allocators round up take the rest."""
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
        supports_fp8: whether matrices are worked in fp8.
    """

    plain: float
    fp8: float
    attention: float
    copy: float
    supports_fp8: bool = True


ASSUMED_SPEEDS = {
    16: DeviceSpeed(70, 135, 65, 25),  # half of the class of 24
    24: DeviceSpeed(140, 270, 130, 25),  # RTX 4090: bf16 (140, 130), fp8 270; PCIe 4 x16
    32: DeviceSpeed(210, 420, 200, 50),  # RTX 5090: fp8 420, bf16 half of that; PCIe 5 x16
    48: DeviceSpeed(150, 300, 140, 25),  # L40S: fp8 300, bf16 half of that
    80: DeviceSpeed(600, 1200, 500, 50),  # H100: bf16 (600, 500); fp8 twice that
    96: DeviceSpeed(210, 420, 200, 50),  # RTX Pro 6000: taken as the 5090, whose chip it is
    141: DeviceSpeed(790, 1200, 600, 50),  # H200: bf16 790, fp8 1200, attention 600
}
"""Effective figures by GiB of the device, assumed: estimates for the best-known card of each size with a good attention
kernel in 16 bits, to be replaced by what `DeviceSpec` measured. An asked card takes those of the nearest size."""


@dataclasses.dataclass(frozen=True)
class DeviceSpec:
    """One device.

    Attributes:
        name: as PyTorch calls it.
        total: bytes.
        free: bytes that may be used; None: not measured, `USABLE_SHARE` of the total is taken.
        plain_tflops, fp8_tflops, attention_tflops: measured; None: assumed.
        copy_gb: measured GB/s from pinned host memory; None: assumed.
        supports_fp8: None: assumed.
        cap: bytes that may be used at most, the context among them; None: all.
    """

    name: str
    total: int
    free: int | None = None
    plain_tflops: float | None = None
    fp8_tflops: float | None = None
    attention_tflops: float | None = None
    copy_gb: float | None = None
    supports_fp8: bool | None = None
    cap: int | None = None

    @functools.cached_property
    def usable(self) -> int:
        """Bytes that a plan may use."""
        free = int(USABLE_SHARE * self.total) if self.free is None else self.free
        return max(0, (free if self.cap is None else min(free, self.cap)) - CUDA_CONTEXT_BYTES)

    @functools.cached_property
    def speed(self) -> DeviceSpeed:
        """Measured where it was, assumed elsewhere."""
        assumed = ASSUMED_SPEEDS[min(ASSUMED_SPEEDS, key=lambda size: abs(size - self.total / GIB))]
        return DeviceSpeed(
            plain=self.plain_tflops or assumed.plain,
            fp8=self.fp8_tflops or assumed.fp8,
            attention=self.attention_tflops or assumed.attention,
            copy=self.copy_gb or assumed.copy,
            supports_fp8=assumed.supports_fp8 if self.supports_fp8 is None else self.supports_fp8,
        )

    @property
    def measured(self) -> bool:
        """Whether nothing of its speed is assumed."""
        return None not in (self.plain_tflops, self.fp8_tflops, self.attention_tflops, self.copy_gb, self.supports_fp8)


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

    def with_speeds(self, speeds: Mapping[str, DeviceSpeed]) -> Hardware:
        """The same with the measured speeds of some devices, by name."""

        def timed(device: DeviceSpec) -> DeviceSpec:
            s = speeds.get(device.name)
            return (
                device
                if s is None
                else dataclasses.replace(
                    device,
                    plain_tflops=s.plain,
                    fp8_tflops=s.fp8,
                    attention_tflops=s.attention,
                    copy_gb=s.copy,
                    supports_fp8=s.supports_fp8,
                )
            )

        return self._map_devices(timed)

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
    """Memory of this machine; 64 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return _DEFAULT_HOST_BYTES


_HOST_COPY_GB = 80.0
"""GB/s that all devices together get from the host's memory, assumed."""
_LINK_GB = 10.0
"""GB/s between two stages, assumed: PCIe through the host."""
_TASK_SECONDS = 0.002
"""To launch a task, assumed."""
_VAE_SHARE = 0.2
"""Of the speed of matrices that the VAE's convolutions reach, assumed: narrow layers, bound by memory."""


@dataclasses.dataclass(frozen=True)
class Forecast:
    """How fast a plan will probably be, with its stages side by side.

    Attributes:
        seconds_per_block: of 12 frames, once the pipeline is full.
        fps: frames per second then.
        first_frames_seconds: from the first task to the first finished block; loading and encoding come before.
        source: whose speeds it rests on: "measured", or "assumed" where any was not measured.
    """

    seconds_per_block: float
    first_frames_seconds: float
    source: str

    @property
    def fps(self) -> float:
        """Frames per second in the full pipeline."""
        return BLOCK_FRAMES / self.seconds_per_block


def layer_tflop(
    config: ModelConfig, frame_tokens: int, layer: int, window_blocks: int = WINDOW_BLOCKS
) -> tuple[float, float]:
    """10^12 operations of one block at one step in one layer: in matrices, and in attention.

    The prompt's keys and values, and the conditions, are made once per video and do not count.
    """
    d, tokens = config.dim, BLOCK_LATENTS * frame_tokens
    seen = (window_blocks * BLOCK_LATENTS + SINK_FRAMES) * frame_tokens + config.text_len
    matrices = 2 * tokens * (6 * d * d + 2 * d * config.ffn_dim)
    if layer in config.audio_inject_layers:
        matrices += 4 * tokens * d * d
    return matrices / 1e12, 4 * tokens * seen * d / 1e12


def compute_seconds(matrices: float, attention: float, storage: StorageConfig, speed: DeviceSpeed) -> float:
    """Of so many 10^12 operations; fp8 is worked as fp8 only where the device can."""
    fast = storage.weights in ("fp8", "fp8-tensor") and speed.supports_fp8
    return matrices / (speed.fp8 if fast else speed.plain) + attention / speed.attention


def task_seconds(compute: float, copied: int, layers: int, speed: DeviceSpeed, device_count: int) -> float:
    """Of one task: copies hide behind the work of the layers before, but for the first layer's.

    Args:
        compute: seconds of the layers.
        copied: bytes from the host.
        layers: of the stage.
        speed: of its device.
        device_count: that copy at the same time, at most.
    """
    copies = copied / 1e9 / min(speed.copy, _HOST_COPY_GB / device_count)
    return max(compute, copies) + copies / layers + _TASK_SECONDS


def link_seconds(config: ModelConfig, frame_tokens: int, size: int, stages: int) -> float:
    """Of sending a block's tokens to the next stage; nothing where there is none."""
    return BLOCK_LATENTS * frame_tokens * config.dim * size / 1e9 / _LINK_GB if stages > 1 else 0.0


def decode_seconds(tflop: float, speed: DeviceSpeed, resting: int = 0) -> float:
    """Of decoding a block.

    Args:
        tflop: 10^12 operations.
        speed: of the device.
        resting: bytes on the host, which come to the device and go back once a block.
    """
    return tflop / (speed.plain * _VAE_SHARE) + 2 * resting / 1e9 / min(speed.copy, _HOST_COPY_GB)
