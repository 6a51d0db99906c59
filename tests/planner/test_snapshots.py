"""How often stages save what they hold: as often as a few per cent of the time allow, or never."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.config import UNTRAINED, WAN2_2_S2V_14B
from liveavatar.errors import PlanError
from liveavatar.planner import LEAST_SNAPSHOT_BLOCKS, Plan, make_plan, snapshot_due, snapshot_interval
from liveavatar.request import Request, resolve, resolve_open


def plan_of(config, seconds: float, **given) -> Plan:
    effective = resolve(Request(size="704x384"), (1280, 720), round(seconds * 16_000), 16_000)
    return make_plan(effective, config, model="x", dtype="bfloat16", **given)


@given(st.integers(0, 10**12), st.integers(1, 10**6), st.integers(1, 20))
def test_an_interval_costs_little_and_is_used_at_least_once(nbytes: int, blocks: int, clip: int) -> None:
    interval = snapshot_interval(nbytes, blocks, clip)
    due = [b for b in range(min(blocks, 10_000) + 2) if snapshot_due(b, interval, blocks, clip)]
    assert all(clip < b < blocks for b in due)
    if interval:
        assert interval >= LEAST_SNAPSHOT_BLOCKS and nbytes / 1e9 <= 0.05 * interval * 0.48 + 1e-6
        assert snapshot_due(interval, interval, blocks, clip)
    else:
        assert not due


def test_clips_longer_than_the_shortest_interval_still_have_snapshots() -> None:
    assert snapshot_interval(0, 100) == LEAST_SNAPSHOT_BLOCKS and snapshot_interval(0, 100, 20) == 21


def test_a_video_whose_length_nobody_knows_has_them_too() -> None:
    assert snapshot_interval(0, None) == LEAST_SNAPSHOT_BLOCKS
    assert [b for b in range(40) if snapshot_due(b, 8, None)] == [8, 16, 24, 32]
    resolved = resolve_open(Request(size="64x64"), (640, 640))
    assert make_plan(resolved, UNTRAINED, model="x").snapshot_blocks == LEAST_SNAPSHOT_BLOCKS


def test_the_published_model_on_four_devices_keeps_one_every_few_minutes() -> None:
    plan = plan_of(WAN2_2_S2V_14B, 3600, stages="1x4")
    assert 2 * 60 < plan.snapshot_blocks * 0.48 < 4 * 60
    assert plan.stages[0].snapshot_bytes == pytest.approx(10.38e9 * 3 / 4 + 2.16e9 / 4, rel=2e-3)
    assert plan_of(WAN2_2_S2V_14B, 60, stages="1x4").snapshot_blocks == 0, "too short to have one"


def test_small_models_keep_one_as_often_as_makes_sense_and_a_caller_may_choose() -> None:
    assert plan_of(UNTRAINED, 60, stages="1x4").snapshot_blocks >= LEAST_SNAPSHOT_BLOCKS
    assert plan_of(UNTRAINED, 60, snapshot_blocks=3).snapshot_blocks == 3
    assert plan_of(UNTRAINED, 60, snapshot_blocks=0).snapshot_blocks == 0
    with pytest.raises(PlanError, match="Use 0 for none"):
        plan_of(UNTRAINED, 60, snapshot_blocks=-1)
