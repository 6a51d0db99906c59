"""A viewer over WebRTC sees and hears the talk; where it cannot, the fragments go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from live.pieces import pieces_of
from live.test_server import SOUND, Client, greeted, play  # noqa: F401

from liveavatar.live import webrtc
from liveavatar.live.block import LiveBlock
from liveavatar.live.server import LiveServer

aiortc = pytest.importorskip("aiortc", reason="WebRTC needs the extra live: the package aiortc")


class Viewer:
    """A peer that wants to receive, and counts what comes."""

    def __init__(self, transceivers: bool = True) -> None:
        self.connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self.received: dict[str, list[Any]] = {"video": [], "audio": []}
        self.tasks: list[asyncio.Task[None]] = []
        for kind in self.received if transceivers else ():
            self.connection.addTransceiver(kind, direction="recvonly")
        self.connection.on("track", lambda track: self.tasks.append(asyncio.ensure_future(self.read(track))))

    async def read(self, track: Any) -> None:
        while True:
            try:
                self.received[track.kind].append(await track.recv())
            except aiortc.mediastreams.MediaStreamError:
                return

    async def offer(self) -> str:
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return str(self.connection.localDescription.sdp)

    async def take(self, answer: str) -> None:
        await self.connection.setRemoteDescription(aiortc.RTCSessionDescription(answer, "answer"))

    async def until(self, enough: Callable[[], Any], seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds):
            while not enough():
                await asyncio.sleep(0.05)

    async def close(self) -> None:
        await self.connection.close()
        await asyncio.gather(*self.tasks)


def loudest(frames: list[Any]) -> float:
    return max((float(np.abs(frame.to_ndarray()).max()) for frame in frames), default=0.0)


def test_picture_and_sound_come_as_tracks_and_the_fragments_pause(play: Callable[..., None]) -> None:  # noqa: F811
    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        client, viewer = await greeted(http, url), Viewer()
        assert client.told[0]["webrtc"] is True
        await client.send({"type": "start"})
        await client.until("started")
        await client.send({"type": "offer", "sdp": await viewer.offer()})
        await viewer.take((await client.until("answer"))["sdp"])
        await viewer.until(lambda: viewer.received["video"])
        await client.until("stats")
        before = len(client.video)
        await client.send({"type": "audio", "rate": 16_000, "encoding": "s16le"})
        await client.socket.send_bytes(SOUND)
        await client.send({"type": "end_of_speech"})
        await viewer.until(lambda: loudest(viewer.received["audio"]) > 1000)
        await viewer.until(lambda: len(viewer.received["video"]) > 30)
        frame = viewer.received["video"][-1]
        assert (frame.width, frame.height) == (64, 64)
        await client.stats(lambda stats: stats["playout_ms"] < 1000)
        assert len(client.video) == before, "nothing is sent twice"
        await client.send({"type": "hang_up"})
        client.video = b""
        await client.frames(12)
        await viewer.close()
        await client.send({"type": "bye"})

    play(scenario)


def test_an_offer_that_is_none_is_answered_and_the_talk_goes_on(play: Callable[..., None]) -> None:  # noqa: F811
    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        client = await greeted(http, url)
        await client.send({"type": "offer", "sdp": "v=0"})
        assert "no talk" in (await client.until("error"))["what"]
        await client.send({"type": "start"})
        await client.until("started")
        for sdp in ("", "nonsense", "v=0\r\nm=video x y z\r\n"):
            await client.send({"type": "offer", "sdp": sdp})
            assert "offer" in (await client.until("error"))["what"]
        client.video = b""
        await client.frames(12)

    play(scenario)


def test_a_server_without_the_package_says_so(
    play: Callable[..., None],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webrtc, "available", lambda: False)

    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        client = await greeted(http, url)
        assert client.told[0]["webrtc"] is False
        await client.send({"type": "start"})
        await client.until("started")
        await client.send({"type": "offer", "sdp": "v=0"})
        error = await client.until("error")
        assert "aiortc" in error["what"] and "install aiortc" in error["nearest"]

    play(scenario)


def test_many_viewers_one_after_the_other_leave_nothing_behind(play: Callable[..., None]) -> None:  # noqa: F811
    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        client = await greeted(http, url)
        await client.send({"type": "start"})
        await client.until("started")
        for _ in range(3):
            viewer = Viewer()
            await client.send({"type": "offer", "sdp": await viewer.offer()})
            await viewer.take((await client.until("answer"))["sdp"])
            await viewer.until(lambda viewer=viewer: viewer.received["video"])
            await viewer.close()
        tasks = len(asyncio.all_tasks())
        await client.send({"type": "bye"})
        await client.until("bye")
        assert len(asyncio.all_tasks()) <= tasks

    play(scenario)


def test_what_is_sent_is_in_step() -> None:
    """Picture and sound of a block bear times that differ by no sample, whatever the clock does."""

    async def scenario() -> None:
        from liveavatar.live.webrtc_tracks import AudioTrack, VideoTrack

        peer = webrtc.WebRtcPeer(lambda connected: None)
        images = np.zeros((12, 16, 16, 3), np.uint8)
        images[6:] = 255
        sound = np.zeros(23_040, np.float32)
        sound[11_520:] = 0.5
        video, audio = VideoTrack(peer), AudioTrack(peer)
        for piece in pieces_of(LiveBlock(0, images, sound, True, 0.0, 0.0)):
            peer.put(piece)
        lit = loud = None
        while lit is None or loud is None:
            if lit is None and (picture := await video.recv()).to_ndarray(format="gray").mean() > 128:
                lit = picture.time
            if loud is None and np.abs((heard := await audio.recv()).to_ndarray()).max() > 1000:
                loud = heard.time
        assert loud == lit or abs(lit - loud - 0.04) < 1e-9, "a busy machine may leave out one picture"

    asyncio.run(scenario())
