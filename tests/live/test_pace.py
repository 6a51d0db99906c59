"""Blocks begin on a grid of 0.48 s; speech begins inside them, and is not torn by sound that comes a little late."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.live import audio_feed
from liveavatar.live.audio_feed import BLOCK_SAMPLES, AudioFeed, BlockAudio
from liveavatar.live.pace import PATIENCE_SECONDS, Pace

RATE = 16_000
AHEAD = 2560


class Clock:
    """Time that a test turns on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def ramp(start: int, count: int) -> np.ndarray:
    """Samples that tell their number."""
    return (np.arange(start, start + count) % 1000 / 1000 + 0.001).astype(np.float32)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(audio_feed.time, "monotonic", clock)
    return clock


def played(feed: AudioFeed, clock: Clock, arrivals: list[tuple[float, np.ndarray]], seconds: float) -> list[BlockAudio]:
    """What blocks hear, by a clock of 10 ms, when sound arrives at these times."""
    pace, blocks, start = Pace([feed], 0.16, clock=clock), [], clock.now
    waiting = list(arrivals)
    while clock.now < start + seconds:
        while waiting and waiting[0][0] <= clock.now - start + 1e-9:
            feed.push(waiting.pop(0)[1], RATE)
        audio = pace.next_audio(wait=False)
        if isinstance(audio, tuple):
            blocks += audio
        clock.now += 0.01
    return blocks


def test_silence_keeps_the_pace(clock: Clock) -> None:
    blocks = played(AudioFeed(), clock, [], 4.8)
    assert len(blocks) == 10
    assert all(b.spoken == 0 and not b.heard.any() for b in blocks)


@given(offset=st.floats(0, 2), jitter=st.lists(st.floats(0, 0.05), min_size=5, max_size=5))
def test_a_microphone_is_heard_whole_and_without_gaps(offset: float, jitter: list[float]) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio_feed.time, "monotonic", clock)
        count, piece = 32_000, 320
        times = [(offset + (i + piece) / RATE + jitter[i // piece % 5], i) for i in range(0, count, piece)]
        arrivals = [(max(t for t, _ in times[: n + 1]), ramp(i, piece)) for n, (_, i) in enumerate(times)]
        blocks = played(AudioFeed(), clock, arrivals, offset + 4.5)
    heard = np.concatenate([b.heard for b in blocks])
    spoken = np.flatnonzero(np.abs(heard) > 1e-6)
    first = spoken[0]
    got = heard[first : first + count - 2000]
    best = min(np.abs(got[500:] - ramp(shift, len(got))[500:]).mean() for shift in range(-3, 4))
    assert best < 0.05, "speech has a gap"
    began = first / RATE
    assert began < offset + 0.48 + 0.16 + 0.48 + 0.1


def test_speech_that_came_faster_than_it_is_spoken_waits_for_its_time(clock: Clock) -> None:
    blocks = played(AudioFeed(), clock, [(0.0, ramp(0, 48_000))], 2.4)
    assert len(blocks) == 5
    assert all(b.spoken == BLOCK_SAMPLES for b in blocks)


def test_a_pause_in_speech_becomes_silence(clock: Clock) -> None:
    arrivals = [(0.0, ramp(0, 16_000)), (3.0, ramp(0, 16_000))]
    blocks = played(AudioFeed(), clock, arrivals, 5.0)
    assert 9 <= len(blocks) <= 11
    assert sum(b.spoken for b in blocks) == pytest.approx(32_000, abs=400)
    assert any(not b.spoken for b in blocks)


def test_a_block_that_begins_late_is_told(clock: Clock) -> None:
    pace = Pace([AudioFeed()], 0.16, clock=clock)
    for seconds, late in ((0.0, False), (0.5, False), (1.5, True), (0.48, False), (0.8, True)):
        clock.now += seconds
        while not isinstance(pace.next_audio(wait=False), tuple):
            clock.now += 0.01
        assert pace.is_late == late
    assert pace.late_blocks == 2


def test_speech_that_had_to_wait_is_caught_up_with_and_then_in_time_again(clock: Clock) -> None:
    feed = AudioFeed()
    pace, begun = Pace([feed], 0.16, clock=clock), []
    for tick in range(2000):
        feed.push(ramp(tick * 160, 160), RATE)
        if not 300 <= tick < 800 and isinstance(pace.next_audio(wait=False), tuple):  # nobody asks for 5 s
            begun.append(tick)
        if tick == 799:
            assert pace.is_late
        clock.now += 0.01
    gaps = np.diff(begun)
    stall = int(np.argmax(gaps))
    assert 450 < gaps[stall] < 560
    assert all(gaps[stall + 1 : stall + 10] == 1), "at once"
    assert all(47 <= gap <= 49 for gap in gaps[-10:]), "in time"
    assert len(begun) == pytest.approx(2000 / 48, abs=3)
    assert not pace.is_late


def test_time_in_which_nobody_reads_is_nothing_to_catch_up_with(clock: Clock) -> None:
    feed = AudioFeed()
    feed.push(ramp(0, 160_000), RATE)
    pace = Pace([feed], 0.16, clock=clock)
    assert isinstance(pace.next_audio(wait=False), tuple)
    clock.now += 60
    pace.hold(60)
    assert pace.next_audio(wait=False) == "later" and not pace.is_late
    clock.now += 0.5
    assert isinstance(pace.next_audio(wait=False), tuple)


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=10), st.integers(0, AHEAD))
def test_without_a_clock_the_same_sound_gives_the_same_blocks(pieces: list[int], ahead: int) -> None:
    sound = ramp(0, sum(pieces))
    filled, fed = AudioFeed(), AudioFeed()
    filled.push(sound, RATE)
    filled.end()
    expected = list(_all(Pace([filled], ahead / RATE, real_time=False)))
    pace, found = Pace([fed], ahead / RATE, real_time=False), []
    for start, count in zip(np.cumsum([0, *pieces[:-1]]), pieces, strict=True):
        fed.push(sound[start : start + count], RATE)
        while isinstance(audio := pace.next_audio(wait=False), tuple):
            found += audio
    fed.end()
    found += _all(pace)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.heard, other.heard)
        assert np.array_equal(one.ahead, other.ahead)


