"""Files with sound, made for the tests."""

import struct
from pathlib import Path

import av
import numpy as np


def tones(n: int, rate: int, channels: int = 1) -> np.ndarray:
    """float32 [n, channels]: another tone in every channel."""
    t = np.arange(n) / rate
    return np.stack([0.3 * np.sin(2 * np.pi * (220 + 110 * k) * t) for k in range(channels)], 1).astype(np.float32)


def float_wav(samples: np.ndarray, rate: int) -> bytes:
    """A 32-bit float WAV of [n, channels]."""
    data = np.ascontiguousarray(samples, "<f4").tobytes()
    channels = samples.shape[1]
    head = struct.pack("<HHIIHH", 3, channels, rate, rate * channels * 4, channels * 4, 32)
    return b"RIFF%sWAVEfmt %s%sdata%s%s" % (
        struct.pack("<I", 36 + len(data)),
        struct.pack("<I", 16),
        head,
        struct.pack("<I", len(data)),
        data,
    )


def write(path: Path, codec: str, samples: np.ndarray, rate: int, layout: str, video: bool = False) -> Path:
    """Encode [n, channels] with PyAV, beside a second of black picture if `video`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        pictures = container.add_stream("mpeg4", rate=5) if video else None
        if pictures is not None:
            pictures.width = pictures.height = 64
            for _ in range(5):
                container.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
            container.mux(pictures.encode(None))
        for start in range(0, len(samples), 1024):
            planes = np.ascontiguousarray(samples[start : start + 1024].T)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
