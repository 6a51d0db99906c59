"""Sounds that a talk says first, and who is heard then."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from liveavatar.errors import RequestError
from liveavatar.live.block import PIECES, LivePiece
from liveavatar.live.session import LiveSession
from liveavatar.live.sound_queue import SoundQueue
from liveavatar.live.talk import Talk
from liveavatar.media.audio import AudioClip


def tone(seconds: float, rate: int = 16_000, channels: int = 1) -> AudioClip:
    wave = 0.3 * np.sin(np.arange(round(seconds * rate)) * 2764.6 / rate)
    return AudioClip.from_array(np.repeat(wave[:, None], channels, 1).astype(np.float32), rate)


def said(pieces: list[LivePiece]) -> float:
    """Seconds of sound in them."""
    return sum(float((np.abs(piece.audio) > 0.01).sum()) for piece in pieces) / 48_000


@pytest.fixture
def play(open_session: Callable[..., LiveSession]) -> Callable[..., tuple[Talk, list[LivePiece], threading.Event]]:
    def begin(sounds: SoundQueue, **options: object) -> tuple[Talk, list[LivePiece], threading.Event]:
        pieces: list[LivePiece] = []
        ended = threading.Event()
        session = open_session(**options)
        return Talk(session, lambda error: ended.set(), pieces.append, sounds), pieces, ended

    return begin


def test_all_sounds_are_said_to_the_sample_and_the_talk_ends(play: Callable[..., tuple]) -> None:
    sounds = SoundQueue([tone(2.0), tone(7.0, 44_100, 2), tone(0.2)], then_end=True)
    _, pieces, ended = play(sounds, real_time=False)
    assert ended.wait(120)
    assert len(pieces) == PIECES * -(-9.2 // 0.48)
    assert said(pieces) == pytest.approx(9.2 * 0.976, abs=0.15)  # a tone is small where it crosses zero


def test_nobody_else_is_heard_before_they_are_said_or_interrupted(play: Callable[..., tuple]) -> None:
    talk, _, ended = play(SoundQueue([tone(600.0)]))
    with pytest.raises(RequestError, match="still being said"):
        talk.push(np.zeros(160, np.float32), 16_000)
    talk.interrupt()
    talk.push(np.zeros(160, np.float32), 16_000)
    talk.close()
    assert ended.is_set()


def test_an_interruption_ends_what_had_nothing_else_to_say(play: Callable[..., tuple]) -> None:
    talk, pieces, ended = play(SoundQueue([tone(600.0)], then_end=True))
    talk.interrupt()
    assert ended.wait(60) and said(pieces) < 10


HALVES = ("left", "right")


def test_several_say_theirs_at_once_and_the_longest_ends_the_talk(play: Callable[..., tuple]) -> None:
    sounds = SoundQueue([tone(0.5)], [tone(1.0), tone(0.9)], then_end=True)
    talk, pieces, ended = play(sounds, real_time=False, speakers=HALVES)
    assert ended.wait(120) and len(pieces) == PIECES * -(-1.9 // 0.48)
    assert [report.seconds for report in talk.session.speaker_reports] == [pytest.approx(0.5), pytest.approx(1.9)]
    loud = np.concatenate([piece.audio for piece in pieces])
    both, one = (np.abs(loud[slice(*(round(48_000 * t) for t in part))]).max() for part in ((0.1, 0.4), (1.2, 1.8)))
    assert both == pytest.approx(0.6, abs=0.05) and one == pytest.approx(0.3, abs=0.05)


def test_who_has_no_sound_of_the_start_keeps_nobody_waiting(play: Callable[..., tuple]) -> None:
    _, pieces, ended = play(SoundQueue([], [tone(0.9)], then_end=True), real_time=False, speakers=HALVES)
    assert ended.wait(120) and len(pieces) == 2 * PIECES


def test_one_speaker_is_interrupted_and_the_others_go_on(play: Callable[..., tuple]) -> None:
    talk, pieces, ended = play(SoundQueue([tone(600.0)], [tone(1.5)], then_end=True), speakers=HALVES)
    talk.interrupt(1)
    assert ended.wait(60)
    assert [report.seconds for report in talk.session.speaker_reports][1] == pytest.approx(1.5)
    assert said(pieces) < 7
