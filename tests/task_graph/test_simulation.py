"""The simulator says of throughput, delay and waiting what the order really does."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.charts import draw_timeline
from liveavatar.task_graph import Denoise, Partition, StageSpeed, simulate, task_count

BLOCKS = 120


def even(groups: int, parts: int, steps: int = 4, layers: int = 40) -> Partition:
    return Partition.even(groups, parts, steps, layers)


@pytest.mark.parametrize(
    ("steps", "cut"),
    [(s, c) for s in (3, 4, 5) for c in ((1, 1), (s, 1), (1, 2), (1, 4), (1, 5), (1, 8))],
    ids=str,
)
def test_rings_and_step_pipelines_reach_the_bound(steps, cut):
    cut = even(*cut, steps)
    found = simulate(cut, BLOCKS, StageSpeed.even(cut, 1.0))
    assert found.bound == pytest.approx(steps / cut.stages)
    assert found.efficiency == pytest.approx(1.0, abs=0.01)


@given(st.sampled_from([(1, 2), (1, 4), (4, 1), (2, 2)]), st.floats(1e-3, 1e3), st.sampled_from([0.0, 0.01, 0.1]))
def test_the_bound_is_reached_whatever_a_step_takes(cut, seconds, beside):
    cut = even(*cut, layers=8)
    speed = StageSpeed((seconds / 8,) * cut.stages, beside * seconds)
    assert simulate(cut, 60, speed).efficiency == pytest.approx(1.0, abs=1e-6)


def test_a_refresh_costs_little_up_to_four_devices_and_a_bubble_beyond():
    lost = {}
    for parts in (1, 2, 4, 8):
        cut = even(1, parts)
        lost[parts] = simulate(cut, BLOCKS, StageSpeed.even(cut, 1.0)).start_bubble
    assert max(lost[p] for p in (1, 2, 4)) <= 2
    assert 3 <= lost[8] <= 7
    assert lost[1] <= lost[4] < lost[8]


def test_a_slow_stage_sets_the_pace():
    cut = even(1, 4)
    speed = StageSpeed((0.025, 0.025, 0.05, 0.025))
    found = simulate(cut, BLOCKS, speed)
    assert found.bound == pytest.approx(4 * 10 * 0.05)
    assert found.efficiency > 0.97
    assert found.busy.index(max(found.busy)) == 2


@given(
    st.integers(1, 5).flatmap(
        lambda steps: st.tuples(st.integers(1, steps), st.integers(1, 6)).map(lambda c: Partition.even(*c, steps, 12))
    ),
    st.integers(1, 16),
    st.data(),
)
def test_nothing_is_faster_than_physics(cut, blocks, data):
    speeds = data.draw(st.lists(st.floats(0.01, 1.0), min_size=cut.stages, max_size=cut.stages))
    found = simulate(cut, blocks, StageSpeed(tuple(speeds), 0.01))
    assert len(found.starts) == task_count(cut, blocks)
    assert found.seconds >= blocks * found.bound * (1 - 1e-9)
    assert found.latency >= sum(s.end - s.start for s in found.starts if s.task in _path(cut)) * (1 - 1e-9)
    assert 1 <= found.most_open <= cut.stages + 1
    assert all(0 < share <= 1 + 1e-9 for share in found.busy)
    assert found.first_block <= found.seconds


def _path(cut: Partition) -> set[Denoise]:
    """All tasks of block 0, which can only follow each other."""
    return {Denoise(0, s, p) for s, p in itertools.product(range(cut.last_step + 1), range(len(cut.layer_shards)))}


def test_one_device_waits_for_nothing():
    cut = even(1, 1)
    found = simulate(cut, 6, StageSpeed.even(cut, 2.0))
    assert found.busy == pytest.approx((1.0,))
    assert found.most_open <= 2


def test_impossible_questions_are_refused():
    with pytest.raises(ValueError, match="0 blocks"):
        simulate(even(1, 2), 0, StageSpeed.even(even(1, 2), 1.0))
    with pytest.raises(ValueError, match="3 stages"):
        simulate(even(1, 3), 4, StageSpeed((1.0,)))


def test_the_timeline_shows_every_stage_and_block():
    cut = even(1, 4)
    found = simulate(cut, 8, StageSpeed.even(cut, 1.0))
    picture = draw_timeline(found)
    assert picture.width == 1200
    assert len(picture.getcolors(1 << 20)) > 8
    assert draw_timeline(found, until=2.0, width=400).size[0] == 400
