"""Amounts of bytes as people read them."""

import pytest

from liveavatar.utils import format_bytes


@pytest.mark.parametrize(
    ("nbytes", "options", "text"),
    [
        (12_345_678_901, {}, "12.3 GB"),
        (500_000_000, {}, "0.5 GB"),
        (20_000_000_000, {"spec": ".4g"}, "20 GB"),
        (1_234_000, {"unit": "MB"}, "1.2 MB"),
        (2_500_000_000, {"unit": "largest"}, "2.5 GB"),
        (1_234_000, {"unit": "largest"}, "1.2 MB"),
        (1_500, {"unit": "largest"}, "1.5 kB"),
        (999, {"unit": "largest"}, "999 B"),
        (0, {"unit": "largest"}, "0 B"),
    ],
)
def test_amounts(nbytes, options, text):
    assert format_bytes(nbytes, **options) == text
