"""Prompts and portraits change on the way, and the number of blocks may be open: the same bits on every cut."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from distributed.test_resume import folders, wait_for
from distributed.videos import Video, notices

from liveavatar.config import MOTION_LATENTS
from liveavatar.distributed import RayBackend, RayEngine
from liveavatar.encoders.audio import AudioFeatures
from liveavatar.errors import Cancelled
from liveavatar.events import HEARTBEAT_SECONDS, Callback, Event, ignore
from liveavatar.session import VideoTask
from liveavatar.stage import Changes, Portrait
from liveavatar.task_graph import task_count

CUTS = ["1x1", "1x2", "4x1", "2x2"]
SILENT_BEATS = round(5.0 / HEARTBEAT_SECONDS)
"""Heartbeats of a silence that is longer than a worker may be silent."""
PROMPTS, PORTRAITS = {1: 1, 5: 2, 6: 3, 11: 6}, {3: 4, 7: 5, 12: 7}


@pytest.fixture
def backend(backend: RayBackend) -> Iterator[RayBackend]:
    backend.restarts = 2
    yield backend
    backend.restarts = 0
    assert folders() == []


def with_changes(job: VideoTask, prompts: dict[int, int], portraits: dict[int, int]) -> VideoTask:
    """The job with made-up prompts and portraits, by the block from which they hold and their seed."""
    changes, (height, width) = Changes(), job.resolved.latent_size
    width_of_prompt = job.conditioning.prompt.shape[1]
    for block, seed in prompts.items():
        changes.prompts.add(block, torch.randn(4, width_of_prompt, generator=torch.Generator().manual_seed(seed)))
    for block, seed in portraits.items():
        generator = torch.Generator().manual_seed(seed)
        shapes = (16, 1, height, width), (16, MOTION_LATENTS, height, width)
        changes.portraits.add(block, Portrait(*(torch.randn(shape, generator=generator) for shape in shapes)))
    return dataclasses.replace(job, conditioning=dataclasses.replace(job.conditioning, changes=changes))


def changed(blocks: int, **options: object) -> Video:
    video = Video(blocks, **options)
    video.job = with_changes(video.job, PROMPTS, PORTRAITS)
    return video


@pytest.fixture(scope="module")
def video() -> Video:
    return changed(14)


class Feed:
    """Feeds the blocks of a known video to an open one: as many at a time as are pushed."""

    def __init__(self, known: VideoTask):
        self.known, self.features, self.changes = known, _Features(known.conditioning.audio), Changes()
        self.pushed, self.ended = 0, False
        self.asked: list[int] = []
        conditioning = dataclasses.replace(known.conditioning, audio=self.features, changes=self.changes)
        self.job = dataclasses.replace(known, conditioning=conditioning, gate=self.gate)

    def gate(self, block: int, wait: bool) -> bool | None:
        assert not wait, "whoever waits here cannot see what happens to the workers"
        if block >= self.pushed:
            return False if self.ended else None
        self.asked.append(block)
        for ours, theirs in zip(_timelines(self.changes), _timelines(self.known.conditioning.changes), strict=True):
            if (value := theirs.beginning(block)) is not None:
                ours.add(block, value)
            ours.forget(block)
        return True


def _timelines(changes: Changes) -> tuple:
    return changes.prompts, changes.portraits


class _Features:
    """Features that may be asked for once."""

    def __init__(self, known: AudioFeatures):
        self._known, self.layers, self.channels = known, known.layers, known.channels
        self._next = 0

    def block(self, b: int) -> torch.Tensor:
        assert b == self._next
        self._next += 1
        return self._known.block(b)


def made(
    engine: RayEngine,
    feed: Feed,
    pieces: Callable[[int], int] = lambda done: done + 1,
    callback: Callback = ignore,
) -> torch.Tensor:
    """The latents, when so many blocks are pushed as `pieces` says when so many are done."""
    total, blocks = feed.known.resolved.blocks, []
    feed.pushed = min(total, pieces(0))
    feed.ended = feed.pushed == total
    for latent in engine.run(feed.job, callback):
        blocks.append(latent)
        feed.pushed = max(feed.pushed, min(total, pieces(len(blocks))))
        feed.ended = feed.pushed == total
    return torch.cat(blocks, 1)


@pytest.mark.parametrize("stages", CUTS)
def test_changes_that_are_known_beforehand(backend: RayBackend, video: Video, stages: str) -> None:
    engine, reports = video.engine(backend, stages), list[Event]()
    latents = torch.cat(list(engine.run(video.job, reports.append)), 1)
    assert torch.equal(latents, video.expected)
    total = task_count(engine.plan.partition, 14, portraits=list(PORTRAITS))
    assert [r.done for r in reports if r.task] == list(range(1, total + 1)) and reports[-1].total == total


@pytest.mark.parametrize("stages", CUTS)
def test_an_open_number_of_blocks(backend: RayBackend, video: Video, stages: str) -> None:
    engine = video.engine(backend, stages)
    assert torch.equal(made(engine, Feed(video.job)), video.expected), "one at a time"
    assert torch.equal(made(engine, Feed(video.job), lambda done: 14), video.expected), "all at once"


def test_no_block_at_all(backend: RayBackend, video: Video) -> None:
    feed = Feed(video.job)
    feed.ended = True
    assert list(video.engine(backend, "1x2").run(feed.job)) == []
    assert video.is_made_by(backend, "1x2")


def test_blocks_begin_no_further_ahead_than_they_are_read(backend: RayBackend, video: Video) -> None:
    feed = Feed(video.job)
    feed.pushed = 14
    running = video.engine(backend, "1x2").run(feed.job)
    for read in range(4):
        next(running)
        assert len(feed.asked) <= read + 2 + 2
    before = backend.worker_pids
    running.close()
    assert video.is_made_by(backend, "1x2") and backend.worker_pids == before


def test_silence_is_no_hang_and_can_be_cancelled(backend: RayBackend, video: Video) -> None:
    feed, generous, heard = Feed(video.job), backend.deadline, list[Event]()
    engine, feed.pushed = video.engine(backend, "1x2"), 2
    engine.load()
    before = backend.worker_pids

    def on_event(event: Event) -> None:
        heard.append(event)
        if event.task is None and len([e for e in heard if e.task is None]) == SILENT_BEATS:
            raise Cancelled("Enough.")

    running = engine.run(feed.job, on_event)
    backend.deadline = 3.0
    try:
        blocks = [next(running)]
        time.sleep(5.0)  # nobody reads
        blocks.append(next(running))
        with pytest.raises(Cancelled, match="Enough"):
            next(running)  # nobody speaks
    finally:
        backend.deadline = generous
    assert torch.equal(torch.cat(blocks, 1), video.expected[:, :6])
    assert feed.asked == [0, 1]
    assert video.is_made_by(backend, "1x2") and backend.worker_pids == before


EVERY = 6


@pytest.fixture(scope="module")
def long_video() -> Video:
    return changed(18)


@pytest.mark.parametrize(
    ("stages", "stage", "at", "boundary", "gated"),
    [
        ("2x2", 2, 11, 12, False),
        ("2x2", 1, 11, 12, True),
        ("1x2", 0, 3, 0, True),
        pytest.param("1x2", 1, 8, 6, True, marks=pytest.mark.slow),
    ],
)
def test_a_killed_worker_is_replaced_with_the_prompt_and_portrait_of_its_time(
    backend: RayBackend, long_video: Video, stages: str, stage: int, at: int, boundary: int, gated: bool
) -> None:
    engine, told, blocks = long_video.engine(backend, stages, EVERY), list[str](), []
    job = _all_at_once(long_video).job if gated else long_video.job
    for latent in engine.run(job, notices(told.append)):
        blocks.append(latent)
        if len(blocks) == at:
            wait_for(engine, *[boundary] * bool(boundary))
            os.kill(backend.worker_pids[stage], signal.SIGKILL)
    assert torch.equal(torch.cat(blocks, 1), long_video.expected)
    assert len(told) == 1 and told[0].endswith(f"it was replaced, going on from block {boundary}.")


def _all_at_once(video: Video) -> Feed:
    feed = Feed(video.job)
    feed.pushed, feed.ended = video.job.resolved.blocks, True
    return feed


def test_a_worker_that_is_lost_in_silence_is_replaced_before_anybody_speaks(
    backend: RayBackend, long_video: Video
) -> None:
    engine, feed, told = long_video.engine(backend, "1x2", EVERY), Feed(long_video.job), list[str]()

    def go_on(text: str) -> None:
        told.append(text)
        feed.pushed, feed.ended = 18, True

    feed.pushed, blocks = 7, []
    for latent in engine.run(feed.job, notices(go_on)):
        blocks.append(latent)
        if len(blocks) == 7:
            wait_for(engine, EVERY)
            os.kill(backend.worker_pids[1], signal.SIGKILL)
    assert torch.equal(torch.cat(blocks, 1), long_video.expected)
    assert len(told) == 1 and told[0].endswith("going on from block 6.")


@pytest.mark.slow
def test_a_long_talk_does_not_grow(backend: RayBackend) -> None:
    blocks, held, files = 160, list[list[int]](), list[int]()
    video = Video(blocks, steps=1)
    video.job = with_changes(video.job, {b: b for b in range(5, blocks, 7)}, {b: b for b in range(8, blocks, 20)})
    for done, _ in enumerate(video.engine(backend, "1x2", 8).run(_all_at_once(video).job), 1):
        if done % 40 == 0:
            held.append([worker.host_bytes for worker in backend.status().workers])
            files.append(sum(1 for folder in folders() for _ in folder.rglob("*.safetensors")))
    for before, after in zip(held[0], held[-1], strict=True):
        assert after - before < 8e6
    assert max(files) <= 2 * 3 * 2, "of two stages, two snapshots and one that is being written, two files each"
