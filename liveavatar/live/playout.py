"""Blocks on a clock: which picture and which sound are due, for whoever shows them the moment they come."""

from __future__ import annotations

from collections import deque

import numpy as np

from ..config import BLOCK_FRAMES
from .audio_feed import BLOCK_SECONDS, OUTPUT_RATE
from .block import LiveBlock

SLOT_SECONDS = 0.02
"""The clock's step: a packet of sound, half the time of a picture."""
SLOT_SAMPLES = round(SLOT_SECONDS * OUTPUT_RATE)
BLOCK_SLOTS = round(BLOCK_SECONDS / SLOT_SECONDS)
_IMAGE_SLOTS = BLOCK_SLOTS // BLOCK_FRAMES
CUSHION_SLOTS = 2
"""Between a block that comes after a gap and its first picture, so that a trifle of lateness later tears nothing."""
BEHIND_SLOTS = 25
"""Where so much waits, blocks in which nothing is said are left out."""
MOST_BEHIND_SLOTS = 150
"""Where so much waits, any block is."""
_KEPT_BLOCKS = 10


class Playout:
    """Places blocks on the clock, one behind the other, and hands out picture and sound of each slot.

    A block that comes late begins when it comes, with a pause before it, picture and sound alike.
    """

    def __init__(self) -> None:
        self._blocks: deque[tuple[int, LiveBlock]] = deque(maxlen=_KEPT_BLOCKS)
        """With their first slots."""
        self._end = -1
        self.waiting_slots = 0
        """How long the latest block had to wait for its turn."""
        self.skipped_blocks = 0
        """That were left out to catch up."""

    def put(self, block: LiveBlock, now: int) -> None:
        """Place a block; `now` is the slot that is due."""
        begin = self._end if self._end >= now else now + CUSHION_SLOTS
        behind = begin - now
        if behind > MOST_BEHIND_SLOTS or (behind > BEHIND_SLOTS and not block.spoken):
            self.skipped_blocks += 1
            return
        self._blocks.append((begin, block))
        self._end, self.waiting_slots = begin + BLOCK_SLOTS, behind

    def audio(self, slot: int) -> np.ndarray:
        """The sound of a slot, float32 [960]; silence where no block is."""
        for begin, block in self._blocks:
            if begin <= slot < begin + BLOCK_SLOTS:
                start = (slot - begin) * SLOT_SAMPLES
                return block.audio[start : start + SLOT_SAMPLES]
        return np.zeros(SLOT_SAMPLES, np.float32)

    def image(self, after: int, until: int) -> tuple[int, np.ndarray] | None:
        """The latest picture, uint8 [H, W, 3], that begins behind slot `after` and by `until`, and when it does."""
        for begin, block in reversed(self._blocks):
            number = min((until - begin) // _IMAGE_SLOTS, BLOCK_FRAMES - 1)
            if number >= 0 and (slot := begin + number * _IMAGE_SLOTS) > after:
                return slot, block.images[number]
        return None
