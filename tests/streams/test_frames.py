"""Frames are decoded anew for every consumer, dropped at the start, cut at the end, and become bytes by rounding."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.errors import ModelError
from liveavatar.streams import FrameStream, LatentStream, to_rgb24


class Decoder:
    """Has a state, as the VAE has: the brightness of a frame tells which one it is since the decoder was opened."""

    def __init__(self) -> None:
        self.frames = 0

    def __call__(self, block: torch.Tensor) -> torch.Tensor:
        numbers = torch.arange(self.frames, self.frames + 12, dtype=torch.float32)
        self.frames += 12
        return (numbers / 100).view(1, 12, 1, 1).expand(3, 12, 4, 6)


def stream_of(blocks: int, frames: int, drop: int = 0) -> FrameStream:
    return FrameStream(
        LatentStream(blocks, lambda: (torch.zeros(16, 3, 2, 3) for _ in range(9))), Decoder, frames, drop
    )


def digest(stream: FrameStream) -> str:
    sha = hashlib.sha256()
    for chunk in stream:
        sha.update(to_rgb24(chunk).tobytes())
    return sha.hexdigest()


@given(frames=st.integers(1, 40), drop=st.integers(0, 11))
def test_exactly_the_asked_frames_come_and_no_block_beyond_them_is_made(frames, drop):
    needed = -(-(frames + drop) // 12)
    stream = stream_of(needed + 1, frames, drop)
    shown = torch.cat([chunk[0, :, 0, 0] for chunk in stream])
    assert torch.equal(shown, torch.arange(drop, drop + frames, dtype=torch.float32) / 100)
    assert stream.latents.produced == needed
    stream.latents.close()


def test_a_replay_and_two_interleaved_consumers_give_equal_bytes():
    stream = stream_of(3, 31, 3)
    first = digest(stream)
    assert digest(stream) == first
    for a, b in zip(stream, stream, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("blocks", "frames", "drop"), [(1, 13, 0), (1, 10, 3), (2, 0, 0), (2, 5, 12), (2, 5, -1)])
def test_more_frames_than_the_blocks_hold_are_refused(blocks, frames, drop):
    with pytest.raises(ValueError, match="blocks cannot give"):
        stream_of(blocks, frames, drop)


def test_a_decoder_of_another_shape_is_refused():
    latents = LatentStream(1, lambda: iter([torch.zeros(16, 3, 2, 2)]))
    with pytest.raises(ModelError, match="decoder made"):
        next(iter(FrameStream(latents, lambda: lambda block: torch.zeros(3, 9, 4, 4), 5)))


def test_bytes_are_rounded_to_nearest_and_clamped():
    values = torch.tensor([-2.0, -1.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 0.1, 1.0, 7.0, float("inf"), -float("inf")])
    rgb = to_rgb24(values.view(1, 1, 1, -1).expand(3, 2, 4, -1))
    assert rgb.dtype == np.uint8 and rgb.shape == (2, 4, 9, 3) and rgb.flags.c_contiguous
    assert rgb[1, 3, :, 2].tolist() == [0, 0, 0, 1, 140, 255, 255, 255, 0]


@given(st.integers(0, 255))
def test_every_byte_survives_the_way_to_pixels_and_back(value):
    pixels = torch.full((3, 1, 2, 2), value / 127.5 - 1)
    assert (to_rgb24(pixels) == value).all()
    assert np.abs(to_rgb24(pixels.bfloat16()).astype(int) - value).max() <= 1


def test_bytes_keep_the_order_of_channels_frames_rows_and_columns():
    pixels = torch.rand(3, 2, 4, 5) * 2 - 1
    expected = np.rint((pixels.numpy() + 1) * np.float32(127.5)).astype(np.uint8)
    assert np.array_equal(to_rgb24(pixels), np.moveaxis(expected, 0, -1))


def test_nan_is_an_error():
    pixels = torch.zeros(3, 1, 2, 2)
    pixels[1, 0, 0, 1] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        to_rgb24(pixels)
