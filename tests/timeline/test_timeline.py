"""Values hold from their block on, and are forgotten when nobody needs them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.timeline import Timeline


@given(st.lists(st.tuples(st.integers(0, 50), st.integers()), max_size=12), st.integers(0, 60))
def test_the_latest_change_holds(changes: list[tuple[int, int]], block: int) -> None:
    timeline: Timeline[int] = Timeline()
    for start, value in sorted(changes, key=lambda change: change[0]):
        timeline.add(start, value)
    before = [value for start, value in sorted(changes, key=lambda change: change[0]) if start <= block]
    version = timeline.version(block)
    assert bool(version) == bool(before)
    assert not version or timeline.value(version) == before[-1]
    doubled = timeline.map(lambda value: 2 * value)
    assert doubled.version(block) == version
    assert [(start, 2 * value) for start, value in timeline] == list(doubled)


def test_a_change_before_a_known_one_is_refused() -> None:
    timeline: Timeline[str] = Timeline()
    timeline.add(3, "later")
    with pytest.raises(ValueError, match="block 2 after one at block 3"):
        timeline.add(2, "earlier")


def test_a_mapped_timeline_grows_with_its_source() -> None:
    timeline: Timeline[str] = Timeline()
    lengths = timeline.map(len)
    timeline.add(4, "four")
    assert (lengths.version(4), lengths.value(1)) == (1, 4)


def test_what_holds_nowhere_any_more_is_forgotten_and_the_rest_stays() -> None:
    timeline: Timeline[str] = Timeline()
    for block in (2, 5, 9):
        timeline.add(block, f"from {block}")
    timeline.forget(6)
    assert (timeline.version(6), timeline.value(2), timeline.value(3)) == (2, "from 5", "from 9")
    with pytest.raises(ValueError, match="forgotten"):
        timeline.value(1)
