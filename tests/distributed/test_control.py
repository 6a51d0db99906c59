"""Videos wait in order, rest when told, tell how they are doing, and leave no idle workers behind."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cli.runs import write_inputs
from distributed.videos import Video, notices

from liveavatar.distributed import BackendStatus, RayBackend
from liveavatar.errors import Cancelled
from liveavatar.events import GENERATING, Event
from liveavatar.pipeline import LiveAvatarPipeline, VideoJob
from liveavatar.task_graph import Denoise

psutil = pytest.importorskip("psutil")
WAITS = "Waiting for the workers: 1 video comes first."
STAGES = "1x2"


@pytest.fixture(scope="module")
def video() -> Video:
    return Video(6)


@pytest.fixture
def begun(backend: RayBackend, video: Video) -> Iterator[Callable[[], torch.Tensor]]:
    """A video of which a block is made; what makes the rest and gives all of it."""
    running = video.engine(backend, STAGES).run(video.job)
    first = next(running)
    yield lambda: torch.cat([first, *running], 1)
    running.close()


def video_job(inputs: Path, backend: RayBackend, stages: str) -> VideoJob:
    pipeline = LiveAvatarPipeline.from_pretrained(
        "untrained", stages=stages, devices=("cpu",), threads=1, backend=backend
    )
    return pipeline(inputs / "portrait.png", inputs / "voice.wav", size="64x64")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, only a worker that never answers is silent."""
    monkeypatch.setattr("liveavatar.distributed.status._ANSWER_SECONDS", 30.0)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def status_when(backend: RayBackend, *states: str) -> BackendStatus:
    """The first status whose workers are in these states."""
    seen: list[BackendStatus] = []

    def asked() -> bool:
        seen.append(backend.status())
        return tuple(worker.state for worker in seen[-1].workers) == states

    until(asked)
    return seen[-1]


def test_a_second_video_waits_knows_why_and_is_cancelled_without_disturbing_the_first(backend, video, begun) -> None:
    heard: list[str] = []
    given_up = threading.Event()

    def hear(text: str) -> None:
        heard.append(text)
        if given_up.is_set():
            raise Cancelled("stop")

    with ThreadPoolExecutor() as pool:
        second = pool.submit(lambda: list(video.engine(backend, STAGES).run(video.job, notices(hear))))
        until(lambda: len(heard) >= 2)
        assert backend.status().waiting == 1
        given_up.set()
        with pytest.raises(Cancelled):
            second.result(200)
    assert set(heard) == {WAITS} and backend.status().waiting == 0
    assert torch.equal(begun(), video.expected)


def test_waiting_is_a_phase_of_a_recording_and_is_cancelled_there(backend, video, begun, tmp_path: Path) -> None:
    inputs, phases = write_inputs(tmp_path, 0.5), []
    # Another number of stages: it has to wait before its weights are loaded.
    job = video_job(inputs, backend, "1x1")

    def watch(event: Event) -> None:
        phases.append(event.phase)
        if phases.count(WAITS) == 2:
            raise Cancelled("stop")

    def record() -> None:
        job.save(tmp_path / "out.mp4", callback=watch)

    with ThreadPoolExecutor() as pool, pytest.raises(Cancelled, match="before the first frame"):
        pool.submit(record).result(200)
    assert phases[-1] == WAITS
    assert torch.equal(begun(), video.expected)


def test_waiting_videos_are_made_in_the_order_in_which_they_came(backend, video, begun) -> None:
    made: list[int] = []

    def make(number: int) -> bool:
        return video.is_made_by(backend, STAGES, lambda event: event.notice or made.append(number))

    answers: list[Future[bool]] = []
    with ThreadPoolExecutor() as pool:
        for number in range(3):
            answers.append(pool.submit(make, number))
            until(lambda known=number: backend.status().waiting == known + 1)
        assert torch.equal(begun(), video.expected)
        assert all(answer.result(200) for answer in answers)
    assert made == sorted(made) and set(made) == {0, 1, 2}


@pytest.mark.parametrize(
    "stages", [*(pytest.param(stages, marks=pytest.mark.slow) for stages in ("1x1", "1x2")), "2x2"]
)
def test_a_pause_lets_no_further_block_begin_and_changes_no_number(backend, stages: str) -> None:
    video, generous = Video(10, seed=8), backend.deadline
    engine = video.engine(backend, stages)
    engine.load()
    before, begun, resting, heard = backend.worker_pids, set[int](), [], []

    def on_event(event: Event) -> None:
        if isinstance(event.task, Denoise):
            begun.add(event.task.block)
        elif event.notice:
            heard.append((event.phase, max(begun), backend.status()))
            if len(heard) == 7:
                backend.resume()

    running = engine.run(video.job, on_event)
    first = next(running)
    allowed = engine.plan.partition.stages + 2
    backend.deadline = 4.0  # the pause is longer, and no worker hangs
    backend.pause()
    try:
        assert backend.paused
        blocks = [first]
        for block in running:
            resting.append(len(heard))
            blocks.append(block)
    finally:
        backend.resume()
        backend.deadline = generous
    assert [text for text, _, _ in heard] == ["Paused."] * 7
    assert all(latest < allowed for _, latest, _ in heard), "only blocks that were allowed before the pause"
    assert resting[0] <= 1, "finished blocks are handed out during a pause"
    assert {status.state for _, _, status in heard} == {"paused"}
    assert torch.equal(torch.cat(blocks, 1), video.expected)
    assert backend.worker_pids == before


