"""The sum of several sounds: as long as the longest, at their levels, quieter only where it would clip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.media.audio import CHUNK_FRAMES, AudioClip
from liveavatar.media.mixing import RunningMix, mix_audio


def tone(seconds: float, rate: int, level: float = 0.2, channels: int = 1, hertz: float = 220) -> AudioClip:
    wave = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return AudioClip.from_array(np.repeat(wave[:, None], channels, 1).astype(np.float32), rate)


@given(st.lists(st.tuples(st.integers(1, 4000), st.floats(0, 0.3)), min_size=1, max_size=3), st.integers(1, 2))
def test_equal_rates_are_added_up_sample_by_sample(given_clips, channels):
    random = np.random.default_rng(len(given_clips))
    clips = [AudioClip.from_array(level * random.uniform(-1, 1, (n, channels)), 16_000) for n, level in given_clips]
    mixed = mix_audio(clips, "both")
    expected = np.zeros((max(len(c.samples) for c in clips), channels), np.float32)
    for clip in clips:
        expected[: len(clip.samples)] += clip.samples
    assert np.array_equal(np.asarray(mixed.samples), expected) and not mixed.notes


def test_the_highest_rate_and_the_longest_rule():
    mixed = mix_audio([tone(1.0, 16_000), tone(2.5, 44_100, hertz=330)], "both")
    assert mixed.rate == 44_100 and mixed.seconds == pytest.approx(2.5) and mixed.channels == 1
    rest = np.asarray(mixed.samples[2 * 44_100 : 2 * 44_100 + 441])
    assert np.allclose(rest, tone(2.5, 44_100, hertz=330).samples[2 * 44_100 : 2 * 44_100 + 441], atol=1e-6)
    both = np.asarray(mixed.samples[22_050:22_491])
    assert np.allclose(both, (tone(1, 44_100).samples + tone(1, 44_100, hertz=330).samples)[22_050:22_491], atol=1e-3)


@pytest.mark.parametrize(("first", "second", "channels"), [(1, 2, 2), (2, 2, 2), (6, 1, 2), (6, 6, 6), (2, 6, 2)])
def test_channels(first, second, channels):
    mixed = mix_audio([tone(0.1, 16_000, channels=first), tone(0.1, 16_000, channels=second)], "both")
    assert mixed.channels == channels
    assert np.allclose(np.asarray(mixed.samples), 2 * tone(0.1, 16_000, channels=channels).samples, atol=1e-6)


def test_only_what_would_clip_is_quieter_and_that_is_told():
    loud = mix_audio([tone(0.5, 16_000, 0.8), tone(0.5, 16_000, 0.8)], "both")
    assert np.abs(loud.samples).max() == pytest.approx(0.98, abs=1e-3), "AAC adds a little"
    assert loud.notes and "4.3 dB quieter" in loud.notes[0]
    assert not mix_audio([tone(0.5, 16_000, 0.5), tone(0.5, 16_000, 0.5)], "both").notes


def test_pieces_are_joined_without_a_seam():
    n = CHUNK_FRAMES + 1000
    wave = np.sin(np.arange(n) / 7).astype(np.float32) * 0.3
    mixed = mix_audio([AudioClip.from_array(wave, 48_000), AudioClip.from_array(wave[: n // 3], 16_000)], "both")
    assert len(mixed.samples) == n
    alone = mix_audio([AudioClip.from_array(wave, 48_000)], "one")
    assert np.array_equal(np.asarray(alone.samples)[:, 0], wave)


@given(st.lists(st.floats(0, 1.2), min_size=2, max_size=8), st.integers(0, 9))
def test_a_running_sum_keeps_levels_and_never_clips(levels, seed):
    random, mix = np.random.default_rng(seed), RunningMix(48_000)
    sounds = [[(level * random.uniform(-1, 1, 4800)).astype(np.float32) for _ in range(2)] for level in levels]
    mixed = [mix.add(pair) for pair in sounds]
    quiet = next((i for i, level in enumerate(levels) if level > 0.5), len(levels))
    for (a, b), total in zip(sounds[:quiet], mixed, strict=False):
        assert np.array_equal(total, a + b)
    assert max(np.abs(total).max() for total in mixed) <= 1.0 + 1e-6


def test_a_running_sum_recovers_within_half_a_second():
    mix, loud, soft = RunningMix(48_000), np.full(4800, 0.9, np.float32), np.full(4800, 0.2, np.float32)
    mix.add([loud, loud])
    following = [mix.add([soft, soft]) for _ in range(6)]
    assert following[0][-1] < 0.4 and np.all(np.diff(np.concatenate(following)) >= 0), "without a jump"
    assert np.array_equal(following[-1], soft + soft)
