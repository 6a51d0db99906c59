"""Plans count the KV cache of the clips that are asked for."""

import pytest

from liveavatar.config import WAN2_2_S2V_14B
from liveavatar.errors import PlanError
from liveavatar.planner import GIB, Hardware, Plan, PlanOptions, choose_plan, make_plan
from liveavatar.request import Request, ResolvedRequest, resolve


def effective(clip_blocks: int) -> ResolvedRequest:
    return resolve(Request(clip_blocks=clip_blocks), (1280, 720), 160_000, 16_000)


def chosen(cards: str, clip_blocks: int, host: int = 256) -> Plan:
    hardware = Hardware.parse(cards, host * GIB)
    return choose_plan(effective(clip_blocks), WAN2_2_S2V_14B, hardware, PlanOptions(), model="wan2.2-s2v-14b")


@pytest.mark.parametrize("cards", ["1x24", "4x24", "1x80", "24+48+80"])
@pytest.mark.parametrize("clip_blocks", [1, 3, 4, 8, 20])
def test_what_is_chosen_fits(cards: str, clip_blocks: int) -> None:
    plan = chosen(cards, clip_blocks)
    usable = dict(plan.usable)
    assert all(total <= usable[name] for name, total in plan.total_by_device.items())
    assert plan.clip_blocks == clip_blocks
    kv_caches = sum(s.kv_cache + s.host_kv_cache for s in plan.stages)
    assert kv_caches in {n * 4 * 40 * clip_blocks * 3 * 1056 * 2 for n in (2 * 5120, 5120 + 4 * 40)}, "bf16 or fp8"


def test_longer_clips_take_more_time_and_more_room() -> None:
    plans = [chosen("1x80", clip_blocks, host=1024) for clip_blocks in (1, 4, 20)]
    paces = [plan.forecast.seconds_per_block for plan in plans]
    assert paces == sorted(set(paces))
    laid = [make_plan(effective(n), WAN2_2_S2V_14B, model="x", dtype="bfloat16") for n in (1, 4, 20)]
    assert [plan.stages[0].kv_cache * 4 for plan in laid] == [laid[1].stages[0].kv_cache * n for n in (1, 4, 20)]


def test_clips_that_are_too_long_are_refused_with_the_trained_length_and_theirs() -> None:
    with pytest.raises(PlanError, match="clips of 240 frames does not fit") as refused:
        chosen("1x24", 20, host=48)
    first, *others = refused.value.nearest.split("; ")
    assert "--size 704x384 --steps 4 --gpus" in first and others
    assert all("--clip-frames 240" in other for other in others)
