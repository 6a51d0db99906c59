"""The tiny decoder of Wan 2.1 latents: the structure published as TAEHV (taew2_1, lighttaew2_1), decoding as a stream.

Three levels of residual blocks, each of which sees the frame before beside its own; from level to level a picture
doubles its sides, and time doubles twice. All of its memory is one frame per block. There is no encoder here: portraits
are encoded by the full VAE, whose latents it reads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..config import TinyConfig
from .upsampling import fold_weight, upsample_conv
from .wan import FeatureMap

LATENT_CHANNELS = 16
BLOCKS_PER_LEVEL = 3
GROWTH = (1, 2, 2)
"""Frames that one becomes after each level: a latent frame becomes four."""


class Clamp(nn.Module):
    """3 tanh(x / 3): keeps latents that are far out from dominating."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


class MemoryBlock(nn.Module):
    """A residual block that sees each frame beside the one before it."""

    def __init__(self, width: int):
        super().__init__()
        layers = (_conv(2 * width, width), nn.ReLU(True), _conv(width, width), nn.ReLU(True), _conv(width, width))
        self.conv = nn.Sequential(*layers)

    def forward(self, frames: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Frames [n, width, h, w] after the frame `before` [1, width, h, w], in the same shape."""
        past = torch.cat((before, frames[:-1])) if len(frames) > 1 else before
        return F.relu_(self.conv(torch.cat((frames, past), 1)) + frames)


class TimeGrow(nn.Module):
    """Each frame becomes `stride` frames of as many channels."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        self.width, self.stride = width, stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        grown: torch.Tensor = self.conv(frames)
        return grown.unflatten(1, (self.stride, self.width)).flatten(0, 1)


class TinyDecoder(nn.Module):
    """Normalised latents to frames, one latent frame at a time (a `decoding.LatentDecoder`).

    Names of its tensors are those of the published files.

    Args:
        config: dimensions.
    """

    def __init__(self, config: TinyConfig):
        super().__init__()
        self.config = config
        layers: list[nn.Module] = [Clamp(), _conv(LATENT_CHANNELS, config.widths[0]), nn.ReLU(True)]
        for width, following, stride in zip(config.widths[:-1], config.widths[1:], GROWTH, strict=True):
            layers += [MemoryBlock(width) for _ in range(BLOCKS_PER_LEVEL)]
            layers += [nn.Upsample(scale_factor=2), TimeGrow(width, stride), _conv(width, following, bias=False)]
        self.decoder = nn.Sequential(*layers, nn.ReLU(True), _conv(config.widths[-1], 3))

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._input.weight.device

    @property
    def module(self) -> nn.Module:
        """See `LatentDecoder`."""
        return self

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self._input.weight.dtype

    @property
    def _input(self) -> nn.Conv2d:
        layer = self.decoder[1]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def empty_features(self) -> FeatureMap:
        """One slot per memory block, for the latest frame it saw."""
        return [None] * sum(isinstance(layer, MemoryBlock) for layer in self.decoder)

    def decode_latent(self, latent: torch.Tensor, features: FeatureMap, first: bool) -> torch.Tensor:
        """See `LatentDecoder`."""
        z = latent.to(self.device, torch.float32)
        if self.config.latent_scale is not None:
            mean, std = (z.new_tensor(values)[:, None, None] for values in self.config.latent_scale)
            z = z * std + mean
        frames = self(z[None].to(self.dtype, memory_format=torch.channels_last), features)
        return frames[-1 if first else 0 :].transpose(0, 1).float().mul_(2).sub_(1)

    def forward(self, latents: torch.Tensor, features: FeatureMap) -> torch.Tensor:
        """Frames [4n, 3, 8h, 8w] in about [0, 1] of latents [n, 16, h, w]; `features` move on."""
        frames, slot = latents, 0
        for layer in self.decoder:
            if isinstance(layer, MemoryBlock):
                before = features[slot] if features[slot] is not None else torch.zeros_like(frames[:1])
                features[slot], slot = frames[-1:].clone(memory_format=torch.preserve_format), slot + 1
                frames = layer(frames, before)
            else:
                frames = layer(frames)
        return frames


def _conv(inside: int, outside: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, padding=1, bias=bias)


class GrowConv(nn.Module):
    """`Upsample`, `TimeGrow` and the convolution after them as one convolution of the small picture.

    Growing in time is a matrix before the convolution, which is multiplied into its weights.

    Args:
        grow, conv: whose weights it takes.
    """

    def __init__(self, grow: TimeGrow, conv: nn.Conv2d):
        super().__init__()
        self.stride = grow.stride
        in_time = grow.conv.weight[:, :, 0, 0].float().unflatten(0, (self.stride, -1))
        taps = torch.einsum("omyx,smi->soiyx", conv.weight.float(), in_time).to(conv.weight.dtype)
        self.weight = nn.Parameter(torch.cat([fold_weight(each) for each in taps]), requires_grad=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames [n, c, h, w] -> [stride n, width, 2h, 2w]."""
        return upsample_conv(frames, self.weight, stride=self.stride)


def fold_upsampling(tiny: TinyDecoder) -> TinyDecoder:
    """The quicker form for inference, in place: the same numbers but for rounding."""
    layers = list(tiny.decoder)
    for place, (_, grow, conv) in enumerate(zip(layers, layers[1:], layers[2:], strict=False)):
        if isinstance(grow, TimeGrow) and isinstance(conv, nn.Conv2d):
            layers[place : place + 3] = [nn.Identity(), nn.Identity(), GrowConv(grow, conv)]
    tiny.decoder = nn.Sequential(*layers)
    return tiny.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
