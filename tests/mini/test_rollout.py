"""Training sees exactly what inference sees: the same blocks give the same velocities."""

import dataclasses

import torch
from engine.tiny import TinyComponents, latents, tiny_config, tiny_effective, tiny_job

from liveavatar.mini.training.rollout import Rollout, Scene
from liveavatar.model.transformer import ModelSlice
from liveavatar.noise_schedule import NoiseSchedule, block_noise


def test_a_training_rollout_steps_to_the_latents_of_the_engine() -> None:
    config, effective = tiny_config(), tiny_effective(6, steps=3)
    job = tiny_job(config, effective)
    expected = latents(config, job)
    net = TinyComponents(config).transformer(ModelSlice.whole(config), torch.device("cpu"), torch.float32)
    m = job.conditioning
    audio = torch.cat([m.audio.block(b)[0] for b in range(6)], 2).permute(2, 0, 1)
    scene = Scene(m.reference, m.motion, expected, m.prompt, audio)
    schedule = NoiseSchedule.flow_matching(3)
    rollout = Rollout(net, scene, 0, effective.seed, schedule.timesteps)
    x = torch.cat([block_noise(effective.seed, b, 16, *effective.latent_size) for b in range(6)], 1)
    for step in range(3):
        x = schedule.euler(step, x, rollout.velocities(step, x, expected[:, :1]))
    assert torch.allclose(x, expected, atol=1e-4)


def test_gradients_reach_everything_that_is_trained() -> None:
    config, effective = tiny_config(), tiny_effective(5)
    job = tiny_job(config, effective)
    net = TinyComponents(config).transformer(ModelSlice.whole(config), torch.device("cpu"), torch.float32)
    net.requires_grad_(True)
    m = job.conditioning
    audio = torch.cat([m.audio.block(b)[0] for b in range(5)], 2).permute(2, 0, 1)
    scene = Scene(m.reference, m.motion, torch.randn(16, 15, 8, 8), m.prompt, audio)
    rollout = Rollout(net, scene, 0, 1, NoiseSchedule.flow_matching(4).timesteps)
    rollout.velocities(1, torch.randn(16, 15, 8, 8), torch.randn(16, 1, 8, 8)).square().mean().backward()
    # A pose of zeros leaves only its convolution's bias.
    silent = {"cond_encoder.weight"}
    assert {n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum()} <= silent
    assert dataclasses.replace(scene).blocks == 5
