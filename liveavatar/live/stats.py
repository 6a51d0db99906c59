"""How a live session goes: what is counted while its blocks are made, and what is told of it."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Literal

from ..config import AUDIO_SAMPLE_RATE, BLOCK_FRAMES
from .audio_feed import BLOCK_SECONDS, BlockAudio
from .block import LivePiece

SpeakerState = Literal["idle", "speaking", "interrupted"]
State = Literal["idle", "speaking", "starved", "interrupted", "closed"]
_MEASURED_BLOCKS = 10
_REMEMBERED_CHANGES = 100


@dataclasses.dataclass(frozen=True)
class SpeakerStats:
    """How one speaker goes.

    Attributes:
        state: "idle": says nothing; "speaking"; "interrupted": what was to be said is dropped.
        queued_seconds: sound that waits.
    """

    state: SpeakerState
    queued_seconds: float


@dataclasses.dataclass(frozen=True)
class LiveStats:
    """How a session goes.

    Attributes:
        state: "idle": nobody speaks; "speaking"; "starved": blocks are made too slowly for real time; "interrupted":
            what was to be said is dropped; "closed".
        block: blocks that are finished.
        lag_ms: from a sample of sound to its picture, of the latest block; or more, where the next one takes longer.
        fps: frames a second over the latest blocks, as they were made; None before there are two.
        queued_seconds: sound that waits; of several speakers, the most of one.
        late_blocks: how many began more than half a block after their time.
        changes: prompts and portraits that were changed, with the block from which each held.
        speakers: how each of them goes, in their order.
    """

    state: State
    block: int
    lag_ms: float
    fps: float | None
    queued_seconds: float
    late_blocks: int
    changes: tuple[tuple[int, str], ...]
    speakers: tuple[SpeakerStats, ...]


class Progress:
    """What of a session its stats are made of.

    Args:
        speakers: how many there are.
    """

    def __init__(self, speakers: int):
        self.blocks, self.lag_ms = 0, 0.0
        self.interrupted = [False] * speakers
        """Whose words were dropped, and who has said nothing since."""
        self.changes: deque[tuple[int, str]] = deque(maxlen=_REMEMBERED_CHANGES)
        self._finished: deque[float] = deque(maxlen=_MEASURED_BLOCKS)
        self._speaking = [False] * speakers
        self._samples = [0] * speakers

    def show(self, piece: LivePiece, audio: Sequence[BlockAudio], ahead: int) -> None:
        """Count what each says in a block of which the first piece is there; its features knew so many samples (at 16
        kHz) after it."""
        self._speaking = [one.spoken > 0 for one in audio]
        self._samples = [before + one.spoken for before, one in zip(self._samples, audio, strict=True)]
        self.lag_ms = round(self.heard_ms(ahead) + 1000 * (piece.finished - piece.begun), 1)

    def finish(self, piece: LivePiece) -> None:
        """Count a block of which this is the last piece."""
        self.blocks = piece.block + 1
        self._finished.append(piece.finished)

    def speakers(self, queued: Sequence[float]) -> tuple[SpeakerStats, ...]:
        """How each goes, with so many seconds of sound that wait."""
        each = zip(self.interrupted, self._speaking, queued, strict=True)
        return tuple(
            SpeakerStats("interrupted" if dropped else "speaking" if speaking or waiting else "idle", waiting)
            for dropped, speaking, waiting in each
        )

    @property
    def seconds(self) -> tuple[float, ...]:
        """What each has said in the finished blocks."""
        return tuple(round(samples / AUDIO_SAMPLE_RATE, 3) for samples in self._samples)

    @staticmethod
    def heard_ms(ahead: int) -> float:
        """How long the first sample of a block waits until its features can be made."""
        return 1000 * (BLOCK_SECONDS + ahead / AUDIO_SAMPLE_RATE)

    @property
    def fps(self) -> float | None:
        """See `LiveStats`."""
        if len(self._finished) < 2:
            return None
        seconds = self._finished[-1] - self._finished[0]
        return round((len(self._finished) - 1) * BLOCK_FRAMES / max(seconds, 1e-9), 2)
