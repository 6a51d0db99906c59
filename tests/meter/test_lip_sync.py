"""Lips against loudness, on talk whose offset is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meter.talk import decibels, late, rhythm, spoken

from liveavatar.media.audio import mono_16k
from liveavatar.meter.lip_sync import RATE, lip_sync, loudness, on_clock, speech_seconds, without_trend

SEEDS = st.integers(0, 10_000)


def lips_of(loud: np.ndarray, seed: int, noise: float = 0.15) -> np.ndarray:
    """A mouth that opens with loudness, not exactly."""
    smooth = np.convolve(loud**0.7, np.ones(7) / 7, mode="same")
    return (0.2 * smooth + 0.2 * noise * np.random.default_rng(seed).standard_normal(len(loud))).astype(np.float32)


@given(SEEDS, st.integers(-40, 40), st.sampled_from([8.0, 20.0, 60.0]))
def test_any_offset_is_found(seed, tens, seconds):
    loud = rhythm(seconds, seed)
    found = lip_sync(late(lips_of(loud, seed), 10 * tens), decibels(loud))
    assert found.offset_ms is not None and abs(found.offset_ms - 10 * tens) <= 20
    assert found.correlation > found.chance and found.at_zero <= found.correlation and not found.why_not


def test_a_wrong_sound_is_told():
    """One of twenty cases may be taken for a connection."""
    wrong = [lip_sync(lips_of(rhythm(20, i), i), decibels(rhythm(20, 500 + i))) for i in range(60)]
    believed = [found for found in wrong if found.offset_ms is not None]
    assert len(believed) <= 6
    assert all("does not follow" in found.why_not for found in wrong if found.offset_ms is None)


@given(SEEDS)
def test_a_head_that_nods_and_a_voice_that_fades_change_nothing(seed):
    loud, t = rhythm(30, seed), np.arange(3000) / RATE
    lips = late(lips_of(loud, seed), 120) + 0.3 * np.sin(2 * np.pi * t / 25)
    found = lip_sync(lips, decibels(loud) - t / 2)
    assert found.offset_ms is not None and abs(found.offset_ms - 120) <= 20


@given(SEEDS)
def test_loudness_of_the_whole_and_scale_of_the_mouth_do_not_matter(seed):
    loud = rhythm(15, seed)
    lips = late(lips_of(loud, seed), -80)
    assert lip_sync(3 * lips + 1, decibels(loud) - 12).offset_ms == lip_sync(lips, decibels(loud)).offset_ms


def test_a_stretch_uses_the_sound_around_it():
    loud = np.concatenate([rhythm(10, 1), rhythm(10, 2), rhythm(10, 3)])
    lips = np.concatenate([lips_of(loud, 0)[:1000], late(lips_of(loud, 0), 200)[1000:2000], lips_of(loud, 0)[2000:]])
    offsets = [lip_sync(lips, decibels(loud), start, start + 1000).offset_ms for start in (0, 1000, 2000)]
    assert offsets == pytest.approx([0, 200, 0], abs=20)


def test_frames_without_a_face_are_left_out():
    loud = rhythm(20, 4)
    lips = late(lips_of(loud, 4), 120)
    lips[300:700] = np.nan
    assert abs(lip_sync(lips, decibels(loud)).offset_ms - 120) <= 20
    lips[:1100] = np.nan
    assert "no face" in lip_sync(lips, decibels(loud)).why_not


def test_why_there_is_no_offset():
    loud = rhythm(20, 5)
    lips = lips_of(loud, 5)
    silence = np.full(2000, -90.0, np.float32)
    a_word = np.where(np.arange(2000) < 150, decibels(loud), silence)
    assert "too little speech (0.0 s)" in lip_sync(lips, silence).why_not
    assert "too little speech" in lip_sync(lips, a_word).why_not
    assert "does not move" in lip_sync(np.full(2000, 0.1), decibels(loud)).why_not
    assert "no face" in lip_sync(np.full(2000, np.nan), decibels(loud)).why_not
    assert lip_sync(np.empty(0), silence).why_not
    assert "apart" in lip_sync(late(lips, 530), decibels(loud)).why_not


def test_loudness_is_that_of_the_samples():
    loud = np.repeat([0.0, 1.0, 0.5, 0.0], 50)
    heard = loudness(mono_16k(spoken(loud)))
    assert heard.shape == (200,) and heard.dtype == np.float32
    full = 20 * np.log10(0.3 / np.sqrt(2))
    assert heard[60:90] == pytest.approx(full, abs=0.8) and heard[110:140] == pytest.approx(full - 6.02, abs=0.8)
    assert heard[10:40].max() <= -99
    assert speech_seconds(heard) == pytest.approx(1.0, abs=0.05)


def test_loudness_in_pieces_is_that_of_the_whole():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(16_000 * 23 + 77).astype(np.float32) * 0.1
    heard = loudness(noise)
    assert len(heard) == 2301
    alone = loudness(noise[16_000 * 9 : 16_000 * 12])
    assert heard[901:1199] == pytest.approx(alone[1:-1], abs=1e-3)


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_values_on_the_clock_are_those_of_the_frames(seen):
    times = [0.02 + i / 25 for i in range(len(seen))]
    values = [float(i) if is_seen else float("nan") for i, is_seen in enumerate(seen)]
    series = on_clock(times, values, 4 * len(seen))
    known = np.isfinite(series)
    clock = (np.arange(len(series)) + 0.5) / RATE
    assert series[known] == pytest.approx((clock[known] - 0.02) * 25, abs=0.13)
    for i in range(2, len(seen) - 2):
        around = seen[i - 2 : i + 3]
        assert any(around) or not known[4 * i + 1 : 4 * i + 3].any()
        assert not all(around) or known[4 * i : 4 * i + 4].all()


def test_the_trend_is_that_of_the_seconds_around():
    series = np.linspace(0, 10, 2000)
    series[900:950] = np.nan
    left = without_trend(series)
    assert np.isnan(left[900:950]).all() and np.abs(left[300:600]).max() < 0.01
