"""The child's side of the examination: runs one probe after another and answers with plain data."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from .child import answer
from .plain import plain

PROBES = {
    "host": "host",
    "versions": "host",
    "disks": "host",
    "model": "host",
    "accelerators": "devices",
    "copies": "devices",
    "compute": "devices",
    "peers": "devices",
    "network": "network",
    "handshake": "network",
}
"""The module of each probe, loaded when it is asked for: only some need PyTorch."""


def main() -> None:
    """Answer until nobody asks any more: ["probe", arguments...] -> {"found": ...} or {"error": "one line"}."""
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer({"found": plain(find(name, *arguments))})
        except Exception as error:
            answer({"error": in_one_line(error)})


def find(name: str, *arguments: Any) -> Any:
    """What a probe finds."""
    module = importlib.import_module(f".{PROBES[name]}", __package__)
    return getattr(module, name)(*arguments)


def in_one_line(error: BaseException) -> str:
    """An exception for people: what is wrong, of this library's own; else its kind, too."""
    own = getattr(error, "what", "")
    return " ".join(str(own or f"{type(error).__name__}: {error}").split())[:300].rstrip(": ")
