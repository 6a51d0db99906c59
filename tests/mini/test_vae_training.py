"""The VAE's training: quick layers are the real ones, steps follow from their number, the result can be read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from liveavatar.components import FolderComponents
from liveavatar.errors import MissingFilesError
from liveavatar.mini.training import loop, vae
from liveavatar.mini.training.fast_vae import quicken_training
from liveavatar.mini.training.recipe import Recipe
from liveavatar.mini.training.vae_clips import Clips, batch_of, draw_clips
from liveavatar.mini.training.vae_result import load_vae, measure_redrawing, measure_scale, write_vae
from liveavatar.vae.decoding import DecodeState, decode_block
from liveavatar.vae.wan import build_vae, encode

TINY = dataclasses.replace(
    Recipe(),
    vae_base_dim=4,
    vae_dim_mult=(1, 1, 2, 2),
    vae_people=2,
    vae_still_steps=3,
    vae_steps=6,
    vae_decoder_steps=3,
    vae_whole_share=0.0,
)


@pytest.fixture(scope="module")
def clips(speech: None) -> Clips:
    return draw_clips(2, print)


def silent(line: str) -> None:
    pass


def test_the_quick_layers_compute_what_the_real_ones_do() -> None:
    torch.manual_seed(0)
    real = build_vae(base_dim=8, num_res_blocks=1, dim_mult=[1, 2, 2, 4])
    pixels = torch.rand(1, 3, 13, 64, 64) * 2 - 1
    latents = encode(real, pixels)
    pictures = decode_block(real, DecodeState.empty(real), latents[0])
    quick = quicken_training(real)
    torch.testing.assert_close(encode(quick, pixels), latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        decode_block(quick, DecodeState.empty(quick), latents[0]), pictures, atol=1e-5, rtol=1e-4
    )


def test_the_batch_of_a_step_follows_from_its_number(clips: Clips) -> None:
    for step in (0, 5, 6, 7, 8):
        one, two = batch_of(clips, step, TINY), batch_of(clips, step, TINY)
        assert torch.equal(one.pixels, two.pixels) and torch.equal(one.weight, two.weight)
        frames = one.pixels.shape[2]
        assert frames == 1 if step < TINY.vae_still_steps else frames % 4 == 1 and frames - one.past in (8, 9)
        assert one.pixels.abs().max() <= 1 and one.weight.min() == 1
    assert not torch.equal(batch_of(clips, 0, TINY).pixels, batch_of(clips, 1, TINY).pixels)


def test_some_of_the_clips_stand_still(clips: Clips) -> None:
    batches = [batch_of(clips, step, TINY) for step in range(10, 30)]
    moved = torch.cat([b.pixels.flatten(3).diff(dim=2).abs().amax((1, 2, 3)) > 0 for b in batches])
    still = torch.cat([b.still for b in batches])
    assert still.any() and not (moved & still).any() and (moved & ~still).float().mean() > 0.6


def test_people_kept_out_of_training_are_others(clips: Clips) -> None:
    assert (clips.frames[0] != draw_clips(1, print, held_out=True).frames[0]).any()


def test_drawn_pictures_are_read_again(tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = draw_clips(2, print, keep=tmp_path / "pictures")
    monkeypatch.setattr("liveavatar.mini.training.vae_clips._draw", None)
    again = draw_clips(2, print, keep=tmp_path / "pictures")
    assert (kept.frames == again.frames).all() and (again.frames == clips.frames).all()


@pytest.mark.slow
def test_a_few_steps_on_a_clip_reduce_the_loss(clips: Clips) -> None:
    trainee = vae.Trainee(TINY)
    optimiser = torch.optim.AdamW(trainee.parameters(), lr=4e-3)
    losses = []
    for _ in range(12):
        loss = vae.vae_loss(trainee, batch_of(clips, 5, TINY), 0.1, torch.Generator().manual_seed(0))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_an_interrupted_training_ends_like_an_uninterrupted_one(
    tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(tmp_path / "whole")
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(vae, "batch_of", interrupted_at(4))
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts")
    monkeypatch.undo()
    parts = trained(tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)


def test_the_written_folder_is_read_as_any_other_model(tmp_path: Path, clips: Clips) -> None:
    trained(tmp_path)
    result = load_vae(TINY, tmp_path, people=2)
    assert load_vae(TINY, tmp_path, people=2).settings == result.settings
    own = result.build()
    mean, std = measure_scale(own, clips)
    assert max(map(abs, mean)) < 1e-2 and all(abs(s - 1) < 1e-2 for s in std)
    assert write_vae(tmp_path / "vae", result) == (tmp_path / "vae/diffusion_pytorch_model.safetensors").stat().st_size
    components: Any = object.__new__(FolderComponents)
    components.files = SimpleNamespace(vae=tmp_path / "vae")
    read = components.vae("cpu", torch.float32)
    assert list(read.config["latents_mean"]) == result.settings["latents_mean"]
    assert abs(measure_redrawing(read, clips).psnr - measure_redrawing(own, clips).psnr) < 0.1


@pytest.mark.slow
def test_training_the_decoder_leaves_the_latents_alone(tmp_path: Path, clips: Clips) -> None:
    trained(tmp_path)
    before = load_vae(TINY, tmp_path, people=2)
    vae.train_decoder(TINY, tmp_path, None, silent)
    after = load_vae(TINY, tmp_path, people=2)
    assert before.settings == after.settings
    changed = {k.split(".")[0] for k in before.weights if not torch.equal(before.weights[k], after.weights[k])}
    assert "decoder" in changed and changed <= {"decoder", "post_quant_conv"}


def test_without_a_checkpoint_there_is_no_vae(tmp_path: Path) -> None:
    with pytest.raises(MissingFilesError, match="no trained VAE"):
        load_vae(TINY, tmp_path)


def trained(work: Path) -> dict[str, torch.Tensor]:
    vae.train_vae(TINY, work, None, silent)
    state = loop.load_checkpoint(work / vae.CHECKPOINT)
    assert state is not None
    return state


def interrupted_at(last: int) -> Any:
    def batch(clips: Clips, step: int, *rest: Any) -> Any:
        if step == last:
            raise KeyboardInterrupt
        return batch_of(clips, step, *rest)

    return batch
