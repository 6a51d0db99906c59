"""Timesteps, sigmas and the Euler step are those of the original for every step count it was recorded with."""

import pytest
import torch
from golden.cases import Case, assert_matches, cases

from liveavatar.schedule import Schedule

pytestmark = pytest.mark.parametrize("case", cases("schedule"))


def test_sigmas_and_timesteps(case: Case) -> None:
    for steps in case.info["config"]["steps"]:
        schedule = Schedule.of(steps)
        assert torch.equal(torch.tensor(schedule.timesteps), case[f"timesteps.{steps}"])
        assert torch.equal(torch.tensor(schedule.sigmas), case[f"sigmas.{steps}"])


@pytest.mark.parametrize("dtype, suffix", [(torch.float32, ""), (torch.bfloat16, "_bf16")])
def test_euler_steps(case: Case, dtype: torch.dtype, suffix: str) -> None:
    schedule = Schedule.of(case.info["config"]["ex_steps"])
    sample, velocity = case["step.sample"].to(dtype), case["step.model_output"].to(dtype)
    for step in range(schedule.steps):
        ours = schedule.euler(step, sample, velocity)
        recorded = case[f"step.{step}.prev_sample{suffix}"]
        assert_matches(ours, recorded, f"step {step}")
        if dtype is torch.bfloat16:
            assert torch.equal(ours.float(), recorded.float()), f"step {step}"
        sample = ours
