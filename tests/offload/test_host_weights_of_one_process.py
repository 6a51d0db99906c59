"""Where processes cannot share what lives on the host, each has its own, and works."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from offload.sharer import STORAGES, Sharer, digest

from liveavatar.offload import host_weights

LAYERS = STORAGES["layers"]

Hindrance = Callable[[pytest.MonkeyPatch, Path], Any]
"""What it gives is kept."""


def without_memory(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As on Windows and macOS."""
    monkeypatch.delattr(os, "memfd_create", raising=False)


def refused_memory(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refuse, raising=False)


def open_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def no_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    folder.touch()


def long_wait(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def late(*_: Any) -> bool:
        return False

    monkeypatch.setattr(host_weights, "LOCK_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(host_weights, "_lock", late)


def full_disk(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(host_weights.SharedMemoryFile, "_append", refuse)


def hidden_processes(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Sharer:
    def refuse(*_: Any) -> Any:
        raise PermissionError("not yours")

    first = Sharer(folder)
    first.net(LAYERS)
    monkeypatch.setattr(host_weights.SharedMemory, "attach", refuse)
    return first


@pytest.mark.parametrize(
    "hindrance", [without_memory, refused_memory, open_folder, no_folder, long_wait, full_disk, hidden_processes]
)
def test_where_nothing_can_be_shared_everyone_has_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hindrance: Hindrance
) -> None:
    folder = tmp_path / "weights"
    kept = hindrance(monkeypatch, folder)
    there = [Sharer(folder), Sharer(folder)]
    for here in there:
        assert digest(here.net(LAYERS)) == digest(Sharer(None).net(LAYERS))
        assert here.travelled(LAYERS) and here.nets.shared_bytes == {}
    assert kept is None or len(kept.nets.shared_bytes) == 1
