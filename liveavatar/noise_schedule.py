"""What is stepped or drawn per block: sigmas and noise.

Every number is a function of (seed, clip, block, step) alone, so no order, topology or resume can change it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TypeVar

import numpy as np
import torch

from .config import BLOCK_LATENTS, CLIP_BLOCKS

Sigmas = TypeVar("Sigmas", torch.Tensor, np.ndarray)

_SHIFT = 3.0
_TRAIN_TIMESTEPS = 1000
_SEEDS = 1 << 64


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """The denoising steps.

    Attributes:
        timesteps: one per step, 1000 x sigma.
        sigmas: one per step and a final 0.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    @property
    def steps(self) -> int:
        """How many denoising steps there are."""
        return len(self.timesteps)

    @classmethod
    def flow_matching(cls, steps: int) -> NoiseSchedule:
        """The flow-matching schedule with shift 3: sigmas fall evenly from 1 to their lowest before they are shifted.

        The lowest of 1000 training timesteps is shifted twice, as in diffusers' `FlowMatchEulerDiscreteScheduler` and
        so as published; roundings are the same, too.
        """
        lowest = _shifted(torch.tensor(1 / _TRAIN_TIMESTEPS)).item()
        times = np.linspace(float(_TRAIN_TIMESTEPS), _TRAIN_TIMESTEPS * lowest, steps)
        sigmas = torch.from_numpy(_shifted(times / _TRAIN_TIMESTEPS)).float()
        return cls(tuple((sigmas * _TRAIN_TIMESTEPS).tolist()), (*sigmas.tolist(), 0.0))

    def euler(self, step: int, latent: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """One Euler step; the increment is rounded to the velocity's dtype before it is added in float32.

        The difference of sigmas is a 0-dim tensor, not a number, because torch then rounds as the published
        implementation does; it stays on the CPU, which no device has to wait for.
        """
        delta = torch.tensor(self.sigmas[step + 1] - self.sigmas[step], dtype=torch.float32)
        return (latent.float() + delta * velocity).to(latent.dtype)


def _shifted(sigmas: Sigmas) -> Sigmas:
    return _SHIFT * sigmas / (1 + (_SHIFT - 1) * sigmas)


@functools.lru_cache(maxsize=4)
def _clip_noise(seed: int, clip: int, channels: int, frames: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed((seed + clip) % _SEEDS)
    return torch.randn((channels, frames, height, width), generator=generator)


def block_noise(
    seed: int, block: int, channels: int, height: int, width: int, clip_blocks: int = CLIP_BLOCKS
) -> torch.Tensor:
    """Noise of a block: [channels, 3, height, width] float32 on the CPU, a slice of its clip's draw (seed + clip).

    Args:
        seed: of the video.
        block: its number in the video.
        channels, height, width: of a latent frame.
        clip_blocks: blocks of a clip, which is drawn in one piece.
    """
    clip, place = divmod(block, clip_blocks)
    first = place * BLOCK_LATENTS
    noise = _clip_noise(seed, clip, channels, clip_blocks * BLOCK_LATENTS, height, width)
    return noise[:, first : first + BLOCK_LATENTS].clone()
