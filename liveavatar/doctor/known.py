"""Measured speeds of this machine's devices, kept for later plans in one private file of the user."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import LiveAvatarError, OutputError
from ..files import write_file
from ..private_files import open_private, replace_private
from .plain import from_plain, plain
from .report import SCHEMA, Compute, Copies, Device

_MOST = 64
"""Devices that are remembered, those of other times and versions among them."""


@dataclasses.dataclass(frozen=True)
class KeptSpeed:
    """A device as it was measured.

    Attributes:
        id, name: of the device; see `Device`.
        torch: the version of PyTorch whose kernels were measured.
        quick: measured briefly.
        compute, copies: see `Device`.
    """

    id: str
    name: str
    torch: str
    quick: bool
    compute: Compute | None
    copies: Copies | None

    def replaces(self, other: KeptSpeed) -> bool:
        """Whether it takes the place of an older one, which is not worth more."""
        same = (self.id, self.name, self.torch) == (other.id, other.name, other.torch)
        return same and (other.quick or not self.quick)


@dataclasses.dataclass(frozen=True)
class _File:
    schema: int
    devices: tuple[KeptSpeed, ...]


def speeds_file() -> Path:
    """Where speeds are kept: in the user's cache folder."""
    named = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(named) if named else Path.home() / ".cache") / "liveavatar" / "speeds.json"


def save_speeds(devices: Iterable[Device], quick: bool, path: Path | None = None) -> Path:
    """Keep what was measured of some devices, in place of what older measurements of them say.

    A quick measurement takes the place of a quick one only.

    Raises:
        OutputError: none was measured, or the file cannot be written.
    """
    path, version = path or speeds_file(), _torch_version()
    new = [KeptSpeed(d.id, d.name, version, quick, d.compute, d.copies) for d in devices if d.compute or d.copies]
    if not new:
        raise OutputError("No device could be measured, so there are no speeds to keep.", "Solve the problems first.")
    old = [kept for kept in _read(path) if not any(speed.replaces(kept) for speed in new)]
    known = {(kept.id, kept.name, kept.torch) for kept in old}
    kept = _File(SCHEMA, (*old, *(s for s in new if (s.id, s.name, s.torch) not in known))[-_MOST:])
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_private(path, json.dumps(plain(kept), indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}).", "Choose a place that exists and has room."
        ) from error
    return path


def known_speeds(path: Path | None = None) -> dict[str, KeptSpeed]:
    """The devices of this machine that were measured with this version of PyTorch, by id.

    One that was not is taken for its like, by name. What was kept by another version of this library, or could have
    been written by somebody else, is not believed.
    """
    version = _torch_version()
    kept = [speed for speed in _read(path or speeds_file()) if speed.torch == version]
    if not kept:
        return {}
    from .devices import identities

    found = {}
    for device, name in identities():
        alike = [speed for speed in kept if speed.name == name]
        if alike:
            found[device] = next((speed for speed in alike if speed.id == device), alike[-1])
    return found


def _torch_version() -> str:
    import torch

    return torch.__version__


def _read(path: Path) -> tuple[KeptSpeed, ...]:
    """All that is kept; nothing where it cannot be understood."""
    try:
        with open_private(path) as file:
            kept: _File = from_plain(_File, json.loads(file.read()))
    except (OSError, ValueError, LiveAvatarError):
        return ()
    return kept.devices if kept.schema == SCHEMA else ()


def write_json(path: Path, data: object) -> None:
    """Write or replace a file in one step; a device is written through.

    Raises:
        OutputError: as `write_file`; an older one is still there.
    """
    write_file(path, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode(), "The report")
