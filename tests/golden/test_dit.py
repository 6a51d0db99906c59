"""The network gives the numbers of the original: prefill, rollout, second sink, two actors, far blocks."""

import pytest
import torch
from golden.cases import Case, assert_matches, cases
from golden.rollout import Rollout

from liveavatar.model.rope import apply_rope
from liveavatar.noise_schedule import NoiseSchedule


def of(*entries: str) -> pytest.MarkDecorator:
    """The cases whose JSON has these entries and whose tensors show something of them."""
    held = lambda case: all(e in case.info and any(k.startswith(f"{e}.") for k in case.keys) for e in entries)  # noqa: E731
    return pytest.mark.parametrize("case", cases("dit", "dit_weights", holds=held))


@pytest.fixture
def rollout(case: Case) -> Rollout:
    driver = Rollout(case)
    driver.prefill(case["in.ref_latents"], case["in.motion_latents"])
    return driver


def expect(case: Case, key: str, actual: torch.Tensor) -> bool:
    """Compare where the case holds the entry; says whether it did."""
    if key in case:
        assert_matches(actual, case[key].view(actual.shape), key)
    return key in case


def expect_sink(case: Case, prefix: str, rollout: Rollout) -> None:
    """Recorded sink keys are un-rotated; ours keep the motion rows rotated, so those are compared rotated."""
    tokens, motion = rollout.grid.tokens, rollout.grid.motion()
    for layer, sink in enumerate(rollout.sinks):
        if f"{prefix}cond_k.{layer}" not in case:
            continue
        recorded = case[f"{prefix}cond_k.{layer}"]
        assert_matches(sink.reference_k, recorded[:tokens], f"{prefix}cond_k.{layer} (reference)")
        assert_matches(sink.motion_k, apply_rope(recorded[tokens:], motion), f"{prefix}cond_k.{layer} (motion)")
        expect(case, f"{prefix}cond_v.{layer}", sink.v)


def run(rollout: Rollout, case: Case, calls: list[dict], prefix: str, actors: bool = False) -> None:
    """Free-running: every step feeds on our own last one, checked wherever a tensor was recorded."""
    schedule = NoiseSchedule(tuple(case["timesteps"].tolist()), tuple(case["sigmas"].tolist()))
    latent, compared = torch.empty(0), 0
    for call in calls:
        block, step = call["block"], call["step"]
        inputs_of = call.get("inputs_of_block", block)
        latent = rollout.noise(inputs_of) if step == 0 else latent
        expect(case, f"{prefix}.x.{block}.{step}", latent)
        velocity = rollout.velocity(block, step, latent, call["rel"], inputs_of, actors)
        compared += expect(case, f"{prefix}.noise_pred.{block}.{step}", velocity)
        latent = schedule.euler(step, latent, velocity)
        if step == schedule.steps - 1:
            compared += expect(case, f"{prefix}.x0.{block}", latent)
    assert compared, f"{case.folder.name} holds nothing of {prefix} to compare with"


@of("A")
def test_prefill(rollout: Rollout, case: Case) -> None:
    assert sum(map(len, (rollout.sinks[0].reference_k, rollout.sinks[0].motion_k))) == case.info["cond_tokens"]
    expect_sink(case, "A.prefill.", rollout)


@of("A")
def test_rollout_wraps_the_ring(rollout: Rollout, case: Case) -> None:
    run(rollout, case, case.info["A"], "A")
    for step, rings in enumerate(rollout.rings):
        for layer, ring in enumerate(rings):
            for name, kept in (("k", ring.k), ("v", ring.v)):
                expect(case, f"A.end.{name}.s{step}.l{layer}", kept)
                expect(case, f"A.end.{name}.s{step}.l{layer}.every17", kept[::17])


@of("A", "B1")
def test_second_sink_with_the_same_motion(rollout: Rollout, case: Case) -> None:
    second_sink(rollout, case, "B1", "in.motion_latents")


@of("A", "B2")
def test_second_sink_with_other_motion(rollout: Rollout, case: Case) -> None:
    second_sink(rollout, case, "B2", "in.motion_latents2")


def second_sink(rollout: Rollout, case: Case, second: str, motion: str) -> None:
    """A second prefill on the rings as the blocks before it left them."""
    start = case.info["config"]["second_block"]
    run(rollout, case, [c for c in case.info["A"] if c["block"] < start], "A")
    rollout.prefill(case["A.x0.0"].view(1, 16, 3, *case.info["config"]["lat_hw"])[:, :, :1], case[motion])
    expect_sink(case, f"{second}.prefill.", rollout)
    run(rollout, case, case.info[second], second)


@of("C")
def test_two_actors_share_a_picture(rollout: Rollout, case: Case) -> None:
    run(rollout, case, case.info["C"], "C", actors=True)


@of("A", "D")
def test_far_blocks(rollout: Rollout, case: Case) -> None:
    run(rollout, case, case.info["A"], "A")
    run(rollout, case, case.info["D"], "D")
