"""Pose videos: 25 pictures a second whatever the file has, fitted as the portrait is, held or looped, or refused."""

import io
import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media.videos import sound_of, write_film

from liveavatar.errors import PoseError
from liveavatar.media.image import fit_image
from liveavatar.media.pose_video import (
    PoseFile,
    PosePictures,
    at_25_fps,
    endless_pictures,
    open_pose,
    pose_note,
)


def grey(value, width=48, height=32):
    return np.full((height, width, 3), value, np.uint8)


def write(path, rate, count, width=48, height=32, codec="libx264", start=0):
    """A video whose picture n is 10 n + 5 bright."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for n in range(count):
            frame = av.VideoFrame.from_ndarray(grey(10 * n + 5, width, height), format="rgb24")
            frame.pts, frame.time_base = start + n, 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbers(pictures, count=None):
    """Which pictures came."""
    return [round((float(p.mean()) - 5) / 10) for p in itertools.islice(pictures, count)]


@given(rate=st.integers(1, 120), count=st.integers(1, 40), late=st.floats(0, 0.004), start=st.floats(0, 9))
def test_each_moment_shows_the_latest_picture(rate, count, late, start):
    timed = ((start + n / rate + late * (n % 2), start + (n + 1) / rate, n) for n in range(count))
    shown = list(at_25_fps(timed))
    for i, n in enumerate(shown):
        assert n / rate <= i / 25 + 0.0051 and ((n + 1) / rate >= i / 25 + 0.0008 or n == count - 1)
    assert shown == sorted(shown) and abs(len(shown) / 25 - count / rate) < 0.046


@pytest.mark.parametrize(
    ("rate", "wanted"),
    [
        (25, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (50, [0, 2, 4, 6, 8, 10]),
        (Fraction(24_000, 1001), [0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (10, [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6, 6, 7, 7, 8, 8, 8, 9, 9, 10, 10, 10, 11, 11]),
    ],
)
def test_files_of_any_rate_are_read(tmp_path, rate, wanted):
    found = numbers(PoseFile(write(tmp_path / "p.mp4", rate, 12)).pictures())
    assert found == wanted
    assert abs(len(found) / 25 - 12 / float(rate)) < 0.045


@pytest.mark.parametrize("name", ["p.mp4", "p.mkv", "p.webm", "p.avi"])
def test_containers_and_contents_are_read(tmp_path, name):
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(name.rpartition(".")[2], "libx264")
    path = write(tmp_path / name, 25, 6, codec=codec)
    for source in (PoseFile(path), PoseFile(io.BytesIO(path.read_bytes()))):
        assert numbers(source.pictures()) == numbers(source.pictures()) == list(range(6))
        assert source.seconds == pytest.approx(6 / 25, abs=0.05)


def test_a_video_that_starts_late_starts_at_once(tmp_path):
    assert numbers(PoseFile(write(tmp_path / "p.mkv", 25, 5, start=50)).pictures()) == list(range(5))


def test_a_part_of_a_file_is_read(tmp_path):
    path = write(tmp_path / "p.mp4", 25, 20)
    part = PoseFile(path, start=0.2, length=0.16)
    assert numbers(part.pictures()) == [5, 6, 7, 8] and part.seconds == pytest.approx(0.16)
    assert numbers(PoseFile(path, start=0.6).pictures()) == [15, 16, 17, 18, 19]
    with pytest.raises(PoseError, match="holds no picture"):
        PoseFile(path, start=3.0)


@pytest.mark.parametrize("end", ["hold", "loop", "black"])
def test_what_follows_the_end(tmp_path, end):
    source = PoseFile(write(tmp_path / "p.mp4", 25, 3))
    shown = list(itertools.islice(endless_pictures(source, end, 48, 32, "cover"), 8))
    after = {"hold": [2] * 5, "loop": [0, 1, 2, 0, 1], "black": [0] * 5}[end]
    assert numbers(shown) == [0, 1, 2, *after] and shown[-1].any() == (end != "black")


@pytest.mark.parametrize("fit", ["cover", "pad"])
def test_pictures_are_fitted_as_the_portrait_is(fit):
    picture = np.random.default_rng(2).integers(0, 255, (40, 90, 3), np.uint8)
    (shown,) = itertools.islice(endless_pictures(PosePictures(picture[None]), "hold", 64, 64, fit), 1)
    assert np.array_equal(shown, fit_image(picture, 64, 64, fit))


def test_a_loop_reads_the_file_again_and_holds_few_pictures(tmp_path):
    source = PoseFile(write(tmp_path / "p.mp4", 25, 4))
    pictures = endless_pictures(source, "loop", 64, 64, "cover")
    assert numbers(pictures, 41)[-1] == 0
    pictures.close()


def broken(tmp_path):
    path = write(tmp_path / "whole.mp4", 25, 20, width=256, height=256)
    content = bytearray(path.read_bytes())
    content[600:-1200] = bytes(len(content) - 1800)
    (tmp_path / "broken.mp4").write_bytes(content)
    return tmp_path / "broken.mp4"


def sound_alone(tmp_path):
    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return tmp_path / "sound.m4a"


def text(tmp_path):
    (tmp_path / "text.mp4").write_text("no video " * 40)
    return tmp_path / "text.mp4"


def nothing(tmp_path):
    (tmp_path / "empty.mp4").touch()
    return tmp_path / "empty.mp4"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.mp4", "There is no pose video at"),
        (lambda p: p, "is not a file"),
        (text, "is no video that can be read"),
        (nothing, "is no video that can be read"),
        (sound_alone, "holds no pictures"),
        (lambda p: write(p / "small.mp4", 25, 2, 8, 8), "8x8 pixels"),
        (lambda p: PosePictures(np.zeros((0, 64, 64, 3), np.uint8)), "not understood"),
        (lambda p: PosePictures(np.zeros((2, 64, 64, 3), np.float32)), "not understood"),
        (lambda p: 7, "of type int is not understood"),
        (broken, "cannot be read beyond|no video that can be read|holds no picture"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path, make, message):
    with pytest.raises(PoseError, match=message) as refusal:
        open_pose(make(tmp_path))
    assert refusal.value.nearest


def test_a_video_of_this_program_is_a_pose_video(tmp_path):
    write_film(tmp_path / "film.mp4", 24, sound_of(15_360, 16_000))
    assert sum(1 for _ in PoseFile(tmp_path / "film.mp4").pictures()) == 24


def test_notes_tell_of_another_length():
    source = PosePictures(np.zeros((50, 32, 32, 3), np.uint8))
    assert pose_note(source, "hold", 2.0) is None
    assert pose_note(source, "loop", 3.0) == "the pose video ends after 2.00 s of 3.00 s: it is repeated"
    assert "first 1.00 s of 2.00 s" in pose_note(source, "hold", 1.0)
