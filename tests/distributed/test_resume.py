"""A video goes on when a worker is lost: from the latest snapshot that all stages have, with the same bits."""

import itertools
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from distributed.videos import Video, notices

from liveavatar.distributed import RayBackend, RayEngine, WorkerError, cluster
from liveavatar.distributed.snapshots import complete_in, stage_folder
from liveavatar.errors import Cancelled
from liveavatar.events import Callback, Event, ignore
from liveavatar.task_graph import Denoise, task_count

EVERY = 6
"""With 18 blocks there are snapshots at 6 and 12. A worker is never more than six blocks ahead of the caller, so it is
known which of them can be there: where the caller has 11, the latest is that at 12, and the worker has not ended. What
the last stage has made is lost with it as far as it was not asked for: there the caller has all before the boundary."""


@pytest.fixture(scope="module")
def video() -> Video:
    return Video(18)


@pytest.fixture
def backend(backend: RayBackend) -> Iterator[RayBackend]:
    backend.restarts, generous = 2, backend.deadline
    yield backend
    backend.restarts, backend.deadline = 0, generous
    assert folders() == []


def folders() -> list[Path]:
    """Those of videos that are being made."""
    return list(cluster.short_folder().glob(f"la-{os.getpid()}-*/video-*"))


def wait_for(engine: RayEngine, *boundaries: int) -> Path:
    """Until all stages have snapshots at these boundaries; where they lie."""
    (folder,), until = folders(), time.monotonic() + 120
    while time.monotonic() < until:
        kept = [complete_in(stage_folder(str(folder), i), s.steps) for i, s in enumerate(engine.plan.stages)]
        if all(set(boundaries) <= set(k) for k in kept):
            return folder
        time.sleep(0.02)
    raise AssertionError(f"{boundaries} are not there, but {kept}")


class Film:
    """A video being watched, with what happens to its workers at some block, and what was told of it."""

    def __init__(self, video: Video, engine: RayEngine):
        self.engine, self._video = engine, video
        self.notices: list[str] = []
        self.reports: list[Event] = []

    def watch(self, at: int, happens: Callable[[], object], callback: Callback = ignore) -> None:
        """Watch to the end; `happens` when so many blocks are there. All latents are right, each there once."""
        blocks = []

        def on_event(event: Event) -> None:
            if event.notice:
                self.notices.append(event.phase)
            else:
                self.reports.append(event)
                callback(event)

        for block in self.engine.run(self._video.job, on_event):
            blocks.append(block)
            if len(blocks) == at:
                happens()
        assert torch.equal(torch.cat(blocks, 1), self._video.expected)

    @property
    def beginnings(self) -> list[int]:
        """The blocks from which it went on, as the notices say."""
        return [int(re.search(r"it was replaced, going on from block (\d+)\.$", text)[1]) for text in self.notices]


@pytest.mark.parametrize(
    "stages, stage, at, boundary",
    [
        ("1x2", 0, 3, 0),
        ("2x2", 1, 11, 12),
        ("2x2", 2, 5, 6),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("1x2", 1, 6, 6), ("1x2", 0, 11, 12), ("2x2", 3, 2, 0))
        ),
    ],
)
def test_a_killed_worker_is_replaced_and_the_video_goes_on(
    backend: RayBackend, video: Video, stages: str, stage: int, at: int, boundary: int
) -> None:
    film = Film(video, video.engine(backend, stages, EVERY))

    def kill() -> None:
        wait_for(film.engine, *[boundary] * bool(boundary))
        os.kill(backend.worker_pids[stage], signal.SIGKILL)

    film.watch(at, kill)
    assert film.beginnings == [boundary]
    count = film.engine.plan.partition.stages
    assert f"Stage {stage + 1} of {count} (" in film.notices[0] and "was lost" in film.notices[0]
    check_counting(film, boundary)


@pytest.mark.parametrize(
    ("stages", "stage", "clip_blocks"), [pytest.param("1x2", 1, 3, marks=pytest.mark.slow), ("2x2", 2, 5)]
)
def test_with_clips_of_another_length_too(backend: RayBackend, stages: str, stage: int, clip_blocks: int) -> None:
    video = Video(18, clip_blocks=clip_blocks)
    film = Film(video, video.engine(backend, stages, EVERY))

    def kill() -> None:
        wait_for(film.engine, EVERY)
        os.kill(backend.worker_pids[stage], signal.SIGKILL)

    film.watch(EVERY, kill)
    assert film.beginnings == [EVERY]
    check_counting(film, EVERY)


def check_counting(film: Film, boundary: int) -> None:
    """`done` counts tasks that stand finished: it falls back once, to those before the boundary, and ends in total."""
    reports = [r for r in film.reports if r.task is not None]  # others tell of the worker that starts
    done, total = [r.done for r in reports], reports[0].total
    falls = [after for before, after in itertools.pairwise(done) if after != before + 1]
    assert falls == [total - task_count(film.engine.plan.partition, 18, boundary) + 1]
    assert done[-1] == total == reports[-1].total


