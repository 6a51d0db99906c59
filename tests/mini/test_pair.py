"""Two people in one picture: by the real engine, the right mouth moves; and the exam can tell that it does not."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from liveavatar import LiveAvatarPipeline, Speaker
from liveavatar.components import MINI_FOLDER, SPEAKERS_LORA, for_speakers, open_components
from liveavatar.media.audio import AudioClip
from liveavatar.mini.exam import drawn
from liveavatar.mini.judge import VideoRequest
from liveavatar.mini.pair_exam import PairExam, pair_sheet
from liveavatar.mini.world import measure
from liveavatar.mini.world.pair import Pair
from liveavatar.mini.world.pair_demo import demo_people

ASSETS = MINI_FOLDER.parent / "assets"


def test_only_several_speakers_have_the_lora_for_several() -> None:
    one = open_components("mini")
    assert for_speakers(one, 1) is one
    several = for_speakers(one, 2)
    assert for_speakers(one, 3) is several
    assert [lora.path.name for lora in several.files.extra_loras] == [SPEAKERS_LORA]
    assert SPEAKERS_LORA in several.notes[-1]


def test_the_one_who_is_heard_talks_and_the_other_listens(tmp_path) -> None:
    """The demo's picture, masks and first voice; the other one says nothing."""
    clip = AudioClip.from_array(voice("left"), 16_000)
    quiet = AudioClip.from_array(np.zeros_like(voice("left")), 16_000)
    for talks in (0, 1):
        sounds = [quiet, quiet]
        sounds[talks] = clip
        speakers = [
            Speaker(sound, ASSETS / f"pair_{side}_mask.png")
            for sound, side in zip(sounds, ("left", "right"), strict=True)
        ]
        job = LiveAvatarPipeline.from_pretrained("mini", threads=1)(
            ASSETS / "pair.png", speakers, size="256x128", seconds=1.9
        )
        frames = np.concatenate([np.moveaxis(np.asarray(block), 0, -1) for block in job.frames()])
        faces = frames[:, :, :128], frames[:, :, 128:]
        opening = [measure.opening(face, who) for face, who in zip(faces, demo_people(), strict=True)]
        assert opening[talks].mean() > 0.15 > 0.05 > opening[1 - talks].mean()
        job.close()


def voice(side: str) -> np.ndarray:
    from liveavatar.media.audio_file import read_audio

    return np.asarray(read_audio(ASSETS / f"pair_{side}.wav").samples, np.float32)


class Pencil:
    """Draws the pair that it is asked for, talking as they should, or each as the other should."""

    def __init__(self, swapped: bool = False):
        self.swapped, self.known = swapped, {}

    def frames(self, take: VideoRequest) -> Iterator[np.ndarray]:
        shown: Pair = self.known[take.picture.tobytes()]
        assert take.masks is not None and len(take.further) == 1
        tracks = [one.track for one in shown.people]
        if self.swapped:
            tracks.reverse()
        acted = [dataclasses.replace(one, track=track) for one, track in zip(shown.people, tracks, strict=True)]
        yield np.concatenate([drawn(one, range(len(one.track))) for one in acted], 2)

    def rebuilt(self, picture: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return frames[: len(frames) // 12 * 12] // 2 * 2


def judged(pencil: Pencil) -> PairExam:
    exam = PairExam(pencil, 1)
    for example in (*exam.talkers, *exam.listeners, exam.example(0, 7.2, "turns")):
        pencil.known[example.reference.tobytes()] = example
    return exam


@pytest.mark.usefixtures("speech")
def test_the_exam_tells_the_own_mouth_from_the_others() -> None:
    right, wrong = judged(Pencil()), judged(Pencil(swapped=True))
    found, listening = right.talking(), right.listening()
    assert found["own_lips"] > 0.97 and abs(found["others_lips"]) < 0.5
    assert found["own_lips"] == pytest.approx(found["vae_own_lips"], abs=0.02)
    assert listening["silent_opening"] < 0.05 and listening["identity_at_2_s"] == pytest.approx(1, abs=0.2)
    found, listening = wrong.talking(), wrong.listening()
    assert found["others_lips"] > 0.97 and found["own_lips"] < 0.5
    assert listening["silent_opening"] > 0.05


@pytest.mark.usefixtures("speech")
def test_a_sheet_names_who_talks() -> None:
    exam = judged(Pencil())
    pencil = exam.engine
    turns = exam.example(0, 7.2, "turns")
    pencil.known[turns.reference.tobytes()] = turns
    (row,) = pair_sheet(exam, 1)
    assert len(row.pictures) == len(row.captions) == 8
    assert {caption.split(", ")[1] for caption in row.captions[1:]} == {"left talks", "right talks"}
