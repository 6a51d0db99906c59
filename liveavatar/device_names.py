"""Devices of several machines, by name: "cuda:0" is of this machine, "studio2/cuda:0" of the machine `studio2`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from .errors import PlanError


@dataclasses.dataclass(frozen=True)
class DeviceName:
    """A device and the machine it is in; `str` gives the name as it is written.

    Attributes:
        device: as PyTorch names it: "cpu", "cuda:0".
        machine: address, host name, node name or the beginning of a node's id; None: this machine.
    """

    device: str
    machine: str | None = None

    @classmethod
    def parse(cls, text: str) -> DeviceName:
        """Read "DEVICE" or "MACHINE/DEVICE".

        Raises:
            PlanError: nothing stands on one side of the slash.
        """
        machine, slash, device = text.rpartition("/")
        if slash and not (machine and device):
            raise PlanError(f"The device {text!r} is not understood.", "Write MACHINE/DEVICE, as in studio2/cuda:0.")
        return cls(device, machine if slash else None)

    def __str__(self) -> str:
        return self.device if self.machine is None else f"{self.machine}/{self.device}"


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine that has joined the others.

    Attributes:
        id: unique among them.
        address, host, name: by which it may be called; several may share one.
        gpus: how many it offers.
        port: one that answers as long as the machine works.
    """

    id: str
    address: str
    host: str
    name: str
    gpus: int
    port: int = 0

    def is_called(self, name: str) -> bool:
        """Whether it may be called so."""
        return name in (self.address, self.host, self.name, self.id)


def find_machine(name: str, machines: Sequence[Machine]) -> Machine:
    """The machine that is meant: by address, host name, node name or id, else by the beginning of its id.

    Raises:
        PlanError: there is none, or several have that name.
    """
    found = [m for m in machines if m.is_called(name)] or [m for m in machines if m.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise PlanError(f"{len(found)} machines are called {name!r}.", f"Use one of {_calls(found)}.")
    raise PlanError(f"There is no machine {name!r}, or it has left.", f"There are {_calls(machines)}.")


def check_device(name: DeviceName, machine: Machine) -> None:
    """Refuse a device that a machine does not have.

    Raises:
        PlanError: naming those it has.
    """
    number = re.fullmatch(r"cuda:(0|[1-9]\d{0,3})", name.device)
    if name.device == "cpu" or (number and int(number[1]) < machine.gpus):
        return
    last = machine.gpus - 1
    has = "cpu" if last < 0 else "cpu and cuda:0" if last == 0 else f"cpu and cuda:0..{last}"
    raise PlanError(f"There is no device {str(name)!r}.", f"{name.machine or 'This machine'} has {has}.")


def same_device(one: tuple[Machine, str], other: tuple[Machine, str]) -> bool:
    """Whether two devices of machines are one; two nodes at one address are one machine."""
    return one[0].address == other[0].address and one[1] == other[1]


def _calls(machines: Sequence[Machine]) -> str:
    """What to call each: the first of its names that only it has."""
    names = []
    for m in machines:
        given = (m.name, m.host, m.address)
        own = [n for n in given if n and sum(other.is_called(n) for other in machines) == 1]
        names.append((own or [m.id[:12]])[0])
    return ", ".join(sorted(names)) or "none"
