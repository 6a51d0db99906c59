"""A talk inside another program: one invited page, in the host's own server, and everything given back at the end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from live.test_server import Client

from liveavatar.live import hosted as live_hosted
from liveavatar.live.hosted import HostedRoom
from liveavatar.live.session import LiveSession
from liveavatar.live.talk import Talk

aiohttp = pytest.importorskip("aiohttp", reason="live talk needs the package aiohttp")
web = pytest.importorskip("aiohttp.web")
from liveavatar.live.server import serve_socket  # noqa: E402

SECONDS = 60.0
"""Far more than anything here needs."""


async def settled() -> None:
    """Wait for all that is under way."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Of the host's server, in its own thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    asyncio.run_coroutine_threadsafe(settled(), loop).result(SECONDS)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@contextlib.asynccontextmanager
async def joined(room: HostedRoom, token: str | None = None, **headers: str) -> AsyncIterator[Client]:
    """A page of the host that has said hello."""
    app = web.Application()
    app.router.add_get("/talk", lambda request: serve_socket(request, room, ("https://allowed.example",)))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession() as http:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/talk"
            client = Client(await http.ws_connect(url, headers=headers))
            await client.send({"type": "hello", "version": 1, "token": room.token if token is None else token})
            yield client
            await client.socket.close()
    finally:
        await runner.cleanup()


def hosted(loop: asyncio.AbstractEventLoop, needs_page: bool = True) -> HostedRoom:
    return HostedRoom("tiny", loop, {"source": "microphone"}, needs_page)


def begin(room: HostedRoom, session: LiveSession) -> None:
    room.begin(lambda on_end: Talk(session, on_end))


def played(loop: asyncio.AbstractEventLoop, page: Any) -> Any:
    return asyncio.run_coroutine_threadsafe(page, loop)


def test_an_invited_page_waits_watches_and_stops_it(loop: Any, open_session: Callable[..., LiveSession]) -> None:
    room, refused = hosted(loop), threading.Event()

    async def page() -> None:
        async with joined(room) as client:
            assert (await client.until("ready"))["source"] == "microphone"
            await client.send({"type": "start"})
            assert "graph" in (await client.until("error"))["what"]
            refused.set()
            assert (await client.until("started"))["width"] == 64
            await client.frames(12)
            await client.send({"type": "bye"})

    watching = played(loop, page())
    assert refused.wait(SECONDS) and room.answered.is_set()
    begin(room, open_session())
    assert room.over.wait(SECONDS)
    watching.result(SECONDS)
    assert room.stopped.is_set() and room.error is None and room.talk is None
    room.close()


def test_a_page_with_another_token_learns_nothing_and_stops_nothing(loop: Any) -> None:
    room = hosted(loop)

    async def page() -> None:
        async with joined(room, "guess") as client:
            assert "token" in (await client.until("error"))["what"]
        with pytest.raises(aiohttp.WSServerHandshakeError):
            async with joined(room, Origin="https://elsewhere.example"):
                pass
        async with joined(room, Origin="https://allowed.example") as client:
            await client.until("ready")

    played(loop, page()).result(SECONDS)
    assert not room.stopped.is_set()


def test_a_page_that_is_reloaded_takes_the_place_of_the_one_before(
    loop: Any, open_session: Callable[..., LiveSession]
) -> None:
    room = hosted(loop)

    async def pages() -> None:
        async with joined(room) as first:
            await first.until("started")
            async with joined(room) as second:
                await second.until("started")
                await first.until("bye")
                with pytest.raises(ConnectionError):
                    await first.until("never")
                await second.frames(12)

    watching = played(loop, pages())
    assert room.answered.wait(SECONDS)
    begin(room, open_session())
    watching.result(SECONDS)
    room.close()
    assert room.over.is_set() and not room.stopped.is_set()


@pytest.mark.parametrize("needs_page", [True, False])
def test_a_talk_without_its_page_ends_where_it_needs_one(
    loop: Any, open_session: Callable[..., LiveSession], monkeypatch: pytest.MonkeyPatch, needs_page: bool
) -> None:
    monkeypatch.setattr(live_hosted, "PAGE_SECONDS", 0.2)
    room = hosted(loop, needs_page)
    session = open_session()
    begin(room, session)
    blocks = session.stats.block
    if needs_page:
        assert room.over.wait(SECONDS)
    else:
        until = time.monotonic() + 30
        while session.stats.block < blocks + 3 and time.monotonic() < until:
            time.sleep(0.05)
        assert not room.over.is_set()
    room.close()
    assert room.over.is_set()


def test_the_host_ends_it_at_any_moment_and_the_page_is_let_go(
    loop: Any, open_session: Callable[..., LiveSession]
) -> None:
    for begun in (False, True):
        room = hosted(loop)

        async def page(room: HostedRoom = room) -> None:
            async with joined(room) as client:
                await client.until("bye")
                with pytest.raises(ConnectionError):
                    await client.until("never")

        watching = played(loop, page())
        assert room.answered.wait(SECONDS)
        if begun:
            begin(room, open_session())
        room.close()
        watching.result(SECONDS)
