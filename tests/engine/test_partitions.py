"""Any cut of steps and layers gives the same latents, bit for bit, and a session keeps its promises."""

import gc
import weakref

import pytest
import torch
from engine.tiny import TinyComponents, latents, tiny_config, tiny_effective, tiny_job, tiny_plan
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.engine.local import LocalEngine
from liveavatar.errors import Cancelled, PlanError
from liveavatar.request import SinkDistance
from liveavatar.session import Session
from liveavatar.task_graph import Denoise, Prefill, task_count


@given(st.data(), st.integers(2, 4), st.integers(1, 6), st.integers(1, 9))
def test_every_cut_gives_equal_bits(data: st.DataObject, layers: int, steps: int, blocks: int) -> None:
    config, effective = tiny_config(layers), tiny_effective(blocks, steps)
    job = tiny_job(config, effective)
    whole = latents(config, job)
    cut = f"{data.draw(st.integers(1, steps))}x{data.draw(st.integers(1, layers))}"
    assert torch.equal(latents(config, job, cut), whole), cut
    assert torch.isfinite(whole).all()


@pytest.mark.parametrize("cut", ["4x1", "1x3", "2x2", "4x3"])
def test_partitions_across_the_refresh_and_the_wrapped_kv_cache(cut: str) -> None:
    config, effective = tiny_config(), tiny_effective(9)
    job = tiny_job(config, effective)
    assert torch.equal(latents(config, job, cut), latents(config, job))


def test_more_groups_than_steps_are_refused() -> None:
    with pytest.raises(PlanError, match="nearest cut is 3x1"):
        tiny_plan(tiny_config(), tiny_effective(2, steps=3), "4x1")


def test_a_longer_video_begins_like_a_shorter_one() -> None:
    config = tiny_config()
    short, long = (tiny_job(config, tiny_effective(n)) for n in (2, 6))
    long = type(long)(long.resolved, long.conditioning, long.distance)
    long.conditioning.audio.block(0)
    shared = type(short)(short.resolved, long.conditioning, long.distance)
    assert torch.equal(latents(config, long)[:, :6], latents(config, shared))


def test_the_seed_decides_and_repeats() -> None:
    config = tiny_config()
    first, other = tiny_effective(2, seed=1), tiny_effective(2, seed=2)
    material = tiny_job(config, first).conditioning
    jobs = [type(tiny_job(config, e))(e, material, SinkDistance()) for e in (first, first, other)]
    a, b, c = (latents(config, job) for job in jobs)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_sink_distance_matters_once_the_reference_moves() -> None:
    config, effective = tiny_config(), tiny_effective(3)
    near, far = (latents(config, tiny_job(config, effective, SinkDistance("fixed", d))) for d in (4, 30))
    assert torch.equal(near[:, :3], far[:, :3])
    assert not torch.equal(near[:, 6:], far[:, 6:])


def test_every_task_is_reported_once() -> None:
    config, effective, reports = tiny_config(), tiny_effective(6), []
    latents(config, tiny_job(config, effective), "2x3", reports)
    cut = tiny_plan(config, effective, "2x3").partition
    assert len({r.task for r in reports}) == len(reports) == task_count(cut, 6) == reports[-1].total
    assert [r.done for r in reports] == list(range(1, len(reports) + 1))
    assert {r.task.version for r in reports if isinstance(r.task, Prefill)} == {0, 1}


def test_nothing_runs_before_it_is_pulled_and_cancel_stops_at_the_next_task() -> None:
    config, effective = tiny_config(), tiny_effective(4)
    components, reports = TinyComponents(config), []
    engine = LocalEngine(components, tiny_plan(config, effective))

    def stop_in_block_one(report) -> None:
        reports.append(report)
        if report.task == Denoise(1, 1, 0):
            raise Cancelled("stop")

    running = engine.run(tiny_job(config, effective), stop_in_block_one)
    assert not components.loaded
    next(running)
    with pytest.raises(Cancelled):
        next(running)
    assert reports[-1].task == Denoise(1, 1, 0)


def test_a_session_that_is_forgotten_in_the_middle_lets_all_go() -> None:
    config, effective = tiny_config(), tiny_effective(3)
    engine = LocalEngine(TinyComponents(config), tiny_plan(config, effective))
    session = Session(engine, tiny_job(config, effective))
    next(iter(session.latents))
    gone = weakref.ref(session.latents)
    del session
    gc.collect()
    assert gone() is None


def test_weights_are_loaded_once_and_shared_by_stages_of_other_steps() -> None:
    config, effective = tiny_config(), tiny_effective(1)
    components = TinyComponents(config)
    engine = LocalEngine(components, tiny_plan(config, effective, "4x1"))
    for _ in range(2):
        list(engine.run(tiny_job(config, effective)))
    assert len(components.loaded) == 2  # the layers, and the conditions
    engine.release()
    list(engine.run(tiny_job(config, effective)))
    assert len(components.loaded) == 4


def test_stage_seconds_are_counted_per_stage() -> None:
    config, effective = tiny_config(), tiny_effective(1)
    engine = LocalEngine(TinyComponents(config), tiny_plan(config, effective, "1x3"))
    list(engine.run(tiny_job(config, effective)))
    assert len(engine.stage_seconds()) == 3
    assert all(s > 0 for s in engine.stage_seconds())


def test_the_callers_thread_keeps_its_settings() -> None:
    config, effective = tiny_config(), tiny_effective(2)
    before = torch.get_num_threads()
    for _ in LocalEngine(TinyComponents(config), tiny_plan(config, effective)).run(tiny_job(config, effective), print):
        assert not torch.is_inference_mode_enabled()
        assert torch.get_num_threads() == before
