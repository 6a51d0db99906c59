"""Frames find their features by whole numbers that equal the published float formulas, without an end."""

from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.encoders import audio


def test_feature_count_is_what_the_convolutions_make() -> None:
    layers = [torch.nn.Conv1d(1, 1, k, s) for k, s in zip(audio.CONV_KERNELS, audio.CONV_STRIDES, strict=True)]
    stack = torch.nn.Sequential(*layers)
    for samples in (400, 719, 720, 721, 1039, 1040, 16000, 36800):
        assert stack(torch.zeros(1, samples)).shape[1] == audio.feature_count(samples)
    assert audio.feature_count(399) == audio.feature_count(0) == 0


@given(st.integers(1, 10**7))
def test_so_many_samples_are_the_fewest(features: int) -> None:
    assert audio.feature_count(audio.samples_of(features)) == features
    assert audio.feature_count(audio.samples_of(features) - 1) == features - 1


def test_lengths_of_the_published_float_formula() -> None:
    assert audio.resampled_count(205) == 122, "not 3 * 205 / 5"
    for seconds, features, steps, clips in ((5.0, 249, 149, 3), (10.0, 499, 299, 6), (1.92, 95, 57, 1)):
        assert audio.feature_count(int(seconds * 16000)) == features
        assert audio.resampled_count(features) == steps and audio.published_clips(steps) == clips


@given(st.integers(1, 5000))
def test_indices_are_the_published_rounded_floats(blocks: int) -> None:
    frames = 12 * blocks
    published = np.round(np.linspace(0, frames / 25, frames, endpoint=False) * 30).astype(int)
    assert np.array_equal(audio.feature_indices(frames), published)


@given(st.integers(1, 10**6))
def test_every_frame_hears_a_needed_feature_and_none_is_spare(frames: int) -> None:
    features = audio.features_needed(frames)
    assert audio.resampled_count(features) > audio.feature_indices(frames)[-1] >= audio.resampled_count(features - 1)


def test_interpolation_is_torchs_and_exact_far_out() -> None:
    features = torch.randn(1, 1, 500, dtype=torch.float64)
    left, weight = audio.interpolation(500, 300, np.arange(300))
    right = np.minimum(left + 1, 499)
    x = features[0, 0].numpy()
    expected = F.interpolate(features, size=300, mode="linear", align_corners=True)[0, 0].numpy()
    assert np.abs((1 - weight) * x[left] + weight * x[right] - expected).max() < 1e-6
    n, steps, j = 180_000_001, 108_000_000, 99_999_999  # a thousand hours
    left, weight = audio.interpolation(n, steps, np.array([j]))
    place = Fraction(j * (n - 1), steps - 1)
    assert left[0] == int(place) and abs(float(place - int(place)) - weight[0]) < 1e-7
