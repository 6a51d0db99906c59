"""Sizes are understood however they are written, and the effective one follows the picture."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.config import SIZE_MULTIPLE
from liveavatar.errors import SizeError
from liveavatar.request import MAX_AREA, parse_size, resolve_size


@pytest.mark.parametrize(
    "text",
    ["704*384", "704x384", "704X384", "704×384", " 704 x 384 ", "704,384", "704 384", "704 , 384", "0704x384"],
)
def test_every_way_to_write_a_size(text: str) -> None:
    assert parse_size(text) == (704, 384)


@pytest.mark.parametrize(
    "text, nearest",
    [
        ("", "704x384"),
        ("large", "704x384"),
        ("704", "704x384"),
        ("704x", "704x384"),
        ("704x384x3", "704x384"),
        ("70.4x38.4", "64x64"),
        ("0x0", "64x64"),
        ("32x32", "64x64"),
        ("4096x4096", "1408x1408"),
        ("99999x64", "32640x64"),
    ],
)
def test_other_sizes_are_refused_with_one_that_works(text: str, nearest: str) -> None:
    with pytest.raises(SizeError, match=nearest):
        parse_size(text)


@given(st.integers(64, 4000), st.integers(64, 4000), st.integers(SIZE_MULTIPLE**2, MAX_AREA))
def test_effective_size_fits_the_area_or_is_refused(width: int, height: int, area: int) -> None:
    try:
        w, h = resolve_size((width, height), area)
    except SizeError as e:
        assert e.nearest
        return
    assert w % SIZE_MULTIPLE == h % SIZE_MULTIPLE == 0
    assert 0 < w * h <= area


@given(st.integers(64, 2000), st.integers(64, 2000), st.integers(SIZE_MULTIPLE**2, MAX_AREA))
def test_a_turned_picture_gives_a_turned_size(width: int, height: int, area: int) -> None:
    try:
        upright = resolve_size((width, height), area)
    except SizeError:
        with pytest.raises(SizeError):
            resolve_size((height, width), area)
    else:
        assert resolve_size((height, width), area) == upright[::-1]


def test_an_elongated_picture_is_refused_with_a_way_out() -> None:
    with pytest.raises(SizeError, match="50x4000 is too elongated"):
        resolve_size((50, 4000), 5_000)
