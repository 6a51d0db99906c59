"""What is encoded block by block can be read while it grows, and holds the picture and the sound that went in."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from liveavatar.errors import SizeError
from liveavatar.media.fragments import FragmentEncoder

RATE, SIZE = 48_000, 64


def block(number: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.full((12, SIZE, SIZE, 3), 20 + 20 * number, np.uint8)
    times = np.arange(number * 23_040, (number + 1) * 23_040) / RATE
    return images, (0.3 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)


def read(data: bytes) -> tuple[list[np.ndarray], np.ndarray]:
    with av.open(io.BytesIO(data)) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(io.BytesIO(data)) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    return images, sound


def test_every_piece_adds_its_block() -> None:
    encoder, data = FragmentEncoder(SIZE, SIZE, RATE), b""
    for number in range(4):
        data += encoder.encode(*block(number))
        images, _ = read(data)
        assert len(images) == 12 * (number + 1), "all pictures of a block leave with it"
    images, sound = read(data)
    assert [round(float(image.mean())) for image in images[6::12]] == pytest.approx([20, 40, 60, 80], abs=2)
    assert len(sound) == pytest.approx(4 * 23_040, abs=2048)
    spectrum = np.abs(np.fft.rfft(sound))
    assert np.argmax(spectrum) * RATE / len(sound) == pytest.approx(440, abs=2)


def test_every_block_begins_with_a_key_frame() -> None:
    encoder = FragmentEncoder(SIZE, SIZE, RATE)
    data = b"".join(encoder.encode(*block(number)) for number in range(3))
    with av.open(io.BytesIO(data)) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert [i for i, key in enumerate(keys) if key] == [0, 12, 24]


def test_times_go_on_without_a_gap() -> None:
    encoder = FragmentEncoder(SIZE, SIZE, RATE)
    data = b"".join(encoder.encode(*block(number)) for number in range(5))
    for kind, step in (("video", 1 / 25), ("audio", 1024 / RATE)):
        with av.open(io.BytesIO(data)) as container:
            (stream,) = getattr(container.streams, kind)
            times = [float(packet.pts * packet.time_base) for packet in container.demux(stream) if packet.size]
        assert np.diff(times) == pytest.approx(step, abs=1e-4)
        assert times[-1] == pytest.approx(5 * 0.48, abs=0.1)
        assert min(time for time in times if time >= 0) == 0


def test_an_odd_size_is_refused() -> None:
    with pytest.raises(SizeError, match="63x64"):
        FragmentEncoder(63, 64, RATE)
