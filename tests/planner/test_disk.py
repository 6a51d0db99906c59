"""What a long video takes in the temporary folder is told by the plan, and there is room for it before it begins."""

import collections

import numpy as np
import pytest
from cli.runs import run
from media.clips import tones

from liveavatar.config import WAN2_2_S2V_14B
from liveavatar.errors import OutputError
from liveavatar.media.audio import AudioClip
from liveavatar.pipeline import LiveAvatarPipeline
from liveavatar.planner.disk import TemporaryBytes
from liveavatar.request import Request, resolve

Usage = collections.namedtuple("Usage", "total used free")


def needed(seconds: float) -> TemporaryBytes:
    return TemporaryBytes.of(resolve(Request(), (704, 384), round(seconds * 16_000), 16_000), WAN2_2_S2V_14B)


def test_an_hour_takes_what_its_tables_take() -> None:
    hour = needed(3600)
    assert hour.latents == 7500 * 4 * 16 * 3 * 48 * 88
    assert (hour.features, hour.audio) == (0, 3600 * 16_000 * 4), "it is encoded while the video is made"
    minutes = needed(600)
    assert minutes.features == 1250 * 12 * 4 * 25 * 1024
    short = needed(5)
    assert (short.features, short.audio) == (0, 0), "they stay in memory"


def test_the_plan_tells_it_of_long_videos_only() -> None:
    plan = ("plan", "--model", "wan2.2-s2v-14b", "--stages", "1x1", "--seconds")
    assert "go to the temporary folder" in run(*plan, 3600).out
    assert "go to the temporary folder" not in run(*plan, 20).out


def test_a_video_without_room_is_refused_before_it_begins(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(10**9, 10**9, 1000))
    with pytest.raises(OutputError, match="fewer seconds"):
        needed(3600).check()
    pipeline = LiveAvatarPipeline.from_pretrained("untrained")
    clip = AudioClip.from_array(tones(16_000, 16_000), 16_000)
    video = pipeline(np.zeros((64, 64, 3), np.uint8), clip, size="64x64")
    assert any("1000 B are free" in note or "are free" in note for note in video.spec.plan.notes)
    with pytest.raises(OutputError, match="are free"):
        video.save(tmp_path / "out.mp4")
    assert not list(tmp_path.iterdir()) and not pipeline.loaded_bytes
