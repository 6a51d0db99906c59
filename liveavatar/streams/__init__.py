"""Replayable streams: a video may be watched late, twice, or by two consumers at once, in flat memory.

Finished latents are kept on disk, where an hour of 704x384 takes 6 GB. Frames are 12 times larger even as bytes, so
none is kept: they are decoded again for every consumer.
"""

from .frames import Decoder, FrameStream, to_rgb24
from .latents import LatentStream

__all__ = ["Decoder", "FrameStream", "LatentStream", "to_rgb24"]
