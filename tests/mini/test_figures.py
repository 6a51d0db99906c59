"""What the judge counts: lips, distances, hits, targets; and the sheets it draws."""

import numpy as np
import pytest

from liveavatar.mini.figures import TARGETS, distance, hits, lips, passes, table
from liveavatar.mini.sheet import GAP, LINE, Row, contact_sheet


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
    found = lips([np.zeros(100)], [np.random.default_rng(2).random(100)])
    assert (found.correlation, found.lag) == (0, None)


def test_all_people_count_as_one_video() -> None:
    """Each follows the sound, but not with one and the same mouth: the pooled figure sees it."""
    true = np.random.default_rng(3).random(200)
    assert lips([true, true], [true, true]).correlation == 1
    assert lips([true, 0.1 * true + 0.9], [true, true]).correlation < 0.6


def test_distance_counts_only_what_the_mask_shows() -> None:
    a = np.zeros((2, 4, 4, 3), np.uint8)
    b = a.copy()
    b[:, :2] = 100
    upper = np.zeros((4, 4), bool)
    upper[:2] = True
    assert distance(a, b, upper) == 100
    assert distance(a, b, ~upper) == 0
    assert distance(b, a[0], upper) == 100


def test_confusions_are_counted_by_word() -> None:
    pairs = [("teal", "teal"), ("teal", "grey"), ("blue", "blue"), ("teal", "grey")]
    assert hits(pairs) == 0.5
    assert table(pairs) == {"blue": {"blue": 1}, "teal": {"grey": 2, "teal": 1}}


def test_a_sheet_shows_every_picture_at_its_place() -> None:
    colours = [np.full((8, 16, 3), 20 * i, np.uint8) for i in range(6)]
    rows = [
        Row(colours[:3], '"asked" a title that is far too long for a sheet so narrow', ("one", "", "")),
        Row(colours[3:]),
    ]
    sheet = np.asarray(contact_sheet(rows))
    assert sheet.shape == (GAP + 2 * LINE + 8 + GAP + 8 + GAP, GAP + 3 * (16 + GAP), 3)
    for i in range(6):
        top, left = GAP + 2 * LINE + (8 + GAP) * (i // 3), GAP + (16 + GAP) * (i % 3)
        assert np.array_equal(sheet[top : top + 8, left : left + 16], colours[i])


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("lip_correlation", 0.8, 0.79),
        ("best_lag_frames", -1, -2),
        ("identity_at_2_s", 1.3, 1.31),
        ("identity_at_end", 0.9, 2),
        ("silent_opening", 0.049, 0.05),
        ("wall", 0.9, 0.89),
        ("mood", 1, 0.5),
        ("frames_per_second", 25, 24.9),
        ("first_frames_s", 1.99, 2),
        ("pair_own_lips", 0.75, 0.74),
        ("pair_others_lips", 0.2, 0.21),
        ("pair_silent_opening", 0.049, 0.05),
        ("pair_identity_at_2_s", 1.3, 1.31),
    ],
)
def test_targets_are_those_of_the_project(name: str, good: float, bad: float) -> None:
    at = next(target.at for target in TARGETS if target.name == name)
    for value, expected in ((good, True), (bad, False)):
        assert passes({at[0]: {at[1]: value}})[name]["passes"] is expected


def test_what_was_not_measured_is_not_passed_over() -> None:
    found = passes({})
    assert set(found) == {target.name for target in TARGETS}
    assert all(entry["measured"] is None and entry["passes"] is None for entry in found.values())
