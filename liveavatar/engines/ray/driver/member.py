"""One worker process, as its caller holds it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

from ....machines import Machine
from ..cluster import calls
from ..cluster.joining import PROBE_SECONDS, answers
from ..cluster.processes import last_lines
from ..plain import Duty, Greeting
from ..worker.boot import start_worker

_LINES_SECONDS = 1.0


@dataclasses.dataclass
class Member:
    """One worker process.

    Attributes:
        actor: its Ray handle.
        machine: where it is.
        log: its file; None on another machine.
        number: of all that were hired.
        greeting: what it said first.
        duty, loaded: the weights it holds, and their bytes by device.
        shared: bytes among them in host memory that other workers of its machine can share, by the memory's name.
        compiled: for which width and height, by which compiler, for how many blocks of a clip.
        stopping: the answer that it is still owing.
    """

    actor: Any
    machine: Machine
    log: Path | None
    number: int
    greeting: Greeting | None = None
    duty: Duty | None = None
    loaded: dict[str, int] = dataclasses.field(default_factory=dict)
    shared: dict[str, int] = dataclasses.field(default_factory=dict)
    compiled: set[tuple[tuple[int, int], str, int]] = dataclasses.field(default_factory=set)
    stopping: Any = None

    @classmethod
    def hire(cls, number: int, machine: Machine, folder: Path | None, threads: int, alone: bool, works: str) -> Member:
        """Start one.

        Args:
            number: of all that were hired.
            machine: where.
            folder: for its log; None on another machine.
            threads, alone, works: see `start_worker`.
        """
        log = folder / f"worker-{number}.log" if folder else None
        with calls.gate.through() as ray:
            actor = start_worker(ray, machine.id, str(log or ""), threads, alone, works)
        return cls(actor, machine, log, number)

    @property
    def pid(self) -> int:
        """Of the process, on its machine; 0 until it has started."""
        return self.greeting.pid if self.greeting else 0

    def ask(self, name: str, *given: Any) -> Any:
        """Call the worker; a reference to ("ok", result) or to (kind of fault, words)."""
        return calls.ask(self.actor, name, *given)

    @property
    def reachable(self) -> bool:
        """Whether its machine is still there; asked of another machine only, within seconds."""
        return self.log is not None or answers(self.machine.address, self.machine.port, PROBE_SECONDS)

    def lines(self) -> list[str]:
        """Its last log lines; from another machine only while it lives."""
        if self.log is not None:
            return last_lines(self.log)
        with contextlib.suppress(Exception):
            kind, lines = calls.get(self.ask("last_lines"), _LINES_SECONDS)
            return list(lines) if kind == "ok" else []
        return []

    def kill(self) -> None:
        """End the process, even one that hears nothing."""
        with contextlib.suppress(Exception):
            calls.kill(self.actor)
        if self.pid and self.log:  # a process of this machine
            with contextlib.suppress(OSError):
                os.kill(self.pid, getattr(signal, "SIGKILL", signal.SIGTERM))


def tidy(members: list[Member]) -> None:
    """Have workers of other machines remove their logs, before they are ended."""
    with contextlib.suppress(Exception):
        asked = [member.ask("tidy") for member in members if member.log is None]
        if asked:
            calls.wait(asked, _LINES_SECONDS, len(asked))
