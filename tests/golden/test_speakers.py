"""Two speakers in one picture give the original's numbers through the engine, on every cut."""

from __future__ import annotations

import pytest
import torch
from golden.cases import Case, cases
from golden.engine import CUTS, RecordedPose, assert_engine_matches, distances_of, features_of, resolved_of

from liveavatar.config import BLOCK_LATENTS
from liveavatar.encoders.block_features import StackedFeatures
from liveavatar.session import Conditioning, VideoTask


def task_of(case: Case) -> VideoTask:
    blocks = 1 + max(call["block"] for call in case.info["C"])
    resolved = resolved_of(case, blocks, speakers=2)
    audio = StackedFeatures([features_of(case["in.audio"]), features_of(case["in.audio_b"])])
    given = case["in.ref_latents"][0], case["in.motion_latents"][0], case["in.context"], audio
    mask: torch.Tensor = case["in.mask"][:, :BLOCK_LATENTS].flatten(1, 3)
    conditioning = Conditioning(*given, pose=RecordedPose(case["in.cond_states"][0]), speaker_mask=mask)
    return VideoTask(resolved, conditioning, distances_of(case.info["C"], resolved))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("case", cases("dit", "dit_weights", holds=lambda case: "C.x0.0" in case.keys))
def test_the_engine_hears_two_speakers_as_the_original(case: Case, cut: str, monkeypatch) -> None:
    assert_engine_matches(case, task_of(case), cut, "C", monkeypatch)
