"""Positions turn pairs of channels by distance, however far they are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.model.rope import RopeGrid, apply_rope, axis_pairs


@given(st.integers(0, 10**9))
def test_attention_sees_distances_not_positions(block: int) -> None:
    """Float16 rounding of the angles' cosines allows 1e-2 of a unit vector's product."""
    grid = RopeGrid(2, 2, 24)
    torch.manual_seed(0)
    q, k = torch.randn(2, 12, 1, 24)
    product = lambda b, d: (apply_rope(q, grid.block(b + d)) * apply_rope(k, grid.block(b))).sum(-1)  # noqa: E731
    assert torch.allclose(product(block, 1), product(0, 1), atol=0.05)


@pytest.mark.parametrize("head_dim", [4, 6, 16, 24, 64, 128])
def test_pairs_are_shared_out(head_dim: int) -> None:
    assert sum(axis_pairs(head_dim)) == head_dim // 2
    assert axis_pairs(128) == (22, 21, 21)
