"""A pose that is followed gives the original's numbers through the engine, on every cut."""

from __future__ import annotations

import pytest
from golden.cases import Case, cases
from golden.engine import CUTS, RecordedPose, assert_engine_matches, distances_of, features_of, resolved_of

from liveavatar.session import Conditioning, VideoTask


def task_of(case: Case) -> VideoTask:
    resolved = resolved_of(case, case.info["config"]["cache_blocks"])
    pose, audio = RecordedPose(case["in.cond_states"][0]), features_of(case["in.audio"])
    given = case["in.ref_latents"][0], case["in.motion_latents"][0], case["in.context"], audio
    return VideoTask(resolved, Conditioning(*given, pose=pose), distances_of(case.info["A"], resolved))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("case", cases("dit", "dit_weights", holds=lambda case: "A.x0.0" in case.keys))
def test_the_engine_follows_a_pose_as_the_original(case: Case, cut: str, monkeypatch) -> None:
    assert_engine_matches(case, task_of(case), cut, "A", monkeypatch)
