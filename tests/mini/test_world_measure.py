"""Measures read pixels well enough to judge a model by: on clean pictures, and on blurred and noisy ones."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from liveavatar.mini.world import measure
from liveavatar.mini.world.appearance import MOODS, Appearance
from liveavatar.mini.world.artist import Artist
from liveavatar.mini.world.identity import Identity
from liveavatar.mini.world.palette import BACKGROUNDS
from liveavatar.mini.world.pose import Pose, Track

PEOPLE = (0, 2, 13, 20, 28)
"""Among them deep and light skin, a beard, glasses and white hair."""


def talk(frames: int, seed: int) -> Track:
    rng = np.random.default_rng(seed)
    opening = np.clip(rng.normal(0.3, 0.35, frames), 0, 1)
    rest = [rng.uniform(a, b, frames) for a, b in ((-0.9, 0.9), (0, 1), (-1.2, 1.2), (0, 2), (-2, 2))]
    return Track(opening, *rest)


def spoiled(frames: np.ndarray) -> np.ndarray:
    """As a VAE may: softened by a pixel, with noise of 4 %."""
    soft = [np.asarray(Image.fromarray(f).filter(ImageFilter.GaussianBlur(1))) for f in frames]
    noise = np.random.default_rng(0).normal(0, 10, frames.shape)
    return np.clip(np.stack(soft) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("seed", "mood"), zip(PEOPLE, ("neutral", "cheerful", "stern", "cheerful", "stern"), strict=True)
)
def test_the_opening_is_read_from_pixels(seed, mood):
    who, truth = Identity.of(seed), talk(60, seed)
    frames = Artist(who, Appearance(who.background, mood)).clip(truth.poses())
    clean, rough = measure.opening(frames, who), measure.opening(spoiled(frames), who)
    assert np.corrcoef(clean, truth.opening)[0, 1] >= 0.98
    assert np.corrcoef(rough, truth.opening)[0, 1] >= 0.95
    assert 0.85 < np.polyfit(truth.opening, clean, 1)[0] < 1.15


@pytest.mark.parametrize("seed", PEOPLE[1:3])
def test_mood_and_wall_are_read_from_pixels(seed):
    who = Identity.of(seed)
    for mood, word in zip(MOODS, BACKGROUNDS, strict=False):
        frames = spoiled(Artist(who, Appearance(BACKGROUNDS[word], mood)).clip(talk(12, seed).poses()))
        assert measure.mood(frames, who) == mood
        assert measure.background_word(frames) == word


def test_a_still_picture_measures_shut():
    who = Identity.of(6)
    frames = np.stack([Artist(who).frame(Pose())] * 3)
    assert measure.opening(frames, who).max() < 0.02


def test_shuffled_frames_do_not_correlate():
    who, truth = Identity.of(4), talk(80, 1)
    seen = measure.opening(Artist(who).clip(truth.poses()), who)
    assert abs(np.corrcoef(seen[::-1], truth.opening)[0, 1]) < 0.4
