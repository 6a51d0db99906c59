"""Two speakers in one live talk: each is heard where they are, neither holds the other up, both are in the sound."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from live.conftest import REQUEST
from live.test_session import RATE, voice

from liveavatar import LiveAvatarPipeline, Request
from liveavatar.components import MINI_FOLDER, for_speakers
from liveavatar.errors import RequestError, SpeakerError
from liveavatar.live.block import LiveBlock
from liveavatar.live.recording import TalkRecording
from liveavatar.live.session import LiveSession
from liveavatar.media.audio_file import read_audio
from liveavatar.media.image import read_image
from liveavatar.mini.world import measure
from liveavatar.mini.world.pair_demo import demo_people

Open = Callable[..., LiveSession]
A, B = voice(2.9, 1), voice(2.0, 2)
HALVES = ("left", "right")
ASSETS = MINI_FOLDER.parent / "assets"


def said(session: LiveSession, sounds: tuple[np.ndarray, ...], piece: int = 48_000) -> list[LiveBlock]:
    """All blocks of what each speaker says; the last speaker is pushed first."""

    def push() -> None:
        for start in range(0, max(map(len, sounds)), piece):
            for speaker, sound in reversed(list(enumerate(sounds, 1))):
                session.push(sound[start : start + piece], RATE, speaker)
        session.end()

    pusher = threading.Thread(target=push)
    pusher.start()
    blocks = list(session.blocks())
    pusher.join()
    return blocks


def images(blocks: list[LiveBlock]) -> np.ndarray:
    return np.concatenate([block.images for block in blocks])


@pytest.fixture(scope="module")
def two(pipeline: LiveAvatarPipeline, image: np.ndarray) -> list[LiveBlock]:
    with LiveSession(pipeline, image, REQUEST, real_time=False, speakers=HALVES) as live:
        return said(live, (A, B))


def test_the_same_sounds_give_the_same_pictures_however_they_come(open_session: Open, two: list[LiveBlock]) -> None:
    with open_session(real_time=False, speakers=HALVES) as live:
        cut = said(live, (A, B), 777)
    assert len(two) == len(cut) == 7
    assert np.array_equal(images(two), images(cut))
    assert all(np.array_equal(one.audio, other.audio) for one, other in zip(two, cut, strict=True))


def test_who_says_what_where_matters_and_not_their_order(open_session: Open, two: list[LiveBlock]) -> None:
    with open_session(real_time=False, speakers=HALVES[::-1]) as live:
        renamed = said(live, (B, A))
    assert np.abs(images(renamed).astype(int) - images(two)).max() <= 1
    with open_session(real_time=False, speakers=HALVES) as live:
        swapped = said(live, (B, A))
    assert np.abs(images(swapped).astype(int) - images(two)).max() > 1


def test_the_sound_is_both_to_the_sample(open_session: Open, two: list[LiveBlock]) -> None:
    alone = []
    for sound in (A, B):
        with open_session(real_time=False) as live:
            alone.append(np.concatenate([block.audio for block in said(live, (sound,))]))
    mixed = np.concatenate([block.audio for block in two])
    expected = alone[0].copy()
    expected[: len(alone[1])] += alone[1]
    assert np.array_equal(mixed, expected)


@pytest.mark.parametrize("talks", [0, 1])
def test_the_mouth_of_the_one_who_speaks_moves(talks: int) -> None:
    """The miniature, with the picture of its demo of two."""
    mini, speaks = LiveAvatarPipeline.from_pretrained("mini", threads=1), read_audio(ASSETS / "pair_left.wav")
    masks = [ASSETS / f"pair_{side}_mask.png" for side in HALVES]
    with LiveSession(
        mini, read_image(ASSETS / "pair.png"), Request(size="256x128"), real_time=False, speakers=masks
    ) as live:
        assert live.components is for_speakers(mini.components, 2)
        live.push(speaks.samples[: round(1.9 * speaks.rate)], speaks.rate, speaker=talks + 1)
        live.end()
        frames = images(list(live.blocks()))
    faces = frames[:, :, :128], frames[:, :, 128:]
    opening = [measure.opening(face, who).mean() for face, who in zip(faces, demo_people(), strict=True)]
    assert opening[talks] > 3 * opening[1 - talks]


def test_the_recording_has_both_in_time(two: list[LiveBlock], tmp_path: Path) -> None:
    file = tmp_path / "talk.mp4"
    with TalkRecording(file, 64, 64) as recording:
        for block in two:
            recording.write(block)
    with av.open(str(file)) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    said_at = [slice(0, 90_000), slice(100_000, 130_000)]  # by both, and by the first alone
    mixed = np.concatenate([block.audio for block in two])
    skipped = max(range(2100), key=lambda start: float(heard[start : start + 20_000] @ mixed[:20_000]))
    for part in said_at:
        later = slice(part.start + skipped, part.stop + skipped)
        assert np.corrcoef(heard[later], mixed[part])[0, 1] > 0.98


def test_the_masks_of_pictures_are_those_of_a_rendered_video(open_session: Open, two: list[LiveBlock]) -> None:
    left = np.zeros((64, 64), bool)
    left[:, :32] = True
    with open_session(real_time=False, speakers=(left, ~left)) as live:
        assert np.array_equal(images(said(live, (A, B))), images(two))
        first, second = live.speaker_reports
    assert (first.audio, first.mask, first.share, first.seconds) == ("live", "array", 0.5, 2.9)
    assert second.seconds == 2.0


def test_who_is_silent_lets_the_other_speak_and_without_a_clock_is_waited_for(open_session: Open) -> None:
    with open_session(real_time=False, speakers=HALVES) as live:
        live.push(A, RATE, speaker=1)
        live.end_of_speech(speaker=1)
        assert live.stats.speakers[0].state == "speaking" and live.stats.speakers[1].state == "idle"
        assert live.stats.block == 0, "the other might still say something with it"
        live.end_of_speech(speaker=2)
        blocks = live.blocks()
        assert all(next(blocks).spoken for _ in range(7))
    with open_session(speakers=HALVES) as live:
        blocks = live.blocks()
        next(blocks)
        live.push(B, RATE, speaker=2)
        live.end_of_speech()
        assert any(next(blocks).spoken for _ in range(4))


def test_one_is_interrupted_and_the_other_goes_on(open_session: Open) -> None:
    with open_session(speakers=HALVES) as live:
        blocks = live.blocks()
        live.push(voice(20.0, 1), RATE, speaker=1)
        live.push(voice(20.0, 2), RATE, speaker=2)
        next(blocks)
        assert live.interrupt(speaker=2) > 10
        stats = live.stats
        assert [speaker.state for speaker in stats.speakers] == ["speaking", "interrupted"]
        assert stats.speakers[1].queued_seconds == 0 < stats.speakers[0].queued_seconds == stats.queued_seconds
        assert stats.state in ("speaking", "starved")
        live.push(B, RATE, speaker=2)
        assert live.stats.speakers[1].state == "speaking"
        live.interrupt()
        assert [speaker.state for speaker in live.stats.speakers] == ["interrupted"] * 2
        assert live.stats.state == "interrupted"


def test_each_may_let_half_a_minute_wait(open_session: Open) -> None:
    with open_session(real_time=False, speakers=HALVES) as live:
        live.push(voice(29.0), RATE, speaker=1)
        with pytest.raises(RequestError, match="wait already"):
            live.push(voice(2.0), RATE, speaker=1)
        live.push(voice(29.0), RATE, speaker=2)


@pytest.mark.parametrize("speaker", [0, 3, "2", 1.0])
def test_who_is_not_there_is_refused(open_session: Open, speaker: object) -> None:
    with open_session(real_time=False, speakers=HALVES) as live:
        for ask in (lambda: live.push(A, RATE, speaker), lambda: live.interrupt(speaker)):  # type: ignore[arg-type]
            with pytest.raises(RequestError, match=r"this talk has 2 speakers.*from 1 to 2"):
                ask()
    with open_session(real_time=False) as live, pytest.raises(RequestError, match="has one speaker"):
        live.end_of_speech(speaker=2)


@pytest.mark.parametrize(
    "speakers, said_of_it",
    [
        (["left"], "There is one speaker, and a mask"),
        (["left"] * 9, "9 speakers are not possible"),
        (["left", "left"], "The masks of speaker 1 and speaker 2 overlap"),
        ([np.ones((64, 64)), np.zeros((64, 64))], "mask of speaker 2 is empty"),
        (["left", "nowhere.png"], "mask of speaker 2"),
    ],
)
def test_masks_that_cannot_be_used_are_refused(open_session: Open, speakers: list[object], said_of_it: str) -> None:
    with pytest.raises(SpeakerError, match=said_of_it):
        open_session(speakers=speakers)
