"""Sounds and frames for videos that tests write, and what comes back from the file."""

import struct
from pathlib import Path

import av
import numpy as np

from liveavatar.media.audio import AudioClip
from liveavatar.media.video import VideoWriter

PROJECT = Path(__file__).parents[2]


def sound_of(samples: int, rate: int, channels: int = 1, click_at: float | None = None) -> AudioClip:
    """A quiet tone, or silence with a click of 1 ms."""
    time = np.arange(samples) / rate
    values = np.zeros(samples) if click_at is not None else 0.1 * np.sin(2 * np.pi * 200 * time)
    if click_at is not None:
        values[(time >= click_at) & (time < click_at + 1e-3)] = 0.9
    return AudioClip(np.repeat(values[:, None], channels, 1).astype(np.float32), rate, "test")


def frames_of(count: int, width: int = 64, height: int = 64, start: int = 0) -> np.ndarray:
    """uint8 [count, height, width, 3]: a bar that moves over a gradient."""
    ramp = np.linspace(0, 200, width, dtype=np.uint8)
    frames = np.broadcast_to(ramp[None, None, :, None], (count, height, width, 3)).copy()
    for i in range(count):
        x = (start + i) * 3 % width
        frames[i, :, x : x + 4] = 255
    return frames


def write_film(path: Path, count: int, sound: AudioClip | None, width: int = 64, height: int = 64) -> VideoWriter:
    with VideoWriter(path, width, height, sound, count, {}) as writer:
        for start in range(0, count, 12):
            writer.write(frames_of(min(12, count - start), width, height, start))
    return writer


def turn(path: Path) -> Path:
    """An MP4 whose first track is shown turned by 90 degrees, as phones write it."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    path.write_bytes(content)
    return path


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def heard(path: Path) -> tuple[np.ndarray, int]:
    """Samples of the first channel as a player hears them, and their rate."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    assert frames[0].pts == 0
    return np.concatenate([f.to_ndarray()[0] for f in frames]), frames[0].sample_rate
