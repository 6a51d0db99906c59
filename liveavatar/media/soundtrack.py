"""The sound of a video that is being written: AAC packets, as far as the picture has come."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import AudioError

if TYPE_CHECKING:
    from av import Packet
    from av.container import OutputContainer

    from .sound import Sound

RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
"""Samples per second that are kept: AAC has them and every player plays them."""
BIT_RATE = 192_000
"""Bits per second, less where AAC's limit per channel is lower."""
CHUNK = 16_384
"""Samples per channel handed to the encoder at a time."""

_LAYOUTS = ("mono", "stereo", "2.1", "4.0", "5.0", "5.1", "6.1", "7.1")
_BITS_PER_SAMPLE = 6  # what AAC can spend at most, per channel


def check_channels(sound: Sound) -> None:
    """Make sure that a sound can be encoded.

    Raises:
        AudioError: more than 8 channels, for which no mixing to stereo is known.
    """
    if (channels := sound.samples.shape[1]) > len(_LAYOUTS):
        raise AudioError(
            f"The sound has {channels} channels, and how to mix them is not known.", "Mix it down to mono or stereo."
        )


class Soundtrack:
    """Encodes a sound into a stream of an open container.

    Mono and stereo stay what they are, more channels are mixed down to stereo. Rates that `RATES` does not have become
    the next higher one, or 48 kHz.

    Args:
        container: a PyAV container to which no packet has been written.
        sound: samples float32 [n, channels], perhaps in a file: read once, from front to back. See `check_channels`.
    """

    def __init__(self, container: OutputContainer, sound: Sound):
        channels = sound.samples.shape[1]
        self._sound = sound
        self._layout = _LAYOUTS[channels - 1]
        self._position = 0
        rate = next((r for r in RATES if r >= sound.rate), RATES[-1])
        out_channels = min(channels, 2)
        stream: Any = container.add_stream("aac", rate=rate)
        stream.codec_context.layout = _LAYOUTS[out_channels - 1]
        stream.codec_context.format = "fltp"
        stream.codec_context.bit_rate = min(BIT_RATE, _BITS_PER_SAMPLE * rate * out_channels)
        self._stream = stream

    def until(self, seconds: Fraction) -> Iterator[Packet]:
        """Packets of the sound from where the last call stopped to this time, as far as the encoder gives them."""
        import av

        end = min(len(self._sound.samples), int(seconds * self._sound.rate))
        while self._position < end:
            piece = np.asarray(self._sound.samples[self._position : min(end, self._position + CHUNK)], np.float32)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece.T), "fltp", self._layout)
            frame.sample_rate = self._sound.rate
            frame.time_base = Fraction(1, self._sound.rate)
            frame.pts = self._position
            self._position += len(piece)
            yield from self._stream.encode(frame)

    def rest(self) -> Iterator[Packet]:
        """What the encoder still holds; to be called once, at the end."""
        end = Fraction(self._position, self._sound.rate)
        for packet in self._stream.encode(None):
            # Encoders before FFmpeg 8 count the zeros that fill the last packet as sound.
            left = math.ceil(end / packet.time_base) - packet.pts
            if 0 < left < packet.duration:
                packet.duration = left
            yield packet
