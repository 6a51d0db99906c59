"""A talk over WebRTC: its picture and sound as two tracks, sent the moment they are due."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..errors import RequestError
from .block import LivePiece
from .playout import SLOT_SECONDS, Playout

if TYPE_CHECKING:
    from aiortc import RTCPeerConnection

_log = logging.getLogger(__name__)


def available() -> bool:
    """Whether the package is installed that speaks WebRTC."""
    return importlib.util.find_spec("aiortc") is not None


class WebRtcPeer:
    """Our end of one connection. Belongs to the thread of the event loop it is made in.

    No server on the internet is asked for addresses: whoever watches has to reach one of this machine's own.

    Args:
        on_change: called with True when it is connected, and with False when it no longer is, or cannot be.

    Raises:
        RequestError: aiortc is not installed.
    """

    def __init__(self, on_change: Callable[[bool], None]):
        if not available():
            raise RequestError(
                "This server has no WebRTC: its Python lacks the package aiortc.",
                "Watch over the WebSocket, or install aiortc there.",
            )
        self.playout, self._on_change = Playout(), on_change
        self._begun = time.monotonic()
        self._connection: RTCPeerConnection | None = None

    @property
    def slot(self) -> int:
        """The slot that is due."""
        return int((time.monotonic() - self._begun) / SLOT_SECONDS)

    @property
    def waiting_seconds(self) -> float:
        """How long the latest piece had to wait for its turn."""
        return self.playout.waiting_slots * SLOT_SECONDS

    def put(self, piece: LivePiece) -> None:
        """Show a piece."""
        self.playout.put(piece, self.slot)

    async def answer(self, offer: str) -> str:
        """Answer the offer of somebody who wants to watch; both are SDP.

        Raises:
            RequestError: it cannot be understood.
        """
        from aiortc import RTCSessionDescription

        connection = self._connect()
        try:
            await connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            for transceiver in connection.getTransceivers():
                transceiver.direction = "sendonly"  # what nobody reads would pile up
            await connection.setLocalDescription(await connection.createAnswer())
        except Exception as error:  # aiortc raises what it happens to stumble over
            _log.debug("The offer cannot be answered.", exc_info=True)
            await self.close()
            raise RequestError(
                "The offer cannot be understood.", "Send the SDP of a connection that receives video and audio."
            ) from error
        return connection.localDescription.sdp

    async def offer(self) -> str:
        """What somebody who is to watch has to answer, as SDP."""
        connection = self._connect()
        for transceiver in connection.getTransceivers():
            transceiver.direction = "sendonly"
        await connection.setLocalDescription(await connection.createOffer())
        return connection.localDescription.sdp

    async def take(self, answer: str) -> None:
        """Use the answer to an offer."""
        from aiortc import RTCSessionDescription

        assert self._connection is not None
        await self._connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    async def close(self) -> None:
        """End the connection. May be called again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.remove_all_listeners()
            await connection.close()

    def _connect(self) -> RTCPeerConnection:
        from aiortc import RTCConfiguration, RTCPeerConnection

        from .webrtc_tracks import AudioTrack, VideoTrack

        # Without any server here, aiortc would ask a public one for this machine's address.
        self._connection = connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        connection.on("connectionstatechange", self._state_changed)
        connection.addTrack(VideoTrack(self))
        connection.addTrack(AudioTrack(self))
        return connection

    def _state_changed(self) -> None:
        state = "closed" if self._connection is None else self._connection.connectionState
        if state in ("connected", "failed", "closed"):
            self._on_change(state == "connected")

    # -- for the tracks --

    async def next_image(self, after: int) -> tuple[int, np.ndarray]:
        """The next picture that is due behind slot `after`, and its slot; waits for it."""
        while (found := self.playout.image(after, self.slot)) is None:
            await asyncio.sleep(self._seconds_until(self.slot + 1))
        return found

    async def next_audio(self, slot: int) -> np.ndarray:
        """The sound of a slot; waits until it is due."""
        await asyncio.sleep(self._seconds_until(slot))
        return self.playout.audio(slot)

    def _seconds_until(self, slot: int) -> float:
        return max(0.0, self._begun + slot * SLOT_SECONDS - time.monotonic())
