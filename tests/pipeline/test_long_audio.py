"""Long audio is encoded while its video is made, with the same frames on every cut, and without a disk."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from liveavatar import request as requests
from liveavatar.encoders import audio
from liveavatar.media.audio import AudioClip
from liveavatar.pipeline import LiveAvatarPipeline
from liveavatar.planner.disk import TemporaryBytes
from liveavatar.request import Request

SECONDS = 65.0
REQUEST = Request("64x64", "A person talks.", steps=1, seed=3)
IMAGE = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def sound() -> AudioClip:
    samples = np.random.default_rng(0).normal(0, 0.1, round(16_000 * SECONDS)).clip(-1, 1)
    return AudioClip.from_array(samples.astype(np.float32), 16_000)


def first_blocks(pipeline: LiveAvatarPipeline, sound: AudioClip, count: int = 3) -> list[torch.Tensor]:
    video = pipeline(IMAGE, sound, request=REQUEST)
    try:
        return [frames.clone() for frames in itertools.islice(video.frames(), count)]
    finally:
        video.close()


@pytest.fixture(scope="module")
def before(sound: AudioClip) -> list[torch.Tensor]:
    """Of audio that is encoded beforehand, because it is not long."""
    return first_blocks(LiveAvatarPipeline.from_pretrained("untrained", threads=1), sound)


def test_it_gives_the_frames_of_audio_that_is_encoded_beforehand(
    before: list[torch.Tensor], sound: AudioClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "LONG_AUDIO_SECONDS", 60.0)
    for stages in ("1x1", "1x2"):
        cut = LiveAvatarPipeline.from_pretrained("untrained", threads=1, stages=stages)
        assert all(torch.equal(a, b) for a, b in zip(before, first_blocks(cut, sound), strict=True)), stages


def test_only_what_the_first_blocks_hear_is_encoded_for_them(sound: AudioClip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "LONG_AUDIO_SECONDS", 60.0)
    pipeline = LiveAvatarPipeline.from_pretrained("untrained", threads=1)
    video = pipeline(IMAGE, sound, request=REQUEST)
    plan = video.spec.plan
    assert plan.audio_encoder > 0
    assert plan.terms_by_device["cpu"]["audio encoder"] == plan.audio_encoder
    assert any("encoded window by window" in note for note in video.spec.resolved.notes)
    assert TemporaryBytes.of(video.spec.resolved, pipeline.config).features == 0
    windows: list[int] = []
    encode = audio.hidden_states
    monkeypatch.setattr(audio, "hidden_states", lambda m, samples: windows.append(len(samples)) or encode(m, samples))
    next(iter(video.frames()))
    assert len(windows) == 1 and windows[0] <= 36 * 16_000
    video.close()


def test_a_voice_of_the_graph_waits_for_its_video(
    before: list[torch.Tensor], sound: AudioClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = LiveAvatarPipeline.from_pretrained("untrained", threads=1)
    monkeypatch.setattr(requests, "LONG_AUDIO_SECONDS", 60.0)
    voice = pipeline.encode_audio(sound)
    assert voice.features is None
    for _ in range(2):
        video = pipeline.prepare(REQUEST, IMAGE, voice, pipeline.encode_prompt("A person talks."))
        assert torch.equal(next(iter(video.frames())), before[0])
        video.close()
