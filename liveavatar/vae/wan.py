"""The Wan 2.1 video VAE: building it, memory layouts that suit a device, and encoding."""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from einops import rearrange
from torch import nn

from ..config import FRAMES_PER_LATENT, SPATIAL_STRIDE
from ..errors import RequestError
from .autoencoder import AutoencoderKLWan, FeatureMap, WanCausalConv3d, WanRMS_norm


def build_vae(base_dim: int = 96, **config: Any) -> AutoencoderKLWan:
    """The VAE without weights, for inference; under `torch.device("meta")` it takes no memory.

    Args:
        base_dim: channels of its widest-in-space level; 96 in the published one.
        config: other arguments of `AutoencoderKLWan`, which default to the published VAE.
    """
    vae: AutoencoderKLWan = AutoencoderKLWan(base_dim=base_dim, **config).eval().requires_grad_(False)
    return vae


def encode(vae: AutoencoderKLWan, pixels: torch.Tensor) -> torch.Tensor:
    """Video to normalised latents: the mode of the posterior, (mean - latents_mean) * (1 / latents_std).

    Frames pass four at a time and no state is left on the module, so memory does not grow with the video; a still
    image may come as an expanded view.

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
    encoder = StreamEncoder(vae)
    first, rest = encoder(pixels[:, :, :1]), pixels[:, :, 1:]
    return torch.cat((first, encoder(rest)), 2) if rest.shape[2] else first


class StreamEncoder:
    """The encode of one video in pieces: its first frame, then four frames or a multiple of them at a time.

    Args:
        vae: encodes; may be shared, the memory of the video lies here.
    """

    def __init__(self, vae: AutoencoderKLWan):
        self._vae, self._features = vae, empty_features(vae.encoder)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """The latents of the next frames [1, 3, 1 or 4n, H, W], as of `encode`: [1, 16, 1 or n, H / 8, W / 8]."""
        vae, latents = self._vae, []
        for chunk in pixels.split(FRAMES_PER_LATENT, dim=2):
            moments = vae.encoder(chunk.to(vae.device, vae.dtype), feat_cache=self._features, feat_idx=[0])
            latents.append(vae.quant_conv(moments)[:, : vae.config["z_dim"]])
        mean, inverse_std = latent_scale(vae)
        return ((torch.cat(latents, 2) - mean) * inverse_std).float()


def latent_scale(vae: AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / std of the latents, each [1, 16, 1, 1, 1], rounded to the VAE's dtype as the published code does."""
    mean, std = (
        rearrange(torch.tensor(values, dtype=vae.dtype, device=vae.device), "c -> 1 c 1 1 1")
        for values in (vae.config["latents_mean"], vae.config["latents_std"])
    )
    return mean, 1.0 / std


def empty_features(half: nn.Module) -> FeatureMap:
    """A feature map for a new video: one slot per causal convolution of the encoder or decoder."""
    return [None] * sum(isinstance(m, WanCausalConv3d) for m in half.modules())


def use_mkldnn(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Let a float32 VAE on the CPU use the faster forms, in place; any other VAE stays as it is."""
    if vae.device.type != "cpu" or vae.dtype != torch.float32:
        return vae
    for m in vae.modules():
        if isinstance(m, WanCausalConv3d) and torch.backends.mkldnn.is_available():
            m._conv_forward = functools.partial(_convolve, m)  # type: ignore[method-assign]
        elif isinstance(m, WanRMS_norm) and m.channel_first:
            m.forward = functools.partial(_normalise, m)  # type: ignore[method-assign]
    return vae


def _convolve(m: nn.Conv3d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    # The layer pads by itself before it gets here.
    return torch.mkldnn_convolution(x, weight, bias, (0, 0, 0), m.stride, m.dilation, m.groups)


def _normalise(m: Any, x: torch.Tensor) -> torch.Tensor:
    """x / max(|x|, 1e-12) over the channels, times sqrt(channels) and the learned gain."""
    length = x.square().sum(1, keepdim=True).sqrt_().clamp_min_(1e-12)
    return (x / length).mul_(m.scale * m.gamma).add_(m.bias)


VaeLayout = Literal["plain", "quick", "channels last"]


def layout_for(device: str, dtype: torch.dtype) -> VaeLayout:
    """The form for a kind of device and a dtype.

    The convolutions of GPUs that work in 16 bits want the channels of a pixel side by side; from any other layout they
    convert before each layer and back after it. In float32 they do not, and the CPU has faster forms of its own.
    """
    if device == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return "channels last"
    return "quick" if device == "cpu" and dtype == torch.float32 else "plain"


def optimize_layout(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Bring a loaded VAE into the form for where it lies, in place."""
    form = layout_for(vae.device.type, vae.dtype)
    if form == "quick":
        return use_mkldnn(vae)
    return to_channels_last(vae) if form == "channels last" else vae


def to_channels_last(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Lay the weights of all convolutions out channels last, in place; what passes through follows by itself."""
    for m in vae.modules():
        if isinstance(m, nn.Conv3d):
            m.weight.data = m.weight.data.to(memory_format=torch.channels_last_3d)
        elif isinstance(m, nn.Conv2d):
            m.weight.data = m.weight.data.to(memory_format=torch.channels_last)
    return vae
