"""Landmarks of dlib, on real portraits that are made to talk (they lie beside the project) and on a drawing."""

import numpy as np
import pytest
from meter import drawn
from meter.photo import find_mouth, talking
from meter.talk import at_frames, late, rhythm, spoken, write_video

from liveavatar.errors import MeterError
from liveavatar.media.image import fit_image, read_image
from liveavatar.meter.faces import LandmarkReader, missing_packages
from liveavatar.meter.measure import measure
from liveavatar.meter.report import verdict
from liveavatar.mini.world.sample import person

MISSING = missing_packages()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}, of the extra `meter`")
SIZES = {"boy.jpg": (512, 320), "fashion_blogger.jpg": (320, 512), "livestream_2.jpg": (448, 448)}


@pytest.fixture(scope="module")
def portraits(shared_data):
    return {name: fit_image(read_image(shared_data / name), *size) for name, size in SIZES.items()}


def film(path, picture, lips, loud, moved=False):
    frames = talking(picture, find_mouth(picture), at_frames(lips))
    if moved:
        frames = np.stack([np.roll(f, round(6 * np.sin(i / 20)), axis=1) for i, f in enumerate(frames)])
    return write_video(path, frames, spoken(loud))


@pytest.mark.parametrize("ms", [120, -80])
def test_the_offset_of_a_talking_photograph_is_found(tmp_path, portraits, ms):
    loud = rhythm(8, 1)
    picture = portraits["fashion_blogger.jpg"]
    found = measure(film(tmp_path / "talk.mp4", picture, late(loud, ms), loud, moved=True), picture)
    assert found.whole.lips.offset_ms == pytest.approx(ms, abs=40)
    assert found.whole.seen > 0.95 and found.whole.likeness.farthest < found.same_person
    assert "taken for that of the portrait throughout" in verdict(found)[1]


def test_a_swapped_photograph_is_found(tmp_path, portraits):
    loud = rhythm(6, 2)
    path = film(tmp_path / "talk.mp4", portraits["fashion_blogger.jpg"], loud, loud)
    found = measure(path, portraits["livestream_2.jpg"])
    assert found.whole.likeness.distance > found.same_person and "no longer" in verdict(found)[1]


def test_a_wrong_sound_under_a_photograph_is_told(tmp_path, portraits):
    path = film(tmp_path / "talk.mp4", portraits["boy.jpg"], rhythm(8, 3), rhythm(8, 4))
    assert "does not follow" in verdict(measure(path))[0]


def test_a_drawing_is_read_too(tmp_path):
    somebody, sound = person(7_002, held_out=True), spoken(rhythm(6, 6))
    frames = drawn.talking(somebody, sound.samples[:, 0], late_frames=3)
    found = measure(write_video(tmp_path / "drawn.mp4", frames, sound), drawn.portrait(somebody))
    assert found.whole.lips.offset_ms == pytest.approx(120, abs=40)
    assert found.whole.likeness.farthest < found.same_person


def test_a_wall_has_no_face():
    assert LandmarkReader().embedding(np.full((240, 320, 3), 120, np.uint8)) is None


def test_a_video_without_a_face_is_refused(tmp_path):
    loud = rhythm(2, 5)
    path = write_video(tmp_path / "wall.mp4", np.full((50, 128, 128, 3), 120, np.uint8), spoken(loud))
    with pytest.raises(MeterError, match=r"No face is found in .*wall\.mp4"):
        measure(path)
