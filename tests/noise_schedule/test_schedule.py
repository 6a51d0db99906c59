"""The closed form of the schedule is diffusers' scheduler, to the bit."""

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from liveavatar.noise_schedule import NoiseSchedule
from liveavatar.request import MAX_STEPS


@pytest.mark.parametrize("steps", range(1, MAX_STEPS + 1))
def test_the_closed_form_equals_diffusers_for_every_step_count(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    scheduler.set_timesteps(steps)
    schedule = NoiseSchedule.flow_matching(steps)
    assert schedule.timesteps == tuple(scheduler.timesteps.tolist())
    assert schedule.sigmas == tuple(scheduler.sigmas.tolist())
    assert schedule.steps == steps
