"""The meter on videos of the drawn world, whose truth is known: through the file, as any finished video."""

from pathlib import Path

import numpy as np
import pytest
from meter.drawn import DrawnReader, portrait, talking
from meter.talk import write_video

import liveavatar
from liveavatar.errors import Cancelled, MeterError
from liveavatar.media.audio import AudioClip, mono_16k
from liveavatar.media.audio_file import read_audio
from liveavatar.meter.measure import LISTENING, WATCHING, measure, minutes
from liveavatar.meter.report import verdict
from liveavatar.mini.world.sample import person

VOICE = Path(liveavatar.__file__).parent / "mini" / "assets" / "voice.wav"
SOMEBODY, OTHER = person(7_000, held_out=True), person(7_001, held_out=True)


@pytest.fixture(scope="module")
def wave() -> np.ndarray:
    return np.asarray(mono_16k(read_audio(VOICE))).reshape(-1)


def video(path: Path, frames: np.ndarray, wave: np.ndarray) -> Path:
    return write_video(path, frames, AudioClip.from_array(wave, 16_000, "voice"))


@pytest.mark.parametrize("late_frames", [0, 3, -3, 7])
def test_the_offset_of_the_picture_is_found(tmp_path, wave, late_frames):
    path = video(tmp_path / "talk.mp4", talking(SOMEBODY, wave, late_frames), wave)
    found = measure(path, portrait(SOMEBODY), DrawnReader(SOMEBODY))
    assert found.whole.lips.offset_ms == pytest.approx(40 * late_frames, abs=20)
    assert found.whole.seen == 1.0 and found.frames == len(talking(SOMEBODY, wave)) and len(found.minutes) == 1
    said = verdict(found)[0]
    assert ("together" in said) if not late_frames else (("late" if late_frames > 0 else "early") in said)


def test_a_swapped_face_is_found(tmp_path, wave):
    frames = np.concatenate([talking(SOMEBODY, wave)[:50], talking(OTHER, wave)[50:]])
    found = measure(video(tmp_path / "two.mp4", frames, wave), portrait(SOMEBODY), DrawnReader(SOMEBODY))
    assert found.whole.likeness.distance > 2 * found.same_person
    assert "no longer taken for that of the portrait" in verdict(found)[1]


def test_without_a_portrait_the_first_second_is_the_measure(tmp_path, wave):
    path = video(tmp_path / "talk.mp4", talking(SOMEBODY, wave), wave)
    found = measure(path, reader=DrawnReader(SOMEBODY))
    assert found.reference == "the first second" and found.whole.likeness.farthest < found.same_person


def test_a_wrong_sound_is_told(tmp_path, wave):
    path = video(tmp_path / "wrong.mp4", talking(SOMEBODY, wave), np.roll(wave, 2 * 16_000))
    assert "does not follow" in verdict(measure(path, reader=DrawnReader(SOMEBODY)))[0]


def test_progress_is_told_and_cancelling_ends_it(tmp_path, wave):
    path, events = video(tmp_path / "talk.mp4", talking(SOMEBODY, wave), wave), []

    def cancel(event):
        events.append(event.phase)
        if event.phase == WATCHING:
            raise Cancelled("Cancelled.")

    class Slow(DrawnReader):
        def read(self, frame, embed=False):
            import time

            time.sleep(0.03)
            return super().read(frame, embed)

    with pytest.raises(Cancelled):
        measure(path, reader=Slow(SOMEBODY), callback=cancel)
    assert events == [LISTENING, WATCHING]


class Blind(DrawnReader):
    """Sees no face."""

    def read(self, frame, embed=False):
        return None

    def embedding(self, picture):
        return None


def test_a_video_of_nobody_is_refused(tmp_path, wave):
    path = video(tmp_path / "nobody.mp4", np.zeros((50, 64, 64, 3), np.uint8), wave[:32_000])
    with pytest.raises(MeterError, match=r"No face is found in .*nobody\.mp4"):
        measure(path, reader=Blind(SOMEBODY))
    with pytest.raises(MeterError, match="No face is found in the portrait"):
        measure(path, portrait(SOMEBODY), Blind(SOMEBODY))


def test_minutes_cover_a_video():
    assert minutes(5) == [(0, 5)] and minutes(69) == [(0, 69)]
    assert minutes(71) == [(0, 60), (60, 71)] and minutes(125) == [(0, 60), (60, 125)]
