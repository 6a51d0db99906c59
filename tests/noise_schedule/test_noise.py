"""Noise and sink distances depend on seed, clip and block alone, never on order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.noise_schedule import block_noise
from liveavatar.request import SinkDistance


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**7))
def test_sink_distances_stay_in_range_and_depend_on_seed_and_block_alone(seed: int, block: int) -> None:
    distance = SinkDistance()
    values = {distance.at(seed, block, step) for step in range(4)}
    assert len(values) == 1
    assert 4 <= values.pop() <= 30


def test_sink_distances_are_spread_evenly() -> None:
    counts = torch.bincount(torch.tensor([SinkDistance().at(420, b, 0) for b in range(27_000)]))
    assert len(counts) == 31
    assert counts[:4].sum() == 0
    assert counts[4:].min() > 850
    assert counts[4:].max() < 1150


@pytest.mark.parametrize("clip_blocks", [1, 3, 4, 5])
def test_noise_is_a_slice_of_its_clips_draw(clip_blocks: int) -> None:
    clip = torch.randn(16, 3 * clip_blocks, 4, 6, generator=torch.Generator().manual_seed(9 + 2))
    for place in range(clip_blocks):
        noise = block_noise(9, 2 * clip_blocks + place, 16, 4, 6, clip_blocks)
        assert torch.equal(noise, clip[:, 3 * place : 3 * place + 3])


def test_clips_have_four_blocks_unless_told() -> None:
    assert all(torch.equal(block_noise(9, b, 16, 2, 2), block_noise(9, b, 16, 2, 2, 4)) for b in range(9))


def test_noise_of_the_last_seed_wraps() -> None:
    assert torch.equal(block_noise(2**64 - 1, 4, 16, 2, 2), block_noise(0, 0, 16, 2, 2))
