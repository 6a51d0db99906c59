"""Workers leave the state that one process leaves, and go on from it on any cut, after a death, after a stop."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from distributed.test_open import with_changes
from distributed.test_resume import folders, wait_for
from distributed.videos import Video, notices
from engine.test_state import going_on

from liveavatar.distributed import RayBackend
from liveavatar.engine.local import LocalEngine
from liveavatar.errors import StateError
from liveavatar.session import Engine, VideoTask
from liveavatar.weights.source import DictSource
from liveavatar.weights.writing import LazyTensor, write_safetensors

BLOCKS = 10
PROMPTS, PORTRAITS = {1: 1, 7: 2}, {2: 3, 8: 4}


@pytest.fixture
def backend(backend: RayBackend) -> Iterator[RayBackend]:
    backend.restarts = 2
    yield backend
    backend.restarts = 0


@pytest.fixture(scope="module")
def video() -> Video:
    return Video(BLOCKS)


def shortened(job: VideoTask, blocks: int) -> VideoTask:
    """The first blocks, as a video of its own whose state is kept."""
    return dataclasses.replace(job, keep_state=True, resolved=dataclasses.replace(job.resolved, blocks=blocks))


def in_process(video: Video) -> LocalEngine:
    return LocalEngine(video.components, video.plan("1x1"))


def read(tensors: Mapping[str, LazyTensor]) -> dict[str, torch.Tensor]:
    return {name: lazy.read() for name, lazy in tensors.items()}


def left_by(engine: Engine, job: VideoTask) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The latents of a job, and its state."""
    made = torch.cat(list(engine.run(job)), 1)
    state = engine.take_state()
    assert state is not None and 3 * (state.block - job.resolved.first_block) == made.shape[1]
    saved = read(state.tensors)
    state.close()
    assert engine.take_state() is None
    return made, saved


def assert_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(("cut", "other", "block"), [("2x2", "1x2", 6), ("1x2", "4x1", 2), ("1x1", "2x2", 4)])
def test_a_state_is_the_same_and_goes_on_on_another_cut(
    backend: RayBackend, video: Video, cut: str, other: str, block: int
) -> None:
    job = shortened(video.job, block)
    first, saved = left_by(video.engine(backend, cut), job)
    expected, here = left_by(in_process(video), job)
    assert torch.equal(first, expected)
    assert_same(saved, here)
    rest = going_on(video.job, block, DictSource(here), first[:, :1])
    second, last = left_by(video.engine(backend, other), dataclasses.replace(rest, keep_state=True))
    assert torch.equal(torch.cat((first, second), 1), video.expected)
    third, here = left_by(in_process(video), dataclasses.replace(rest, start=DictSource(saved), keep_state=True))
    assert torch.equal(third, second)
    assert_same(last, here)
    assert folders() == []


@pytest.mark.parametrize(("cut", "block"), [("2x2", 3), ("1x2", 5)])
def test_changes_before_and_after_are_those_of_one_video(backend: RayBackend, cut: str, block: int) -> None:
    video = Video(BLOCKS)
    video.job = with_changes(video.job, PROMPTS, PORTRAITS)
    first, saved = left_by(video.engine(backend, cut), shortened(video.job, block))
    rest = going_on(video.job, block, DictSource(saved), first[:, :1])
    made = torch.cat(list(video.engine(backend, cut).run(rest)), 1)
    assert torch.equal(torch.cat((first, made), 1), video.expected)


@pytest.mark.parametrize(("cut", "block"), [("1x2", 1), ("2x2", 5)])
def test_a_video_that_was_stopped_goes_on_where_its_last_block_ended(backend: RayBackend, cut: str, block: int) -> None:
    video, stop, made = Video(16), threading.Event(), []
    engine = video.engine(backend, cut)
    for latent in engine.run(dataclasses.replace(video.job, keep_state=True, stop=stop)):
        made.append(latent)
        if len(made) == block:
            stop.set()
    state, first = engine.take_state(), torch.cat(made, 1)
    assert state is not None and block <= state.block == len(made) <= block + engine.plan.partition.stages + 2
    saved = DictSource(read(state.tensors))
    state.close()
    rest = torch.cat(list(in_process(video).run(going_on(video.job, state.block, saved, first[:, :1]))), 1)
    assert torch.equal(torch.cat((first, rest), 1), video.expected)