@pytest.mark.parametrize("stage", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_right_at_a_boundary(backend: RayBackend, video: Video, stage: int) -> None:
    film = Film(video, video.engine(backend, "1x2", EVERY))

    def kill(report: Event) -> None:
        if report.task == Denoise(EVERY - 1, 3, 1) and not film.notices:
            os.kill(backend.worker_pids[stage], signal.SIGKILL)

    film.watch(18, lambda: None, kill)
    assert film.beginnings in ([0], [EVERY])


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced_too(backend: RayBackend, video: Video) -> None:
    film = Film(video, video.engine(backend, "1x2", EVERY))
    film.engine.load()

    def stall() -> None:
        wait_for(film.engine, 6)
        backend.deadline = 8
        os.kill(backend.worker_pids[0], signal.SIGSTOP)

    film.watch(6, stall)
    assert film.beginnings == [6] and "no sign of life" in film.notices[0]


def test_all_workers_at_once(backend: RayBackend, video: Video) -> None:
    film = Film(video, video.engine(backend, "1x2", EVERY))

    def kill() -> None:
        wait_for(film.engine, 6)
        for pid in backend.worker_pids:
            os.kill(pid, signal.SIGKILL)

    film.watch(6, kill)
    assert film.beginnings[-1] == 6


def cut_short(folder: Path) -> None:
    for file in stage_folder(str(folder), 1).glob("12-2*"):
        file.write_bytes(file.read_bytes()[:-1])


def drop_a_file(folder: Path) -> None:
    (stage_folder(str(folder), 0) / "12-sink.safetensors").unlink()


@pytest.mark.parametrize(
    "damage, boundary",
    [(cut_short, 6), (drop_a_file, 6), (lambda folder: shutil.rmtree(stage_folder(str(folder), 1)), 0)],
    ids=["cut short", "a file missing", "the folder missing"],
)
def test_a_damaged_snapshot_is_not_used(
    backend: RayBackend, video: Video, damage: Callable[[Path], None], boundary: int
) -> None:
    film = Film(video, video.engine(backend, "1x2", EVERY))

    def kill() -> None:
        damage(wait_for(film.engine, 6, 12))
        os.kill(backend.worker_pids[1], signal.SIGKILL)

    film.watch(13, kill)
    assert film.beginnings == [boundary]


@pytest.mark.slow
def test_lost_twice_and_a_third_time(backend: RayBackend, video: Video, caplog: pytest.LogCaptureFixture) -> None:
    """Two are replaced; where the third is lost, the video ends with its name."""
    engine, told, blocks = video.engine(backend, "1x2", EVERY), [], []
    with pytest.raises(WorkerError, match=r"Stage 1 of 2 .* was lost") as caught:
        for block in engine.run(video.job, notices(told.append)):
            blocks.append(block)
            if len(blocks) in (2, 8, 13):
                wait_for(engine, *[6] * (len(blocks) > 6))
                os.kill(backend.worker_pids[0], signal.SIGKILL)
    assert caught.value.stage == 0 and caught.value.replaceable
    assert [text.rsplit(maxsplit=1)[1] for text in told] == ["0.", "6."]
    assert torch.equal(torch.cat(blocks, 1), video.expected[:, : 3 * len(blocks)])
    warned = [r.getMessage() for r in caplog.records if r.name.startswith("liveavatar") and r.levelname == "WARNING"]
    assert len(warned) == 2 and all("Its last log lines" in text for text in warned)


def test_a_stage_that_is_lost_twice_in_a_row_is_given_up(backend: RayBackend, video: Video) -> None:
    engine, told = video.engine(backend, "1x2", EVERY), []
    backend.restarts = 5

    def kill_again(text: str) -> None:
        told.append(text)
        os.kill(backend.worker_pids[1], signal.SIGKILL)

    running = engine.run(video.job, notices(kill_again))
    next(running)
    os.kill(backend.worker_pids[1], signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"Stage 2 of 2 .* was lost"):
        list(running)
    assert len(told) <= 2
    assert video.is_made_by(backend, "1x2")


def test_cancelled_from_a_notice(backend: RayBackend, video: Video) -> None:
    def stop(text: str) -> None:
        raise Cancelled(text)

    engine = video.engine(backend, "1x2", EVERY)
    running = engine.run(video.job, notices(stop))
    next(running)
    os.kill(backend.worker_pids[1], signal.SIGKILL)
    with pytest.raises(Cancelled, match="going on from block 0"):
        list(running)


def test_a_video_left_half_made_leaves_no_snapshots(backend: RayBackend, video: Video) -> None:
    engine = video.engine(backend, "1x2", EVERY)
    left = engine.run(video.job)
    for _ in range(6):
        next(left)
    wait_for(engine, 6)
    first = folders()
    other = video.engine(backend, "1x2", EVERY).run(video.job)
    next(other)
    assert first != folders() and len(folders()) == 1
    other.close()
    assert folders() == []


def test_released_workers_leave_no_snapshots(backend: RayBackend, video: Video) -> None:
    engine = video.engine(backend, "1x2", EVERY)
    left = engine.run(video.job)
    for _ in range(6):
        next(left)
    wait_for(engine, 6)
    backend.release()
    assert folders() == []
    left.close()
