"""The node Meter: VIDEO of a file, of a part of it, or in memory; and what is no VIDEO."""

import io
import json
import sys
from pathlib import Path

import fake_comfy
import numpy as np
import pytest
from meter.drawn import DrawnReader, talking
from meter.talk import rhythm, spoken, write_video

from liveavatar.mini.world.sample import person

SOMEBODY = person(7_000, held_out=True)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Five seconds of a drawing that talks."""
    sound = spoken(rhythm(5, 1))
    return write_video(tmp_path_factory.mktemp("film") / "talk.mp4", talking(SOMEBODY, sound.samples[:, 0]), sound)


@pytest.fixture
def meter(nodes, monkeypatch):
    """The node; faces are read as drawings."""
    module = sys.modules[f"{fake_comfy.PACK}.liveavatar.meter.measure"]
    monkeypatch.setattr(module, "LandmarkReader", lambda: DrawnReader(SOMEBODY))
    return nodes["LiveAvatarMeter"]


class Trimmed:
    """A VIDEO as core gives it."""

    def __init__(self, source, start: float = 0.0, length: float = 0.0):
        self._source, self._window = source, (start, length)

    def get_stream_source(self):
        return self._source

    def get_active_trim_window(self):
        return self._window


def test_report_and_figures(meter, film):
    out = fake_comfy.run(meter, video=fake_comfy.VideoFromFile(str(film)))
    report, figures = out.args
    assert report == out.ui.as_dict()["text"][0] and "Lips and sound are together" in report
    assert json.loads(figures)["frames"] == 125


def test_a_trimmed_video_is_measured_as_far_as_it_goes(meter, film):
    figures = json.loads(fake_comfy.run(meter, video=Trimmed(str(film), 1.0, 3.0)).args[1])
    assert figures["frames"] == 75 and figures["seconds"] == 3.0


def test_a_video_in_memory_is_written_down_only_meanwhile(meter, film, host):
    figures = json.loads(fake_comfy.run(meter, video=Trimmed(io.BytesIO(film.read_bytes()))).args[1])
    assert figures["frames"] == 125 and not list((host.base / "temp").iterdir())


class OfOldCore:
    """A VIDEO in memory as ComfyUI 0.3.64 gives it: written only where a name tells the format."""

    def __init__(self, content: bytes):
        self._content = content

    def get_stream_source(self):
        self.save_to(io.BytesIO())

    def save_to(self, file):
        if not Path(getattr(file, "name", "")).suffix:
            raise ValueError("Could not determine output format")
        file.write(self._content)


def test_a_video_in_the_memory_of_an_old_core_is_measured_too(meter, film):
    figures = json.loads(fake_comfy.run(meter, video=OfOldCore(film.read_bytes())).args[1])
    assert figures["frames"] == 125


def test_what_is_no_video_is_refused(meter):
    with pytest.raises(Exception, match="The video is of type ndarray"):
        fake_comfy.run(meter, video=np.zeros(3))
