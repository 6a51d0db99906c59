"""Videos of noise: jobs of the right shapes for measurements, made without encoders or files."""

from __future__ import annotations

import torch

from ..config import AUDIO_SAMPLE_RATE, BLOCK_FRAMES, FPS, MOTION_LATENTS, ModelConfig
from ..encoders.audio import AudioFeatures
from ..request import Request, ResolvedRequest, SinkDistance, parse_size, resolve
from ..session import Conditioning, VideoTask


def noise_job(config: ModelConfig, blocks: int, steps: int = 4, size: str = "64x64") -> VideoTask:
    """So many whole blocks of made-up material.

    Args:
        config: of the network.
        blocks, steps: at least 1.
        size: width x height in pixels, of the image too.
    """
    resolved = noise_effective(blocks, steps, size)
    generator = torch.Generator().manual_seed(resolved.seed)
    height, width = resolved.latent_size

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    audio = AudioFeatures(config.audio_layers, config.audio_dim)
    audio.append(noise(blocks * BLOCK_FRAMES, config.audio_layers, config.audio_dim).numpy())
    reference, motion = noise(16, 1, height, width), noise(16, MOTION_LATENTS, height, width)
    return VideoTask(resolved, Conditioning(reference, motion, noise(4, config.text_dim), audio), SinkDistance())


def noise_effective(blocks: int, steps: int = 4, size: str = "64x64") -> ResolvedRequest:
    """What such a job makes; arguments as of `noise_job`."""
    samples = blocks * BLOCK_FRAMES * AUDIO_SAMPLE_RATE // FPS
    return resolve(Request(size=size, steps=steps), parse_size(size), samples, AUDIO_SAMPLE_RATE)
