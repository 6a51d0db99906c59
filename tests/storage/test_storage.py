"""Layers that are streamed are spread evenly over a stage."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.storage import offloaded_layers


@given(st.integers(0, 50), st.integers(1, 60), st.data())
def test_streamed_layers_are_apart_as_far_as_they_can_be(start: int, count: int, data: st.DataObject) -> None:
    layers = range(start, start + count)
    streamed = offloaded_layers(layers, data.draw(st.integers(0, count)))
    assert set(streamed) <= set(layers) and list(streamed) == sorted(set(streamed))
    gaps = {b - a for a, b in pairwise(streamed)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        offloaded_layers(range(2), 3)
