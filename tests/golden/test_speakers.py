"""Two speakers in one picture give the original's numbers through the engine, on every cut."""

from __future__ import annotations

import pytest
from golden.cases import Case, cases
from golden.engine import CUTS, assert_engine_matches, speakers_task


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("case", cases("dit", "dit_weights", holds=lambda case: "C.x0.0" in case.keys))
def test_the_engine_hears_two_speakers_as_the_original(case: Case, cut: str, monkeypatch) -> None:
    assert_engine_matches(case, speakers_task(case), cut, "C", monkeypatch)
