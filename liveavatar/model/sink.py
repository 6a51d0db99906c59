"""The tokens of the sink: the reference picture and packed motion."""

from __future__ import annotations

import torch
from torch import nn

from ..config import MOTION_LATENTS, ModelConfig

_PACKED = (16, 2, 1)
"""Latent frames packed 4x, 2x and 1x, oldest first."""


class FramePacker(nn.Module):
    """Packs 19 motion latents into 1.5 latent frames' worth of tokens (`frame_packer`): the older, the coarser."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.proj = _patches(config, (1, 2, 2))
        self.proj_2x = _patches(config, (2, 4, 4))
        self.proj_4x = _patches(config, (4, 8, 8))

    def forward(self, motion: torch.Tensor) -> torch.Tensor:
        """motion [16, frames, h, w]: the last 19 count, missing ones are zero -> [1.5 S, dim], newest first."""
        missing = MOTION_LATENTS - motion.shape[1]
        motion = nn.functional.pad(motion, (0, 0, 0, 0, missing, 0)) if missing > 0 else motion[:, -MOTION_LATENTS:]
        oldest, older, newest = motion.split(_PACKED, 1)
        return torch.cat((tokens(self.proj, newest), tokens(self.proj_2x, older), tokens(self.proj_4x, oldest)))


def _patches(config: ModelConfig, kernel: tuple[int, int, int]) -> nn.Conv3d:
    return nn.Conv3d(config.in_dim, config.dim, kernel, kernel)


def tokens(projection: nn.Conv3d, latents: torch.Tensor) -> torch.Tensor:
    """Patch latents [channels, frames, h, w] -> [tokens, dim], frame by frame, row by row."""
    return projection(latents.unsqueeze(0))[0].flatten(1).transpose(0, 1)
