"""What the workers of one machine have together: the layers that live in its memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ....memory.notice import clear
from ....memory.stock import Stock
from ..cluster import service
from ..plain import PlainModel

_NAME = "weights"
_READ = ("transformer", "config", "lora")
"""Files of a model that the network's weights come from."""


def stock_of(model: PlainModel, log: Path) -> Stock:
    """For a worker's weights of a model, shared with the other workers on its machine.

    Args:
        model: as it is now: what was made of its files is not shared when they have changed.
        log: of the worker.
    """
    return Stock(folder_of(log), repr((model, tuple(_state(model)))))


def folder_of(log: Path) -> Path:
    """Where workers tell each other what they have read; it goes with Ray, or with the folder of their caller.

    Where that is on another machine, a worker's log is in a folder of its own, and the one of all is of Ray's node.
    """
    if service.driver_of(log.parent) == os.getpid():
        return service.short_folder() / f"la-{os.getppid()}-{_NAME}"
    return log.parent / _NAME


def leave(log: Path) -> None:
    """Remove the folder of all, unless others are in it yet."""
    with contextlib.suppress(OSError):
        clear(folder_of(log))


def _state(model: PlainModel) -> Iterator[tuple[str, int, int, int]]:
    """What changes with the files that weights come from."""
    for part, named in model[1]:
        if part not in _READ or named is None:
            continue
        path = Path(named)
        for file in (path, *sorted(path.parent.glob("*.safetensors"))) if path.suffix == ".json" else (path,):
            with contextlib.suppress(OSError):  # opening the model will say what is wrong
                found = file.stat()
                yield str(file), found.st_ino, found.st_size, found.st_mtime_ns
