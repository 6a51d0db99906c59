"""Training the VAE, in the order of a stream: a first picture, then four at a time, with caches in between."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from ...config import FRAMES_PER_LATENT
from ...errors import MissingFilesError
from ...vae.wan import FeatureMap, build_vae, empty_features
from .fast_vae import quicken_training
from .loop import follow_average, load_checkpoint, train_steps
from .vae_clips import Batch, batch_of, draw_clips

if TYPE_CHECKING:
    from ...vae.autoencoder import AutoencoderKLWan
    from .recipe import Recipe

CHECKPOINT, DECODER, PICTURES = "vae.pt", "vae_decoder.pt", "vae_pictures.u8"
"""Names in the folder of the work."""
LATENT_CHANNELS = 16
_EDGES, _COLOURS, _STILL, _SCALE = 1.0, 1.0, 0.1, 0.003
"""Weights in the loss: of edges, of the mean colours of 16 x 16 pixels, of still latents, of the latents' scale."""


class Trainee(nn.Module):
    """The VAE in training, its averaged weights, and a running estimate of its latents' mean and size."""

    mean: torch.Tensor
    square: torch.Tensor

    def __init__(self, recipe: Recipe):
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.vae = quicken_training(forget_time(build_vae(**vae_settings(recipe))))
        self.vae.requires_grad_(True)
        # Not a submodule's copy: the averages must not share the training forms' references to the layers.
        self.average = build_vae(**vae_settings(recipe))
        self.average.load_state_dict(self.vae.state_dict())
        self.register_buffer("mean", torch.zeros(1, LATENT_CHANNELS, 1, 1, 1))
        self.register_buffer("square", torch.ones(1, LATENT_CHANNELS, 1, 1, 1))

    @torch.no_grad()
    def watch(self, latents: torch.Tensor) -> None:
        """Take a step's latents into the running mean and size."""
        self.mean.lerp_(latents.mean((0, 2, 3, 4), keepdim=True), 0.02)
        self.square.lerp_(latents.square().mean((0, 2, 3, 4), keepdim=True), 0.02)

    @property
    def deviation(self) -> torch.Tensor:
        """Standard deviation of every latent channel, [1, 16, 1, 1, 1]."""
        return (self.square - self.mean.square()).clamp_min(1e-4).sqrt()


@torch.no_grad()
def forget_time(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Start a VAE as one of single pictures, in place: latents hold the last frame of four, which is shown four times.

    So it can learn to draw from pictures alone, at a tenth of the cost, and then learns what moves.
    """
    from ...vae.autoencoder import WanCausalConv3d

    for name, m in vae.named_modules():
        if isinstance(m, WanCausalConv3d):
            if name.endswith("time_conv"):
                again = m.out_channels // m.in_channels
                m.weight.zero_()
                m.weight[:, :, -1, 0, 0] = torch.eye(m.in_channels).repeat(again, 1)
                nn.init.zeros_(m.bias)  # type: ignore[arg-type]
            else:
                # Only the last of three frames is there when a picture stands alone.
                m.weight[:, :, :-1] = 0
                m.weight *= m.weight.shape[2] ** 0.5
    return vae


def vae_settings(recipe: Recipe) -> dict[str, Any]:
    """Arguments of `build_vae`."""
    return {
        "base_dim": recipe.vae_base_dim,
        "z_dim": LATENT_CHANNELS,
        "dim_mult": list(recipe.vae_dim_mult),
        "num_res_blocks": recipe.vae_res_blocks,
    }


def train_vae(recipe: Recipe, work: Path, minutes: float | None, log: Callable[[str], None]) -> bool:
    """Train, or go on training, until `recipe.vae_steps` are done or the time is up.

    Args:
        work: where the checkpoint and the drawn pictures lie.
        minutes: of training, without the drawing; None for no limit.
        log: called with a line about every 15 s.

    Returns:
        Whether all steps are done.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work.mkdir(parents=True, exist_ok=True)
    clips = draw_clips(recipe.vae_people, log, keep=work / PICTURES)
    trainee = Trainee(recipe).to(device)

    def loss_of(step: int) -> torch.Tensor:
        follow_average(trainee.average, trainee.vae, step)
        batch = batch_of(clips, step, recipe, device)
        noise = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        return vae_loss(trainee, batch, recipe.vae_noise, noise)

    return train_steps(
        work / CHECKPOINT,
        trainee,
        loss_of,
        steps=recipe.vae_steps,
        rate=recipe.vae_rate,
        minutes=minutes,
        log=log,
        share=lambda step, steps: _rate_share(recipe, step, steps),
    )


def train_decoder(recipe: Recipe, work: Path, minutes: float | None, log: Callable[[str], None]) -> None:
    """Train the decoder alone for `recipe.vae_decoder_steps` more; what latents mean stays as it is.

    So this may run while a network already learns from the latents. Arguments as of `train_vae`.

    Raises:
        MissingFilesError: the VAE has not been trained there.
    """
    state = load_checkpoint(work / CHECKPOINT)
    if state is None:
        raise MissingFilesError(f"There is no trained VAE in {work}.", "Run the stage 'vae' first.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainee = Trainee(recipe)
    trainee.load_state_dict(state)
    trainee.vae.load_state_dict(trainee.average.state_dict())
    for part in (trainee.vae.encoder, trainee.vae.quant_conv):
        part.requires_grad_(False)
    trainee.to(device)
    clips = draw_clips(recipe.vae_people, log, keep=work / PICTURES)
    talking = dataclasses.replace(recipe, seed=recipe.seed + 1, vae_still_steps=0)

    def loss_of(step: int) -> torch.Tensor:
        follow_average(trainee.average, trainee.vae, step)
        noise = torch.Generator().manual_seed(talking.seed * 1_000_003 + step)
        return decoder_loss(trainee, batch_of(clips, step, talking, device), recipe.vae_noise, noise)

    steps, rate = recipe.vae_decoder_steps, recipe.vae_decoder_rate
    train_steps(work / DECODER, trainee, loss_of, steps=steps, rate=rate, minutes=minutes, log=log)


def _rate_share(recipe: Recipe, step: int, steps: int) -> float:
    """Two falls along a cosine: to a tenth while pictures stand alone, then from a third to 0 while they move."""
    still = min(recipe.vae_still_steps, steps)
    if step < still:
        return min(1.0, (step + 1) / 100) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / still)))
    return 0.175 * (1 + math.cos(math.pi * (step - still) / max(1, steps - still)))


