"""Picture and sound as a fragmented MP4 in memory, for whoever plays it while it is made."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import BLOCK_FRAMES, FPS
from ..errors import SizeError
from .video import FrameConverter, set_colours

if TYPE_CHECKING:
    from av import Packet

MIME = 'video/mp4; codecs="avc1.42c01f, mp4a.40.2"'
"""Of what `FragmentEncoder` makes, for MediaSource: H.264 constrained baseline, AAC-LC."""
_CONTAINER = {
    # Short fragments, because each leaves when the next one begins. With one per frame, FFmpeg counts the times of the
    # sound wrongly. Delaying the header as `VideoWriter` does.
    "movflags": "empty_moov+default_base_moof+delay_moov",
    "frag_duration": "80000",
    "flush_packets": "1",
}
_ENCODER = {
    "preset": "veryfast",
    "tune": "zerolatency",
    "profile": "baseline",
    "level": "3.1",
    "g": str(BLOCK_FRAMES),
    "sc_threshold": "0",
    "crf": "20",
    "threads": "1",
}
_SOUND_BIT_RATE = 96_000


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

        if width % 2 or height % 2:
            raise SizeError(f"H.264 cannot hold {width}x{height} pixels.", "Use an even width and an even height.")
        self.rate, self.frames, self._samples = rate, 0, 0
        self._outbox, self._converter = _Outbox(), FrameConverter()
        container: Any = av.open(self._outbox, "w", format="mp4", options=_CONTAINER)
        video = container.add_stream("libx264", rate=FPS, options=_ENCODER)
        context = video.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = Fraction(1, FPS)
        set_colours(context)
        sound = container.add_stream("aac", rate=rate)
        sound.codec_context.layout, sound.codec_context.format = "mono", "fltp"
        sound.codec_context.bit_rate = _SOUND_BIT_RATE
        self._container, self._video, self._sound = container, video, sound

    def encode(self, images: np.ndarray, audio: np.ndarray) -> bytes:
        """The next piece of the stream; the first begins with its header.

        Args:
            images: uint8 [n, H, W, 3].
            audio: float32 [m], as long as the images.
        """
        packets: list[Packet] = []
        for image in images:
            packets += self._video.encode(self._converter.frame(np.ascontiguousarray(image), self.frames, FPS))
            self.frames += 1
        packets += self._sound.encode(self._audio_frame(audio))
        self._container.mux(sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base))
        return self._outbox.take()

    def close(self) -> bytes:
        """The end of the stream."""
        self._container.mux([*self._video.encode(None), *self._sound.encode(None)])
        self._container.close()
        return self._outbox.take()

    def _audio_frame(self, audio: np.ndarray) -> Any:
        import av

        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio[None], np.float32), "fltp", "mono")
        frame.sample_rate, frame.time_base = self.rate, Fraction(1, self.rate)
        frame.pts = self._samples
        self._samples += len(audio)
        return frame
