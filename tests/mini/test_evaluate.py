"""The judge's measures say what they should, and can say the opposite."""

import numpy as np

from liveavatar.mini.evaluate import distance, lips


def test_lips_that_follow_correlate_at_lag_zero() -> None:
    true = np.abs(np.sin(np.linspace(0, 20, 200)))
    found = lips([0.8 * true + 0.1], [true])
    assert found.lag == 0
    assert found.correlation > 0.99


def test_lips_that_are_late_are_found_out() -> None:
    rng = np.random.default_rng(0)
    true = np.convolve(rng.random(300), np.ones(4) / 4, "same")
    assert lips([np.roll(true, 3)], [true]).lag == 3
    assert lips([np.roll(true, -2)], [true]).lag == -2


def test_lips_of_somebody_else_do_not_correlate() -> None:
    rng = np.random.default_rng(1)
    assert abs(lips([rng.random(500)], [rng.random(500)]).correlation) < 0.2


def test_a_mouth_that_never_moves_is_no_success() -> None:
    assert lips([np.zeros(100)], [np.random.default_rng(2).random(100)]).correlation == 0


def test_distance_counts_only_what_the_mask_shows() -> None:
    a = np.zeros((2, 4, 4, 3), np.uint8)
    b = a.copy()
    b[:, :2] = 100
    upper = np.zeros((4, 4), bool)
    upper[:2] = True
    assert distance(a, b, upper) == 100
    assert distance(a, b, ~upper) == 0