def vae_loss(trainee: Trainee, batch: Batch, noise: float, generator: torch.Generator) -> torch.Tensor:
    """Difference of pictures and of their edges, plus a little for latents that move without cause or leave unit size.

    Args:
        noise: highest standard deviation of the noise on normalised latents; drawn anew for every clip.
    """
    vae, past = trainee.vae, batch.past
    encoder, decoder = empty_features(vae.encoder), empty_features(vae.decoder)
    with torch.autocast(batch.pixels.device.type, torch.bfloat16):
        if past:
            with torch.no_grad():
                before = _latents(vae, batch.pixels[:, :, :past], encoder)
                _pictures(vae, _noisy(trainee, before, noise, generator), decoder, first=True)
        latents = _latents(vae, batch.pixels[:, :, past:], encoder)
        pictures = _pictures(vae, _noisy(trainee, latents, noise, generator), decoder, first=not past)
    trainee.watch(latents.detach())
    loss = picture_loss(pictures.float(), batch.pixels[:, :, past:], batch.weight)
    size = latents.square().mean((0, 2, 3, 4))
    loss = loss + _SCALE * (latents.mean((0, 2, 3, 4)).square().mean() + (size - size.clamp_min(1e-4).log()).mean())
    # The first two latents of a video may differ though nothing moves: the caches are still empty.
    change = (latents[:, :, 1:] - latents[:, :, :-1]) / trainee.deviation
    settled = change if past else change[:, :, 1:]
    if settled.shape[2]:
        loss = loss + _STILL * (settled.abs().mean((1, 2, 3, 4)) * batch.still).mean()
    return loss


def decoder_loss(trainee: Trainee, batch: Batch, noise: float, generator: torch.Generator) -> torch.Tensor:
    """Difference of pictures and of their edges, with gradients for the decoder only."""
    vae, past = trainee.vae, batch.past
    features = empty_features(vae.decoder)
    with torch.autocast(batch.pixels.device.type, torch.bfloat16):
        with torch.no_grad():
            latents = _latents(vae, batch.pixels, empty_features(vae.encoder))
            latents = _noisy(trainee, latents, noise, generator)
            before = (past + FRAMES_PER_LATENT - 1) // FRAMES_PER_LATENT
            if before:
                _pictures(vae, latents[:, :, :before], features, first=True)
        pictures = _pictures(vae, latents[:, :, before:], features, first=not past)
    return picture_loss(pictures.float(), batch.pixels[:, :, past:], batch.weight)


def _latents(vae: AutoencoderKLWan, pixels: torch.Tensor, features: FeatureMap) -> torch.Tensor:
    """Means of the posterior, float32; a first picture alone, then four by four."""
    first = pixels.shape[2] % FRAMES_PER_LATENT
    chunks = [pixels[:, :, :first]] if first else []
    chunks += pixels[:, :, first:].split(FRAMES_PER_LATENT, 2)
    moments = [vae.quant_conv(vae.encoder(c, feat_cache=features, feat_idx=[0])) for c in chunks if c.shape[2]]
    return torch.cat(moments, 2)[:, :LATENT_CHANNELS].float()


def _pictures(vae: AutoencoderKLWan, latents: torch.Tensor, features: FeatureMap, first: bool) -> torch.Tensor:
    """Decode one latent frame after another."""
    frames = vae.post_quant_conv(latents).split(1, 2)
    pictures = [
        vae.decoder(z, feat_cache=features, feat_idx=[0], first_chunk=first and k == 0) for k, z in enumerate(frames)
    ]
    return torch.cat(pictures, 2)


def _noisy(trainee: Trainee, latents: torch.Tensor, noise: float, generator: torch.Generator) -> torch.Tensor:
    """Latents as a small network will guess them: a little wrong, each clip by another amount."""
    amount = torch.rand(len(latents), 1, 1, 1, 1, generator=generator) * noise
    error = (torch.randn(latents.shape, generator=generator) * amount).to(latents.device)
    return latents + error * trainee.deviation


def picture_loss(pictures: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted absolute difference of the pictures, of their edges at two scales, and of mean colours."""
    error = pictures - target
    loss = (error.abs() * weight).mean()
    flat, w = error.transpose(1, 2).flatten(0, 1), weight.expand(-1, -1, error.shape[2], -1, -1)
    w = w.transpose(1, 2).flatten(0, 1)
    for _ in range(2):
        across, down = flat[..., 1:] - flat[..., :-1], flat[..., 1:, :] - flat[..., :-1, :]
        loss = loss + 0.5 * _EDGES * ((across.abs() * w[..., 1:]).mean() + (down.abs() * w[..., 1:, :]).mean())
        flat, w = F.avg_pool2d(flat, 2), F.avg_pool2d(w, 2)
    return loss + _COLOURS * F.avg_pool2d(flat, 4).abs().mean()