def test_a_video_that_is_stopped_while_the_backend_is_paused_ends_too(backend: RayBackend, video: Video) -> None:
    stop, made, engine = threading.Event(), [], video.engine(backend, "1x2")

    def on_notice(text: str) -> None:
        if "Paused" in text:
            stop.set()

    try:
        for latent in engine.run(dataclasses.replace(video.job, keep_state=True, stop=stop), notices(on_notice)):
            made.append(latent)
            backend.pause()
    finally:
        backend.resume()
    state = engine.take_state()
    assert state is not None and state.block == len(made) < BLOCKS
    state.close()


@pytest.mark.parametrize(("every", "at", "boundary"), [(0, 2, 5), (6, 9, 12)])
def test_a_continued_video_goes_on_when_a_worker_is_lost(
    backend: RayBackend, every: int, at: int, boundary: int
) -> None:
    """From the state again, or from a snapshot."""
    video, told, made = Video(18), [], []
    first, saved = left_by(in_process(video), shortened(video.job, 5))
    engine = video.engine(backend, "1x2", every)
    job = dataclasses.replace(going_on(video.job, 5, DictSource(saved), first[:, :1]), keep_state=True)
    for latent in engine.run(job, notices(told.append)):
        made.append(latent)
        if len(made) == at:
            if boundary > 5:
                wait_for(engine, boundary)
            os.kill(backend.worker_pids[1], signal.SIGKILL)
    assert torch.equal(torch.cat((first, *made), 1), video.expected)
    assert len(told) == 1 and told[0].endswith(f"going on from block {boundary}.")
    state = engine.take_state()
    assert state is not None
    assert_same(read(state.tensors), left_by(in_process(video), shortened(video.job, 18))[1])
    state.close()


def test_a_state_stays_while_its_workers_do_something_else(
    backend: RayBackend, video: Video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    job = shortened(video.job, 6)
    expected = left_by(in_process(video), job)[1]
    engine = video.engine(backend, "1x2")
    for happens in (lambda: video.is_made_by(backend, "2x1"), backend.release):
        list(engine.run(job))
        happens()
        assert list(tmp_path.glob("liveavatar-state-*"))
        state = engine.take_state()
        assert state is not None
        assert_same(read(state.tensors), expected)
        state.close()
        del state
        assert not list(tmp_path.glob("liveavatar-state-*"))


def test_a_state_that_nobody_takes_is_dropped(
    backend: RayBackend, video: Video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    engine = video.engine(backend, "1x2")
    list(engine.run(shortened(video.job, 3)))
    del engine
    assert video.is_made_by(backend, "1x2")
    assert not list(tmp_path.glob("liveavatar-state-*"))
    run = (engine := video.engine(backend, "1x2")).run(shortened(video.job, 6))
    next(run)
    run.close()
    assert engine.take_state() is None


def test_a_state_that_is_lost_with_its_workers_is_named(backend: RayBackend, video: Video) -> None:
    engine = video.engine(backend, "1x2")
    list(engine.run(shortened(video.job, 3)))
    state = engine.take_state()
    assert state is not None
    os.kill(backend.worker_pids[1], signal.SIGKILL)
    assert video.is_made_by(backend, "1x2")
    with pytest.raises(StateError, match="lost with its workers"):
        read(state.tensors)


@pytest.mark.slow
def test_a_large_state_is_never_in_this_process_as_a_whole(backend: RayBackend, tmp_path: Path) -> None:
    """The peak of writing is a few tensors, whatever the size of the state."""
    import psutil

    video = Video(5, size="256x256", steps=4)
    engine = video.engine(backend, "1x2")
    list(engine.run(shortened(video.job, 5)))
    state = engine.take_state()
    assert state is not None
    whole, largest = (f(lazy.nbytes for lazy in state.tensors.values()) for f in (sum, max))
    process, peak = psutil.Process(), 0

    def own_bytes() -> int:
        """Without memory that is shared with Ray."""
        held = process.memory_info()
        return held.rss - held.shared

    before = own_bytes()

    def watched(lazy: LazyTensor) -> LazyTensor:
        def reading() -> torch.Tensor:
            nonlocal peak
            tensor = lazy.read()
            peak = max(peak, own_bytes() - before)
            return tensor

        return dataclasses.replace(lazy, read=reading)

    with (tmp_path / "state").open("wb", buffering=0) as file:
        write_safetensors(file, {name: watched(lazy) for name, lazy in state.tensors.items()}, {})
    state.close()
    assert whole > 20 * largest and peak < 8 * largest, (whole, largest, peak)
