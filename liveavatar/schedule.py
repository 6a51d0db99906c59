"""What is drawn or stepped per block: sigmas, noise and the distance of the sink.

Every number is a function of (seed, clip, block, step) alone, so no order, topology or resume can change it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from .config import BLOCK_LATENTS, CLIP_BLOCKS, MAX_SINK_DISTANCE, MIN_SINK_DISTANCE, REFERENCE_TIME_ID

_SHIFT = 3.0
_MASK64 = (1 << 64) - 1


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
def _clip_noise(seed: int, clip: int, channels: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed((seed + clip) & _MASK64)
    return torch.randn((channels, CLIP_BLOCKS * BLOCK_LATENTS, height, width), generator=generator)


def block_noise(seed: int, block: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Noise of a block: [channels, 3, height, width] float32 on the CPU, a slice of its clip's draw (seed + clip)."""
    clip, place = divmod(block, CLIP_BLOCKS)
    first = place * BLOCK_LATENTS
    return _clip_noise(seed, clip, channels, height, width)[:, first : first + BLOCK_LATENTS].clone()


@dataclasses.dataclass(frozen=True)
class SinkDistance:
    """How many latent frames ahead of a block the reference picture stands.

    Attributes:
        kind: "seeded" (a hash of seed and block, uniform in 4..30, the same for all steps), "fixed", or "replay"
            (a recorded list per block and step, to repeat a run of the published implementation, which draws anew
            at every call).
        value: the distance when fixed.
        recorded: [blocks][steps] when replayed.
    """

    kind: str = "seeded"
    value: int = MAX_SINK_DISTANCE
    recorded: tuple[tuple[int, ...], ...] = ()

    def at(self, seed: int, block: int, step: int) -> int:
        """The distance of one task."""
        if self.kind == "fixed":
            return self.value
        if self.kind == "replay":
            return self.recorded[block][step]
        return MIN_SINK_DISTANCE + _hash(seed, block) % (MAX_SINK_DISTANCE - MIN_SINK_DISTANCE + 1)

    def reference_time_id(self, seed: int, block: int, step: int) -> int:
        """Time id of the reference: 30 until the block comes within the distance, then always that far ahead."""
        near = REFERENCE_TIME_ID - self.at(seed, block, step)
        return REFERENCE_TIME_ID + max(0, block * BLOCK_LATENTS - near)


def _hash(seed: int, block: int) -> int:
    """A counter-based 64-bit hash (the finaliser of SplitMix64, Steele et al. 2014)."""
    z = (seed + (block + 1) * 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)
