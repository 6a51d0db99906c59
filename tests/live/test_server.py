"""The server keeps its contract with clients that speak, leave, come back, flood it or talk nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from live.conftest import AHEAD_BLOCKS, REQUEST

from liveavatar import LiveAvatarPipeline
from liveavatar.live import room as live_room
from liveavatar.live.audio_feed import BLOCK_SECONDS
from liveavatar.live.pace import LOOKAHEAD_SECONDS
from liveavatar.live.server import LiveServer

aiohttp = pytest.importorskip("aiohttp", reason="live talk needs the package aiohttp")
web = pytest.importorskip("aiohttp.web")
HELLO = {"type": "hello", "version": 1}
HEARD_MS = 1000 * (BLOCK_SECONDS + LOOKAHEAD_SECONDS)
"""How long the first sample of a block waits for the rest of it and for the look-ahead."""
PICTURE = (Path(__file__).parents[2] / "liveavatar" / "mini" / "assets" / "portrait.png").read_bytes()
SOUND = (3000 * np.sin(np.arange(16_000) / 20)).astype("<i2").tobytes()


class Client:
    """A client that keeps what it is told."""

    def __init__(self, socket: Any):
        self.socket, self.video, self.told = socket, b"", []

    async def send(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            await self.socket.send_str(json.dumps(message))

    async def until(self, kind: str, seconds: float = 60.0) -> dict[str, Any]:
        """The next message of a type; everything before it is kept."""
        async with asyncio.timeout(seconds):
            while True:
                message = await self.socket.receive()
                if message.type == aiohttp.WSMsgType.BINARY:
                    self.video += message.data
                elif message.type == aiohttp.WSMsgType.TEXT:
                    self.told.append(found := json.loads(message.data))
                    if found["type"] == kind:
                        return found
                else:
                    raise ConnectionError(f"closed while waiting for {kind}: {self.told[-3:]}")

    async def stats(self, found: Callable[[dict[str, Any]], Any], seconds: float = 60.0) -> dict[str, Any]:
        """The first stats like that."""
        async with asyncio.timeout(seconds):
            while not found(stats := await self.until("stats")):
                pass
        return stats

    async def frames(self, count: int) -> None:
        """Wait until so many frames have come."""
        while self.seen < count:
            await self.until("stats")

    @property
    def loudest(self) -> float:
        """Of the sound that has come."""
        with av.open(io.BytesIO(self.video)) as container:
            return max(float(np.abs(frame.to_ndarray()).max()) for frame in container.decode(audio=0))

    @property
    def seen(self) -> int:
        if not self.video:
            return 0
        with av.open(io.BytesIO(self.video)) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))


@contextlib.asynccontextmanager
async def serving(
    pipeline: LiveAvatarPipeline, image: np.ndarray, **options: Any
) -> AsyncIterator[tuple[LiveServer, str]]:
    server = LiveServer(pipeline, image, REQUEST, **options)
    runner = web.AppRunner(server.application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield server, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
    assert server.room.talk is None or not server.room.talk._thread.is_alive()


Scenario = Callable[[LiveServer, str, "aiohttp.ClientSession"], Awaitable[None]]


@pytest.fixture
def play(pipeline: LiveAvatarPipeline, image: np.ndarray) -> Callable[..., None]:
    """Plays a scenario against a server of its own."""

    def run(scenario: Scenario, **options: Any) -> None:
        async def whole() -> None:
            async with serving(pipeline, image, **options) as (server, url), aiohttp.ClientSession() as http:
                await scenario(server, url, http)

        asyncio.run(whole())

    return run


async def greeted(http: Any, url: str, **hello: Any) -> Client:
    client = Client(await http.ws_connect(f"{url}/live"))
    await client.send(HELLO | hello)
    await client.until("ready")
    return client


def test_the_latency_that_is_known_is_told(play: Callable[..., None]) -> None:
    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        first = await greeted(http, url)
        assert first.told[-1]["latency_ms"] is None, "nothing is known before a talk"
        await first.send({"type": "start"})
        while not (await first.until("stats"))["lag_ms"]:
            pass
        assert (await greeted(http, url)).told[-1]["latency_ms"] >= HEARD_MS

    play(scenario)


def test_what_is_said_comes_back_as_video(play: Callable[..., None]) -> None:
    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        client = await greeted(http, url)
        await client.send({"type": "portrait"})
        await client.socket.send_bytes(PICTURE)
        await client.send({"type": "start", "prompt": "A person laughs."})
        started = await client.until("started")
        assert (started["width"], started["height"]) == (64, 64)
        await client.send({"type": "audio", "rate": 16_000, "encoding": "s16le"})
        await client.socket.send_bytes(SOUND)
        await client.send({"type": "end_of_speech"})
        await client.frames(36)
        stats = client.told[-1]
        assert stats["block"] >= 3
        assert stats["lag_ms"] > HEARD_MS
        while client.loudest < 0.05:
            await client.until("stats")
        await client.send({"type": "bye"})

    play(scenario)


def test_pages_and_nothing_else_are_served(play: Callable[..., None]) -> None:
    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        for name in ("", "live.js", "client.js", "player.js", "peer.js", "words.js", "microphone.js", "live.css"):
            async with http.get(f"{url}/{name}") as answer:
                assert answer.status == 200
                assert await answer.text()
        for name in ("server.py", "%2e%2e/server.py", "..%2fserver.py", "etc/passwd"):
            async with http.get(f"{url}/{name}") as answer:
                assert answer.status == 404

    play(scenario)


def test_a_wrong_token_an_older_version_and_a_foreign_page_are_refused(play: Callable[..., None]) -> None:
    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        client = Client(await http.ws_connect(f"{url}/live"))
        await client.send(HELLO | {"token": "wrong"})
        assert "token" in (await client.until("error"))["what"]
        with pytest.raises(ConnectionError):
            await client.until("ready")
        client = Client(await http.ws_connect(f"{url}/live"))
        await client.send({"type": "start"})
        assert "hello" in (await client.until("error"))["what"]
        await client.send({"type": "hello", "version": 99})
        assert "version 1" in (await client.until("error"))["nearest"]
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await http.ws_connect(f"{url}/live", origin="https://elsewhere.example")
        assert caught.value.status == 403
        async with http.ws_connect(f"{url}/live", origin=url):
            pass
        await greeted(http, url, token="right")

    play(scenario, token="right")


def test_nonsense_is_answered_and_the_talk_goes_on(play: Callable[..., None]) -> None:
    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        client = await greeted(http, url)
        await client.socket.send_bytes(SOUND)
        assert "format" in (await client.until("error"))["what"]
        await client.send({"type": "interrupt"})
        assert "no talk" in (await client.until("error"))["what"]
        await client.send({"type": "start", "size": "1x1"})
        assert (await client.until("error"))["code"] == "SizeError"
        await client.send({"type": "portrait"})
        await client.socket.send_bytes(b"no picture")
        assert (await client.until("error"))["code"] == "ImageError"
        await client.send({"type": "start"})
        await client.until("started")
        for text in ("{", "[]", '{"type": "dance"}', '{"type": "say"}'):
            await client.socket.send_str(text)
            await client.until("error")
        await client.send({"type": "audio", "rate": 16_000, "encoding": "s16le"})
        for _ in range(40):
            await client.socket.send_bytes(SOUND)
        assert "wait already" in (await client.until("error"))["what"]
        await client.send({"type": "interrupt"}, {"type": "prompt", "text": "A person is sad."})
        await client.frames(24)

    play(scenario)


async def send_picture(client: Client, values: np.ndarray, **announcement: Any) -> None:
    """Send a picture behind the message that announces it."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(values).save(file, "png")
    await client.send(announcement)
    await client.socket.send_bytes(file.getvalue())


