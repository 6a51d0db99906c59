"""The paced order runs every task once, after all it needs, and keeps the busiest stage busy."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.config import CLIP_BLOCKS
from liveavatar.errors import PlanError
from liveavatar.task_graph import Denoise, Partition, Prefill, paced_order, sink_version, task_count

CUTS = st.integers(1, 6).flatmap(
    lambda steps: st.integers(1, 12).flatmap(
        lambda layers: st.builds(
            lambda g, p: Partition.even(g, p, steps, layers), st.integers(1, steps), st.integers(1, layers)
        )
    )
)


CLIPS = st.integers(1, 9)


@given(CUTS, st.integers(1, 14), CLIPS)
def test_every_task_runs_once_and_after_what_it_needs(cut: Partition, blocks: int, clip: int) -> None:
    starts = list(paced_order(cut, blocks, clip_blocks=clip))
    end = {s.task: s.end for s in starts}
    assert len(end) == len(starts) == task_count(cut, blocks, clip_blocks=clip)
    last = len(cut.layer_shards) - 1
    for s in starts:
        t, needs = s.task, []
        if t.shard:
            needs.append(dataclasses.replace(t, shard=t.shard - 1))
        if isinstance(t, Denoise):
            if not t.shard and t.step:
                needs.append(Denoise(t.block, t.step - 1, last))
            if t.block:
                needs.append(Denoise(t.block - 1, t.step, t.shard))
            needs.append(Prefill(sink_version(t.block, clip), cut.group_of(t.step), t.shard))
        elif t.version and not t.shard:
            needs.append(Denoise(0, cut.last_step, last))
        for need in needs:
            assert end[need] <= s.start, f"{t} starts at {s.start} before {need} ends at {end[need]}"


@given(CUTS, st.integers(1, 12), st.integers(1, 8), CLIPS)
def test_what_begins_later_runs_the_rest_and_nothing_else(cut: Partition, first: int, more: int, clip: int) -> None:
    """Within the first clip, the sink is renewed first: nobody else does that."""
    blocks, whole = first + more, {}
    for s in paced_order(cut, blocks, clip_blocks=clip):
        whole[s.task] = s.stage
    starts = list(paced_order(cut, blocks, first=first, clip_blocks=clip))
    rest = {t: stage for t, stage in whole.items() if isinstance(t, Denoise) and t.block >= first}
    renewed = {t: stage for t, stage in whole.items() if isinstance(t, Prefill) and t.version and first <= clip}
    assert {s.task: s.stage for s in starts} == rest | renewed
    assert len(starts) == len(rest) + len(renewed) == task_count(cut, blocks, first, clip)
    end, last = {s.task: s.end for s in starts}, len(cut.layer_shards) - 1
    for s in starts:
        t = s.task
        if isinstance(t, Prefill):
            before = [dataclasses.replace(t, shard=t.shard - 1)] if t.shard else []
        else:
            before = [dataclasses.replace(t, block=t.block - 1)] if t.block > first else []
            before += [dataclasses.replace(t, shard=t.shard - 1)] if t.shard else []
            before += [Denoise(t.block, t.step - 1, last)] if t.step and not t.shard else []
            before += [Prefill(1, cut.group_of(t.step), t.shard)] if renewed and t.block >= clip else []
        assert all(end[need] <= s.start for need in before)


@given(CUTS, st.integers(1, 14))
def test_a_stage_does_one_thing_at_a_time_and_starts_are_in_order(cut: Partition, blocks: int) -> None:
    starts = list(paced_order(cut, blocks))
    assert all(a.start <= b.start for a, b in itertools.pairwise(starts))
    for stage in range(cut.stages):
        mine = [s for s in starts if s.stage == stage]
        assert all(a.end <= b.start for a, b in itertools.pairwise(mine))


@given(CUTS, st.integers(1, 14))
def test_at_most_one_more_block_than_stages_is_open(cut: Partition, blocks: int) -> None:
    open_blocks: set[int] = set()
    finishing: dict[int, float] = {}
    for s in paced_order(cut, blocks):
        if isinstance(s.task, Denoise):
            open_blocks -= {b for b in open_blocks if finishing.get(b, float("inf")) <= s.start}
            open_blocks.add(s.task.block)
            if (s.task.step, s.task.shard) == (cut.last_step, len(cut.layer_shards) - 1):
                finishing[s.task.block] = s.end
            assert len(open_blocks) <= cut.stages + 1


@pytest.mark.parametrize("spec", ["1x1", "4x1", "1x2", "1x3", "1x4", "1x5", "1x8", "2x2", "4x2", "2x4"])
@pytest.mark.parametrize("steps", [3, 4])
def test_throughput_reaches_the_bound_of_the_busiest_stage(spec: str, steps: int) -> None:
    if int(spec[0]) > steps:
        pytest.skip("more groups than steps are refused")
    cut, blocks, settled = Partition.parse(spec, steps, 120), 120, 40
    last = (cut.last_step, len(cut.layer_shards) - 1)
    denoising = [s for s in paced_order(cut, blocks) if isinstance(s.task, Denoise)]
    ends = [s.end for s in denoising if (s.task.step, s.task.shard) == last]
    period = (ends[-1] - ends[settled]) / (blocks - 1 - settled)
    busiest = max(len(s) for s in cut.step_groups) * max(len(p) for p in cut.layer_shards)
    assert period <= busiest * 1.02


def test_one_device_finishes_a_block_before_it_begins_the_next() -> None:
    order = [s.task.block for s in paced_order(Partition.parse("1x1", 4, 8), 6) if isinstance(s.task, Denoise)]
    assert order == sorted(order)


@pytest.mark.parametrize("spec", ["2x1", "1x2", "3x1", "1x3", "4x1", "1x4", "2x2", "1x6", "1x8", "4x2"])
def test_the_sink_refresh_costs_one_bubble_that_grows_with_devices(spec: str) -> None:
    """Block 4 waits for the first frame of block 0: nothing to speak of below four devices, once per video beyond."""
    cut = Partition.parse(spec, 4, 120)
    firsts = [s.start for s in paced_order(cut, 24) if isinstance(s.task, Denoise) and s.task.step == s.task.shard == 0]
    period = max(len(s) for s in cut.step_groups) * max(len(p) for p in cut.layer_shards)
    late = [(b - a) / period - 1 for a, b in itertools.pairwise(firsts)]
    assert late[CLIP_BLOCKS - 1] <= max(0, cut.stages - 4) + 1.5
    assert max(late[CLIP_BLOCKS:]) == pytest.approx(0)


@pytest.mark.parametrize(
    "text, nearest",
    [("5x1", "4x1"), ("0x1", "1x1"), ("1x9", "1x8"), ("4x0", "4x1"), ("9x9", "4x8"), ("four", "1x4"), ("4", "1x4")],
)
def test_impossible_cuts_name_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(PlanError, match=nearest):
        Partition.parse(text, 4, 8)


@given(CUTS)
def test_a_cut_covers_everything_once(cut: Partition) -> None:
    assert [s for group in cut.step_groups for s in group] == list(range(cut.last_step + 1))
    assert [i for part in cut.layer_shards for i in part] == list(range(cut.layer_shards[-1].stop))
    assert all(cut.layer_shards) and all(cut.step_groups)
