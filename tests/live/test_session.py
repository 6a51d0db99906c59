"""A live session makes the same pictures of the same sound, changes at blocks, and leaves nothing behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from live.conftest import AHEAD_BLOCKS

from liveavatar.errors import Cancelled, ImageError, RequestError
from liveavatar.events import Event
from liveavatar.live.block import LiveBlock
from liveavatar.live.session import LiveSession
from liveavatar.streams import to_rgb24

RATE = 16_000
Open = Callable[..., LiveSession]


def voice(seconds: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    loud = np.repeat(generator.random(round(seconds * 10) + 1), RATE // 10)[: round(seconds * RATE)]
    return (0.2 * loud * generator.standard_normal(len(loud))).astype(np.float32)


def said(session: LiveSession, sound: np.ndarray, piece: int) -> list[LiveBlock]:
    """All blocks of a sound that is pushed in pieces while they are read."""

    def push() -> None:
        for start in range(0, len(sound), piece):
            session.push(sound[start : start + piece], RATE)
        session.end()

    pusher = threading.Thread(target=push)
    pusher.start()
    blocks = list(session.blocks())
    pusher.join()
    return blocks


def test_the_same_sound_gives_the_same_pictures_however_it_comes(open_session: Open) -> None:
    sound = voice(2.9)
    with open_session(real_time=False) as first:
        whole = said(first, sound, len(sound))
    with open_session(real_time=False) as second:
        cut = said(second, sound, 777)
    assert [b.number for b in whole] == list(range(7))
    for one, other in zip(whole, cut, strict=True):
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.audio, other.audio)
    assert whole[0].images.shape == (12, 64, 64, 3)
    assert whole[0].audio.shape == (23_040,)


def test_a_piece_is_there_while_the_rest_of_its_block_is_decoded(
    open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, was_read, decoded = voice(0.9), threading.Event(), []
    with open_session(real_time=False) as first:
        whole = said(first, sound, len(sound))

    def waiting(frames: torch.Tensor) -> np.ndarray:
        decoded.append(len(decoded))
        assert len(decoded) != 2 or was_read.wait(60)
        return to_rgb24(frames)

    monkeypatch.setattr("liveavatar.live.session.to_rgb24", waiting)
    with open_session(real_time=False) as second:
        second.push(sound, RATE)
        second.end()
        made = []
        for piece in second.pieces():
            made.append(piece)
            was_read.set()
    assert [(piece.block, piece.place, piece.is_last) for piece in made[:4]] == [
        (0, 0, False),
        (0, 1, False),
        (0, 2, True),
        (1, 0, False),
    ]
    for name in ("images", "audio"):
        of_pieces, of_blocks = (np.concatenate([getattr(one, name) for one in parts]) for parts in (made, whole))
        assert np.array_equal(of_pieces, of_blocks)


def test_other_sound_gives_other_pictures(open_session: Open) -> None:
    with open_session(real_time=False) as first, open_session(real_time=False) as second:
        one, other = (said(live, voice(1.0, seed), RATE) for seed, live in enumerate((first, second)))
    assert not np.array_equal(one[-1].images, other[-1].images)


def test_silence_is_filled_in_at_the_pace_of_time(open_session: Open) -> None:
    with open_session() as live:
        blocks = live.blocks()
        made = [next(blocks) for _ in range(3)]
        assert live.stats.state in ("idle", "starved")
    assert not any(b.spoken or b.audio.any() for b in made)


def test_a_prompt_and_a_portrait_change_at_a_block_and_are_told(open_session: Open, image: np.ndarray) -> None:
    sound = voice(4.0)
    with open_session(real_time=False) as live:
        plain = said(live, sound, len(sound))
    with open_session(real_time=False) as live:
        blocks = live.blocks()
        live.push(sound[:20_000], RATE)
        first = [next(blocks), next(blocks)]
        live.set_prompt("A person laughs.")
        live.set_portrait(255 - image)
        live.push(sound[20_000:], RATE)
        live.end()
        changed = [*first, *blocks]
        assert live.stats.changes == ((2, "prompt: A person laughs."), (2, "portrait"))
    differs = [not np.array_equal(a.images, b.images) for a, b in zip(plain, changed, strict=True)]
    assert not any(differs[:2])
    assert all(differs[2:])


def test_an_interrupt_shuts_the_mouth_with_the_next_block(open_session: Open) -> None:
    with open_session() as live:
        blocks = live.blocks()
        live.push(voice(25.0), RATE)
        next(blocks)
        assert live.interrupt() > 4
        assert live.stats.state == "interrupted"
        after = [next(blocks) for _ in range(AHEAD_BLOCKS + 1)]
        assert not after[-1].spoken
        live.push(voice(1.0), RATE)
        assert live.stats.state != "interrupted"


def test_closing_ends_it_at_once_and_leaves_no_thread(open_session: Open) -> None:
    before = set(threading.enumerate())
    live = open_session()
    next(live.blocks())
    live.close()
    live.close()
    assert list(live.blocks()) == []
    assert live.stats.state == "closed"
    assert set(threading.enumerate()) <= before
    with pytest.raises(RequestError, match="closed"):
        live.set_prompt("Another.")


def test_a_closed_session_may_be_left_unread(open_session: Open) -> None:
    live = open_session(real_time=False)
    live.push(voice(8.0), RATE)
    deadline = time.monotonic() + 60
    while live.stats.block < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    live.close()
    assert live.stats.state == "closed"


def test_what_ends_the_work_reaches_the_reader(open_session: Open) -> None:
    calls: list[Event] = []

    def callback(event: Event) -> None:
        calls.append(event)
        if event.task is not None:
            raise Cancelled("Enough.")

    live = open_session(callback=callback)
    with pytest.raises(Cancelled, match="Enough"):
        list(live.blocks())
    assert live.stats.state == "closed"


def test_what_cannot_be_used_is_refused_and_the_session_goes_on(open_session: Open) -> None:
    with open_session(real_time=False) as live:
        with pytest.raises(ImageError):
            live.set_portrait(np.zeros((4, 4), np.uint8))
        with pytest.raises(RequestError, match="prompt cannot be used whole"):
            live.set_prompt("word " * 4000)
        assert len(said(live, voice(0.5), RATE)) == 2


@pytest.mark.parametrize("seconds", [-0.1, 1.0, float("nan")])
def test_an_impossible_look_ahead_is_refused(open_session: Open, seconds: float) -> None:
    with pytest.raises(RequestError, match="look-ahead"):
        open_session(lookahead=seconds)


def test_the_next_session_begins_anew(open_session: Open) -> None:
    with open_session(real_time=False) as first:
        one = said(first, voice(0.6), RATE)
    with open_session(real_time=False) as second:
        other = said(second, voice(0.6), RATE)
    assert np.array_equal(one[0].images, other[0].images)
