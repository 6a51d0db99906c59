"""Effective sizes are those of the original for every recorded picture and area."""

import pytest
from golden.cases import Case, cases

from liveavatar.errors import SizeError
from liveavatar.request import parse_size, resolve_size


@pytest.mark.parametrize("case", cases("image"))
def test_size_table(case: Case) -> None:
    compared = 0
    for entry in case.info["size_table"]:
        height, width = entry["image_hw"]
        if entry["size_option"]:
            asked = parse_size(entry["size_option"])
            assert asked[0] * asked[1] == entry["max_area"]
        if min(entry["out_hw"]) == 0:
            with pytest.raises(SizeError):
                resolve_size((width, height), entry["max_area"])
        else:
            assert resolve_size((width, height), entry["max_area"]) == tuple(reversed(entry["out_hw"])), entry
        compared += 1
    assert compared