def test_a_pause_is_a_phase_of_a_recording_and_takes_nothing_back(backend, tmp_path: Path) -> None:
    inputs, told = write_inputs(tmp_path, 3.0), list[Event]()
    job = video_job(inputs, backend, STAGES)

    def watch(event: Event) -> None:
        told.append(event)
        if event.phase == "Paused.":
            backend.resume()
        elif event.phase == GENERATING and event.done == 1:
            backend.pause()

    try:
        receipt = job.save(tmp_path / "out.mp4", callback=watch)
    finally:
        backend.resume()
    assert receipt.status == "complete"
    (at,) = [number for number, event in enumerate(told) if event.phase == "Paused."]
    generating = [p.done for p in told if p.phase == GENERATING]
    assert 0 < told[at - 1].done == told[at].done < generating[-1] == told[at].total


def test_a_resting_video_is_cancelled_from_its_notices_and_the_next_one_is_whole(backend, video) -> None:
    seen: list[str] = []

    def cancel_at_the_second(text: str) -> None:
        seen.append(text)
        if len(seen) == 2:
            raise Cancelled("stop")

    backend.pause()
    try:
        with pytest.raises(Cancelled):
            list(video.engine(backend, STAGES).run(video.job, notices(cancel_at_the_second)))
        assert seen == ["Paused."] * 2
        assert backend.status().state == "paused"
    finally:
        backend.resume()
    assert video.is_made_by(backend, STAGES)


def test_the_status_of_a_video_and_of_warm_workers(backend, video, patient) -> None:
    engine = video.engine(backend, STAGES)
    engine.load()
    warm = backend.status()
    assert (warm.state, warm.waiting) == ("warm", 0)
    assert [w.stage for w in warm.workers] == [0, 1] and tuple(w.pid for w in warm.workers) == backend.worker_pids
    for worker, stage in zip(warm.workers, engine.plan.stages, strict=True):
        assert (worker.steps, worker.layers, worker.device) == (stage.steps, stage.layers, stage.device)
        assert (worker.state, worker.tasks, worker.task_seconds) == ("idle", 0, None)
        assert worker.host_bytes == pytest.approx(psutil.Process(worker.pid).memory_info().rss, rel=0.2)
        assert (worker.allocated, worker.reserved) == (0, 0)
    assert sum(w.weights for w in warm.workers) + warm.codec_bytes == backend.bytes_by_device()["cpu"]
    assert warm.codec == backend.codec_pid

    seen: list[BackendStatus] = []

    def look(event: Event) -> None:
        if event.done % 20 == 1:
            seen.append(backend.status())

    assert torch.equal(torch.cat(list(engine.run(video.job, look)), 1), video.expected)
    assert len(seen) > 2 and {status.state for status in seen} == {"running"}
    tasks = [[w.tasks for w in status.workers] for status in seen]
    assert tasks == sorted(tasks) and tasks[0] < tasks[-1]
    assert {w.state for status in seen for w in status.workers} <= {"running", "done"}
    for worker, seconds in zip(seen[-1].workers, engine.stage_seconds(), strict=True):
        assert worker.task_seconds and 0 < worker.task_seconds * worker.tasks <= seconds + 1e-9
    assert backend.status().state == "warm"


def test_the_status_of_a_silent_worker_and_of_a_lost_one(backend, video) -> None:
    video.engine(backend, STAGES).load()
    silent, other = backend.worker_pids
    os.kill(silent, signal.SIGSTOP)
    try:
        for _ in range(3):
            status = status_when(backend, "silent", "idle")
            assert status.workers[0].host_bytes and status.workers[0].allocated is None
    finally:
        os.kill(silent, signal.SIGCONT)
    status_when(backend, "idle", "idle")
    os.kill(other, signal.SIGKILL)
    status_when(backend, "idle", "lost")
    assert video.is_made_by(backend, STAGES)
    assert backend.worker_pids[0] == silent and backend.worker_pids[1] != other


def test_idle_workers_are_ended_and_the_next_video_has_new_ones(backend, video, patient) -> None:
    running = video.engine(backend, STAGES).run(video.job)
    next(running)
    workers, long = [psutil.Process(pid) for pid in backend.worker_pids], backend.idle_seconds
    assert long == 900
    backend.idle_seconds = 0.5
    try:
        time.sleep(1.5)
        assert backend.status().state == "running", "a video that was begun is not idle"
        list(running)
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive
        until(lambda: backend.status() == BackendStatus("released", 0, (), None, 0))
        assert backend.worker_pids == () and backend.bytes_by_device() == {}
        with ThreadPoolExecutor() as pool:
            made, seen = pool.submit(video.is_made_by, backend, STAGES), []
            while not made.done():
                seen.append(backend.status())
                time.sleep(0.05)
            assert made.result()
    finally:
        backend.idle_seconds = long
    states = {w.state for status in seen for w in status.workers}
    assert {"starting", "running"} <= states and states <= {"starting", "loading", "idle", "running", "done", "stopped"}
    assert "running" in {status.state for status in seen}


def test_no_thread_keeps_a_forgotten_backend() -> None:
    known = set(threading.enumerate())
    backend = RayBackend(idle_seconds=0.2)
    (watching,) = set(threading.enumerate()) - known
    time.sleep(0.5)
    del backend
    watching.join(60)
    assert not watching.is_alive()
