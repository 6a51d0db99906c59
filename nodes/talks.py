"""The talks that running nodes have open, and the routes by which the page that queued the graph joins them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..liveavatar.live.hosted import HostedRoom

SOCKET_ROUTE = "/liveavatar/live/talks/{prompt}/{node}"
PAGE_ROUTE = "/liveavatar/live/page/{name}"
"""Scripts that the panel shares with the page of `liveavatar live`."""

_rooms: dict[tuple[str, str], HostedRoom] = {}
"""By the prompt and the node that is executed."""


@contextlib.contextmanager
def opened(room: HostedRoom, prompt: str, node: str) -> Iterator[None]:
    """Pages may join a room while inside; afterwards its talk is over."""
    _rooms[prompt, node] = room
    try:
        yield
    finally:
        _rooms.pop((prompt, node), None)
        room.close()


def room_of(prompt: str, node: str) -> HostedRoom | None:
    """The room of a node that talks now."""
    return _rooms.get((prompt, node))


def register(routes: Any, origins: tuple[str, ...] = ()) -> None:
    """Add the routes to those of ComfyUI's server.

    Args:
        origins: other pages that the server allows.
    """
    from aiohttp import web

    from ..liveavatar.live.server import page_file, serve_socket

    @routes.get(SOCKET_ROUTE)
    async def join(request: web.Request) -> web.StreamResponse:
        room = room_of(request.match_info["prompt"], request.match_info["node"])
        if room is None:
            raise web.HTTPNotFound(text="This talk is over.")
        return await serve_socket(request, room, origins)

    @routes.get(PAGE_ROUTE)
    async def page(request: web.Request) -> web.StreamResponse:
        return page_file(request.match_info["name"])
