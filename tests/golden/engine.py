"""Recorded cases through the engine: the transformer of a case part by part, and what its runs were given."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import pytest
import torch
from golden.cases import Case, assert_matches
from golden.rollout import config_of

import liveavatar.stage
from liveavatar.config import BLOCK_FRAMES, BLOCK_LATENTS
from liveavatar.encoders.audio import AudioFeatures
from liveavatar.encoders.block_features import StackedFeatures
from liveavatar.engine.local import LocalEngine
from liveavatar.events import Callback, ignore
from liveavatar.model.transformer import CausalS2VTransformer, ModelSlice, empty_transformer
from liveavatar.planner import make_plan
from liveavatar.request import Request, ResolvedRequest, SinkDistance, resolve
from liveavatar.session import Conditioning, VideoTask
from liveavatar.weights.load import fill
from liveavatar.weights.source import DictSource

CUTS = ["1x1", "1x2", "1x4", "2x1", "2x2", "4x1"]


class RecordedPose:
    """The recorded pose latents, block by block."""

    def __init__(self, states: torch.Tensor):
        self._states = states

    def block(self, number: int, callback: Callback = ignore) -> torch.Tensor:
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


def pose_task(case: Case) -> VideoTask:
    """The first clip of recording A, which follows a pose."""
    resolved = resolved_of(case, case.info["config"]["cache_blocks"])
    pose, audio = RecordedPose(case["in.cond_states"][0]), features_of(case["in.audio"])
    given = case["in.ref_latents"][0], case["in.motion_latents"][0], case["in.context"], audio
    return VideoTask(resolved, Conditioning(*given, pose=pose), distances_of(case.info["A"], resolved))


def speakers_task(case: Case) -> VideoTask:
    """Recording C: two speakers in one picture, who follow the same pose."""
    blocks = 1 + max(call["block"] for call in case.info["C"])
    resolved = resolved_of(case, blocks, speakers=2)
    audio = StackedFeatures([features_of(case["in.audio"]), features_of(case["in.audio_b"])])
    given = case["in.ref_latents"][0], case["in.motion_latents"][0], case["in.context"], audio
    mask: torch.Tensor = case["in.mask"][:, :BLOCK_LATENTS].flatten(1, 3)
    conditioning = Conditioning(*given, pose=RecordedPose(case["in.cond_states"][0]), speaker_mask=mask)
    return VideoTask(resolved, conditioning, distances_of(case.info["C"], resolved))


def assert_engine_matches(case: Case, task: VideoTask, cut: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block that was recorded is made on this cut, in this process."""
    noise = case["in.noise"]
    blocks = lambda seed, block, *_: noise[:, block * BLOCK_LATENTS : (block + 1) * BLOCK_LATENTS]  # noqa: E731
    monkeypatch.setattr(liveavatar.stage, "block_noise", blocks)
    components = CaseComponents(case)
    plan = make_plan(task.resolved, components.config, model="golden", stages=cut)
    assert_blocks_match(case, LocalEngine(components, plan).run(task), prefix)


def assert_blocks_match(case: Case, latents: Iterable[torch.Tensor], prefix: str) -> None:
    """Those of the blocks that were recorded, of which there is at least one."""
    compared = 0
    for block, latent in enumerate(latents):
        key = f"{prefix}.x0.{block}"
        if key in case.keys:
            assert_matches(latent, case[key].view(latent.shape), key)
            compared += 1
    assert compared
