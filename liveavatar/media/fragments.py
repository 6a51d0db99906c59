"""Picture and sound as a fragmented MP4 in memory, for whoever plays it while it is made."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from .block_encoder import BlockEncoder

if TYPE_CHECKING:
    from av import Packet

MIME = 'video/mp4; codecs="avc1.42c01f, mp4a.40.2"'
"""Of what `FragmentEncoder` makes, for MediaSource: H.264 constrained baseline, AAC-LC."""
_FLAGS = "empty_moov+default_base_moof+delay_moov+skip_trailer"
_WHOLE = str(10**9)
"""Microseconds of a fragment: no block is cut."""


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
    """Encodes blocks as they come, each as a fragment of its own: all its pictures leave with it.

    FFmpeg ends a fragment when the next one begins, or the file ends: so each block is muxed as a file, whose header is
    left out from the second on. Of the sound, up to 43 ms leave with the next block, because AAC looks that far ahead.

    Args:
        width, height: pixels, even.
        rate: samples of sound per second, one channel.

    Raises:
        SizeError: an odd width or height.
    """

    def __init__(self, width: int, height: int, rate: int):
        import av

        container = av.open(io.BytesIO(), "w", format="mp4")
        self._encoder = BlockEncoder(container, width, height, rate)
        container.start_encoding()
        self._streams = container.streams
        self._fragments, self._padding = 0, 0

    def encode(self, images: np.ndarray, audio: np.ndarray) -> bytes:
        """The next piece of the stream; the first begins with its header.

        Args:
            images: uint8 [n, H, W, 3].
            audio: float32 [m], as long as the images.
        """
        return self._muxed(self._encoder.encode(images, audio))

    def _muxed(self, packets: list[Packet]) -> bytes:
        import av

        is_first, outbox = not self._fragments, _Outbox()
        self._fragments += 1
        flags = _FLAGS if is_first else f"{_FLAGS}+frag_discont"  # its times go on
        options = {"movflags": flags, "frag_duration": _WHOLE, "fragment_index": str(self._fragments)}
        with av.open(outbox, "w", format="mp4", options=options) as container:
            streams = {stream: container.add_stream_from_template(stream) for stream in self._streams}
            for packet in packets:
                self._place(packet, is_first)
                packet.stream = streams[packet.stream]
                container.mux_one(packet)
        return outbox.take() if is_first else _without_header(outbox.take())

    def _place(self, packet: Packet, is_first: bool) -> None:
        """Sound begins before 0 with what its encoder puts in front, which the header tells to leave out."""
        assert packet.dts is not None
        if is_first:
            self._padding = max(self._padding, -packet.dts)
        elif packet.stream.type == "audio":
            packet.dts += self._padding
            packet.pts = packet.dts


def _without_header(file: bytes) -> bytes:
    """What begins with the first fragment."""
    at = 0
    while file[at + 4 : at + 8] != b"moof":
        at += int.from_bytes(file[at : at + 4], "big")
    return file[at:]
