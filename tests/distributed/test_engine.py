"""Stages in worker processes give the same bits, stop when told, and are replaced when lost."""

import dataclasses
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from distributed.videos import Video, notices

from liveavatar.distributed import RayBackend, WorkerError
from liveavatar.errors import Cancelled, LiveAvatarError
from liveavatar.events import LOADING_NETWORK, Event
from liveavatar.task_graph import Denoise, Prefill


@pytest.fixture(scope="module")
def video() -> Video:
    """Long enough for the refresh of the sink and for the KV cache to wrap."""
    return Video(6)


@pytest.mark.parametrize("stages", ["1x1", "1x2", "2x1", "1x3", "2x2"])
def test_any_cut_gives_equal_bits(backend: RayBackend, video: Video, stages: str) -> None:
    reports: list[Event] = []
    engine = video.engine(backend, stages)
    assert torch.equal(torch.cat(list(engine.run(video.job, reports.append)), 1), video.expected)
    loading, reports = [r for r in reports if r.task is None], [r for r in reports if r.task is not None]
    assert {r.phase for r in loading} <= {LOADING_NETWORK}
    assert [r.done for r in reports] == list(range(1, reports[-1].total + 1))
    assert len({r.task for r in reports}) == len(reports)
    assert all(r.stage == engine.plan.partition.stage_of(r.task) for r in reports)
    assert {r.task.version for r in reports if isinstance(r.task, Prefill)} == {0, 1}
    assert all(seconds > 0 for seconds in engine.stage_seconds())
    (used,) = engine.attention()
    assert used == video.attention and used.error is not None, "one device, as in this process"
    assert len(backend.worker_pids) == engine.plan.partition.stages
    assert engine.loaded


def test_what_workers_attend_with_instead_is_told(
    backend: RayBackend, video: Video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sageattention.py").write_text("def sageattn(q, k, v):\n    raise ValueError('not for this card')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    backend.release()  # workers get their path when they start
    plan, told = video.engine(backend, "1x2").plan, list[str]()
    engine = backend.engine(video.components, dataclasses.replace(plan, attention="sage"))
    try:
        made = torch.cat(list(engine.run(video.job, notices(told.append))), 1)
    finally:
        backend.release()
    assert torch.equal(made, video.expected)
    assert told == ["sage is not used on cpu: ValueError: not for this card; attention is done by sdpa"]
    assert engine.attention() == (video.attention,)


def test_workers_stay_and_take_up_another_model(backend: RayBackend, video: Video) -> None:
    mini = Video(2, "mini", steps=2)
    assert video.is_made_by(backend, "1x2")
    before, held = backend.worker_pids, backend.bytes_by_device()
    assert mini.is_made_by(backend, "1x2")
    assert video.is_made_by(backend, "1x2")
    assert backend.worker_pids == before
    assert backend.bytes_by_device() == held and held["cpu"] > 0


def test_cancelled_from_a_report_and_whole_after_that(backend: RayBackend, video: Video) -> None:
    video.engine(backend, "1x2").load()
    before, heard = backend.worker_pids, []

    def stop(report: Event) -> None:
        heard.append(report)
        if report.done == 17:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        video.latents(backend, "1x2", stop)
    assert heard[-1].done == 17
    assert video.is_made_by(backend, "1x2")
    assert backend.worker_pids == before


def test_closed_after_a_block_and_whole_after_that(backend: RayBackend) -> None:
    video, reports = Video(12, seed=6), []
    running = video.engine(backend, "1x2").run(video.job, reports.append)
    first, second = next(running), next(running)
    running.close()
    assert torch.equal(torch.cat((first, second), 1), video.expected[:, :6])
    ahead = max(r.task.block for r in reports if isinstance(r.task, Denoise))
    assert ahead <= 1 + 2 + 2, "no more than stages + 2 blocks ahead of the caller"
    before = backend.worker_pids
    assert video.is_made_by(backend, "1x2")
    assert backend.worker_pids == before


def test_a_video_left_half_made_gives_way_to_the_next(backend: RayBackend, video: Video) -> None:
    left = video.engine(backend, "1x2").run(video.job)
    next(left)
    assert video.is_made_by(backend, "1x2")
    with pytest.raises(LiveAvatarError, match="Another video"):
        next(left)
    assert video.is_made_by(backend, "1x2")


def test_a_killed_worker_is_named_and_replaced(backend: RayBackend, video: Video) -> None:
    video.engine(backend, "1x2").load()
    before = backend.worker_pids

    def kill(report: Event) -> None:
        if report.done == 20:
            os.kill(before[1], signal.SIGKILL)

    with pytest.raises(WorkerError, match=r"Stage 2 of 2 \(steps 0-3, layers 2-3, on cpu\) was lost") as caught:
        video.latents(backend, "1x2", kill)
    assert caught.value.stage == 1
    assert "6 blocks of 64x64" in str(caught.value), "its last log lines"
    assert video.is_made_by(backend, "1x2")
    after = backend.worker_pids
    assert after[0] == before[0] and after[1] != before[1]


def test_a_worker_that_hangs_is_named_and_replaced(backend: RayBackend, video: Video) -> None:
    engine = video.engine(backend, "1x2")
    engine.load()
    before, generous = backend.worker_pids, backend.deadline

    def stall(report: Event) -> None:
        if report.done == 20:
            os.kill(before[0], signal.SIGSTOP)

    backend.deadline = 4
    try:
        with pytest.raises(WorkerError, match=r"Stage 1 of 2 .*no sign of life"):
            list(engine.run(video.job, stall))
    finally:
        backend.deadline = generous
    assert video.is_made_by(backend, "1x2")
    after = backend.worker_pids
    assert after[0] != before[0] and after[1] == before[1]


def test_an_exception_in_a_worker_is_named_and_the_next_run_is_whole(backend: RayBackend, video: Video) -> None:
    material = dataclasses.replace(video.job.conditioning, motion=video.job.conditioning.motion[:15])
    broken = dataclasses.replace(video.job, conditioning=material)
    with pytest.raises(WorkerError, match=r"Stage 1 of 2 .* failed: RuntimeError") as caught:
        list(video.engine(backend, "1x2").run(broken))
    assert "Traceback" in str(caught.value) or "line" in str(caught.value), "its last log lines"
    assert video.is_made_by(backend, "1x2")


def test_released_workers_are_gone_and_come_again(backend: RayBackend, video: Video) -> None:
    import psutil

    video.engine(backend, "1x2").load()
    workers = [psutil.Process(pid) for pid in backend.worker_pids]
    others = [p for p in psutil.Process().children(recursive=True) if "ray" in " ".join(p.cmdline()[:3])]
    for _ in range(2):
        backend.release()
    gone, alive = psutil.wait_procs([*workers, *others], timeout=20)
    assert gone and not alive
    assert not video.engine(backend, "1x2").loaded
    assert backend.worker_pids == () and backend.bytes_by_device() == {}


@pytest.mark.skipif(os.name != "posix", reason="an interpreter that is a shell script")
def test_workers_start_where_the_interpreters_path_has_a_space(
    backend: RayBackend, video: Video, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import psutil

    python = tmp_path / "my environment" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\nSTARTED_BY=script exec '{sys.executable}' \"$@\"\n")
    python.chmod(0o755)
    backend.release()
    monkeypatch.setattr(sys, "executable", str(python))
    video.engine(backend, "1x1").load()
    (pid,) = backend.worker_pids
    assert psutil.Process(pid).environ()["STARTED_BY"] == "script"
    backend.release()
