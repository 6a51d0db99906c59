"""A viewer over a WebSocket: blocks as a fragmented MP4, as long as the connection keeps up."""

from __future__ import annotations

from collections.abc import Callable

from ..media.fragments import FragmentEncoder
from .audio_feed import OUTPUT_RATE
from .block import LiveBlock

PENDING_BYTES = 4 << 20
"""Encoded video that waits for a slow viewer; more is left out, whole blocks at a time."""


class FragmentViewer:
    """Encodes blocks for one viewer; the first piece, and each behind a gap, begins with a header and a key frame.

    Args:
        send: takes a piece of video; called in the talk's own thread.
        pending: bytes that wait for the viewer.
    """

    def __init__(self, send: Callable[[bytes], None], pending: Callable[[], int] = lambda: 0):
        self._send, self._pending = send, pending
        self._encoder: FragmentEncoder | None = None
        self.skipped_blocks = 0
        """That were left out because the viewer was too slow."""

    def show(self, block: LiveBlock) -> None:
        """Send a block."""
        if self._pending() > PENDING_BYTES:
            self.skipped_blocks += 1
            self._encoder = None
            return
        if self._encoder is None:
            height, width = block.images.shape[1:3]
            self._encoder = FragmentEncoder(width, height, OUTPUT_RATE)
        self._send(self._encoder.encode(block.images, block.audio))
