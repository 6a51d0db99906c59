"""Values hold from their block on, and prompts by time are read as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.errors import RequestError
from liveavatar.timeline import Timeline, block_at, parse_prompts


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


def test_prompts_by_time() -> None:
    text = "# how it goes\n0: calm\n\n 12.5s : laughs: loudly \n1:02.5: is sad\n"
    assert parse_prompts(text) == ((0.0, "calm"), (12.5, "laughs: loudly"), (62.5, "is sad"))
    assert [block_at(seconds) for seconds in (0.0, 0.479, 0.48, 12.5)] == [0, 0, 1, 26]


@pytest.mark.parametrize(
    "text, said",
    [
        ("calm", "Line 1 .* is not understood: 'calm'"),
        ("0: calm\nnow: laughs", "Line 2 .* not understood"),
        ("3: calm\n1: laughs", "Line 2 .* begins at 1 s, the one before it at 3 s"),
        ("0: calm\n0.3: laughs", "0.48 s"),
        ("5:", "Line 1 .* not understood"),
        ("-1: calm", "Line 1"),
    ],
)
def test_what_is_not_understood_is_named(text: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        parse_prompts(text)


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_prompts(text)
    except RequestError:
        return
    assert list(found) == sorted(found)
