"""The network of the Wan 2.1 video VAE, with the names that its weights have in diffusers.

Time runs one way only: every convolution over time looks back. So video passes in pieces, and what convolutions
remember of the pieces before lies in a feature map that the caller keeps. diffusers has the same network under the same
names, but to import it takes seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..config import WAN_LATENT_SCALE

FeatureMap = list[Any]
"""The last two frames of every causal convolution; None at the start."""
_REMEMBERED = 2
"""Frames that a kernel of three looks back over."""
_STARTED = "Rep"
"""In a feature map, in place of frames: an upsampling that has passed the first frame, which stays one."""
_FIXED: dict[str, Any] = {
    "attn_scales": [],
    "dropout": 0.0,
    "is_residual": False,
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": None,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
    "clip_output": True,
}
"""Settings of diffusers' class that this network has no other values for."""


class WanCausalConv3d(nn.Conv3d):
    """A 3D convolution that looks back in time, never ahead."""

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] = 0,
    ):
        super().__init__(channels, out, kernel, stride, padding)
        time, rows, columns = (int(n) for n in self.padding)
        self._padding = (columns, columns, rows, rows, 2 * time, 0)
        self.padding = (0, 0, 0)

    def forward(self, x: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
        """x [b, channels, frames, h, w], and the frames before it, where the kernel sees some."""
        columns, _, rows, _, time, _ = self._padding
        if not (columns or rows or time):
            return super().forward(x)
        batch, channels, count, height, width = x.shape
        last = x.is_contiguous(memory_format=torch.channels_last_3d)
        # One copy, where joining and padding would make two of what is the largest in an encode.
        padded = torch.zeros(
            (batch, channels, time + count, height + 2 * rows, width + 2 * columns), dtype=x.dtype, device=x.device
        ).contiguous(memory_format=torch.channels_last_3d if last else torch.contiguous_format)
        inside = padded[:, :, :, rows : rows + height, columns : columns + width]
        inside[:, :, time:].copy_(x)
        if before is not None and time > 0:
            inside[:, :, time - before.shape[2] : time].copy_(before)
        return super().forward(padded)

    def remembering(self, x: torch.Tensor, features: FeatureMap, index: list[int]) -> torch.Tensor:
        """The convolution after what the feature map has at `index[0]`, which moves on by one."""
        place = index[0]
        index[0] += 1
        before, kept = features[place], x[:, :, -_REMEMBERED:].clone()
        if kept.shape[2] < _REMEMBERED and before is not None:
            kept = torch.cat((before[:, :, -1:], kept), 2)
        out: torch.Tensor = self(x, before)
        features[place] = kept
        return out


class WanRMS_norm(nn.Module):
    """Each pixel's channels at a length of sqrt(channels), times a learned gain; in float32 where numbers are short."""

    def __init__(self, dim: int, images: bool = True):
        super().__init__()
        self.channel_first = True
        self.scale, self.bias = dim**0.5, 0.0
        self.gamma = nn.Parameter(torch.ones(dim, 1, 1) if images else torch.ones(dim, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        short = x.dtype in (torch.float16, torch.bfloat16)
        return F.normalize(x.float() if short else x, dim=1).to(x.dtype) * self.scale * self.gamma + self.bias


class WanUpsample(nn.Upsample):
    """Upsampling in float32, whatever comes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float()).type_as(x)


class WanResample(nn.Module):
    """Half or twice the size, and with "3d" half or twice the frames.

    Args:
        dim: channels; upsampling halves them.
        mode: "upsample2d", "upsample3d", "downsample2d" or "downsample3d".
    """

    def __init__(self, dim: int, mode: str):
        super().__init__()
        self.mode = mode
        if mode.startswith("up"):
            larger = WanUpsample(scale_factor=(2.0, 2.0), mode="nearest-exact")
            self.resample = nn.Sequential(larger, nn.Conv2d(dim, dim // 2, 3, padding=1))
        else:
            self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=(2, 2)))
        if mode == "upsample3d":
            self.time_conv = WanCausalConv3d(dim, dim * 2, (3, 1, 1), padding=(1, 0, 0))
        elif mode == "downsample3d":
            self.time_conv = WanCausalConv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, x: torch.Tensor, features: FeatureMap, index: list[int]) -> torch.Tensor:
        if self.mode == "upsample3d":
            x = self._twice_the_frames(x, features, index)
        batch = x.shape[0]
        x = self.resample(rearrange(x, "b c t h w -> (b t) c h w"))
        x = rearrange(x, "(b t) c h w -> b c t h w", b=batch)
        return self._half_the_frames(x, features, index) if self.mode == "downsample3d" else x

    def _twice_the_frames(self, x: torch.Tensor, features: FeatureMap, index: list[int]) -> torch.Tensor:
        """Two frames of each, but of the first of a video."""
        place = index[0]
        index[0] += 1
        before = features[place]
        if before is None:
            features[place] = _STARTED
            return x
        kept = x[:, :, -_REMEMBERED:].clone()
        first = isinstance(before, str)
        if kept.shape[2] < _REMEMBERED:
            kept = torch.cat((torch.zeros_like(kept) if first else before[:, :, -1:], kept), 2)
        x = self.time_conv(x, None if first else before)
        features[place] = kept
        return rearrange(x, "b (two c) t h w -> b c (t two) h w", two=2)

    def _half_the_frames(self, x: torch.Tensor, features: FeatureMap, index: list[int]) -> torch.Tensor:
        """One frame of two, but of the first of a video."""
        place = index[0]
        index[0] += 1
        before = features[place]
        if before is None:
            features[place] = x.clone()
            return x
        kept = x[:, :, -1:].clone()
        x = self.time_conv(torch.cat((before[:, :, -1:], x), 2))
        features[place] = kept
        return x


class WanResidualBlock(nn.Module):
    """Twice norm, SiLU and convolution, beside a shortcut."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.norm1 = WanRMS_norm(dim, images=False)
        self.conv1 = WanCausalConv3d(dim, out, 3, padding=1)
        self.norm2 = WanRMS_norm(out, images=False)
        self.conv2 = WanCausalConv3d(out, out, 3, padding=1)
        self.conv_shortcut = WanCausalConv3d(dim, out, 1) if dim != out else nn.Identity()

    def forward(self, x: torch.Tensor, features: FeatureMap, index: list[int]) -> torch.Tensor:
        shortcut = self.conv_shortcut(x)
        x = self.conv1.remembering(F.silu(self.norm1(x)), features, index)
        x = self.conv2.remembering(F.silu(self.norm2(x)), features, index)
        return x + shortcut


class WanAttentionBlock(nn.Module):
    """Attention of one head within each frame."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = WanRMS_norm(dim)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, _, height, _ = x.shape
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        qkv = rearrange(self.to_qkv(self.norm(frames)), "n c h w -> n 1 (h w) c").contiguous()
        attended = F.scaled_dot_product_attention(*qkv.chunk(3, -1))
        out = self.proj(rearrange(attended, "n 1 (h w) c -> n c h w", h=height).contiguous())
        return rearrange(out, "(b t) c h w -> b c t h w", b=batch) + x


class WanMidBlock(nn.Module):
    """Attention between two residual blocks."""

    def __init__(self, dim: int):
        super().__init__()
        self.attentions = nn.ModuleList([WanAttentionBlock(dim)])
        self.resnets = nn.ModuleList([WanResidualBlock(dim, dim), WanResidualBlock(dim, dim)])

    def forward(self, x: torch.Tensor, features: FeatureMap, index: list[int]) -> torch.Tensor:
        x = self.attentions[0](self.resnets[0](x, features, index))
        return self.resnets[1](x, features, index)


class WanUpBlock(nn.Module):
    """Residual blocks of one size, and perhaps the way to the next."""

    def __init__(self, dim: int, out: int, blocks: int, mode: str | None):
        super().__init__()
        self.resnets = nn.ModuleList([WanResidualBlock(dim if i == 0 else out, out) for i in range(blocks)])
        self.upsamplers = None if mode is None else nn.ModuleList([WanResample(out, mode)])

    def forward(self, x: torch.Tensor, features: FeatureMap, index: list[int]) -> torch.Tensor:
        for layer in (*self.resnets, *(self.upsamplers or ())):
            x = layer(x, features, index)
        return x


class WanEncoder3d(nn.Module):
    """Pictures to the mean and the variance of latents."""

    def __init__(self, dim: int, out: int, multipliers: Sequence[int], blocks: int, halves_time: Sequence[bool]):
        super().__init__()
        widths = [dim * m for m in (1, *multipliers)]
        self.conv_in = WanCausalConv3d(3, widths[0], 3, padding=1)
        layers: list[nn.Module] = []
        for level, (width, wider) in enumerate(itertools.pairwise(widths)):
            layers += [WanResidualBlock(width if i == 0 else wider, wider) for i in range(blocks)]
            if level < len(multipliers) - 1:
                layers.append(WanResample(wider, "downsample3d" if halves_time[level] else "downsample2d"))
        self.down_blocks = nn.ModuleList(layers)
        self.mid_block = WanMidBlock(widths[-1])
        self.norm_out = WanRMS_norm(widths[-1], images=False)
        self.conv_out = WanCausalConv3d(widths[-1], out, 3, padding=1)

    def forward(self, x: torch.Tensor, feat_cache: FeatureMap, feat_idx: list[int]) -> torch.Tensor:
        """x [b, 3, frames, h, w] in [-1, 1]: one frame, then four at a time -> [b, out, 1, h / 8, w / 8]."""
        x = self.conv_in.remembering(x, feat_cache, feat_idx)
        for layer in self.down_blocks:
            x = layer(x, feat_cache, feat_idx)
        x = self.mid_block(x, feat_cache, feat_idx)
        return self.conv_out.remembering(F.silu(self.norm_out(x)), feat_cache, feat_idx)


class WanDecoder3d(nn.Module):
    """Latents to pictures."""

    def __init__(self, dim: int, channels: int, multipliers: Sequence[int], blocks: int, doubles_time: Sequence[bool]):
        super().__init__()
        widths = [dim * m for m in (multipliers[-1], *reversed(multipliers))]
        self.conv_in = WanCausalConv3d(channels, widths[0], 3, padding=1)
        self.mid_block = WanMidBlock(widths[0])
        levels = []
        for level, (width, out) in enumerate(itertools.pairwise(widths)):
            last = level == len(multipliers) - 1
            mode = None if last else "upsample3d" if doubles_time[level] else "upsample2d"
            levels.append(WanUpBlock(width // 2 if level else width, out, blocks + 1, mode))
        self.up_blocks = nn.ModuleList(levels)
        self.norm_out = WanRMS_norm(widths[-1], images=False)
        self.conv_out = WanCausalConv3d(widths[-1], 3, 3, padding=1)

    def forward(
        self, x: torch.Tensor, feat_cache: FeatureMap, feat_idx: list[int], first_chunk: bool = False
    ) -> torch.Tensor:
        """x [b, channels, 1, h, w] -> [b, 3, 4, 8 h, 8 w], or one frame at the beginning of a video."""
        x = self.mid_block(self.conv_in.remembering(x, feat_cache, feat_idx), feat_cache, feat_idx)
        for layer in self.up_blocks:
            x = layer(x, feat_cache, feat_idx)
        return self.conv_out.remembering(F.silu(self.norm_out(x)), feat_cache, feat_idx)


class AutoencoderKLWan(nn.Module):
    """Encoder and decoder, with the settings that diffusers' class has; they default to the published VAE.

    Args:
        base_dim, decoder_base_dim: channels of the levels widest in space; the decoder's default to the encoder's.
        z_dim: channels of a latent.
        dim_mult: channels of every level, as multiples.
        num_res_blocks: residual blocks of every level.
        temperal_downsample: at the end of which levels the frames are halved.
        latents_mean, latents_std: what latents are normalised by.
        others: settings that have one value here.

    Raises:
        ValueError, TypeError: another value, or a setting that is not known.
    """

    def __init__(
        self,
        base_dim: int = 96,
        decoder_base_dim: int | None = None,
        z_dim: int = 16,
        dim_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        temperal_downsample: Sequence[bool] = (False, True, True),
        latents_mean: Sequence[float] = WAN_LATENT_SCALE[0],
        latents_std: Sequence[float] = WAN_LATENT_SCALE[1],
        **others: Any,
    ):
        super().__init__()
        for name, value in others.items():
            if name not in _FIXED:
                raise TypeError(f"no setting {name}")
            if value != _FIXED[name]:
                raise ValueError(f"{name} is {value!r:.40}, not {_FIXED[name]!r}")
        if len(dim_mult) != len(temperal_downsample) + 1:
            raise ValueError(f"{len(dim_mult)} levels with {len(temperal_downsample)} steps between them")
        self.config = {"z_dim": z_dim, "latents_mean": list(latents_mean), "latents_std": list(latents_std)}
        self.encoder = WanEncoder3d(base_dim, 2 * z_dim, dim_mult, num_res_blocks, temperal_downsample)
        self.quant_conv = WanCausalConv3d(2 * z_dim, 2 * z_dim, 1)
        self.post_quant_conv = WanCausalConv3d(z_dim, z_dim, 1)
        backwards = tuple(reversed(temperal_downsample))
        self.decoder = WanDecoder3d(decoder_base_dim or base_dim, z_dim, dim_mult, num_res_blocks, backwards)

    @property
    def device(self) -> torch.device:
        """Of its parameters."""
        return self.quant_conv.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its parameters."""
        return self.quant_conv.weight.dtype
