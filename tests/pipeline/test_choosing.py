"""What the planner chooses for cards is what a pipeline and the front door work by."""

import dataclasses

import numpy as np
import pytest
from pipeline.test_pipeline import REQUEST, Heard, film, picture, sound

from liveavatar.components import open_components
from liveavatar.engine.backend import LocalBackend
from liveavatar.errors import PlanError
from liveavatar.pipeline import LiveAvatarPipeline
from liveavatar.placement import Placement
from liveavatar.planner import CUDA_CONTEXT_BYTES, GIB, DeviceSpec, Hardware, make_plan
from liveavatar.storage import StorageConfig

CHOOSING = Placement(("cpu",), threads=1, fit=True)


def tight(room: int) -> Hardware:
    """One card of so many usable bytes; it goes by the CPU's name, so that its plan can be worked here."""
    return Hardware((DeviceSpec("cpu", 16 * GIB, cap=CUDA_CONTEXT_BYTES + room),), 64 * GIB)


@pytest.fixture(scope="module")
def plain():
    """The plan that rounds and moves nothing."""
    return LiveAvatarPipeline.from_pretrained(devices=["cpu"], threads=1).describe(picture(), sound(), REQUEST).plan


def test_the_front_door_works_by_what_was_chosen(plain, tmp_path):
    whole = plain.total_by_device["cpu"]
    frames = {}
    for name, room in (("ample", whole), ("tight", whole - 3_000_000)):
        pipeline = LiveAvatarPipeline(
            open_components("mini"), LocalBackend(CHOOSING), hardware=lambda held, r=room: tight(r)
        )
        job = pipeline(picture(), sound(), request=REQUEST)
        assert job.spec.plan.total_by_device["cpu"] <= room
        done = film(job, tmp_path, name)
        frames[name] = (job.spec.plan.stages[0].storage, done.frames_sha256)
    (ample, same), (moved, also) = frames["ample"], frames["tight"]
    assert ample == StorageConfig() != moved and moved.weights == "plain"
    assert same == also, "what only moves changes no frame"


def test_a_studio_keeps_to_the_cards_it_saw(plain, tmp_path):
    """Free memory goes down with what a job loads; the next job must not be planned for what is left."""
    looks = []

    def shrinking(held):
        looks.append(dict(held))
        return tight(plain.total_by_device["cpu"] - 3_000_000 * (len(looks) - 1))

    pipeline = LiveAvatarPipeline(open_components("mini"), LocalBackend(CHOOSING), hardware=shrinking)
    voice, context = pipeline.encode_audio(sound()), pipeline.encode_prompt(REQUEST.prompt)
    first = pipeline.prepare(REQUEST, picture(), voice, context)
    film(first, tmp_path, heard=Heard())
    second = pipeline.prepare(dataclasses.replace(REQUEST, seed=3), picture(), voice, context)
    assert second.spec.plan == first.spec.plan and len(looks) == 1
    pipeline.release()
    again = pipeline.prepare(REQUEST, picture(), voice, context)
    assert len(looks) == 2 and again.spec.plan.stages[0].storage != StorageConfig()


def test_a_smaller_video_is_smaller_everywhere(tmp_path):
    large = np.repeat(np.repeat(picture(), 6, 0), 6, 1)
    request = dataclasses.replace(REQUEST, size="384x384", steps=1)
    smallest = dataclasses.replace(REQUEST, size="256x256", steps=1)
    placement = dataclasses.replace(CHOOSING, allow_smaller=True)
    config = open_components("mini").config
    fits = LiveAvatarPipeline.from_pretrained(devices=["cpu"], threads=1).describe(large, sound(0.4), smallest)
    room = make_plan(fits.resolved, config, model="mini").total_by_device["cpu"]
    pipeline = LiveAvatarPipeline(open_components("mini"), LocalBackend(placement), hardware=lambda held: tight(room))
    voice, context = pipeline.encode_audio(sound(0.4)), pipeline.encode_prompt(request.prompt)
    job = pipeline.prepare(request, large, voice, context)
    effective = job.spec.resolved
    assert (effective.width, effective.height) == job.spec.plan.size < (384, 384)
    assert any("does not fit" in note for note in effective.notes)
    done = film(job, tmp_path)
    assert (done.probed.width, done.probed.height) == job.spec.plan.size


def test_a_refusal_comes_before_anything_is_loaded():
    pipeline = LiveAvatarPipeline(
        open_components("mini"), LocalBackend(CHOOSING), hardware=lambda held: tight(1_000_000)
    )
    with pytest.raises(PlanError, match=r"What fits: .*--gpus"):
        pipeline.plan(REQUEST, (64, 64), 16_000, 16_000)
    assert pipeline.loaded_bytes == 0
