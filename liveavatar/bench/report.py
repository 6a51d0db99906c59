"""Measurements as files that can be compared later."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..files import is_stream, path_of, refuse_foreign_json, write_file
from ..receipt import json_ready, versions


def check_report(path: Path) -> None:
    """Refuse a file that could not be written, before anything is measured.

    Raises:
        OutputError: no such folder, or not writable; what is there is no report.
    """
    path = path_of(path, "The report")
    if not is_stream(path) and not os.access(path.absolute().parent, os.W_OK):
        raise OutputError(f"The report {path} cannot be written.", "Name a file in a folder that is there.")
    refuse_foreign_json(path, "The report", lambda content: content.keys() >= {"bench", "found"})


def write_report(path: Path, bench: str, given: Mapping[str, Any], found: Any) -> None:
    """Write a measurement as JSON, with what it depends on.

    Args:
        path: of the file; an older one is replaced.
        bench: what was measured, a word.
        given: settings that `found` does not name.
        found: a dataclass of the numbers.

    Raises:
        OutputError: it cannot be written.
    """
    known = {
        "bench": bench,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "versions": versions() | _ray(),
        **given,
        "found": found,
    }
    write_file(path, (json.dumps(json_ready(known), indent=2, ensure_ascii=False) + "\n").encode(), "The report")


def _ray() -> dict[str, str]:
    try:
        return {"ray": importlib.metadata.version("ray")}
    except importlib.metadata.PackageNotFoundError:
        return {}
