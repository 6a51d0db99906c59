"""A stage that takes back what another held goes on as that one would have."""

import dataclasses
from collections.abc import Iterable

import pytest
import torch
from engine.tiny import TinyComponents, tiny_config, tiny_effective, tiny_job

from liveavatar.config import CLIP_BLOCKS
from liveavatar.model.transformer import EMBEDDERS, ModelSlice
from liveavatar.noise_schedule import NoiseSchedule
from liveavatar.planner import stage_plan
from liveavatar.session import VideoTask
from liveavatar.stage import InitialInputs, Stage, StageConditioning, StageInput
from liveavatar.stage_state import restore_stage, stage_state, step_state
from liveavatar.storage import PLAIN, StorageConfig
from liveavatar.task_graph import Denoise, Partition, Prefill, ends_block, followers, is_first, paced_order
from liveavatar.weights.source import DictSource

BLOCKS = 11
CUT = Partition.even(2, 1, 4, 3)
TENSORS = {"plain": 2, "fp8": 4, "int4": 6}
"""Of a KV cache."""


def new_stages(job: VideoTask, storage: StorageConfig = PLAIN) -> list[Stage]:
    config, effective = tiny_config(), job.resolved
    components, cpu, dtype = TinyComponents(config), torch.device("cpu"), torch.float32
    conditioner, schedule = components.transformer(EMBEDDERS, cpu, dtype), NoiseSchedule.flow_matching(effective.steps)
    conditions = StageConditioning(
        rows=effective.latent_size[0] // 2,
        columns=effective.latent_size[1] // 2,
        schedule=schedule,
        seed=effective.seed,
        distance=job.distance,
        prompt=conditioner.embed_text(job.conditioning.prompt),
        time=conditioner.embed_timesteps([*schedule.timesteps, 0.0]),
        motion=job.conditioning.motion,
        audio=lambda block: conditioner.embed_audio(job.conditioning.audio.block(block)),
        clip_blocks=effective.clip_blocks,
    )
    net = components.transformer(ModelSlice.whole(config), cpu, dtype)
    return [Stage(net, steps, conditions, cpu, dtype, storage) for steps in CUT.step_groups]


def play(job: VideoTask, stages: list[Stage], tasks: Iterable[Denoise | Prefill]) -> dict[int, torch.Tensor]:
    """Run tasks; the latents of the blocks that end."""
    e = job.resolved
    origin = InitialInputs(job.conditioning.reference, e.seed, e.latent_size, torch.float32, e.clip_blocks)
    flows: dict[Denoise | Prefill, StageInput] = {}
    ended = {}
    for task in tasks:
        flow = origin.stage_input(task) if is_first(task) else flows.pop(task)
        left = stages[CUT.stage_of(task)].run(task, flow)
        for follower in followers(CUT, BLOCKS, task, e.clip_blocks):
            flows[follower] = left.for_follower(task, follower)
        if ends_block(CUT, task):
            ended[task.block] = left.latent
    return ended


@pytest.mark.parametrize(
    "storage",
    [PLAIN, StorageConfig(kv_dtype="fp8", kv_offload=True), StorageConfig(kv_dtype="int4")],
    ids=["plain", "fp8 on the host", "int4"],
)
@pytest.mark.parametrize(
    ("boundary", "clip"),
    [(CLIP_BLOCKS + 1, CLIP_BLOCKS), (8, CLIP_BLOCKS), (BLOCKS - 1, CLIP_BLOCKS), (2, 1), (5, 3), (8, 7)],
)
@torch.inference_mode()
def test_restored_stages_make_the_same_blocks(boundary: int, clip: int, storage: StorageConfig) -> None:
    job = tiny_job(tiny_config(), dataclasses.replace(tiny_effective(BLOCKS), clip_blocks=clip))
    tasks = [s.task for s in paced_order(CUT, BLOCKS, clip_blocks=clip)]
    whole = play(job, new_stages(job, storage), tasks)
    first, second = new_stages(job, storage), new_stages(job, storage)
    play(job, first, [t for t in tasks if isinstance(t, Prefill) or t.block < boundary])
    for one, other in zip(first, second, strict=True):
        saved = {name: lazy.read().clone() for name, lazy in stage_state(one, boundary).items()}
        assert saved["sink.0.k"].shape == (5 * one.grid.tokens // 2, 2, 12)
        planned = stage_plan(tiny_config(), one.grid.tokens, CUT.step_groups[0], range(3), 4, "cpu", storage, clip)
        if boundary > clip:
            assert sum(tensor.nbytes for tensor in saved.values()) == planned.snapshot_bytes
        assert len(saved) == 3 * 2 + 3 * len(one.kv_caches) * TENSORS[storage.kv_dtype]
        restore_stage(other, boundary, DictSource(saved))
        for tensor in saved.values():
            tensor.zero_()  # a stage keeps nothing of what it was given
    rest = play(job, second, [s.task for s in paced_order(CUT, BLOCKS, first=boundary, clip_blocks=clip)])
    assert rest.keys() == set(range(boundary, BLOCKS))
    assert all(torch.equal(rest[b], whole[b]) for b in rest)


@torch.inference_mode()
def test_what_was_saved_stays_as_it_was() -> None:
    job = tiny_job(tiny_config(), tiny_effective(BLOCKS))
    stages, tasks = new_stages(job), [s.task for s in paced_order(CUT, 6)]
    play(job, stages, tasks)
    saved = step_state(stages[0], 6, 0)["kv.0.0.k"].read()
    before = saved.clone()
    play(job, stages[:1], [Denoise(6, 0, 0)])
    assert torch.equal(saved, before) and not torch.equal(step_state(stages[0], 7, 0)["kv.0.0.k"].read(), before)
