"""Timesteps, sigmas and the Euler step are those of the original for every step count it was recorded with."""

import pytest
import torch
from golden.cases import Case, cases

from liveavatar.schedule import Schedule

pytestmark = pytest.mark.parametrize("case", cases("schedule"))


def test_sigmas_and_timesteps(case: Case) -> None:
    for steps in case.info["config"]["steps"]:
        schedule = Schedule.of(steps)
        assert torch.equal(torch.tensor(schedule.timesteps), case[f"timesteps.{steps}"])
        assert torch.equal(torch.tensor(schedule.sigmas), case[f"sigmas.{steps}"])


@pytest.mark.parametrize("dtype, suffix", [(torch.float32, ""), (torch.bfloat16, "_bf16")])
def test_euler_steps(case: Case, dtype: torch.dtype, suffix: str) -> None:
    """Each step was recorded from the same sample and velocity."""
    schedule = Schedule.of(case.info["config"]["ex_steps"])
    sample, velocity = case["step.sample"].to(dtype), case["step.model_output"].to(dtype)
    compared = 0
    for step in range(schedule.steps):
        key = f"step.{step}.prev_sample{suffix}"
        if key in case:
            assert torch.equal(schedule.euler(step, sample, velocity).float(), case[key].float()), key
            compared += 1
    if not compared:
        pytest.skip(f"{case.folder.name} holds no Euler steps in {dtype}")
