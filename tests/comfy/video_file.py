"""What an MP4 really holds: opened and decoded, not believed."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Held:
    """A video file's content.

    Attributes:
        width, height, rate: of the pictures; `rate` in frames per second, as a string fraction.
        frames: decoded pictures.
        steady: whether each picture stands exactly one frame after the one before, from zero on.
        pictures: hash of the decoded pixels.
        moves: mean difference between neighbouring pictures, in 0..255.
        sound: seconds of sound; 0 without any.
        sound_start: where the sound begins, in seconds.
        metadata: of the container.
    """

    width: int
    height: int
    rate: str
    frames: int
    steady: bool
    pictures: str
    moves: float
    sound: float
    sound_start: float
    metadata: dict[str, str]


def look_into(file: Path | bytes) -> Held:
    """Decode all of a file."""
    import av
    import numpy as np

    with av.open(io.BytesIO(file) if isinstance(file, bytes) else str(file)) as container:
        stream = container.streams.video[0]
        times, digest, moves, before = [], hashlib.sha256(), [], None
        for frame in container.decode(stream):
            times.append(frame.pts * frame.time_base)
            pixels = frame.to_ndarray(format="rgb24")
            digest.update(pixels.tobytes())
            if before is not None:
                moves.append(np.abs(pixels.astype(np.int16) - before).mean())
            before = pixels.astype(np.int16)
        width, height, rate = stream.codec_context.width, stream.codec_context.height, stream.average_rate
        steady = all(time == i / rate for i, time in enumerate(times))
        metadata = dict(container.metadata)
    start, seconds = _sound(file)
    mean = float(np.mean(moves)) if moves else 0.0
    return Held(width, height, str(rate), len(times), steady, digest.hexdigest(), mean, seconds, start, metadata)


def _sound(file: Path | bytes) -> tuple[float, float]:
    import av

    with av.open(io.BytesIO(file) if isinstance(file, bytes) else str(file)) as container:
        if not container.streams.audio:
            return 0.0, 0.0
        frames = [(float(f.pts * f.time_base), f.samples / f.sample_rate) for f in container.decode(audio=0)]
    return frames[0][0], sum(seconds for _, seconds in frames)
