"""Several speakers in worker processes: the same bits as in this process, on every cut."""

import dataclasses

import numpy as np
import pytest
import torch
from distributed.videos import Video

from liveavatar.distributed import RayBackend
from liveavatar.encoders.audio import AudioFeatures
from liveavatar.encoders.block_features import StackedFeatures


@pytest.fixture(scope="module")
def video() -> Video:
    """Two speakers, who are heard in the left and the right half, and both in the middle."""
    made = Video(5, steps=2)
    job, config = made.job, made.components.config
    other = AudioFeatures(config.audio_layers, config.audio_dim)
    shape = 12 * job.resolved.blocks, config.audio_layers, config.audio_dim
    other.append(np.random.default_rng(4).standard_normal(shape).astype(np.float32))
    mask = torch.zeros(2, 3, 4, 4, 1)
    mask[0, :, :, :3] = mask[1, :, :, 1:] = 1
    conditioning = dataclasses.replace(
        job.conditioning, audio=StackedFeatures([job.conditioning.audio, other]), speaker_mask=mask.flatten(1, 3)
    )
    resolved = dataclasses.replace(job.resolved, speaker_count=2)
    made.job = dataclasses.replace(job, resolved=resolved, conditioning=conditioning)
    return made


@pytest.mark.parametrize("stages", ["1x2", "2x1"])
def test_workers_hear_all_speakers(backend: RayBackend, video: Video, stages: str) -> None:
    assert video.is_made_by(backend, stages)
    alone = Video(5, steps=2)
    assert not torch.equal(alone.expected, video.expected)
