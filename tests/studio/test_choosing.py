"""What the planner chooses for cards is what a studio and the front door work by."""

import dataclasses

import numpy as np
import pytest
from studio.test_studio import REQUEST, Heard, film, picture, sound

from liveavatar.api import generate, look_ahead
from liveavatar.components import open_components
from liveavatar.engines.backend import LocalBackend
from liveavatar.errors import PlanError
from liveavatar.placement import Placement
from liveavatar.planner import CONTEXT, GIB, Card, Hardware, make_plan
from liveavatar.storage import Storage
from liveavatar.studio import Studio

CHOOSING = Placement(("cpu",), threads=1, fit=True)


def tight(room: int) -> Hardware:
    """One card of so many usable bytes; it goes by the CPU's name, so that its plan can be worked here."""
    return Hardware((Card("cpu", 16 * GIB, free=CONTEXT + room),), 64 * GIB)


@pytest.fixture(scope="module")
def plain():
    """The plan that rounds and moves nothing."""
    return look_ahead(picture(), sound(), REQUEST, devices=["cpu"], threads=1).plan


def test_the_front_door_works_by_what_was_chosen(plain, tmp_path):
    whole = plain.total_by_device["cpu"]
    frames = {}
    for name, room in (("ample", whole), ("tight", whole - 3_000_000)):
        prospect = look_ahead(picture(), sound(), REQUEST, placement=CHOOSING, cards=lambda held, r=room: tight(r))
        assert prospect.plan.total_by_device["cpu"] <= room
        done = generate(prospect, tmp_path / f"{name}.mp4")
        frames[name] = (prospect.plan.stages[0].storage, done.frames_sha256)
    (ample, same), (moved, also) = frames["ample"], frames["tight"]
    assert ample == Storage() != moved and moved.weights == "plain"
    assert same == also, "what only moves changes no frame"


def test_a_studio_keeps_to_the_cards_it_saw(plain, tmp_path):
    """Free memory goes down with what a take loads; the next take must not be planned for what is left."""
    looks = []

    def shrinking(held):
        looks.append(dict(held))
        return tight(plain.total_by_device["cpu"] - 3_000_000 * (len(looks) - 1))

    studio = Studio(open_components("mini"), LocalBackend(CHOOSING), hardware=shrinking)
    voice, context = studio.listen(sound()), studio.read(REQUEST.prompt)
    first = studio.take(REQUEST, picture(), voice, context)
    film(first, tmp_path, heard=Heard())
    second = studio.take(dataclasses.replace(REQUEST, seed=3), picture(), voice, context)
    assert second.prospect.plan == first.prospect.plan and len(looks) == 1
    studio.release()
    again = studio.take(REQUEST, picture(), voice, context)
    assert len(looks) == 2 and again.prospect.plan.stages[0].storage != Storage()


def test_a_smaller_video_is_smaller_everywhere(tmp_path):
    large = np.repeat(np.repeat(picture(), 6, 0), 6, 1)
    request = dataclasses.replace(REQUEST, size="384x384", steps=1)
    smallest = dataclasses.replace(REQUEST, size="256x256", steps=1)
    placement = dataclasses.replace(CHOOSING, allow_smaller=True)
    config = open_components("mini").config
    fits = look_ahead(large, sound(0.4), smallest, devices=["cpu"], threads=1)
    room = make_plan(fits.effective, config, model="mini").total_by_device["cpu"]
    studio = Studio(open_components("mini"), LocalBackend(placement), hardware=lambda held: tight(room))
    voice, context = studio.listen(sound(0.4)), studio.read(request.prompt)
    take = studio.take(request, large, voice, context)
    effective = take.prospect.effective
    assert (effective.width, effective.height) == take.prospect.plan.size < (384, 384)
    assert any("does not fit" in note for note in effective.notes)
    done = film(take, tmp_path)
    assert (done.probed.width, done.probed.height) == take.prospect.plan.size


def test_a_refusal_comes_before_anything_is_loaded():
    studio = Studio(open_components("mini"), LocalBackend(CHOOSING), hardware=lambda held: tight(1_000_000))
    with pytest.raises(PlanError, match=r"What fits: .*--gpus"):
        studio.look_ahead(REQUEST, (64, 64), 16_000, 16_000)
    assert studio.loaded_bytes == 0