def test_two_speakers_by_areas_speak_and_are_interrupted_alone(play: Callable[..., None]) -> None:
    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        client = await greeted(http, url)
        assert client.told[-1]["speakers"] == 1
        await client.send({"type": "start", "areas": ["left", "right"]})
        assert (await client.until("started"))["speakers"] == 2
        for speaker in (1, 2):
            await client.send({"type": "audio", "rate": 16_000, "encoding": "s16le", "speaker": speaker})
            for _ in range(10 * speaker):
                await client.socket.send_bytes(SOUND)
        await client.send({"type": "interrupt", "speaker": 2})
        stats = await client.stats(lambda stats: stats["speakers"][1]["state"] == "interrupted")
        first, second = stats["speakers"]
        assert first["state"] == "speaking" and first["queued_s"] > second["queued_s"] == 0
        await client.send({"type": "end_of_speech", "speaker": 1}, {"type": "interrupt"})
        for _ in range(31):
            await client.socket.send_bytes(SOUND)
        assert "wait already" in (await client.until("error"))["what"], "of one alone"
        await client.send({"type": "audio", "rate": 16_000, "encoding": "s16le", "speaker": 3})
        await client.socket.send_bytes(SOUND)
        assert "no speaker 3" in (await client.until("error"))["what"]

    play(scenario)


