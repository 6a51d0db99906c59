"""A live talk at the pace of a clock: whether it keeps it, how long a sample waits, what an interruption takes."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ..config import FPS
from ..distributed.registry import resident_bytes
from ..live.audio_feed import OUTPUT_RATE
from ..live.block import LivePiece
from ..live.session import LiveSession
from ..media.audio import AudioClip
from ..pipeline import LiveAvatarPipeline
from ..request import Request

_PIECE_SECONDS = 0.02
"""What a microphone gives at once."""
_SPEECH_SECONDS, _PAUSE_SECONDS = 15.0, 2.0
"""Of talk until it is interrupted, and of silence after that."""
_SETTLED_BLOCKS = 25
"""After which memory is looked at for the first time."""


@dataclasses.dataclass(frozen=True)
class LiveFigures:
    """What was measured.

    Attributes:
        blocks, late: how many were made, and began more than half a block after their time.
        first: seconds from the request for a talk to its first images, with all weights loaded.
        lag, lag_95: seconds from a sample to its image, median and 95th percentile over blocks.
        interrupts: seconds from an interruption to the images of a silent block.
        growth: bytes of memory that were added after the first 12 seconds.
        drift: frames by which images and sound differ in length at the end.
    """

    blocks: int
    late: int
    first: float
    lag: float
    lag_95: float
    interrupts: tuple[float, ...]
    growth: int
    drift: float

    @property
    def on_time(self) -> float:
        """Share of the blocks that began in time."""
        return 1 - self.late / max(1, self.blocks)


class Speaker:
    """Pushes a voice again and again as a microphone would, with a pause after each interruption.

    Args:
        session: that it speaks to.
        voice: what it says.
    """

    def __init__(self, session: LiveSession, voice: AudioClip):
        self.session, self.voice = session, voice
        self.interrupted: list[float] = []
        """When it interrupted, seconds of `time.monotonic`."""
        self._stop = threading.Event()

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """It speaks inside, in a thread of its own."""
        thread = threading.Thread(target=self._speak, name="liveavatar-bench-speaker", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _speak(self) -> None:
        piece = int(_PIECE_SECONDS * self.voice.rate)
        pieces = np.array_split(self.voice.samples, max(1, len(self.voice.samples) // piece))
        due, said = time.monotonic(), 0.0
        for samples in itertools.cycle(pieces):
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return
            self.session.push(samples, self.voice.rate)
            seconds = len(samples) / self.voice.rate
            due, said = due + seconds, said + seconds
            if said >= _SPEECH_SECONDS:
                self.session.interrupt()
                self.interrupted.append(time.monotonic())
                due, said = due + _PAUSE_SECONDS, 0.0


def bench_live(
    pipeline: LiveAvatarPipeline, image: np.ndarray, voice: AudioClip, request: Request, seconds: float
) -> LiveFigures:
    """Talk for so long; a short talk before it loads everything.

    Args:
        pipeline: makes the blocks.
        image: uint8 [H, W, 3].
        voice: that is heard.
        request: size, prompt, steps, seed.
        seconds: of the talk.
    """
    with LiveSession(pipeline, image, request) as warm:
        next(warm.pieces())
    begun = time.monotonic()
    with LiveSession(pipeline, image, request) as session:
        speaker, made, lags, before = Speaker(session, voice), list[_Made](), list[float](), 0
        with speaker.speaking():
            for piece in session.pieces():
                made.append(_Made(piece))
                if piece.place == 0:
                    lags.append(session.stats.lag_ms / 1000)
                if piece.is_last and piece.block == _SETTLED_BLOCKS:
                    before = _memory()
                if piece.is_last and time.monotonic() - begun >= seconds:
                    break
        late, growth = session.stats.late_blocks, _memory() - before if before else 0
    sounded = sum(one.samples for one in made) / OUTPUT_RATE
    ended = made[-1].finished
    return LiveFigures(
        blocks=len(lags),
        late=late,
        first=made[0].finished - begun,
        lag=statistics.median(lags),
        lag_95=float(np.quantile(lags, 0.95)),
        interrupts=tuple(_shut(made, when) for when in speaker.interrupted if ended > when + _PAUSE_SECONDS),
        growth=growth,
        drift=abs(sounded * FPS - sum(one.images for one in made)),
    )


class _Made:
    """What is kept of a piece."""

    def __init__(self, piece: LivePiece):
        self.finished, self.spoken = piece.finished, piece.spoken
        self.images, self.samples = len(piece.images), len(piece.audio)


def _shut(made: list[_Made], when: float) -> float:
    """Seconds from an interruption to the images of the first silent piece after it; infinite where there is none."""
    return next((one.finished for one in made if one.finished > when and not one.spoken), math.inf) - when


def _memory() -> int:
    """Bytes that this process has in memory; 0 where the system does not say."""
    return resident_bytes(os.getpid()) or 0
