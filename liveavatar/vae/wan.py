"""The Wan 2.1 video VAE of diffusers: building it, its latent scale, and encoding in flat memory.

A latent frame holds four video frames, the first one only one: F = 1 + 4n frames become 1 + n latents, 8 times
smaller in height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..config import FRAMES_PER_LATENT, SPATIAL_STRIDE
from ..errors import RequestError

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

FeatureMap = list[Any]
"""The last two frames of every causal convolution, as diffusers' encoder and decoder keep them; None at the start."""


def build_vae(base_dim: int = 96, **config: Any) -> AutoencoderKLWan:
    """The VAE without weights, for inference; under `torch.device("meta")` it takes no memory.

    Args:
        base_dim: channels of its widest-in-space level; 96 in the published one.
        config: other arguments of `diffusers.AutoencoderKLWan`, which default to the published VAE.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    vae: AutoencoderKLWan = AutoencoderKLWan(base_dim=base_dim, **config).eval().requires_grad_(False)
    return vae


def encode(vae: AutoencoderKLWan, pixels: torch.Tensor) -> torch.Tensor:
    """Video to normalised latents: the mode of the posterior, (mean - latents_mean) * (1 / latents_std).

    Frames pass four at a time and no state is left on the module, so memory does not grow with the video; a still
    picture may come as an expanded view.

    Args:
        pixels: [1, 3, F, H, W] in [-1, 1], F = 1 + 4n, H and W multiples of 8.

    Returns:
        [1, 16, 1 + n, H / 8, W / 8], float32.

    Raises:
        RequestError: another shape.
    """
    frames, height, width = pixels.shape[2:]
    if frames % FRAMES_PER_LATENT != 1 or height % SPATIAL_STRIDE or width % SPATIAL_STRIDE:
        raise RequestError(
            f"The VAE cannot encode {frames} frames of {width}x{height}.",
            f"It takes 1, 5, 9, ... frames of a width and height that are multiples of {SPATIAL_STRIDE}.",
        )
    features = empty_features(vae.encoder)
    latents = []
    for chunk in (pixels[:, :, :1], *pixels[:, :, 1:].split(FRAMES_PER_LATENT, dim=2)):
        if chunk.shape[2]:
            moments = vae.encoder(chunk.to(vae.device, vae.dtype), feat_cache=features, feat_idx=[0])
            latents.append(vae.quant_conv(moments)[:, : vae.config["z_dim"]])
    mean, inverse_std = latent_scale(vae)
    return ((torch.cat(latents, 2) - mean) * inverse_std).float()


def latent_scale(vae: AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / std of the latents, each [1, 16, 1, 1, 1], rounded to the VAE's dtype as the published code does."""
    mean, std = (
        torch.tensor(values, dtype=vae.dtype, device=vae.device).view(1, -1, 1, 1, 1)
        for values in (vae.config["latents_mean"], vae.config["latents_std"])
    )
    return mean, 1.0 / std


def empty_features(half: nn.Module) -> FeatureMap:
    """A feature map for a new video: one slot per causal convolution of the encoder or decoder."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    return [None] * sum(isinstance(m, WanCausalConv3d) for m in half.modules())
