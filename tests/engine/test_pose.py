"""Poses are followed block by block, equally on every cut."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from engine.tiny import latents, tiny_config, tiny_effective, tiny_job

from liveavatar.pose import PoseLatents
from liveavatar.session import VideoTask

CONFIG, BLOCKS = tiny_config(), 9


def followed(job: VideoTask, changed: int | None = None) -> tuple[VideoTask, list[int]]:
    """The job with made-up poses, where those of one block may be others; and the clips that were begun."""
    clips: list[int] = []
    height, width = job.resolved.latent_size

    def pictures():
        for number in range(10_000):
            yield np.full((8, 8, 3), (number + 50 * (number // 12 == changed)) % 251, np.uint8)

    def open_clip():
        clips.append(len(clips))

        def encode(shown, callback):
            means = torch.from_numpy(shown).float().mean((1, 2, 3)) / 100
            return means.view(1, -1, 1, 1).expand(16, -1, height, width)[:, :: 4 if len(shown) > 1 else 1]

        return encode

    pose = PoseLatents(pictures, open_clip, job.resolved.clip_blocks)
    return dataclasses.replace(job, conditioning=dataclasses.replace(job.conditioning, pose=pose)), clips


def first_difference(one: torch.Tensor, other: torch.Tensor) -> int | None:
    blocks = range(one.shape[1] // 3)
    return next((b for b in blocks if not torch.equal(one[:, 3 * b : 3 * b + 3], other[:, 3 * b : 3 * b + 3])), None)


@pytest.mark.parametrize("block", [0, 3, 4, 8])
def test_a_pose_takes_effect_at_its_block(block: int) -> None:
    job = tiny_job(CONFIG, tiny_effective(BLOCKS))
    ours, others = (latents(CONFIG, followed(job, changed)[0]) for changed in (None, block))
    assert first_difference(ours, others) == block
    assert first_difference(ours, latents(CONFIG, job)) == 0


@pytest.mark.parametrize("cut", ["1x3", "4x1", "2x2"])
def test_every_cut_follows_alike_and_encodes_each_clip_once(cut: str) -> None:
    job = tiny_job(CONFIG, tiny_effective(BLOCKS))
    whole, (task, clips) = latents(CONFIG, followed(job)[0]), followed(job)
    assert torch.equal(latents(CONFIG, task, cut), whole)
    assert len(clips) == 3
    assert torch.equal(latents(CONFIG, task, cut), whole)
