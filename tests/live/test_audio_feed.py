"""Sound comes out as it was pushed, whatever the pieces; silence is filled in only where nobody speaks."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.errors import AudioError, RequestError
from liveavatar.live.audio_feed import BLOCK_SAMPLES, AudioFeed

RATE = 16_000


def tone(seconds: float, rate: int = RATE, hertz: float = 220.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def taken(feed: AudioFeed, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """All that so many blocks hear, and what goes out with them."""
    audio = [feed.take(0) for _ in range(blocks)]
    return np.concatenate([a.heard for a in audio]), np.concatenate([a.output for a in audio])


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=12), st.sampled_from([8000, 16_000, 22_050, 44_100, 48_000]))
def test_pieces_do_not_matter(pieces: list[int], rate: int) -> None:
    sound = tone(sum(pieces) / rate, rate)[: sum(pieces)]
    whole, cut = AudioFeed(), AudioFeed()
    whole.push(sound, rate)
    for start, count in zip(np.cumsum([0, *pieces[:-1]]), pieces, strict=True):
        cut.push(sound[start : start + count], rate)
    for feed in (whole, cut):
        feed.end()
    blocks = -(-len(sound) * RATE // rate // BLOCK_SAMPLES) + 1
    for one, other in zip(taken(whole, blocks), taken(cut, blocks), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("rate", [8000, 16_000, 24_000, 44_100, 48_000])
def test_both_rates_hold_the_same_sound(rate: int) -> None:
    feed = AudioFeed()
    feed.push(tone(1.92, rate), rate)
    feed.end()
    heard, output = taken(feed, 4)
    middle = slice(RATE // 2, 3 * RATE // 2)
    assert np.abs(heard - tone(1.92))[middle].max() < 2e-3
    assert np.abs(output - tone(1.92, 48_000))[middle.start * 3 : middle.stop * 3].max() < 2e-3


def test_integers_and_stereo_are_what_they_are_as_mono_floats() -> None:
    sound = tone(0.48)
    feeds = [AudioFeed() for _ in range(3)]
    feeds[0].push(sound, RATE)
    feeds[1].push((sound * 2**15).round().astype(np.int16), RATE)
    feeds[2].push(np.stack([sound, sound], 1), RATE)
    for feed in feeds:
        feed.end()
    first, *others = (feed.take(0).heard for feed in feeds)
    assert all(np.abs(first - other).max() < 1e-4 for other in others)


def test_what_is_ahead_is_seen_and_stays() -> None:
    feed = AudioFeed()
    sound = tone(0.96)
    feed.push(sound, RATE)
    feed.end()
    first = feed.take(2560)
    second = feed.take(2560)
    assert np.array_equal(first.ahead, second.heard[:2560])
    assert not second.ahead.any()


@given(st.integers(0, BLOCK_SAMPLES))
def test_speech_begins_inside_a_block(silence: int) -> None:
    feed = AudioFeed()
    feed.push(tone(1.0), RATE)
    feed.end()
    block = feed.take(0, silence)
    assert not block.heard[:silence].any()
    assert not block.output[: 3 * silence].any()
    assert block.spoken == BLOCK_SAMPLES - silence
    assert np.abs(block.heard[silence:] - tone(1.0)[: BLOCK_SAMPLES - silence]).max(initial=0) < 0.1


def test_an_interrupt_drops_what_no_block_has_taken() -> None:
    feed = AudioFeed()
    feed.push(tone(2.0), RATE)
    feed.take(0)
    dropped = feed.clear()
    assert 1.3 < dropped < 1.6
    assert feed.queued == 0
    feed.push(tone(0.5, hertz=440), RATE)
    feed.end()
    assert np.abs(feed.take(0).heard[1000:6000] - tone(0.5, hertz=440)[1000:6000]).max() < 2e-3


def test_what_cannot_be_pushed_is_refused_and_nothing_of_it_stays() -> None:
    feed = AudioFeed(backlog=1.0)
    with pytest.raises(RequestError, match="too much"):
        feed.push(tone(1.5), RATE)
    with pytest.raises(AudioError, match="not understood"):
        feed.push(np.zeros(5, np.int64), RATE)
    with pytest.raises(AudioError, match="no samples"):
        feed.push(np.array([0.0, np.nan], np.float32), RATE)
    with pytest.raises(AudioError, match="rate of 12 "):
        feed.push(tone(0.1), 12)
    assert feed.queued == 0
    feed.end()
    with pytest.raises(RequestError, match="has ended"):
        feed.push(tone(0.1), RATE)


def test_threads_may_push_while_another_takes() -> None:
    feed = AudioFeed()
    sound = np.arange(1, 16_001, dtype=np.float32) / 16_001

    def push() -> None:
        for start in range(0, len(sound), 100):
            feed.push(sound[start : start + 100], RATE)
        feed.end()

    pusher = threading.Thread(target=push)
    pusher.start()
    heard: list[np.ndarray] = []
    while not (feed.ended and not feed.queued):
        block = feed.take(0)
        heard.append(block.heard[: block.spoken])
    pusher.join()
    got = np.concatenate(heard)
    assert len(got) == len(sound)
    assert np.abs(got - sound)[200:-200].max() < 2e-3
