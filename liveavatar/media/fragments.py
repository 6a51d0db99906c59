"""Picture and sound as a fragmented MP4 in memory, for whoever plays it while it is made."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from .block_encoder import BlockEncoder

MIME = 'video/mp4; codecs="avc1.42c01f, mp4a.40.2"'
"""Of what `FragmentEncoder` makes, for MediaSource: H.264 constrained baseline, AAC-LC."""
_CONTAINER = {
    # Short fragments, because each leaves when the next one begins. With one per frame, FFmpeg counts the times of the
    # sound wrongly. Delaying the header as `VideoWriter` does.
    "movflags": "empty_moov+default_base_moof+delay_moov",
    "frag_duration": "80000",
    "flush_packets": "1",
}


class _Outbox(io.RawIOBase):
    """Collects what the container writes."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


class FragmentEncoder:
    """Encodes blocks as they come. The last two frames of a block leave with the next one.

    Args:
        width, height: pixels, even.
        rate: samples of sound per second, one channel.

    Raises:
        SizeError: an odd width or height.
    """

    def __init__(self, width: int, height: int, rate: int):
        import av

        self._outbox = _Outbox()
        container = av.open(self._outbox, "w", format="mp4", options=_CONTAINER)
        self._encoder = BlockEncoder(container, width, height, rate)

    def encode(self, images: np.ndarray, audio: np.ndarray) -> bytes:
        """The next piece of the stream; the first begins with its header.

        Args:
            images: uint8 [n, H, W, 3].
            audio: float32 [m], as long as the images.
        """
        self._encoder.write(images, audio)
        return self._outbox.take()

    def close(self) -> bytes:
        """The end of the stream."""
        self._encoder.close()
        return self._outbox.take()
