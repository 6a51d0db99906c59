"""What a written video really holds, read from the file."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import OutputError


@dataclasses.dataclass(frozen=True)
class Probed:
    """The streams of a video file. What concerns sound is None where there is none.

    Attributes:
        width, height: pixels.
        frames: packets of the picture, counted; none is decoded.
        fps: frames per second.
        video_start, audio_start: when the first picture is shown and the first sample heard, seconds.
        video_seconds, audio_seconds: from there to the end of the last one.
        audio_rate: samples per second.
        audio_channels: 1 or 2.
        av_difference: end of the sound minus end of the picture, seconds.
    """

    width: int
    height: int
    frames: int
    fps: float
    video_start: float
    video_seconds: float
    audio_rate: int | None
    audio_channels: int | None
    audio_start: float | None
    audio_seconds: float | None
    av_difference: float | None


def probe(path: Path) -> Probed:
    """Read a video's packets.

    Raises:
        OutputError: not a file that can be read, or no picture in it.
    """
    import av

    try:
        with av.open(f"file:{Path(path).absolute()}") as container:
            if not container.streams.video:
                raise OutputError(f"{path} holds no picture.", "Write it again.")
            return _probed(container)
    except (OSError, av.error.FFmpegError) as error:
        raise OutputError(f"{path} is not a video that can be read ({error}).", "Write it again.") from error


def _probed(container: Any) -> Probed:
    video: Any = container.streams.video[0]
    audio: Any = next(iter(container.streams.audio), None)
    counts: defaultdict[str, int] = defaultdict(int)
    ends: defaultdict[str, Fraction] = defaultdict(Fraction)
    first: dict[str, int] = {}
    for packet in container.demux([s for s in (video, audio) if s is not None]):
        if packet.pts is not None and packet.size:
            kind = packet.stream.type
            counts[kind] += 1
            first.setdefault(kind, packet.pts)
            ends[kind] = max(ends[kind], (packet.pts + (packet.duration or 0)) * packet.time_base)
    if counts["audio"] and audio.duration:
        # FFmpeg before 8 takes every packet of sound for a whole one; the fragments say how much of the last counts.
        ends["audio"] = min(ends["audio"], (first["audio"] + audio.duration) * audio.time_base)
    start = _start(video)
    seconds = ends["video"] - start
    sound = audio if counts["audio"] else None
    return Probed(
        width=video.codec_context.width,
        height=video.codec_context.height,
        frames=counts["video"],
        fps=float(counts["video"] / seconds) if seconds else 0.0,
        video_start=float(start),
        video_seconds=float(seconds),
        audio_rate=sound and sound.codec_context.sample_rate,
        audio_channels=sound and sound.codec_context.layout.nb_channels,
        audio_start=sound and float(_start(sound)),
        audio_seconds=sound and float(ends["audio"] - _start(sound)),
        av_difference=sound and float(ends["audio"] - ends["video"]),
    )


def _start(stream: Any) -> Fraction:
    """When the stream is first presented. Not the first packet's time: AAC's start-up samples lie before it."""
    return (stream.start_time or 0) * stream.time_base
