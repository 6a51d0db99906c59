"""A live session of the tiny, untrained model, on one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from liveavatar import LiveAvatarPipeline, Request
from liveavatar.live.session import LiveSession

REQUEST = Request(size="64x64", prompt="A person talks.", seed=3, steps=1)
AHEAD_BLOCKS = 4
"""Blocks that may have taken their sound while one is read: two that wait, one that is handed over, one that begins."""


@pytest.fixture(scope="session")
def pipeline() -> LiveAvatarPipeline:
    return LiveAvatarPipeline.from_pretrained("untrained", threads=1)


@pytest.fixture(scope="session")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


@pytest.fixture
def open_session(pipeline: LiveAvatarPipeline, image: np.ndarray) -> Iterator[Callable[..., LiveSession]]:
    opened: list[LiveSession] = []

    def open_one(**options: object) -> LiveSession:
        opened.append(LiveSession(pipeline, image, REQUEST, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    for session in opened:
        session.close()
