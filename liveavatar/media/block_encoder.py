"""Blocks of picture and sound, encoded without delay into any container."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import BLOCK_FRAMES, FPS
from ..errors import SizeError
from .video import FrameConverter, set_colours

if TYPE_CHECKING:
    from av import Packet

_VIDEO = {
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


class BlockEncoder:
    """Encodes blocks as H.264 (constrained baseline, a key frame each) and AAC, and muxes them as they come.

    Args:
        container: of PyAV, open for writing; closed with the encoder.
        width, height: pixels, even.
        rate: samples of sound per second, one channel.
        global_header: whether what decoders need to know stands in front of all; containers of which PyAV knows that
            they want it so get it anyway.

    Raises:
        SizeError: an odd width or height.
    """

    def __init__(self, container: Any, width: int, height: int, rate: int, global_header: bool = False):
        from av.codec.context import Flags

        if width % 2 or height % 2:
            raise SizeError(f"H.264 cannot hold {width}x{height} pixels.", "Use an even width and an even height.")
        self.rate, self._container = rate, container
        self._frames, self._samples, self._converter = 0, 0, FrameConverter()
        self._video = container.add_stream("libx264", rate=FPS, options=_VIDEO)
        context = self._video.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = Fraction(1, FPS)
        set_colours(context)
        self._sound = container.add_stream("aac", rate=rate)
        self._sound.codec_context.layout = "mono"
        self._sound.codec_context.bit_rate = _SOUND_BIT_RATE
        if global_header:
            for stream in (self._video, self._sound):
                stream.codec_context.flags |= Flags.global_header

    def write(self, images: np.ndarray, audio: np.ndarray) -> None:
        """Append images uint8 [n, H, W, 3] and their sound, float32 [m], as long as they are."""
        self._container.mux(self.encode(images, audio))

    def encode(self, images: np.ndarray, audio: np.ndarray) -> list[Packet]:
        """The packets of images and their sound, in the order of their times, for whoever muxes them elsewhere."""
        packets: list[Packet] = []
        for image in images:
            packets += self._video.encode(self._converter.frame(np.ascontiguousarray(image), self._frames, FPS))
            self._frames += 1
        packets += self._sound.encode(self._audio_frame(audio))
        return sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base)

    def close(self) -> None:
        """Write what the encoders still hold, and the end of the container."""
        self._container.mux([*self._video.encode(None), *self._sound.encode(None)])
        self._container.close()

    def _audio_frame(self, audio: np.ndarray) -> Any:
        import av

        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio[None], np.float32), "fltp", "mono")
        frame.sample_rate, frame.time_base = self.rate, Fraction(1, self.rate)
        frame.pts = self._samples
        self._samples += len(audio)
        return frame
