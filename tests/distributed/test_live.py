"""A live talk in worker processes makes the pictures of one in this process, also when a worker is lost on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from live.test_session import RATE, voice

from liveavatar import LiveAvatarPipeline, Request
from liveavatar.distributed import RayBackend
from liveavatar.events import Callback, Event, ignore
from liveavatar.live.session import LiveBlock, LiveSession

REQUEST = Request(size="64x64", prompt="A person talks.", seed=3, steps=2)
AHEAD_BLOCKS = 6
"""Blocks that may have taken their sound while one is read: two that wait, one that is handed over, and of two stages
three that have begun."""
SOUND = voice(7.0)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


@pytest.fixture
def backend(backend: RayBackend) -> Iterator[RayBackend]:
    backend.restarts = 2
    yield backend
    backend.restarts = 0


@pytest.fixture
def pipeline(backend: RayBackend) -> LiveAvatarPipeline:
    return LiveAvatarPipeline.from_pretrained("untrained", stages="1x2", devices=("cpu",), threads=1, backend=backend)


def talked(
    pipeline: LiveAvatarPipeline,
    image: np.ndarray,
    happens: Callable[[LiveSession], object] = ignore,
    callback: Callback = ignore,
) -> list[LiveBlock]:
    """The blocks of one sound, whose prompt and portrait change; something happens in the middle of it."""
    with LiveSession(pipeline, image, REQUEST, real_time=False, callback=callback) as live:
        blocks = live.blocks()
        live.push(SOUND[:30_000], RATE)
        made = [next(blocks) for _ in range(3)]
        live.set_prompt("A person laughs.")
        live.set_portrait(255 - image)
        live.push(SOUND[30_000:], RATE)
        live.end()
        made += [next(blocks) for _ in range(7)]
        happens(live)
        made += blocks
        assert live.stats.changes == ((3, "prompt: A person laughs."), (3, "portrait"))
    return made


@pytest.fixture(scope="module")
def expected(image: np.ndarray) -> list[LiveBlock]:
    return talked(LiveAvatarPipeline.from_pretrained("untrained", threads=1), image)


def assert_equal(made: list[LiveBlock], expected: list[LiveBlock]) -> None:
    assert [b.number for b in made] == list(range(15))
    for one, other in zip(made, expected, strict=True):
        assert np.array_equal(one.images, other.images) and np.array_equal(one.audio, other.audio)


def test_the_same_pictures_as_in_this_process(
    pipeline: LiveAvatarPipeline, image: np.ndarray, expected: list[LiveBlock]
) -> None:
    assert_equal(talked(pipeline, image), expected)


def test_two_speakers_make_the_same_pictures_as_in_this_process(
    pipeline: LiveAvatarPipeline, image: np.ndarray
) -> None:
    def both(pipeline: LiveAvatarPipeline) -> list[LiveBlock]:
        with LiveSession(pipeline, image, REQUEST, real_time=False, speakers=("left", "right")) as live:
            live.push(SOUND[:40_000], RATE, speaker=1)
            live.push(SOUND[40_000:70_000], RATE, speaker=2)
            live.end()
            return list(live.blocks())

    made, expected = both(pipeline), both(LiveAvatarPipeline.from_pretrained("untrained", threads=1))
    assert len(made) == 6
    for one, other in zip(made, expected, strict=True):
        assert np.array_equal(one.images, other.images) and np.array_equal(one.audio, other.audio)


@pytest.mark.parametrize("which", ["a stage", "the encoders and the VAE"])
def test_the_same_pictures_when_a_worker_is_lost(
    backend: RayBackend, pipeline: LiveAvatarPipeline, image: np.ndarray, expected: list[LiveBlock], which: str
) -> None:
    told = list[str]()

    def kill(live: LiveSession) -> None:
        os.kill(backend.worker_pids[1] if which == "a stage" else backend.codec_pid, signal.SIGKILL)

    made = talked(pipeline, image, kill, lambda event: told.append(event.phase) if event.notice else None)
    assert_equal(made, expected)
    assert len(told) == 1 and "was lost" in told[0] and "it was replaced" in told[0]


def test_a_closed_session_leaves_its_workers_to_the_next(
    backend: RayBackend, pipeline: LiveAvatarPipeline, image: np.ndarray, expected: list[LiveBlock]
) -> None:
    threads = threading.active_count()
    with LiveSession(pipeline, image, REQUEST, real_time=False) as live:
        live.push(SOUND, RATE)
        next(live.blocks())
        before = backend.worker_pids
    with LiveSession(pipeline, image, REQUEST) as live:
        next(live.blocks())
    assert threading.active_count() <= threads
    assert_equal(talked(pipeline, image), expected)
    assert backend.worker_pids == before


@pytest.mark.slow
def test_while_a_worker_is_replaced_the_session_is_starved_and_catches_up(
    backend: RayBackend, pipeline: LiveAvatarPipeline, image: np.ndarray
) -> None:
    states, told, killed = list[tuple[str, float]](), list[str](), threading.Event()

    def on_event(event: Event) -> None:
        if event.notice:
            told.append(event.phase)

    with LiveSession(pipeline, image, REQUEST, callback=on_event) as live:
        over = threading.Event()

        def speak() -> None:
            begun, sent = time.monotonic(), 0
            while not over.wait(0.05):
                count = round((time.monotonic() - begun) * RATE) - sent
                live.push(np.resize(SOUND, count), RATE)
                sent += count
                if killed.is_set():
                    states.append((live.stats.state, live.stats.queued_seconds))

        speaker = threading.Thread(target=speak)
        speaker.start()
        try:
            numbers = []
            for block in live.blocks():
                numbers.append(block.number)
                if block.number == 10:
                    os.kill(backend.worker_pids[0], signal.SIGKILL)
                    killed.set()
                if told and live.stats.state == "speaking" and live.stats.queued_seconds < 2:
                    break
        finally:
            over.set()
            speaker.join()
    assert numbers == list(range(len(numbers))), "no block is left out"
    assert ("starved" in {state for state, _ in states}) and len(told) == 1
    assert max(queued for _, queued in states) > 2, "what is said meanwhile waits"


def test_an_interruption_drops_what_was_not_said(pipeline: LiveAvatarPipeline, image: np.ndarray) -> None:
    with LiveSession(pipeline, image, REQUEST) as live:
        blocks = live.blocks()
        live.push(voice(25.0), RATE)
        next(blocks)
        assert live.interrupt() > 4
        after = [next(blocks) for _ in range(AHEAD_BLOCKS + 1)]
        assert not after[-1].spoken
