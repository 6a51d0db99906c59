"""A viewer over a WebSocket: pieces of video as a fragmented MP4, as long as the connection keeps up."""

from __future__ import annotations

from collections.abc import Callable

from ..media.fragments import FragmentEncoder
from .audio_feed import OUTPUT_RATE
from .block import LivePiece

PENDING_BYTES = 4 << 20
"""Encoded video that waits for a slow viewer; more is left out, whole blocks at a time."""


class FragmentViewer:
    """Encodes pieces for one viewer; the first, and each behind a gap, begins a block, with a header and a key frame.

    Args:
        send: takes an encoded piece; called in the talk's own thread.
        pending: bytes that wait for the viewer.
    """

    def __init__(self, send: Callable[[bytes], None], pending: Callable[[], int] = lambda: 0):
        self._send, self._pending = send, pending
        self._encoder: FragmentEncoder | None = None
        self.skipped_blocks = 0
        """That were left out because the viewer was too slow."""

    def show(self, piece: LivePiece) -> None:
        """Send a piece."""
        if piece.place == 0:
            self._begin_block(piece)
        if self._encoder is not None:
            self._send(self._encoder.encode(piece.images, piece.audio))

    def _begin_block(self, piece: LivePiece) -> None:
        if self._pending() > PENDING_BYTES:
            self.skipped_blocks += 1
            self._encoder = None
        elif self._encoder is None:
            height, width = piece.images.shape[1:3]
            self._encoder = FragmentEncoder(width, height, OUTPUT_RATE)
