"""`liveavatar meter`: what it says, and what it refuses before anything is read."""

import json

import av
import numpy as np
import pytest
from cli.runs import run, write_picture, write_voice
from meter.drawn import DrawnReader, talking
from meter.talk import rhythm, spoken, write_video

from liveavatar.meter import measure
from liveavatar.mini.world.sample import person

SOMEBODY = person(7_000, held_out=True)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Five seconds of a drawing that talks."""
    sound = spoken(rhythm(5, 1))
    return write_video(tmp_path_factory.mktemp("film") / "talk.mp4", talking(SOMEBODY, sound.samples[:, 0]), sound)


@pytest.fixture
def drawn(monkeypatch):
    """Faces are read as drawings."""
    monkeypatch.setattr(measure, "LandmarkReader", lambda: DrawnReader(SOMEBODY))


def test_a_table_and_at_last_what_follows(drawn, film):
    ran = run("meter", film)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].startswith("video   talk.mp4, 5.00 s, 125 frames")
    assert "0:00-0:05" in ran.out and lines[-2].startswith("Lips and sound are together")
    assert lines[-1].startswith("The face is taken for that of the first second")


def test_all_figures_as_json(drawn, film):
    told = json.loads(run("meter", film, "--json").out)
    assert told["frames"] == 125 and abs(told["whole"]["lips"]["offset_ms"]) <= 20
    assert len(told["minutes"]) == 1 and len(told["verdict"]) == 2


@pytest.mark.parametrize("absent", ["dlib", "face_recognition_models"])
def test_without_the_extra_it_says_what_to_install(monkeypatch, film, absent):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == absent else real(name, *a))
    ran = run("meter", film)
    assert ran.code == 2 and absent in ran.err and "extra meter" in ran.err and "dlib-bin" in ran.err


def silent(folder):
    with av.open(str(folder / "silent.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(25):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return folder / "silent.mp4"


def picture(folder):
    return write_picture(folder / "face.png")


def voice(folder):
    return write_voice(folder / "voice.wav", 1.0)


def words(folder):
    (folder / "words.mp4").write_text("no video at all", encoding="utf-8")
    return folder / "words.mp4"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (silent, "no sound in"),
        (voice, "holds no pictures"),
        (words, "no video that can be read"),
        (lambda folder: folder, "is not a file"),
        (lambda folder: folder / "nothing.mp4", "no video at"),
    ],
)
def test_what_cannot_be_measured_is_refused(drawn, tmp_path, given, says):
    ran = run("meter", given(tmp_path))
    assert ran.code == 2 and says in ran.err and not ran.out


def test_a_portrait_that_is_none_is_refused(drawn, tmp_path, film):
    ran = run("meter", film, "--portrait", words(tmp_path))
    assert ran.code == 2 and "words.mp4" in ran.err
