"""What workers derive for themselves fits together: nobody waits for what nobody sends."""

import re
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.distributed import RayBackend
from liveavatar.distributed.links import header_of, task_in
from liveavatar.distributed.registry import last_lines
from liveavatar.distributed.topology import own_tasks, stage_links
from liveavatar.distributed.worker_handle import worker_environment
from liveavatar.errors import PlanError
from liveavatar.task_graph import Denoise, Partition, Prefill, Task, ends_block, followers, paced_order, task_count


@st.composite
def cuts(draw: st.DrawFn) -> Partition:
    steps, layers = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    return Partition.even(draw(st.integers(1, steps)), draw(st.integers(1, layers)), steps, layers)


def needs_no_input(task: Task) -> bool:
    return task.shard == 0 and (task.version == 0 if isinstance(task, Prefill) else task.step == 0)


@given(cuts(), st.sampled_from([0, 5, 8]), st.integers(1, 11), st.integers(1, 4))
def test_every_task_gets_its_flow_before_its_turn(cut: Partition, first: int, more: int, clip: int) -> None:
    blocks = first + more
    sent: set[Task] = set()
    ended = []
    for start in paced_order(cut, blocks, first=first, clip_blocks=clip):
        assert start.task in sent or needs_no_input(start.task)
        new = followers(cut, blocks, start.task, clip)
        assert not sent.intersection(new)
        sent.update(new)
        ended += [start.task.block] if ends_block(cut, start.task) else []
    assert ended == list(range(first, blocks))


@given(cuts(), st.sampled_from([0, 5, 8]), st.integers(1, 11), st.integers(1, 4))
def test_stages_share_the_work_and_links_carry_all_that_crosses(
    cut: Partition, first: int, more: int, clip: int
) -> None:
    blocks = first + more
    own = [list(own_tasks(cut, blocks, stage, first, clip)) for stage in range(cut.stages)]
    assert sum(map(len, own)) == len(set().union(*own)) == task_count(cut, blocks, first, clip)
    crossing = {
        (stage, cut.stage_of(follower))
        for stage, tasks in enumerate(own)
        for task in tasks
        for follower in followers(cut, blocks, task, clip)
    }
    assert {(a, b) for a, b in crossing if a != b} <= set(stage_links(cut))


def test_a_ring_has_a_link_to_each_neighbour_and_the_refresh_reaches_every_row() -> None:
    assert stage_links(Partition.even(1, 3, 4, 6)) == ((0, 1), (1, 2), (2, 0))
    assert stage_links(Partition.even(1, 1, 4, 6)) == ()
    assert stage_links(Partition.even(3, 1, 3, 6)) == ((0, 1), (1, 2), (2, 0), (2, 1))


def test_a_header_names_task_and_shapes() -> None:
    import torch

    latent, tokens = torch.zeros(16, 3, 8, 6, dtype=torch.bfloat16), torch.zeros(36, 24, dtype=torch.float16)
    for task in (Denoise(70_000, 3, 2), Prefill(1, 2, 0)):
        numbers = header_of(task, latent, tokens).tolist()
        assert task_in(numbers) == task
        assert numbers[6:10] == [16, 3, 8, 6] and numbers[11:] == [36, 24]
    assert header_of(Denoise(0, 1, 0), latent, None).tolist()[10] == -1


def test_workers_inherit_no_allocator_of_their_host() -> None:
    given = {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync,garbage_collection_threshold:0.8", "PYTHONPATH": "x"}
    changed = worker_environment(given, 3)
    assert changed["PYTORCH_CUDA_ALLOC_CONF"] == "garbage_collection_threshold:0.8"
    assert changed["PYTHONPATH"].endswith("x") and len(changed["PYTHONPATH"]) > 2
    assert changed["OMP_NUM_THREADS"] == "3"
    assert "PYTORCH_CUDA_ALLOC_CONF" not in worker_environment({}, 1)
    assert worker_environment({}, 1)["MALLOC_ARENA_MAX"] == "1"
    assert worker_environment({"MALLOC_ARENA_MAX": "4"}, 1)["MALLOC_ARENA_MAX"] == "4", "what the user has set"


def test_threads_of_workers_spin_briefly_unless_the_user_says_how():
    assert worker_environment({}, 1)["GOMP_SPINCOUNT"] == "1000"
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        assert worker_environment({name: "7"}, 1).get("GOMP_SPINCOUNT") in (None, "7")


def test_a_missing_ray_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PlanError, match=f"{re.escape(sys.executable)}.? -m pip install"):
        RayBackend()


@pytest.mark.parametrize("version", ["2.9.3", "2.51.2", "3.0.0", "4.0.0.dev0", "unknown"])
def test_an_unsupported_ray_is_named_with_the_command_for_another(version: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(__version__=version))
    with pytest.raises(PlanError, match=f'version {re.escape(version)} is installed.*-m pip install "ray>=2.52,<3"'):
        RayBackend()


def test_fewer_than_no_restarts_are_refused() -> None:
    with pytest.raises(PlanError, match="-1 times"):
        RayBackend(restarts=-1)


def test_the_end_of_a_log_is_found(tmp_path) -> None:
    log = tmp_path / "worker.log"
    log.write_bytes(b"\xff early\n" * 2000 + b"\n".join(b"line %d" % i for i in range(20)))
    assert last_lines(log) == [f"line {i}" for i in range(12, 20)]
    assert last_lines(tmp_path / "none.log") == []
