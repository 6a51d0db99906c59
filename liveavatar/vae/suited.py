"""The VAE in the form that suits where it works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from .cpu import quicken

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

Form = Literal["plain", "quick", "channels last"]


def form_for(device: str, dtype: torch.dtype) -> Form:
    """The form for a kind of device and a dtype.

    The convolutions of GPUs that work in 16 bits want the channels of a pixel side by side; from any other layout they
    convert before each layer and back after it. In float32 they do not, and the CPU has faster forms of its own.
    """
    if device == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return "channels last"
    return "quick" if device == "cpu" and dtype == torch.float32 else "plain"


def suit(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Bring a loaded VAE into the form for where it lies, in place."""
    form = form_for(vae.device.type, vae.dtype)
    if form == "quick":
        return quicken(vae)
    return lay_channels_last(vae) if form == "channels last" else vae


def lay_channels_last(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Lay the weights of all convolutions out channels last, in place; what passes through follows by itself.

    One layer loses the layout, where a frame becomes two; there it is restored before the picture grows to four times.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample

    for m in vae.modules():
        if isinstance(m, nn.Conv3d):
            m.weight.data = m.weight.data.to(memory_format=torch.channels_last_3d)
        elif isinstance(m, nn.Conv2d):
            m.weight.data = m.weight.data.to(memory_format=torch.channels_last)
        elif isinstance(m, WanResample) and m.mode == "upsample3d":
            m.resample.register_forward_pre_hook(_restored)
    return vae


def _restored(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The pictures [n, channels, h, w] that a module is given, channels last."""
    return tuple(x.contiguous(memory_format=torch.channels_last) for x in given)
