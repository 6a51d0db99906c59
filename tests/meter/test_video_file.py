"""Frames with their times, and the sound, on one clock: of the whole and of a part, early and late tracks included."""

from fractions import Fraction

import av
import numpy as np
import pytest

from liveavatar.errors import MeterError
from liveavatar.meter.video_file import VideoFile


def write(path, first_frame=0, frames=50, first_sample=0, samples=32_000, rate=25):
    """Grey frames and a tone; each may begin late (frames of 1/25 s, samples of 1/16000 s)."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = container.add_stream("aac", rate=16_000, layout="mono")
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 5 * i % 250, np.uint8), format="rgb24")
            frame.pts, frame.time_base = first_frame + i, Fraction(1, rate)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for start in range(0, samples, 1024):
            tone = 0.3 * np.sin(0.2 * np.arange(start, min(start + 1024, samples)))
            frame = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, first_sample + start, Fraction(1, 16_000)
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    return path


def begins(clip):
    """Second at which a sound begins."""
    return float(np.argmax(np.abs(np.asarray(clip.samples[:, 0])) > 0.05)) / clip.rate


def test_frames_come_with_the_time_at_which_they_appear(tmp_path):
    video = VideoFile(write(tmp_path / "a.mp4"))
    times = [time for time, _ in video.frames()]
    assert times == pytest.approx([i / 25 for i in range(50)], abs=1e-3)
    assert video.seconds == pytest.approx(2.0, abs=0.05)


def test_a_part_begins_at_zero(tmp_path):
    video = VideoFile(write(tmp_path / "a.mp4"), start=0.8, length=0.4)
    frames = list(video.frames())
    assert [t for t, _ in frames] == pytest.approx([i / 25 for i in range(10)], abs=1e-3)
    assert frames[0][1].mean() == pytest.approx(100, abs=4)
    assert video.seconds == pytest.approx(0.4) and video.audio().seconds == pytest.approx(0.4, abs=0.01)
    with pytest.raises(MeterError, match=r"no sound from 9\.00 s on"):
        VideoFile(tmp_path / "a.mp4", start=9.0).audio()


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_track_that_begins_late_stays_late(tmp_path, suffix):
    late_picture = VideoFile(write(tmp_path / f"p.{suffix}", first_frame=5))
    late_sound = VideoFile(write(tmp_path / f"s.{suffix}", first_sample=3200))
    shifts = []
    for video in (late_picture, late_sound):
        first = next(iter(video.frames()))[0]
        shifts.append(first - begins(video.audio()))
    assert shifts[0] - shifts[1] == pytest.approx(0.4, abs=0.03)