def begun(feeds: list[AudioFeed], clock: Clock, speaking: list[tuple[float, float]], seconds: float) -> list[tuple]:
    """When blocks begin and what each says in them, where each speaks into a microphone from one time to another."""
    pace, blocks, start = Pace(feeds, 0.16, clock=clock), [], clock.now
    while (now := clock.now - start) < seconds:
        for feed, (first, last) in zip(feeds, speaking, strict=True):
            if first <= now < last:
                feed.push(ramp(round(now * RATE), 160), RATE)
        if isinstance(audio := pace.next_audio(wait=False), tuple):
            blocks.append((now, *audio))
        clock.now += 0.01
    return blocks


def test_a_quiet_microphone_holds_nobody_up(clock: Clock) -> None:
    alone = begun([AudioFeed()], clock, [(0.7, 6.0)], 6.0)
    beside = begun([AudioFeed(), AudioFeed()], clock, [(0.7, 6.0), (9.0, 9.0)], 6.0)
    assert [when for when, *_ in beside] == pytest.approx([when for when, *_ in alone])
    for (_, one), (_, same, quiet) in zip(alone, beside, strict=True):
        assert np.array_equal(one.heard, same.heard) and np.array_equal(one.ahead, same.ahead)
        assert not quiet.spoken and not quiet.heard.any()


def test_one_who_begins_or_pauses_costs_the_other_no_more_than_a_pause(clock: Clock) -> None:
    feeds = [AudioFeed(), AudioFeed()]
    blocks = begun(feeds, clock, [(0.0, 9.0), (1.3, 3.1)], 9.0)
    gaps = np.diff([when for when, *_ in blocks])
    assert gaps[2:].max() <= 0.48 + PATIENCE_SECONDS + 0.03
    first, second = (np.concatenate([block[n].heard for block in blocks]) for n in (1, 2))
    for heard, least in ((first, 8.0 * RATE), (second, 1.75 * RATE)):
        spoken = np.flatnonzero(heard)
        assert len(spoken) >= least, "nothing is lost"
        assert spoken[-1] - spoken[0] + 1 == len(spoken), "nor torn"


def test_a_stopped_pace_begins_no_more_blocks(clock: Clock) -> None:
    pace = Pace([AudioFeed()], clock=clock)
    pace.stop()
    assert pace.next_audio(wait=True) == "never"


def _all(pace: Pace) -> list[BlockAudio]:
    found = []
    while isinstance(audio := pace.next_audio(wait=False), tuple):
        found += audio
    assert audio == "never"
    return found
