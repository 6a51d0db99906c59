"""The tiny decoder's training: latents are encoded once, steps follow from their number, the result can be read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from liveavatar.components import load_tiny, load_vae
from liveavatar.mini.training import tiny_vae
from liveavatar.mini.training.recipe import Recipe
from liveavatar.mini.training.vae_clips import SIZE, draw_clips
from liveavatar.vae.decoding import DecodeState, decode_block

MODEL = Path(tiny_vae.__file__).parents[1] / "model"
RECIPE = dataclasses.replace(Recipe(), vae_people=2, tiny_people=2, tiny_widths=(8, 8, 4, 4), tiny_steps=3)


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def work(speech: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which three steps were trained."""
    folder = tmp_path_factory.mktemp("work")
    assert tiny_vae.train_tiny(RECIPE, folder, load_vae(MODEL / "vae", "cpu", torch.float32), None, silent)
    return folder


def encoded(work: Path) -> tiny_vae.EncodedClips:
    """The latents in the folder; nothing is encoded for them."""
    clips = draw_clips(2, silent, keep=work / tiny_vae.PICTURES)
    return tiny_vae.encode_clips(None, clips, RECIPE, work / tiny_vae.LATENTS, silent)  # type: ignore[arg-type]


def test_the_examples_of_a_step_follow_from_its_number(work: Path) -> None:
    known, sizes = encoded(work), set()
    for step in range(8):
        one, two = known.examples(step, RECIPE), known.examples(step, RECIPE)
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a.latents, b.latents) and torch.equal(a.pixels, b.pixels)
            assert a.pixels.shape[2] == 4 * len(a.latents) == 8 and 1 <= len(a.past) <= 3
            assert a.pixels.shape[-1] == 8 * a.latents.shape[-1]
        sizes.add((len(one), one[0].pixels.shape[-1]))
    assert sizes == {(1, SIZE), (4, SIZE // 2)}


def test_nothing_is_learned_where_a_part_was_cut() -> None:
    seen = tiny_vae.inside(0, 32, 64)
    assert seen[:56, 40:88].all() and seen.sum() == 56 * 48


def test_what_is_encoded_goes_on_after_a_break(work: Path, tmp_path: Path) -> None:
    whole = np.asarray(encoded(work).latents)
    (tmp_path / "half").write_bytes(whole[0].tobytes() + b"torn")
    clips = draw_clips(2, silent, keep=work / tiny_vae.PICTURES)
    vae = load_vae(MODEL / "vae", "cpu", torch.float32)
    assert np.array_equal(tiny_vae.encode_clips(vae, clips, RECIPE, tmp_path / "half", silent).latents, whole)


def test_the_result_is_written_as_a_file_of_its_kind(work: Path, tmp_path: Path) -> None:
    trained = tiny_vae.load_tiny(RECIPE, work)
    assert tiny_vae.write_tiny(tmp_path, trained) < 60_000
    read = load_tiny(tmp_path / "taew2_1.safetensors", "cpu", torch.float32)
    assert read.config.widths == RECIPE.tiny_widths
    latents = torch.randn(16, 2, 4, 4)
    frames = [decode_block(d, DecodeState.empty(d), latents) for d in (read, trained.eval())]
    torch.testing.assert_close(frames[0], frames[1], atol=0.05, rtol=0)
