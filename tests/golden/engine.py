"""Recorded cases through the engine: the transformer of a case part by part, and what its runs were given."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from golden.cases import Case, assert_matches
from golden.rollout import config_of

import liveavatar.stage
from liveavatar.config import BLOCK_FRAMES, BLOCK_LATENTS
from liveavatar.encoders.audio import AudioFeatures
from liveavatar.engine.local import LocalEngine
from liveavatar.model.transformer import CausalS2VTransformer, ModelSlice, empty_transformer
from liveavatar.planner import make_plan
from liveavatar.request import Request, ResolvedRequest, SinkDistance, resolve
from liveavatar.session import VideoTask
from liveavatar.weights.load import fill
from liveavatar.weights.source import DictSource

CUTS = ["1x1", "1x2", "1x4", "2x1", "2x2", "4x1"]


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


def resolved_of(case: Case, blocks: int, speakers: int = 1) -> ResolvedRequest:
    """So many blocks of the first clip of a recorded run."""
    cfg = case.info["config"]
    clip_blocks, (height, width) = cfg["cache_blocks"], cfg["lat_hw"]
    assert blocks <= clip_blocks
    request = Request("64x64", steps=len(case["timesteps"]), clip_blocks=clip_blocks)
    found = resolve(request, (64, 64), blocks * BLOCK_FRAMES * 640, 16_000)
    return dataclasses.replace(found, width=8 * width, height=8 * height, speaker_count=speakers)


def features_of(audio: torch.Tensor) -> AudioFeatures:
    """Recorded features [1, layers, channels, frames]."""
    features = AudioFeatures(*audio.shape[1:3])
    features.append(audio[0].permute(2, 0, 1).contiguous().numpy())
    return features


def distances_of(calls: Sequence[dict], resolved: ResolvedRequest) -> SinkDistance:
    """The distances of recorded calls."""
    rel = {(call["block"], call["step"]): call["rel"] for call in calls}
    steps = range(resolved.steps)
    recorded = tuple(
        tuple(rel[block, step] for step in steps if (block, step) in rel) for block in range(resolved.blocks)
    )
    return SinkDistance("replay", 0, recorded)


def assert_engine_matches(case: Case, task: VideoTask, cut: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block that was recorded is made on this cut."""
    noise = case["in.noise"]
    blocks = lambda seed, block, *_: noise[:, block * BLOCK_LATENTS : (block + 1) * BLOCK_LATENTS]  # noqa: E731
    monkeypatch.setattr(liveavatar.stage, "block_noise", blocks)
    components, compared = CaseComponents(case), 0
    plan = make_plan(task.resolved, components.config, model="golden", stages=cut)
    for block, latent in enumerate(LocalEngine(components, plan).run(task)):
        key = f"{prefix}.x0.{block}"
        if key in case.keys:
            assert_matches(latent, case[key].view(latent.shape), key)
            compared += 1
    assert compared
