"""A network that is cut for five seconds: the talk goes on, and the client sees it again, over both ways to watch."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from live.cuts import CutDatagrams, CutNetwork
from live.test_server import Client, greeted, play  # noqa: F401

from liveavatar.live.server import LiveServer

pytestmark = pytest.mark.slow
CUT_SECONDS = 5.0


async def blocks_made(server: LiveServer, more: int) -> None:
    """Wait until the talk has gone on for so many blocks."""
    assert server.room.talk is not None
    session = server.room.talk.session
    until = session.stats.block + more
    async with asyncio.timeout(60):
        while session.stats.block < until:
            await asyncio.sleep(0.05)


def test_a_socket_that_stands_still_goes_on_where_it_was(play: Callable[..., None]) -> None:  # noqa: F811
    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        async with CutNetwork(int(url.rpartition(":")[2])).open() as network:
            client = await greeted(http, f"http://127.0.0.1:{network.port}")
            await client.send({"type": "start"})
            await client.until("started")
            await client.frames(12)
            network.cut()
            await blocks_made(server, 3)
            await asyncio.sleep(CUT_SECONDS)
            before = client.seen
            network.mend()
            await client.frames(before + 60)
            assert client.video.count(b"ftyp") == 1, "nothing was left out, and nothing begun anew"
            await client.send({"type": "bye"})

    play(scenario)


def test_a_socket_that_is_lost_comes_back_within_ten_seconds(play: Callable[..., None]) -> None:  # noqa: F811
    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        async with CutNetwork(int(url.rpartition(":")[2])).open() as network:
            client = await greeted(http, f"http://127.0.0.1:{network.port}")
            await client.send({"type": "start"})
            resume = (await client.until("started"))["resume"]
            await client.frames(12)
            talk = server.room.talk
            network.cut()
            await asyncio.sleep(CUT_SECONDS)
            network.drop()
            with pytest.raises(ConnectionError):
                await client.until("never")
            network.mend()
            again = Client(await http.ws_connect(f"http://127.0.0.1:{network.port}/live"))
            await again.send({"type": "hello", "version": 1, "resume": resume})
            assert (await again.until("ready"))["resumed"]
            await again.until("started")
            await again.frames(24)
            assert server.room.talk is talk
            await again.send({"type": "bye"})

    play(scenario)


def test_webrtc_sees_the_talk_again_without_being_called_anew(play: Callable[..., None]) -> None:  # noqa: F811
    pytest.importorskip("aiortc", reason="WebRTC needs the extra live: the package aiortc")
    from live.test_webrtc import Viewer

    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        client, viewer = await greeted(http, url), Viewer()
        await client.send({"type": "start"})
        await client.until("started")
        alone = "\r\n".join(line for line in (await viewer.offer()).splitlines() if "candidate" not in line)
        await client.send({"type": "offer", "sdp": f"{alone}\r\n"})
        answer = (await client.until("answer"))["sdp"]
        place = re.search(r"a=candidate:\S+ 1 udp \d+ (\d+\.\d+\.\d+\.\d+) (\d+) typ host", answer)
        assert place is not None
        network = await CutDatagrams.open((place[1], int(place[2])))
        kept = [line for line in answer.splitlines() if "a=candidate" not in line or place[0] in line]
        only = "\r\n".join(line.replace(f"{place[1]} {place[2]}", f"{place[1]} {network.port}") for line in kept)
        await viewer.take(f"{only}\r\n")
        await viewer.until(lambda: len(viewer.received["video"]) > 12)
        network.is_whole = False
        await asyncio.sleep(1.0)  # what was on its way
        before = {kind: len(frames) for kind, frames in viewer.received.items()}
        await asyncio.sleep(CUT_SECONDS)
        assert {kind: len(frames) for kind, frames in viewer.received.items()} == before
        network.is_whole = True
        await viewer.until(lambda: all(len(viewer.received[kind]) > before[kind] + 30 for kind in before))
        assert server.room.talk is not None and not server.room.talk.paused
        await viewer.close()
        network.close()
        await client.send({"type": "bye"})

    play(scenario)
