"""The tracks of a WebRTC peer, on one clock: the same slot is the same moment in both."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from .audio_feed import OUTPUT_RATE
from .playout import SLOT_SAMPLES, SLOT_SECONDS

if TYPE_CHECKING:
    from av import AudioFrame, VideoFrame

    from .webrtc import WebRtcPeer

_VIDEO_CLOCK = 90_000
_SLOT_TICKS = round(SLOT_SECONDS * _VIDEO_CLOCK)


class VideoTrack(MediaStreamTrack):
    """Every picture when it is due; where the encoder is slower, the latest one."""

    kind = "video"

    def __init__(self, peer: WebRtcPeer):
        super().__init__()
        self._peer, self._slot = peer, -1

    async def recv(self) -> VideoFrame:
        """The next picture."""
        import av

        if self.readyState != "live":
            raise MediaStreamError
        self._slot, image = await self._peer.next_image(self._slot)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
        frame.pts, frame.time_base = self._slot * _SLOT_TICKS, Fraction(1, _VIDEO_CLOCK)
        return frame


class AudioTrack(MediaStreamTrack):
    """Sound without a gap: silence where no block is."""

    kind = "audio"

    def __init__(self, peer: WebRtcPeer):
        super().__init__()
        self._peer = peer
        self._slot: int | None = None

    async def recv(self) -> AudioFrame:
        """The next 20 ms."""
        import av

        if self.readyState != "live":
            raise MediaStreamError
        slot = self._peer.slot if self._slot is None else self._slot
        samples = await self._peer.next_audio(slot)
        whole = (np.clip(samples, -1.0, 1.0) * 32_767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(whole[None], "s16", "mono")
        frame.sample_rate, frame.time_base = OUTPUT_RATE, Fraction(1, OUTPUT_RATE)
        frame.pts, self._slot = slot * SLOT_SAMPLES, slot + 1
        return frame
