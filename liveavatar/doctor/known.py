"""Measured speeds, kept for the next plan."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from ..errors import LiveAvatarError, OutputError
from ..files import write_file
from .plain import from_plain, plain
from .report import SCHEMA, Device, Report


@dataclasses.dataclass(frozen=True)
class Kept:
    """The file's content."""

    schema: int
    quick: bool
    devices: tuple[Device, ...]


def speeds_file() -> Path:
    """Where speeds are kept: in the user's cache folder."""
    named = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(named) if named else Path.home() / ".cache") / "liveavatar" / "speeds.json"


def save_speeds(report: Report, path: Path | None = None) -> Path:
    """Keep the devices of a report, in place of older ones.

    Raises:
        OutputError: it has none that were measured, or the file cannot be written.
    """
    path = path or speeds_file()
    if not any(d.compute or d.copies for d in report.devices):
        raise OutputError("No device could be measured, so there are no speeds to keep.", "Solve the problems first.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    write_json(path, plain(Kept(SCHEMA, report.quick, report.devices)))
    return path


def known_speeds(path: Path | None = None) -> tuple[Device, ...] | None:
    """The devices of this machine as they were measured last; the CPU is the last one.

    Returns:
        Of each device `compute` (TFLOP/s by dtype) and `copies` (GB/s), or None of either where that failed. None
        altogether where nothing was kept, or something of another version, or of other devices.
    """
    try:
        kept: Kept = from_plain(Kept, json.loads((path or speeds_file()).read_text(encoding="utf-8")))
    except (OSError, ValueError, LiveAvatarError):
        return None
    from .devices import identities

    stored = tuple((d.id, d.name, d.total if d.is_gpu else None) for d in kept.devices)
    return kept.devices if kept.schema == SCHEMA and stored == identities() else None


def write_json(path: Path, data: object) -> None:
    """Write or replace a file in one step; a device is written through.

    Raises:
        OutputError: as `write_file`; an older one is still there.
    """
    write_file(path, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode(), "The report")


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written ({error.strerror or error}).", "Choose a place that exists and has room."
    )
