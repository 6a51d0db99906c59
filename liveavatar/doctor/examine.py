"""The whole examination: one probe after another, each where it can do no harm."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from .child import Child, ChildLost, entry
from .findings import findings
from .plain import from_plain, plain
from .privacy import clean, folders_here, names_here
from .report import (
    Accelerators,
    Compute,
    Copies,
    Device,
    Disk,
    Failure,
    Handshake,
    Host,
    Model,
    Network,
    Peer,
    Report,
    Versions,
)

Watcher = Callable[[str, int, int], None]
"""Called before each probe: what it is about, how many are done, how many there are as far as is known."""
SECONDS = 120.0
"""The longest a probe may take."""


def examine(
    quick: bool = False,
    model: str | None = None,
    on_probe: Watcher | None = None,
    command: list[str] | None = None,
    seconds: float = SECONDS,
) -> Report:
    """Look at this machine.

    Probes run in a process of their own: one that raises, crashes or hangs is a `Failure` of the report, and the next
    ones run in a new process. The report names no user, computer or folder.

    Args:
        quick: measure briefly.
        model: a model folder to look at, too.
        on_probe: see `Watcher`.
        command: starts the process that answers as `serve.main` does, where it is another one.
        seconds: after which a probe has failed.
    """
    start = time.monotonic()
    with _Probes(command or entry("serve"), seconds, on_probe) as ask:
        found = _facts(ask, quick, model)
        found = dataclasses.replace(found, failures=tuple(ask.failures), quick=quick)
    found = dataclasses.replace(found, seconds=round(time.monotonic() - start, 1))
    found = from_plain(Report, clean(plain(found), names_here(), [*folders_here(), *([model] if model else [])]))
    return dataclasses.replace(found, findings=findings(found))


def _facts(ask: _Probes, quick: bool, model: str | None) -> Report:
    ask.expect(8 + bool(model))
    host = ask("the computer", Host, "host")
    versions = ask("the libraries", Versions, "versions")
    disks = ask("the disks", tuple[Disk, ...], "disks", quick)
    found = ask("the model", Model, "model", model) if model else None
    accelerators: Accelerators | None = ask("the devices", Accelerators, "accelerators")
    there = accelerators.devices if accelerators else ()
    several = sum(d.is_gpu for d in there) > 1
    ask.expect(2 * len(there) + 2 + 2 * several)
    devices = tuple(_measured(ask, device, quick) for device in there)
    peers = ask("copies between GPUs", tuple[Peer, ...], "peers", quick) if several else None
    network = ask("the network", Network, "network")
    backends = ("gloo", "nccl") if several and not (host and host.system == "Windows") else ("gloo",)
    met = [ask(f"two processes that meet over {b}", Handshake, "handshake", b) for b in backends]
    return Report(
        host=host,
        versions=versions,
        disks=disks or (),
        accelerators=accelerators,
        devices=devices,
        peers=peers or (),
        network=network,
        handshakes=tuple(h for h in met if h),
        model=found,
    )


def _measured(ask: _Probes, device: Device, quick: bool) -> Device:
    return dataclasses.replace(
        device,
        copies=ask(f"copies on {device.id}", Copies, "copies", device.id, quick),
        compute=ask(f"computing on {device.id}", Compute, "compute", device.id, quick),
    )


class _Probes:
    """Asks a child, and a new one after each failure: what went wrong may have spoilt it."""

    def __init__(self, command: list[str], seconds: float, on_probe: Watcher | None):
        self.failures: list[Failure] = []
        self._command, self._seconds, self._on_probe = command, seconds, on_probe
        self._child: Child | None = None
        self._done, self._total = 0, 0

    def __enter__(self) -> _Probes:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def expect(self, more: int) -> None:
        """So many probes are still to come."""
        self._total = self._done + more

    def __call__(self, what: str, kind: Any, *probe: Any) -> Any:
        """What a probe finds, as an object of that kind; None if it fails."""
        if self._on_probe:
            self._on_probe(what, self._done, self._total)
        self._done += 1
        try:
            return from_plain(kind, self._ask(probe))
        except Exception as error:
            self.failures.append(Failure(what, getattr(error, "what", "") or f"{type(error).__name__}: {error}"))
            self._end()
            return None
        except BaseException:
            self._end()
            raise

    def _ask(self, probe: tuple[Any, ...]) -> Any:
        self._child = self._child or Child(self._command, group=True)
        self._child.send(probe)
        answered = self._child.receive(self._seconds)
        if "error" in answered:
            raise ChildLost(answered["error"])
        return answered["found"]

    def _end(self) -> None:
        child, self._child = self._child, None
        if child:
            child.end()
