"""Talks over aiohttp: the server of `liveavatar live`, and the two handlers that every other server of talks needs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..pipeline import LiveAvatarPipeline
from ..request import Request
from ..speakers import GivenMask, OpenedMask, open_masks
from .connection import Connection
from .contract import MAX_PICTURE
from .outputs import Outputs
from .room import IDLE_SECONDS, Room, WaitingRoom
from .scene import Scene

if TYPE_CHECKING:
    from aiohttp import web

_PAGE = Path(__file__).with_name("page")
_FILES = {
    "index.html": "text/html",
    "live.js": "text/javascript",
    "client.js": "text/javascript",
    "player.js": "text/javascript",
    "peer.js": "text/javascript",
    "words.js": "text/javascript",
    "microphone.js": "text/javascript",
    "live.css": "text/css",
}


async def serve_socket(request: web.Request, room: Room, origins: tuple[str, ...] = ()) -> web.StreamResponse:
    """The WebSocket of a room's clients.

    Args:
        request: only pages of this server may ask, and programs, which send no origin.
        room: where their talk is.
        origins: pages that may connect, too, such as "https://example.org"; "*" is any.
    """
    from aiohttp import web

    origin = request.headers.get("Origin")
    own = origin is None or origin.partition("://")[2] == request.host
    if not own and origin not in origins and "*" not in origins:
        raise web.HTTPForbidden(text="This page may not talk to the live server: --origin allows another.")
    socket = web.WebSocketResponse(max_msg_size=MAX_PICTURE, heartbeat=10.0)
    await socket.prepare(request)
    await Connection(room, socket).serve()
    return socket


def page_file(name: str) -> web.Response:
    """A file of the page, or of those that share its scripts."""
    from aiohttp import web

    if name not in _FILES:
        raise web.HTTPNotFound
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    text = (_PAGE / name).read_text(encoding="utf-8")
    return web.Response(text=text, content_type=_FILES[name], headers=headers)


class LiveServer:
    """Serves one page and its talks, with one pipeline.

    Args:
        pipeline, request, token, idle_seconds, outputs: see `WaitingRoom`.
        image, speakers: portrait where a client sends none, and masks of several speakers in it (see `LiveSession`).
        origins: pages that may connect besides the server's own, such as "https://example.org".

    Raises:
        SpeakerError: a mask that cannot be used.
    """

    def __init__(
        self,
        pipeline: LiveAvatarPipeline,
        image: np.ndarray,
        request: Request,
        token: str = "",
        origins: tuple[str, ...] = (),
        idle_seconds: float = IDLE_SECONDS,
        outputs: Outputs | None = None,
        speakers: Sequence[GivenMask | OpenedMask] = (),
    ):
        scene = Scene(image, open_masks(speakers))
        self.room, self.origins = WaitingRoom(pipeline, scene, request, token, idle_seconds, outputs), origins

    @property
    def token(self) -> str:
        """That a client has to know."""
        return self.room.token

    def application(self) -> web.Application:
        """The aiohttp application."""
        from aiohttp import web

        app = web.Application()
        app.router.add_get("/", self._page)
        app.router.add_get("/live", self._socket)
        app.router.add_get("/{name}", self._file)
        app.on_shutdown.append(self._shut_down)
        return app

    async def _shut_down(self, _: web.Application) -> None:
        if self.room.talk is not None:
            await asyncio.to_thread(self.room.talk.close)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return page_file("index.html")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        return page_file(request.match_info["name"])

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        return await serve_socket(request, self.room, self.origins)
