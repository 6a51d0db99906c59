"""A pose that is followed gives the original's numbers through the engine, on every cut."""

from __future__ import annotations

import pytest
from golden.cases import Case, cases
from golden.engine import CUTS, assert_engine_matches, pose_task


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("case", cases("dit", "dit_weights", holds=lambda case: "A.x0.0" in case.keys))
def test_the_engine_follows_a_pose_as_the_original(case: Case, cut: str, monkeypatch) -> None:
    assert_engine_matches(case, pose_task(case), cut, "A", monkeypatch)
