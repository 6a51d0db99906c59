"""A video that goes on from what another one left is the video that never ended, bit by bit."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch
from engine.test_changes import changed
from engine.tiny import TinyComponents, latents, tiny_config, tiny_effective, tiny_job, tiny_plan
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.encoders.audio import AudioFeatures
from liveavatar.encoders.block_features import ShiftedFeatures
from liveavatar.engine.local import LocalEngine
from liveavatar.session import VideoTask
from liveavatar.stage_state import state_shapes
from liveavatar.storage import PLAIN, StorageConfig
from liveavatar.task_graph import task_count
from liveavatar.weights.source import DictSource

CONFIG = tiny_config()
CUTS = ["1x1", "1x3", "4x1", "2x2"]
BLOCKS = 10


def engine_of(job: VideoTask, cut: str, storage: StorageConfig = PLAIN) -> LocalEngine:
    plan = tiny_plan(CONFIG, job.resolved, cut)
    stages = tuple(dataclasses.replace(stage, storage=storage) for stage in plan.stages)
    return LocalEngine(TinyComponents(CONFIG), dataclasses.replace(plan, stages=stages))


def first_part(job: VideoTask, blocks: int, cut: str = "1x1", storage: StorageConfig = PLAIN, stop: bool = False):
    """Latents of the first blocks, and what they leave; as a video of its own, or of one that was stopped."""
    keeping = dataclasses.replace(job, keep_state=True)
    if stop:
        keeping = dataclasses.replace(keeping, stop=threading.Event())
    else:
        keeping = dataclasses.replace(keeping, resolved=dataclasses.replace(job.resolved, blocks=blocks))
    engine, made = engine_of(job, cut, storage), []
    for latent in engine.run(keeping):
        made.append(latent)
        if stop and len(made) == blocks:
            keeping.stop.set()
    state = engine.take_state()
    assert state.block == len(made) and engine.take_state() is None
    return torch.cat(made, 1), DictSource({name: lazy.read() for name, lazy in state.tensors.items()}), state.block


def going_on(job: VideoTask, block: int, saved: DictSource, first_frame: torch.Tensor) -> VideoTask:
    """The rest of a job, with features of its own that are counted from 0."""
    given = job.conditioning
    rest = AudioFeatures(given.audio.layers, given.audio.channels)
    for b in range(block, job.resolved.blocks):
        rest.append(given.audio.block(b)[0].permute(2, 0, 1).numpy())
    resolved = dataclasses.replace(job.resolved, blocks=job.resolved.blocks - block, first_block=block)
    audio = ShiftedFeatures(rest, block)
    conditioning = dataclasses.replace(given, reference=first_frame, audio=audio)
    return dataclasses.replace(job, resolved=resolved, conditioning=conditioning, start=saved)


@given(st.integers(1, BLOCKS - 1), st.sampled_from(CUTS), st.sampled_from(CUTS), st.sampled_from([1, 3, 4, 7]))
def test_the_rest_of_a_video_is_as_if_it_had_never_ended(block: int, cut: str, other_cut: str, clip: int) -> None:
    job = tiny_job(CONFIG, dataclasses.replace(tiny_effective(BLOCKS), clip_blocks=clip))
    first, saved, _ = first_part(job, block, cut)
    rest = going_on(job, block, saved, first[:, :1])
    events = []
    made = torch.cat(list(engine_of(job, other_cut).run(rest, events.append)), 1)
    assert torch.equal(torch.cat((first, made), 1), latents(CONFIG, job))
    tasks = task_count(engine_of(job, other_cut).plan.partition, BLOCKS, block, clip)
    assert (len([e for e in events if e.task]), events[-1].total) == (tasks, tasks)


@given(st.integers(1, 6), st.sampled_from(CUTS))
def test_a_video_that_was_stopped_goes_on_where_its_last_block_ended(block: int, cut: str) -> None:
    job = tiny_job(CONFIG, tiny_effective(14))
    first, saved, reached = first_part(job, block, cut, stop=True)
    stages = engine_of(job, cut).plan.partition.stages
    assert block <= reached <= block + stages + 1
    rest = torch.cat(list(engine_of(job, "1x1").run(going_on(job, reached, saved, first[:, :1]))), 1)
    assert torch.equal(torch.cat((first, rest), 1), latents(CONFIG, job))


@pytest.mark.parametrize("block", [2, 5])
def test_changes_before_and_after_are_those_of_one_video(block: int) -> None:
    job = changed(tiny_job(CONFIG, tiny_effective(BLOCKS)), {1: 1, 7: 2}, {2: 3, 8: 4})
    first, saved, _ = first_part(job, block)
    made = torch.cat(list(engine_of(job, "2x2").run(going_on(job, block, saved, first[:, :1]))), 1)
    assert torch.equal(torch.cat((first, made), 1), latents(CONFIG, job))


FP8, INT4 = StorageConfig(kv_dtype="fp8"), StorageConfig(kv_dtype="int4")


@pytest.mark.parametrize("storage", [PLAIN, FP8, INT4], ids=["plain", "fp8", "int4"])
def test_where_the_kv_cache_lies_makes_no_difference(storage: StorageConfig) -> None:
    job = tiny_job(CONFIG, tiny_effective(BLOCKS))
    on_host = dataclasses.replace(storage, kv_offload=True)
    whole = torch.cat(list(engine_of(job, "1x1", storage).run(job)), 1)
    for before, after in ((storage, on_host), (on_host, storage)):
        first, saved, _ = first_part(job, 6, "1x1", before)
        made = torch.cat(list(engine_of(job, "1x1", after).run(going_on(job, 6, saved, first[:, :1]))), 1)
        assert torch.equal(torch.cat((first, made), 1), whole)


@pytest.mark.parametrize(
    ("before", "after"),
    [(PLAIN, FP8), (FP8, PLAIN), (PLAIN, INT4), (INT4, PLAIN), (FP8, INT4), (INT4, FP8)],
    ids=["to fp8", "from fp8", "to int4", "from int4", "fp8 to int4", "int4 to fp8"],
)
def test_another_format_of_the_kv_cache_comes_close(before: StorageConfig, after: StorageConfig) -> None:
    job = tiny_job(CONFIG, tiny_effective(BLOCKS))
    first, saved, _ = first_part(job, 6, "1x1", before)
    made = torch.cat(list(engine_of(job, "1x1", after).run(going_on(job, 6, saved, first[:, :1]))), 1)
    expected = latents(CONFIG, job)[:, 18:]
    assert not torch.equal(made, expected) and (made - expected).norm() < 0.1 * expected.norm()


@given(st.integers(1, 12), st.sampled_from([1, 3, 4]), st.sampled_from([PLAIN, FP8, INT4]))
def test_what_is_kept_is_what_was_counted(block: int, clip: int, storage: StorageConfig) -> None:
    job = tiny_job(CONFIG, dataclasses.replace(tiny_effective(12), clip_blocks=clip))
    _, saved, _ = first_part(job, block, "2x2", storage)
    shapes = dict(state_shapes(CONFIG, 4, clip, job.resolved.frame_tokens, block, storage.kv_dtype))
    assert {name: saved.shape(name) for name in saved.keys()} == shapes  # noqa: SIM118


def test_nothing_is_kept_of_a_run_that_was_broken_off_or_did_not_want_it() -> None:
    job = tiny_job(CONFIG, tiny_effective(5))
    engine = engine_of(job, "2x2")
    list(engine.run(job))
    assert engine.take_state() is None
    run = engine.run(dataclasses.replace(job, keep_state=True))
    next(run)
    run.close()
    assert engine.take_state() is None
