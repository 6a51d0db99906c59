"""A talk sent by WHIP arrives as picture and sound; a server that says no is told, one that hangs up tried again."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from live.test_network import block, sending
from live.test_webrtc import Viewer, loudest

aiortc = pytest.importorskip("aiortc", reason="WHIP needs the extra live: the package aiortc")
web = pytest.importorskip("aiohttp.web", reason="WHIP needs the package aiohttp")
TOKEN = "a-secret-key"


def brightest(frames: list[Any]) -> float:
    return max((float(frame.to_ndarray(format="gray").mean()) for frame in frames), default=0.0)


class Server:
    """Takes offers from whoever has the token."""

    def __init__(self) -> None:
        self.viewers: list[Viewer] = []
        self.deleted = 0

    async def offered(self, request: Any) -> Any:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise web.HTTPUnauthorized
        viewer = Viewer(transceivers=False)
        await viewer.connection.setRemoteDescription(aiortc.RTCSessionDescription(await request.text(), "offer"))
        await viewer.connection.setLocalDescription(await viewer.connection.createAnswer())
        self.viewers.append(viewer)
        text = viewer.connection.localDescription.sdp
        return web.Response(status=201, text=text, headers={"Location": "/resource", "Content-Type": "application/sdp"})

    async def left(self, request: Any) -> Any:
        self.deleted += 1
        return web.Response()


def serve(scenario: Callable[[Server, str], Awaitable[None]], context: ssl.SSLContext | None = None) -> None:
    async def whole() -> None:
        server, app = Server(), web.Application()
        app.router.add_post("/whip", server.offered)
        app.router.add_delete("/resource", server.left)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        try:
            await scenario(server, f"127.0.0.1:{runner.addresses[0][1]}/whip")
            for viewer in server.viewers:
                await viewer.close()
        finally:
            await runner.cleanup()

    asyncio.run(whole())


async def put_until(output: Any, enough: Callable[[], Any], seconds: float = 60.0) -> None:
    number = 0
    async with asyncio.timeout(seconds):
        while not enough():
            for piece in block(number):
                output.put(piece)
            number += 1
            await asyncio.sleep(0.48)


def test_picture_and_sound_arrive_and_come_back_after_the_server_hung_up() -> None:
    async def scenario(server: Server, address: str) -> None:
        with sending(f"whip+http://:{TOKEN}@{address}") as (output, told):
            await put_until(output, lambda: server.viewers and len(server.viewers[0].received["video"]) > 24)
            first = server.viewers[0].received
            await put_until(output, lambda: loudest(first["audio"]) > 1000 and brightest(first["video"]) > 180)
            await server.viewers[0].close()
            await put_until(output, lambda: len(server.viewers) > 1 and server.viewers[1].received["video"])
            assert [status.state for status in told].count("lost") >= 1
            await asyncio.to_thread(output.close)
        assert server.deleted == len(server.viewers)

    serve(scenario)


def test_a_server_that_says_no_is_told() -> None:
    async def scenario(server: Server, address: str) -> None:
        with sending(f"whip+http://wrong@{address}") as (output, _):
            await put_until(output, lambda: output.status.state == "lost")
            assert "it answered 401 Unauthorized" in output.status.what
            await asyncio.to_thread(output.close)

    serve(scenario)