def test_masks_are_pictures_and_only_those_of_all_speakers_do(play: Callable[..., None], image: np.ndarray) -> None:
    left = np.zeros((64, 64), np.uint8)
    left[:, :28] = 255

    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        client = await greeted(http, url)
        await send_picture(client, image, type="portrait")
        await send_picture(client, left, type="mask", speaker=1)
        for start, said in (
            ({"speakers": 2}, "Speaker 2 of 2 has no mask"),
            ({"speakers": 0}, "start.speakers is 0"),
            ({"areas": ["left", "left"]}, "overlap"),
            ({"areas": ["left"], "speakers": 2}, "start.areas is of one speaker"),
        ):
            await client.send({"type": "start"} | start)
            assert said in (await client.until("error"))["what"]
        await send_picture(client, 0 * left, type="mask", speaker=2)
        assert "empty" in (await client.until("error"))["what"]
        await send_picture(client, left, type="mask", speaker=9)
        assert "mask.speaker is 9" in (await client.until("error"))["what"]
        await send_picture(client, left[:, ::-1], type="mask", speaker=2)
        await client.send({"type": "start"})
        assert (await client.until("started"))["speakers"] == 2
        assert [report.share for report in server.room.talk.session.speaker_reports] == [0.5, 0.5]
        await send_picture(client, left, type="mask", speaker=1)
        assert "keeps its masks" in (await client.until("error"))["what"]

    play(scenario)


def test_a_client_that_knows_of_one_speaker_is_the_first_of_two(play: Callable[..., None], image: np.ndarray) -> None:
    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        client = await greeted(http, url)
        assert client.told[-1]["speakers"] == 2
        await client.send({"type": "start"}, {"type": "audio", "rate": 16_000, "encoding": "s16le"})
        assert (await client.until("started"))["speakers"] == 2
        for _ in range(20):
            await client.socket.send_bytes(SOUND)
        stats = await client.stats(lambda stats: stats["speakers"][0]["state"] == "speaking")
        assert stats["speakers"][1]["state"] == "idle"
        await client.send({"type": "interrupt"}, {"type": "bye"})
        with contextlib.suppress(ConnectionError):
            await client.until("bye")
        alone = await greeted(http, url)
        await send_picture(alone, image, type="portrait")
        await alone.send({"type": "start"})
        assert (await alone.until("started"))["speakers"] == 1, "the masks are not of this portrait"

    play(scenario, speakers=["left", "right"])


def test_a_client_that_comes_back_goes_on(play: Callable[..., None]) -> None:
    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        client = await greeted(http, url)
        await client.send({"type": "start"})
        resume = (await client.until("started"))["resume"]
        await client.frames(12)
        talk = server.room.talk
        await client.socket.close()
        again = Client(await http.ws_connect(f"{url}/live"))
        await again.send(HELLO | {"resume": resume})
        assert (await again.until("ready"))["resumed"]
        await again.until("started")
        await again.frames(12)
        assert server.room.talk is talk
        await again.send({"type": "bye"})

    play(scenario)


def test_a_client_that_does_not_come_back_makes_room(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_room, "RESUME_SECONDS", 0.2)

    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        first, second = await greeted(http, url), await greeted(http, url)
        await first.send({"type": "start"})
        await first.until("started")
        await second.send({"type": "start"})
        assert (await second.until("waiting"))["ahead"] == 1
        await first.socket.close()
        await second.until("started")
        await second.frames(12)

    play(scenario)


def test_a_client_that_leaves_while_it_waits_or_loads_leaves_nothing(play: Callable[..., None]) -> None:
    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        loading, waiting, last = [await greeted(http, url) for _ in range(3)]
        await loading.send({"type": "start"})
        await waiting.send({"type": "start"})
        await asyncio.sleep(0.05)
        await loading.socket.close()
        await waiting.socket.close()
        await last.send({"type": "start"})
        await last.until("started")
        await last.send({"type": "bye"})
        with contextlib.suppress(ConnectionError):
            await last.until("bye")

    play(scenario)


def test_pause_stands_still_and_resume_goes_on(play: Callable[..., None]) -> None:
    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        client = await greeted(http, url)
        await client.send({"type": "start"})
        await client.until("started")
        await client.frames(12)
        await client.send({"type": "pause"})
        paused = await client.stats(lambda stats: stats["state"] == "paused")
        made = [paused["block"], *[(await client.until("stats"))["block"] for _ in range(5)]]
        assert made[-1] <= made[0] + AHEAD_BLOCKS, "those that were under way"
        await client.send({"type": "resume"})
        await client.stats(lambda stats: stats["block"] > made[0] + AHEAD_BLOCKS)

    play(scenario)


def test_an_unused_talk_ends(play: Callable[..., None]) -> None:
    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        client = await greeted(http, url)
        await client.send({"type": "start"})
        await client.until("started")
        with pytest.raises(ConnectionError):
            await client.until("never")
        async with asyncio.timeout(60):
            while server.room.talk is not None:
                await asyncio.sleep(0.05)

    play(scenario, idle_seconds=0.5)
