"""Timesteps, sigmas and the Euler step are those of the original for every step count it was recorded with."""

import pytest
import torch
from golden.cases import Case, cases

from liveavatar.noise_schedule import NoiseSchedule


@pytest.mark.parametrize("case", cases("schedule"))
def test_sigmas_and_timesteps(case: Case) -> None:
    for steps in case.info["config"]["steps"]:
        schedule = NoiseSchedule.flow_matching(steps)
        assert torch.equal(torch.tensor(schedule.timesteps), case[f"timesteps.{steps}"])
        assert torch.equal(torch.tensor(schedule.sigmas), case[f"sigmas.{steps}"])


EULER = [
    pytest.param(*case.values, dtype, suffix, id=f"{case.id}{suffix}")
    for case in cases("schedule", holds=lambda case: "step.sample" in case)
    for dtype, suffix in ((torch.float32, ""), (torch.bfloat16, "_bf16"))
    if any(f"step.{s}.prev_sample{suffix}" in case.values[0] for s in range(100))
]


@pytest.mark.parametrize("case, dtype, suffix", EULER)
def test_euler_steps(case: Case, dtype: torch.dtype, suffix: str) -> None:
    """Each step was recorded from the same sample and velocity."""
    schedule = NoiseSchedule.flow_matching(case.info["config"]["ex_steps"])
    sample, velocity = case["step.sample"].to(dtype), case["step.model_output"].to(dtype)
    for step in (s for s in range(schedule.steps) if f"step.{s}.prev_sample{suffix}" in case):
        recorded = case[f"step.{step}.prev_sample{suffix}"]
        assert torch.equal(schedule.euler(step, sample, velocity).float(), recorded.float()), step
