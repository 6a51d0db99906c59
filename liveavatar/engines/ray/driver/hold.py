"""Workers and folders that must be given back even when their owner is only forgotten."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from pathlib import Path

from ....machines import DeviceName, Machine, check_device, find_machine
from ..cluster import service
from ..cluster.joining import LOCAL, PROBE_SECONDS, answers
from ..cluster.register import Page
from ..worker.boot import STAGES
from ..worker.snapshots import remove
from .member import Member, tidy

_numbers = itertools.count(1)
"""Of workers: all that a process hires write into one folder."""


class Hold:
    """What one owner of workers has.

    Args:
        address: see `RayBackend`.

    Attributes:
        members: its workers; None for one that was lost.
        folder: for what they write on this machine.
        snapshots: folder of the latest video's; empty where there are none.
    """

    def __init__(self, address: str):
        self.members: list[Member | None] = []
        self.folder = Path()
        self.snapshots = ""
        self._address = address
        self._page = Page(self.folder)
        self._inside = False
        self._lock = threading.RLock()  # who is idle too long is released by another thread

    def enter(self) -> None:
        """Have Ray.

        Raises:
            PlanError: the cluster cannot be joined.
        """
        if not self._inside:
            self.folder = service.enter(self._address)
            self._page = Page(self.folder)
            self._inside = True

    def look_up(self, devices: tuple[str, ...]) -> list[Machine]:
        """The machines of some devices, which all exist.

        Raises:
            PlanError: a machine or a device that is not there; the cluster cannot be joined.
        """
        self.enter()
        there, own = service.machines()
        if any(DeviceName.parse(device).machine for device in devices):
            # Ray counts a machine that has died for a while yet.
            there = [m for m in there if m.id == own.id or answers(m.address, m.port, PROBE_SECONDS)]
        found = []
        for name in map(DeviceName.parse, devices):
            found.append(own if name.machine is None else find_machine(name.machine, there))
            if name.machine is not None:
                check_device(name, found[-1])
        return found

    def hire(self, machine: Machine, threads: int, works: str = STAGES) -> Member:
        """A new worker; see `start_worker`."""
        folder = self.folder if machine.id == service.machines()[1].id else None
        return Member.hire(next(_numbers), machine, folder, threads, self._address == LOCAL, works)

    def list(self, workers: Iterable[tuple[Member, int | None, str]]) -> None:
        """Write down which workers of this machine there are, with their stages and devices."""
        self._page.write((m.pid, stage, device, m.log) for m, stage, device in workers if m.log is not None)

    def forget(self) -> None:
        """Remove the snapshots that are here."""
        if self.snapshots:
            remove(self.snapshots)
            self.snapshots = ""

    def release(self) -> None:
        """Let all of it go."""
        with self._lock:
            there = [member for member in self.members if member is not None]
            tidy(there)
            for member in there:
                member.kill()
            self.members.clear()
            self.forget()
            if self._inside:
                self._inside = False
                self._page.remove()
                service.leave()
