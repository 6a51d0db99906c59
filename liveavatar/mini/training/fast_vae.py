"""The VAE's layers in forms whose gradients are quick on a CPU.

PyTorch has a fast backward pass for 2D convolutions of narrow layers but not for 3D ones: a causal convolution over
three frames is therefore computed as a 2D convolution over their channels side by side. The numbers are the same but
for the order of additions.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from ...vae.autoencoder import AutoencoderKLWan


def quicken_training(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Give a VAE layers that train quickly, in place; its weights stay its own."""
    from ...vae.autoencoder import WanCausalConv3d, WanRMS_norm

    for m in vae.modules():
        if isinstance(m, WanCausalConv3d):
            m.forward = functools.partial(convolve, m)  # type: ignore[method-assign]
        elif isinstance(m, WanRMS_norm) and m.channel_first:
            m.forward = functools.partial(_normalise, m)  # type: ignore[method-assign]
    return vae


def convolve(m: Any, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
    """What a `WanCausalConv3d` computes, as a 2D convolution.

    Args:
        m: the layer.
        x: [batch, channels, frames, height, width].
        cache_x: the frames before, where there are any; at most as many as the layer looks back.
    """
    taps, (stride_t, *stride) = m.weight.shape[2], m.stride
    side, _, above, _, back, _ = m._padding
    if cache_x is not None and back:
        x = torch.cat([cache_x, x], 2)
        back -= cache_x.shape[2]
    if back == taps - 1 and x.shape[2] == 1:
        taps, back = 1, 0  # all before the only picture is black, so only the last tap sees anything
    if back:
        x = F.pad(x, (0, 0, 0, 0, back, 0))
    count = (x.shape[2] - taps) // stride_t + 1
    pictures = x.transpose(1, 2)
    shifted = [pictures[:, k : k + count * stride_t : stride_t][:, :count] for k in range(taps)]
    beside = torch.cat(shifted, 2) if taps > 1 else shifted[0]
    kernel = m.weight[:, :, -taps:].transpose(1, 2).flatten(1, 2)
    y = F.conv2d(beside.flatten(0, 1), kernel, m.bias, tuple(stride), (above, side))
    return y.unflatten(0, (x.shape[0], count)).transpose(1, 2)


def _normalise(m: Any, x: torch.Tensor) -> torch.Tensor:
    """x / |x| over the channels, times sqrt(channels) and the learned gain; |0| is 1e-6, which has a gradient."""
    return x * (x.square().sum(1, keepdim=True) + 1e-12).rsqrt() * (m.scale * m.gamma) + m.bias
