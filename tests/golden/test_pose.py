"""A pose that is followed gives the original's numbers through the engine, on every cut."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from golden.cases import Case, assert_matches, cases
from golden.rollout import config_of

import liveavatar.stage
from liveavatar.config import BLOCK_FRAMES, BLOCK_LATENTS
from liveavatar.encoders.audio import AudioFeatures
from liveavatar.engine.local import LocalEngine
from liveavatar.model.transformer import CausalS2VTransformer, ModelSlice, empty_transformer
from liveavatar.planner import make_plan
from liveavatar.request import Request, ResolvedRequest, SinkDistance, resolve
from liveavatar.session import Conditioning, VideoTask
from liveavatar.weights.load import fill
from liveavatar.weights.source import DictSource

CUTS = ["1x1", "1x2", "1x4", "2x2", "4x1"]


class RecordedPose:
    """The recorded pose latents, block by block."""

    def __init__(self, states: torch.Tensor):
        self._states = states

    def block(self, number: int) -> torch.Tensor:
        return self._states[:, number * BLOCK_LATENTS : (number + 1) * BLOCK_LATENTS]

    def close(self) -> None:
        pass


class CaseComponents:
    """The transformer of a case, part by part."""

    name = "golden"
    trained = True

    def __init__(self, case: Case):
        self.weights = case.sibling("dit_weights")
        self.config = config_of(case.info["config"]["model"], self.weights)

    def transformer(self, model_slice: ModelSlice, device, dtype, weights="plain") -> CausalS2VTransformer:
        net = empty_transformer(self.config, model_slice, weights)
        fill(net, DictSource(self.weights.state_dict()), dtype=dtype, device=device)
        return net


def resolved_of(case: Case) -> ResolvedRequest:
    """The first clip of the recorded run."""
    cfg = case.info["config"]
    blocks, (height, width) = cfg["cache_blocks"], cfg["lat_hw"]
    request = Request("64x64", steps=len(case["timesteps"]), clip_blocks=blocks)
    found = resolve(request, (64, 64), blocks * BLOCK_FRAMES * 640, 16_000)
    return dataclasses.replace(found, width=8 * width, height=8 * height)


def task_of(case: Case, resolved: ResolvedRequest) -> VideoTask:
    audio = case["in.audio"][0]
    features = AudioFeatures(*audio.shape[:2])
    features.append(audio.permute(2, 0, 1).contiguous().numpy())
    rel = {(call["block"], call["step"]): call["rel"] for call in case.info["A"]}
    steps = range(resolved.steps)
    recorded = tuple(
        tuple(rel[block, step] for step in steps if (block, step) in rel) for block in range(resolved.blocks)
    )
    pose = RecordedPose(case["in.cond_states"][0])
    given = case["in.ref_latents"][0], case["in.motion_latents"][0], case["in.context"], features
    return VideoTask(resolved, Conditioning(*given, pose=pose), SinkDistance("replay", 0, recorded))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("case", cases("dit", "dit_weights", holds=lambda case: "A.x0.0" in case.keys))
def test_the_engine_follows_a_pose_as_the_original(case: Case, cut: str, monkeypatch) -> None:
    noise = case["in.noise"]
    blocks = lambda seed, block, *_: noise[:, block * BLOCK_LATENTS : (block + 1) * BLOCK_LATENTS]  # noqa: E731
    monkeypatch.setattr(liveavatar.stage, "block_noise", blocks)
    resolved, components = resolved_of(case), CaseComponents(case)
    compared = 0
    plan = make_plan(resolved, components.config, model="golden", stages=cut)
    for block, latent in enumerate(LocalEngine(components, plan).run(task_of(case, resolved))):
        if f"A.x0.{block}" in case.keys:
            assert_matches(latent, case[f"A.x0.{block}"].view(latent.shape), f"A.x0.{block}")
            compared += 1
    assert compared
