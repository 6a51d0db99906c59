"""What is stepped or drawn per block: sigmas and noise.

Every number is a function of (seed, clip, block, step) alone, so no order, topology or resume can change it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from .config import BLOCK_LATENTS, CLIP_BLOCKS

_SHIFT = 3.0
_SEEDS = 1 << 64


@dataclasses.dataclass(frozen=True)
class Schedule:
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
    def of(cls, steps: int) -> Schedule:
        """The flow-matching schedule of diffusers with shift 3 (which shifts its low end twice, as published)."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=_SHIFT)
        scheduler.set_timesteps(steps)
        return cls(tuple(scheduler.timesteps.tolist()), tuple(scheduler.sigmas.tolist()))

    def euler(self, step: int, latent: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """One Euler step; the increment is rounded to the velocity's dtype before it is added in float32.

        The difference of sigmas is a 0-dim tensor, not a number, because torch then rounds as the published
        implementation does; it stays on the CPU, which no device has to wait for.
        """
        delta = torch.tensor(self.sigmas[step + 1] - self.sigmas[step], dtype=torch.float32)
        return (latent.float() + delta * velocity).to(latent.dtype)


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
