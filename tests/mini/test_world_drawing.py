"""The drawn people: stable, various, of any size, and showing what pose and prompt say."""

import numpy as np
import pytest
from PIL import Image

from liveavatar.errors import SizeError
from liveavatar.mini.world import measure
from liveavatar.mini.world.appearance import MOODS, Appearance, Prompt
from liveavatar.mini.world.artist import Artist, render
from liveavatar.mini.world.identity import Identity, describe
from liveavatar.mini.world.palette import BACKGROUNDS
from liveavatar.mini.world.portrait import write_portrait
from liveavatar.mini.world.pose import Pose


def test_a_seed_is_always_the_same_person_and_another_seed_another():
    people = [Identity.of(seed) for seed in range(200)]
    assert people == [Identity.of(seed) for seed in range(200)]
    assert len({describe(p) for p in people}) > 120
    assert {p.background_word for p in people} == set(BACKGROUNDS)
    assert np.array_equal(Artist(people[7]).frame(Pose()), Artist(people[7]).frame(Pose()))


def test_a_frame_depends_on_its_pose_alone():
    artist = Artist(Identity.of(8))
    poses = [Pose(opening=0.7, blink=1, dx=1), Pose(), Pose(width=-1, dy=2, tilt=3)]
    together = artist.clip(poses)
    assert together.dtype == np.uint8 and together.shape == (3, 128, 128, 3)
    for pose, frame in zip(reversed(poses), together[::-1], strict=True):
        assert np.array_equal(artist.frame(pose), frame)


@pytest.mark.parametrize("size", [(64, 64), (128, 192), (192, 128), (256, 256)])
def test_any_multiple_of_64_shows_the_portrait_in_the_middle(size):
    frame = render(Identity.of(4), Pose(opening=1), size)
    assert frame.shape == (*size, 3)
    assert measure.background_word(frame) == Identity.of(4).background_word
    side = min(size)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    square = render(Identity.of(4), Pose(opening=1), side).astype(int)
    middle = slice(side // 4, 3 * side // 4)
    assert np.abs(frame[top : top + side, left : left + side][middle, middle] - square[middle, middle]).max() <= 2


@pytest.mark.parametrize("size", [100, 0, (128, 130)])
def test_other_sizes_are_refused(size):
    with pytest.raises(SizeError, match="multiples of 64"):
        render(Identity.of(1), size=size)


def test_the_head_moves_by_as_many_pixels_as_the_pose_says():
    artist = Artist(Identity.of(3))
    rest, moved = artist.frame(Pose()).astype(int), artist.frame(Pose(dx=2, dy=1)).astype(int)
    face = (slice(50, 80), slice(45, 85))
    followed = np.abs(np.roll(rest, (1, 2), (0, 1))[face] - moved[face]).mean()
    assert followed < 1 < np.abs(rest[face] - moved[face]).mean()


def test_only_mouth_and_eyes_change_where_the_head_rests():
    who = Identity.of(12)
    artist = Artist(who)
    rest, talking = artist.frame(Pose()), artist.frame(Pose(opening=1, width=1, blink=1))
    still = measure.outside_mouth(who, 128, 128)
    assert np.array_equal(rest[still], talking[still])
    assert 0.7 < still.mean() < 0.95
    assert (rest != talking).any(axis=-1).sum() > 250


def test_a_prompt_changes_just_what_it_names():
    who = Identity.of(10)
    appearances = {Prompt.of(seed, who).appearance(who) for seed in range(200)}
    assert Appearance.own(who) in appearances and {appearance.mood for appearance in appearances} == set(MOODS)
    for seed in range(200):
        prompt = Prompt.of(seed, who)
        assert prompt == Prompt.of(seed, who)
        text = prompt.text.lower().replace(f"{who.hair_word} hair", "")
        assert {w for w in BACKGROUNDS if w in text} == ({prompt.background} if prompt.background else set()), text
        named = {m for m, words in MOODS.items() if any(w in prompt.text.lower() for w in words)}
        assert named == ({prompt.mood} if prompt.mood else set()), prompt.text


def test_the_demo_portrait_is_large_enough_and_small_on_disk(tmp_path):
    write_portrait(tmp_path / "portrait.png")
    assert (tmp_path / "portrait.png").stat().st_size < 60_000
    with Image.open(tmp_path / "portrait.png") as picture:
        assert picture.size == (512, 512)
