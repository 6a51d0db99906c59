"""Two people in one picture: by the real engine, the right mouth moves; and the exam can tell that it does not."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from liveavatar import LiveAvatarPipeline, Speaker
from liveavatar.components import MINI_FOLDER, SPEAKERS_LORA, for_speakers, loras_of, open_components
from liveavatar.media.audio import AudioClip
from liveavatar.media.audio_file import read_audio
from liveavatar.mini.exam import drawn
from liveavatar.mini.judge import VideoRequest
from liveavatar.mini.pair_exam import PairExam, pair_sheet
from liveavatar.mini.world import measure
from liveavatar.mini.world.pair import Pair
from liveavatar.mini.world.pair_demo import demo_people

ASSETS = MINI_FOLDER.parent / "assets"


def test_only_several_speakers_have_the_lora_for_several() -> None:
    one = open_components("mini")
    assert for_speakers(one, 1) is one and not one.files.extra_loras
    several = for_speakers(one, 2)
    assert for_speakers(one, 3) is several
    assert [lora.path.name for lora in several.files.extra_loras] == [SPEAKERS_LORA]
    assert SPEAKERS_LORA in several.notes[-1]


@pytest.mark.parametrize("talks", [0, 1])
def test_the_one_who_is_heard_talks_and_the_other_listens(talks: int) -> None:
    """The demo's picture, masks and first voice; the other one says nothing."""
    voice = read_audio(ASSETS / "pair_left.wav", 1.44)
    sounds = [AudioClip.from_array(np.zeros_like(voice.samples), voice.rate)] * 2
    sounds[talks] = voice
    masks = [ASSETS / f"pair_{side}_mask.png" for side in ("left", "right")]
    speakers = [Speaker(sound, mask) for sound, mask in zip(sounds, masks, strict=True)]
    video = LiveAvatarPipeline.from_pretrained("mini", threads=1)(ASSETS / "pair.png", speakers, size="256x128")
    frames = np.concatenate([block.permute(1, 2, 3, 0).numpy() for block in video.frames()])
    faces = frames[:, :, :128], frames[:, :, 128:]
    opening = [measure.opening(face, who).mean() for face, who in zip(faces, demo_people(), strict=True)]
    assert opening[talks] > 0.1 > 0.05 > opening[1 - talks]
    assert [Path(lora.file).name for lora in loras_of(video.spec.components)][1:] == [SPEAKERS_LORA]
    video.close()


def vae(frames: np.ndarray) -> np.ndarray:
    """A VAE that loses a little."""
    return frames // 2 * 2


class Pencil:
    """Draws the pair that it is asked for, talking as they should, or each as the other should."""

    def __init__(self, swapped: bool = False):
        self.swapped, self.known = swapped, {}

    def frames(self, take: VideoRequest) -> Iterator[np.ndarray]:
        shown: Pair = self.known[take.picture.tobytes(), take.wave.tobytes()]
        assert take.masks is not None and len(take.further) == 1
        tracks = [one.track for one in shown.people]
        if self.swapped:
            tracks.reverse()
        acted = [dataclasses.replace(one, track=track) for one, track in zip(shown.people, tracks, strict=True)]
        yield vae(np.concatenate([drawn(one, range(len(one.track))) for one in acted], 2))

    def rebuilt(self, picture: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return vae(frames[: len(frames) // 12 * 12])


def judged(pencil: Pencil) -> PairExam:
    exam = PairExam(pencil, 1)
    for example in (*exam.talkers, *exam.listeners, exam.example(0, 5.2, "turns")):
        pencil.known[example.reference.tobytes(), example.people[0].sound.samples.tobytes()] = example
    return exam


@pytest.mark.usefixtures("speech")
def test_the_exam_tells_the_own_mouth_from_the_others() -> None:
    right, wrong = judged(Pencil()), judged(Pencil(swapped=True))
    found, listening = right.talking(), right.listening()
    assert found["own_lips"] > 0.97 and abs(found["others_lips"]) < 0.5
    assert found["opening_share"] == pytest.approx(1, abs=0.1)
    assert found["own_lips"] == pytest.approx(found["vae_own_lips"], abs=0.02)
    assert listening["silent_opening"] < 0.05 and listening["identity_at_2_s"] == pytest.approx(1, abs=0.2)
    found, listening = wrong.talking(), wrong.listening()
    assert found["others_lips"] > 0.97 and found["own_lips"] < 0.5
    assert listening["silent_opening"] > 0.05


@pytest.mark.usefixtures("speech")
def test_a_sheet_names_who_talks() -> None:
    exam = judged(Pencil())
    (row,) = pair_sheet(exam, 1)
    assert len(row.pictures) == len(row.captions) == 6
    assert {caption.split(", ")[1] for caption in row.captions[1:]} == {"left talks", "right talks"}
