"""Where a user wants the work to run: the wish behind a plan."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence

import torch

from .config import ModelConfig
from .errors import PlanError
from .machines import DeviceName
from .planner import Plan, make_plan
from .request import Effective

_MOST_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Placement:
    """Devices and how the work is cut over them; everything may be left to the library.

    Attributes:
        devices: in order; stages take them in turn, encoders and the VAE work on the last one (alone there, if there is
            one more than stages). "MACHINE/DEVICE" is one of another machine. Empty: the first GPU, or the CPU.
        stages: "SxP", groups of steps x parts of layers; "auto" cuts the layers into as many parts as devices.
        dtype: of weights and keys; None: bfloat16 on a GPU, float32 on the CPU.
        threads: CPU threads per task; None: all there are, at most 8.
        keep_loaded: whether weights stay for the next run.
    """

    devices: tuple[str, ...] = ()
    stages: str = "auto"
    dtype: str | None = None
    threads: int | None = None
    keep_loaded: bool = True

    @property
    def last_device(self) -> str:
        """Where encoders and the VAE run: no device has fewer stages, because stages take devices in turn."""
        return (self.devices or default_devices())[-1]

    @property
    def working_dtype(self) -> str:
        """The dtype that will be used."""
        first = DeviceName.parse((self.devices or default_devices())[0])
        return self.dtype or ("float32" if first.device == "cpu" else "bfloat16")

    @property
    def working_threads(self) -> int:
        """The CPU threads that will be used."""
        return min(os.cpu_count() or 1, _MOST_THREADS) if self.threads is None else self.threads

    def check_devices(self, elsewhere: bool = False) -> None:
        """Refuse devices that are not here.

        Args:
            elsewhere: whether devices of other machines are somebody else's to check; else they are refused.

        Raises:
            PlanError: naming those that are.
        """
        refuse_windows(sys.platform, self.devices)
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        for device in self.devices:
            if DeviceName.parse(device).machine is not None:
                if not elsewhere:
                    raise PlanError(
                        f"The device {device!r} is not of this machine.",
                        "Other machines need worker processes (engine 'ray') and the address of their Ray cluster.",
                    )
            elif device not in there:
                raise PlanError(f"There is no device {device!r} here.", f"There are {', '.join(there)}.")

    def lay_out(self, effective: Effective, config: ModelConfig, model: str) -> Plan:
        """The plan of one video; the devices need not be here.

        Raises:
            PlanError: an impossible cut, dtype or thread count.
        """
        devices = self.devices or default_devices()
        parts = min(len(devices), config.num_layers)
        return make_plan(
            effective,
            config,
            model=model,
            stages=f"1x{parts}" if self.stages == "auto" else self.stages,
            devices=devices,
            dtype=self.working_dtype,
            threads=self.working_threads,
        )


def default_devices() -> tuple[str, ...]:
    """The first GPU if PyTorch sees one, else the CPU."""
    return ("cuda:0",) if torch.cuda.is_available() else ("cpu",)


def refuse_windows(system: str, devices: Sequence[str]) -> None:
    """Refuse several GPUs on native Windows, where there is no NCCL.

    Args:
        system: as `sys.platform`.
        devices: by name.

    Raises:
        PlanError: naming the way that works.
    """
    cards = {d for d in devices if DeviceName.parse(d).device.startswith("cuda")}
    if system == "win32" and len(cards) > 1:
        raise PlanError(
            f"Several GPUs ({', '.join(sorted(cards))}) cannot work together on native Windows, which has no NCCL.",
            "Run it in WSL2 (Linux on the same machine), or use one GPU.",
        )
