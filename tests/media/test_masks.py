"""Masks lie over the picture, are cut with it, and every token is heard by somebody."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from liveavatar.errors import ImageError
from liveavatar.media.image import fit_image
from liveavatar.media.masks import (
    HALVES,
    fit_mask,
    half_mask,
    hearing_tokens,
    mask_of,
    overlaps,
    owned_tokens,
    read_mask,
    same_aspect,
)


def published(owned: np.ndarray) -> np.ndarray:
    """Where each is heard in the published implementation: nowhere near another one."""
    near = np.zeros_like(owned)
    for actor, mask in enumerate(owned):
        ys, xs = np.nonzero(mask)
        radius = max(1, int(0.1 * max(np.ptp(ys) + 1, np.ptp(xs) + 1) + 0.9999))
        for y, x in zip(ys, xs, strict=True):
            near[actor, max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = True
    return np.stack([~np.delete(near, actor, 0).any(0) for actor in range(len(owned))])


@st.composite
def owned_by_each(draw: st.DrawFn) -> np.ndarray:
    """Disjoint boxes of tokens, one or more for each speaker."""
    rows, columns, count = (draw(st.integers(*n)) for n in ((2, 14), (4, 24), (2, 4)))
    labels = np.full((rows, columns), -1)
    for speaker in range(count):
        y, x = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
        height, width = draw(st.integers(1, rows)), draw(st.integers(1, columns))
        labels[y : y + height, x : x + width] = speaker
    labels.flat[:count] = np.arange(count)
    return np.stack([labels == speaker for speaker in range(count)])


@given(owned_by_each())
def test_every_token_hears_somebody_and_ones_own_nobody_else(owned):
    hears, expected = hearing_tokens(owned), published(owned)
    assert hears.any(0).all()
    for speaker, its in enumerate(owned):
        assert hears[speaker][its].all()
        assert not np.delete(hears, speaker, 0)[:, its].any()
    somebody = expected.any(0)
    assert np.array_equal(hears[:, somebody], expected[:, somebody]), "as published, where that leaves no token deaf"


def test_far_from_everybody_all_are_heard():
    owned = np.zeros((2, 8, 20), bool)
    owned[0, 2:5, 1:4] = owned[1, 2:5, 15:18] = True
    hears = hearing_tokens(owned)
    assert hears[:, 7, 10].all()
    assert not hears[1, 1, 0] and not hears[1, 5, 4] and hears[1, 6, 5], "a border of one token around the other face"
    assert np.array_equal(hears, published(owned))


@given(st.integers(40, 200), st.integers(40, 200), st.sampled_from([(64, 64), (128, 64), (64, 192)]), st.data())
def test_a_mask_is_cut_as_the_picture_is(width, height, size, data):
    fit = data.draw(st.sampled_from(["cover", "pad"]))
    seed = data.draw(st.integers(0, 99))
    mask = np.where(np.random.default_rng(seed).random((height // 8 + 1, width // 8 + 1)) > 0.5, 255, 0)
    mask = np.kron(mask, np.ones((8, 8)))[:height, :width].astype(np.uint8)
    painted = np.repeat(mask[..., None], 3, 2)
    seen = fit_image(painted, *size, fit)[..., 1]
    assert np.array_equal(fit_mask(mask, (width, height), *size, fit), seen)


@pytest.mark.parametrize("scale", [0.25, 0.5, 2, 3])
def test_a_mask_of_any_size_lies_over_the_picture(scale):
    width, height = 480, 320
    mask = np.zeros((height, width), np.uint8)
    mask[80:240, 320:400] = 255
    other = np.asarray(Image.fromarray(mask).resize((round(width * scale), round(height * scale)), 0))
    ours, scaled = (owned_tokens(fit_mask(m, (width, height), 128, 128, "cover")[None]) for m in (mask, other))
    assert np.array_equal(ours, scaled) and same_aspect(other, (width, height))


def test_what_is_no_picture_s_shape():
    assert not same_aspect(np.zeros((64, 64)), (128, 64))
    assert same_aspect(np.zeros((752, 1000)), (1000, 750)) and same_aspect(np.zeros((37, 50)), (1000, 750))


def test_a_token_is_the_one_s_who_has_most_of_it_and_small_faces_keep_one():
    fitted = np.zeros((2, 64, 64), np.uint8)
    fitted[0, :, :26], fitted[1, :, 26:] = 255, 255
    owned = owned_tokens(fitted)
    assert owned[0, :, :2].all() and owned[1, :, 2:].all() and owned.sum() == 16
    fitted[0] = 0
    fitted[0, 3:8, 3:8] = 255
    assert owned_tokens(fitted)[0].sum() == 1


def test_overlaps_are_found_the_most_first():
    fitted = np.zeros((3, 64, 64), np.uint8)
    fitted[0, :, :32], fitted[1, :, 31:50], fitted[2, :, 50:] = 255, 255, 255
    assert overlaps(fitted) == [(0, 1, pytest.approx(1 / 19))]
    fitted[2, :, 40:] = 255
    assert overlaps(fitted) == [(1, 2, pytest.approx(10 / 19)), (0, 1, pytest.approx(1 / 19))]


@given(st.integers(1, 9), st.integers(2, 9))
def test_halves_are_all_of_a_picture_but_the_middle_of_an_odd_one(height, width):
    left, right = (half_mask(half, (width, height)) for half in HALVES)
    assert left.shape == right.shape == (height, width)
    assert not np.logical_and(left, right).any()
    assert ((left + right) == 0).sum() == height * (width % 2)
    assert left[:, 0].all() and right[:, -1].all()


def test_masks_of_all_kinds(tmp_path):
    half = np.zeros((20, 32), bool)
    half[:, :16] = True
    wanted = half.astype(np.uint8) * 255
    for values in (half, wanted, half.astype(np.uint8), half.astype(np.float32), half.astype(np.float64)):
        assert np.array_equal(mask_of(values), wanted)
    Image.fromarray(wanted).save(tmp_path / "grey.png")
    Image.fromarray(half).save(tmp_path / "bits.png")
    cutout = np.dstack([np.full((20, 32, 3), 90, np.uint8), wanted])
    Image.fromarray(cutout).save(tmp_path / "cutout.png")
    for name in ("grey.png", "bits.png", "cutout.png"):
        assert np.array_equal(read_mask(tmp_path / name), wanted), name


def test_masks_are_small_or_turned_and_of_animations_the_first_frame_is_told(tmp_path):
    small = np.array([[255, 0]], np.uint8)
    Image.fromarray(small).save(tmp_path / "small.png")
    assert np.array_equal(read_mask(tmp_path / "small.png"), small)
    cutout = Image.fromarray(np.dstack([np.full((1, 2, 3), 90, np.uint8), small]))
    turned = Image.Exif()
    turned[0x0112] = 6
    cutout.save(tmp_path / "turned.png", exif=turned)
    assert np.array_equal(read_mask(tmp_path / "turned.png"), small.T)
    cutout.save(tmp_path / "damaged.png", exif=b"Exif\0\0MM\0*\0\0\0\xff")
    assert np.array_equal(read_mask(tmp_path / "damaged.png"), small)
    frames = [Image.fromarray(np.roll(np.kron(small, np.ones((8, 8))), i, 1).astype(np.uint8)) for i in range(2)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    notes = []
    read_mask(tmp_path / "moving.gif", notes)
    assert notes == ["the picture has several frames; the first one is used"]


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((3, 4, 4)),
        np.zeros((4, 4), np.int64),
        np.full((4, 4), 255.0),
        np.full((4, 4), np.nan),
        np.zeros((0, 4)),
    ],
)
def test_what_is_no_mask_is_refused(values):
    with pytest.raises(ImageError):
        mask_of(values)
