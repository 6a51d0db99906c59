"""A hundred talks on one server, one after the other: each is as the first, and nothing of them is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live.test_server import PICTURE, SOUND, Client, greeted, play  # noqa: F401

from liveavatar.distributed.registry import resident_bytes
from liveavatar.live import room as live_room
from liveavatar.live.server import LiveServer

pytestmark = pytest.mark.slow
TALKS, SETTLED, LOOKS = 100, 60, 10
"""Memory is looked at behind the first talks, which fill the caches of every thread, and behind the last ones: the
least of several looks, because it comes and goes by some megabytes."""
MOST_GROWTH = 16 << 20
"""Bytes; a session that stayed would be more than that by itself within ten talks."""


def left_behind(folder: Path) -> dict[str, Any]:
    """What a talk must not leave."""
    gc.collect()
    return {
        "threads": sorted(thread.name for thread in threading.enumerate() if "live" in thread.name),
        "tasks": len(asyncio.all_tasks()),
        "files": sorted(str(path) for path in folder.rglob("*")),
    }


def open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


async def talk(number: int, http: Any, url: str) -> None:
    """One of a kind that changes: said good-bye, vanished, broken off while it loads, with a portrait, interrupted."""
    client = await greeted(http, url)
    if number % 5 == 1:
        await client.send({"type": "portrait"})
        await client.socket.send_bytes(PICTURE)
    await client.send({"type": "start", "seed": number})
    if number % 10 == 7:
        await client.socket.close()
        return
    await client.until("started")
    await client.send({"type": "audio", "rate": 16_000, "encoding": "s16le"})
    await client.socket.send_bytes(SOUND)
    if number % 5 == 2:
        await client.send({"type": "prompt", "text": f"A person counts to {number}."}, {"type": "interrupt"})
    while not client.video:
        await client.until("stats")
    if number % 5 == 3:
        await client.socket.close()
        return
    await client.send({"type": "bye"})
    with pytest.raises(ConnectionError):
        await client.until("never")


async def empty(server: LiveServer) -> None:
    """Wait until nobody is there."""
    async with asyncio.timeout(30):
        while server.room.talk is not None or server.room.watcher is not None:
            await asyncio.sleep(0.01)


def test_a_hundred_talks_leave_nothing_behind(
    play: Callable[..., None],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(live_room, "RESUME_SECONDS", 0.05)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        before, memory, files = left_behind(tmp_path), [], 0
        for number in range(TALKS):
            await talk(number, http, url)
            await empty(server)
            memory.append(resident_bytes(os.getpid()) or 0)
            if number == SETTLED:
                files = open_files()
        for _ in range(100):
            if left_behind(tmp_path) == before:
                break
            await asyncio.sleep(0.05)
        assert left_behind(tmp_path) == before
        assert open_files() <= files
        assert min(memory[-LOOKS:]) - min(memory[SETTLED:][:LOOKS]) < MOST_GROWTH
        last = await greeted(http, url)
        await last.send({"type": "start"})
        await last.until("started")

    play(scenario)
