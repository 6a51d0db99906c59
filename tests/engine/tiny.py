"""A tiny network and made-up material, so that engines are tested without encoders or files."""

from __future__ import annotations

import dataclasses
import functools

import torch

from liveavatar.config import BLOCK_FRAMES, MOTION_LATENTS, ModelConfig
from liveavatar.encoders.audio import AudioFeatures
from liveavatar.encoders.block_features import StackedFeatures
from liveavatar.engine.local import LocalEngine
from liveavatar.events import Event, ignore
from liveavatar.model.transformer import CausalS2VTransformer, ModelSlice, empty_transformer
from liveavatar.planner import Plan, make_plan
from liveavatar.request import Request, ResolvedRequest, SinkDistance, resolve
from liveavatar.session import Conditioning, VideoTask
from liveavatar.storage import WeightFormat
from liveavatar.task_graph import Partition
from liveavatar.weights.load import TensorDevice, fill
from liveavatar.weights.source import DictSource


def tiny_config(layers: int = 3) -> ModelConfig:
    """2-4 layers of 24 channels; sound after the first and the last."""
    return ModelConfig(
        dim=24,
        ffn_dim=32,
        freq_dim=16,
        num_heads=2,
        num_layers=layers,
        text_dim=8,
        text_len=6,
        audio_dim=6,
        audio_layers=3,
        audio_inject_layers=(0, layers - 1) if layers > 1 else (0,),
    )


ROUND_CONFIG = ModelConfig(
    dim=256,
    ffn_dim=512,
    freq_dim=64,
    num_heads=4,
    num_layers=6,
    text_dim=64,
    text_len=64,
    audio_dim=32,
    audio_layers=3,
    audio_inject_layers=(0, 2, 5),
)
"""Small, and rows of every tensor take a multiple of 256 bytes, so that nothing lies unused between packed ones."""


class TinyComponents:
    """The transformer only, with seeded weights; every part gets the numbers it has in the whole."""

    name = "tiny"
    trained = False

    def __init__(self, config: ModelConfig):
        self.config = config
        self.loaded: list[ModelSlice] = []

    @functools.cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        whole = CausalS2VTransformer(self.config, ModelSlice.whole(self.config))
        generator = torch.Generator().manual_seed(7)
        return {k: torch.randn(v.shape, generator=generator) * 0.2 for k, v in whole.state_dict().items()}

    def transformer(
        self, model_slice: ModelSlice, device: TensorDevice, dtype: torch.dtype, weights: WeightFormat = "plain"
    ) -> CausalS2VTransformer:
        self.loaded.append(model_slice)
        net = empty_transformer(self.config, model_slice, weights)
        fill(net, DictSource(self.weights), dtype=dtype, device=device)
        return net


def tiny_effective(blocks: int, steps: int = 4, size: str = "64x64", seed: int = 5) -> ResolvedRequest:
    """So many whole blocks of 64x64."""
    samples = blocks * BLOCK_FRAMES * 640
    return resolve(Request(size=size, steps=steps, seed=seed), (640, 640), samples, 16_000)


def tiny_job(config: ModelConfig, effective: ResolvedRequest, distance: SinkDistance | None = None) -> VideoTask:
    """Made-up material of the right shapes."""
    generator = torch.Generator().manual_seed(effective.seed)
    height, width = effective.latent_size

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    audio = AudioFeatures(config.audio_layers, config.audio_dim)
    audio.append(numbers(effective.blocks * BLOCK_FRAMES, config.audio_layers, config.audio_dim).numpy())
    reference, motion = numbers(16, 1, height, width), numbers(16, MOTION_LATENTS, height, width)
    return VideoTask(
        effective, Conditioning(reference, motion, numbers(4, config.text_dim), audio), distance or SinkDistance()
    )


def with_two_speakers(job: VideoTask) -> VideoTask:
    """The job with another speaker; who is heard in the left and the right half, and both in the middle."""
    given = job.conditioning.audio
    generator = torch.Generator().manual_seed(4)
    other = AudioFeatures(given.layers, given.channels)
    frames = job.resolved.blocks * BLOCK_FRAMES
    other.append(torch.randn((frames, given.layers, given.channels), generator=generator).numpy())
    rows, columns = (n // 2 for n in job.resolved.latent_size)
    mask = torch.zeros(2, 3, rows, columns, 1)
    mask[0, :, :, : columns // 2 + 1] = mask[1, :, :, columns // 2 - 1 :] = 1
    audio = StackedFeatures([given, other])
    conditioning = dataclasses.replace(job.conditioning, audio=audio, speaker_mask=mask.flatten(1, 3))
    return dataclasses.replace(
        job, resolved=dataclasses.replace(job.resolved, speaker_count=2), conditioning=conditioning
    )


def tiny_plan(config: ModelConfig, effective: ResolvedRequest, stages: str = "1x1") -> Plan:
    """On the CPU with one thread."""
    return make_plan(effective, config, model="tiny", stages=stages)


def latents(
    config: ModelConfig, job: VideoTask, stages: str | Partition = "1x1", reports: list[Event] | None = None
) -> torch.Tensor:
    """All latents of a job: [16, 3 blocks, h, w]"""
    engine = LocalEngine(TinyComponents(config), tiny_plan(config, job.resolved, str(stages)))
    return torch.cat(list(engine.run(job, ignore if reports is None else reports.append)), 1)
