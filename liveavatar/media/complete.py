"""How much sound a file promises: decoders read a file that was cut off to its end and say nothing."""

from __future__ import annotations

import struct
from typing import IO, Any

STREAMING_SIZE = 0x7FFF_0000
"""Sizes from here up are what writers to a pipe put where the size is not known."""
SLACK_BYTES = 1024
"""Some writers count their header as sound."""
EXACT_DURATION = ("flac", "aiff", "w64", "tta", "wv")
"""Formats whose header counts the samples."""


def missing_wav_bytes(file: IO[bytes]) -> int:
    """Bytes of sound that a RIFF WAVE file announces and does not hold; 0 for a whole file and for other formats.

    The position in the file is moved.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return 0
    position = 12
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"data":
            missing = length - (size - position - 8)
            return missing if missing > SLACK_BYTES and length < STREAMING_SIZE else 0
        position += 8 + length + length % 2
    return 0


def promised_seconds(container: Any, stream: Any, file: IO[bytes]) -> float | None:
    """The length in seconds that the header of an opened file counts exactly, or None where it is an estimate.

    Args:
        container, stream: of PyAV.
        file: the same file, opened once more; its position is moved.
    """
    if container.format.name in EXACT_DURATION and stream.duration:
        return float(stream.duration * stream.time_base)
    if container.format.name == "matroska,webm" and container.duration and not container.streams.video:
        return container.duration / 1e6
    if container.format.name == "mp3" and container.duration and _counts_its_frames(file):
        return container.duration / 1e6
    return None


def _counts_its_frames(file: IO[bytes]) -> bool:
    """Whether an MP3's first frame is the header that encoders write when they know the length."""
    file.seek(0)
    head = file.read(10)
    start = 0
    if len(head) == 10 and head[:3] == b"ID3":
        start = 10 + sum((byte & 0x7F) << (7 * (3 - i)) for i, byte in enumerate(head[6:10]))
    file.seek(start)
    first = file.read(4096)
    return any(mark in first for mark in (b"Xing", b"Info", b"VBRI"))
