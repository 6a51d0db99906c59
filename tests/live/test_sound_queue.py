"""Sounds that a talk says first, and who is heard then."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from liveavatar.errors import RequestError
from liveavatar.live.block import LiveBlock
from liveavatar.live.session import LiveSession
from liveavatar.live.sound_queue import SoundQueue
from liveavatar.live.talk import Talk
from liveavatar.media.audio import AudioClip


def tone(seconds: float, rate: int = 16_000, channels: int = 1) -> AudioClip:
    wave = 0.3 * np.sin(np.arange(round(seconds * rate)) * 2764.6 / rate)
    return AudioClip.from_array(np.repeat(wave[:, None], channels, 1).astype(np.float32), rate)


def said(blocks: list[LiveBlock]) -> float:
    """Seconds of sound in them."""
    return sum(float((np.abs(block.audio) > 0.01).sum()) for block in blocks) / 48_000


@pytest.fixture
def play(open_session: Callable[..., LiveSession]) -> Callable[..., tuple[Talk, list[LiveBlock], threading.Event]]:
    def begin(sounds: SoundQueue, **options: object) -> tuple[Talk, list[LiveBlock], threading.Event]:
        blocks: list[LiveBlock] = []
        ended = threading.Event()
        session = open_session(**options)
        return Talk(session, lambda error: ended.set(), blocks.append, sounds), blocks, ended

    return begin


def test_all_sounds_are_said_to_the_sample_and_the_talk_ends(play: Callable[..., tuple]) -> None:
    sounds = SoundQueue([tone(2.0), tone(7.0, 44_100, 2), tone(0.2)], then_end=True)
    _, blocks, ended = play(sounds, real_time=False)
    assert ended.wait(120)
    assert len(blocks) == -(-9.2 // 0.48)
    assert said(blocks) == pytest.approx(9.2 * 0.976, abs=0.15)  # a tone is small where it crosses zero


def test_nobody_else_is_heard_before_they_are_said_or_interrupted(play: Callable[..., tuple]) -> None:
    talk, _, ended = play(SoundQueue([tone(600.0)]))
    with pytest.raises(RequestError, match="still being said"):
        talk.push(np.zeros(160, np.float32), 16_000)
    talk.interrupt()
    talk.push(np.zeros(160, np.float32), 16_000)
    talk.close()
    assert ended.is_set()


def test_an_interruption_ends_what_had_nothing_else_to_say(play: Callable[..., tuple]) -> None:
    talk, blocks, ended = play(SoundQueue([tone(600.0)], then_end=True))
    talk.interrupt()
    assert ended.wait(60) and said(blocks) < 10


HALVES = ("left", "right")


def test_several_say_theirs_at_once_and_the_longest_ends_the_talk(play: Callable[..., tuple]) -> None:
    sounds = SoundQueue([tone(0.5)], [tone(1.0), tone(0.9)], then_end=True)
    talk, blocks, ended = play(sounds, real_time=False, speakers=HALVES)
    assert ended.wait(120) and len(blocks) == -(-1.9 // 0.48)
    assert [report.seconds for report in talk.session.speaker_reports] == [pytest.approx(0.5), pytest.approx(1.9)]
    loud = np.concatenate([block.audio for block in blocks])
    both, one = (np.abs(loud[slice(*(round(48_000 * t) for t in part))]).max() for part in ((0.1, 0.4), (1.2, 1.8)))
    assert both == pytest.approx(0.6, abs=0.05) and one == pytest.approx(0.3, abs=0.05)


def test_who_has_no_sound_of_the_start_keeps_nobody_waiting(play: Callable[..., tuple]) -> None:
    _, blocks, ended = play(SoundQueue([], [tone(0.9)], then_end=True), real_time=False, speakers=HALVES)
    assert ended.wait(120) and len(blocks) == 2


def test_one_speaker_is_interrupted_and_the_others_go_on(play: Callable[..., tuple]) -> None:
    talk, blocks, ended = play(SoundQueue([tone(600.0)], [tone(1.5)], then_end=True), speakers=HALVES)
    talk.interrupt(1)
    assert ended.wait(60)
    assert [report.seconds for report in talk.session.speaker_reports][1] == pytest.approx(1.5)
    assert said(blocks) < 7
