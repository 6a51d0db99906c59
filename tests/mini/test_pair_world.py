"""Two people on one wall: who talks when, where they are, and that their video is what each would do alone."""

import numpy as np
import pytest

from liveavatar.errors import SizeError
from liveavatar.mini.world import measure
from liveavatar.mini.world.pair import MANNERS, MASKS, pair
from liveavatar.mini.world.palette import BACKGROUNDS
from liveavatar.mini.world.sample import person

pytestmark = pytest.mark.usefixtures("speech")


def test_both_stand_in_front_of_the_left_ones_wall() -> None:
    shown = pair(3, 1.0, held_out=True)
    left, right = shown.faces(shown.reference)
    assert shown.reference.shape == (128, 256, 3)
    assert np.array_equal(left[:, -1], right[:, 0]) or np.abs(left[:8, -1].astype(int) - right[:8, 0]).max() == 0
    assert measure.background_word(left) == measure.background_word(right) == shown.people[0].identity.background_word
    assert [one.identity.seed for one in shown.people] == [person(6, True).seed, person(7, True).seed]


def test_a_wall_that_is_asked_for_is_behind_both() -> None:
    shown = next(one for one in (pair(i, 0.2) for i in range(40)) if one.prompt.background)
    for face in shown.faces(shown.drawn):
        assert measure.background_word(face) == shown.prompt.background in BACKGROUNDS


@pytest.mark.parametrize("manner", MANNERS)
def test_people_talk_in_the_manner_that_is_asked_for(manner: str) -> None:
    left, right = (one.sound.speech != 0 for one in pair(5, 4.0, manner=manner, draw=False).people)
    assert (left & right).any() == (manner == "both")
    assert (left.any(), right.any()).count(True) == {"both": 2, "turns": 2, "one": 1, "nobody": 0}[manner]
    assert pair(5, 4.0, manner=manner, draw=False).manner == manner


def test_a_pair_is_the_same_again_and_training_never_sees_the_held_out() -> None:
    first, again, other = pair(8, 0.4), pair(8, 0.4), pair(8, 0.4, held_out=True)
    assert first.manner == again.manner and np.array_equal(first.drawn, again.drawn)
    assert all(one.identity.seed % 2 == 0 for one in first.people)
    assert all(one.identity.seed % 2 == 1 for one in other.people)


@pytest.mark.parametrize("kind", MASKS)
def test_masks_hold_the_own_mouth_and_nothing_of_the_other(kind: str) -> None:
    shown = pair(2, 0.2, draw=False)
    left, right = shown.masks(kind)
    assert not (left & right).any()
    assert not left[:, 128:].any() and not right[:, :128].any()
    assert left[85:95, 60:68].all() and right[85:95, 188:196].all()


def test_another_size_is_refused() -> None:
    with pytest.raises(SizeError):
        pair(1, 0.2, size=100)
