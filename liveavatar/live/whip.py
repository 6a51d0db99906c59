"""A talk sent by WHIP: WebRTC whose offer is posted to a web address, which answers it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from urllib.parse import urljoin

import numpy as np

from .audio_feed import BLOCK_SECONDS
from .block import PIECES, LivePiece
from .sender import Refused
from .webrtc import WebRtcPeer

_CONNECT_SECONDS = 8.0
Pieces = Iterator[tuple[np.ndarray, np.ndarray]]
"""Images uint8 [4, H, W, 3] and sound float32 [7680] of each."""


async def send(url: str, options: Mapping[str, str], pieces: Pieces, on_sending: Callable[[], None]) -> None:
    """Send pieces until there are no more.

    Args:
        url: that takes offers.
        options: "authorization", a token, if the server wants one.
        pieces: waited for in a thread.
        on_sending: called when the server has let us in.

    Raises:
        Refused: it has not.
        SSLCertVerificationError: its certificate is not trusted.
        ConnectionResetError: it has gone.
        OSError: it cannot be reached.
    """
    connected, lost = asyncio.Event(), asyncio.Event()
    peer = WebRtcPeer(lambda up: (connected if up else lost).set())
    try:
        async with _posted(url, options, await peer.offer()) as answer:
            await peer.take(answer)
            await _first(connected, lost)
            on_sending()
            number = 0
            while not lost.is_set() and (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                peer.put(LivePiece(*divmod(number, PIECES), *piece, bool(piece[1].any()), 0.0, 0.0))
                number += 1
            if lost.is_set():
                raise ConnectionResetError
            await asyncio.sleep(peer.waiting_seconds + BLOCK_SECONDS)
    finally:
        await peer.close()


@contextlib.asynccontextmanager
async def _posted(url: str, options: Mapping[str, str], offer: str) -> AsyncIterator[str]:
    """The answer to an offer; what the server has set up for it is deleted behind."""
    import aiohttp

    token = options.get("authorization")
    headers = {"Content-Type": "application/sdp", **({"Authorization": f"Bearer {token}"} if token else {})}
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(_CONNECT_SECONDS)) as http:
        try:
            async with http.post(url, data=offer) as answer:
                if answer.status != 201:
                    raise Refused(f"it answered {answer.status} {answer.reason}")
                text, place = await answer.text(), urljoin(str(answer.url), answer.headers.get("Location", ""))
        except aiohttp.ClientConnectorCertificateError as error:
            raise error.certificate_error from error
        try:
            yield text
        finally:
            with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                await (await http.delete(place)).release()


async def _first(connected: asyncio.Event, lost: asyncio.Event) -> None:
    """Wait until one of both is set.

    Raises:
        Refused: not the first one, in time.
    """
    waits = [asyncio.ensure_future(event.wait()) for event in (connected, lost)]
    await asyncio.wait(waits, timeout=_CONNECT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if not connected.is_set():
        raise Refused("no WebRTC connection came about")
