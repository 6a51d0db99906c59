"""Pieces of video on a clock: which picture and which sound are due, for whoever shows them the moment they come."""

from __future__ import annotations

import dataclasses
from collections import deque

import numpy as np

from ..config import FPS
from .audio_feed import OUTPUT_RATE
from .block import PIECES, LivePiece

SLOT_SECONDS = 0.02
"""The clock's step: a packet of sound, half the time of a picture."""
SLOT_SAMPLES = round(SLOT_SECONDS * OUTPUT_RATE)
IMAGE_SLOTS = round(1 / FPS / SLOT_SECONDS)
CUSHION_SLOTS = 2
"""Between a piece that comes after a gap and its first picture, so that a trifle of lateness later tears nothing."""
BEHIND_SLOTS = 25
"""Where so much waits, pieces in which nothing is said are left out."""
MOST_BEHIND_SLOTS = 150
"""Where so much waits, any piece is."""
QUIET = 0.01
"""The loudest sample of a pause; a cut in it is not heard."""
LOOKED_AT = 6 * PIECES
"""Pieces, the one of which that waited least counts."""
_KEPT_PIECES = 10 * PIECES


class Playout:
    """Places pieces on the clock, one behind the other, and hands out picture and sound of each slot.

    A piece that comes late begins when it comes, with a pause before it, picture and sound alike: all that follow are
    as late. Where each of the latest pieces had to wait, a picture of a pause is left out, with its sound, until they
    hardly wait any more.
    """

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, LivePiece]] = deque(maxlen=_KEPT_PIECES)
        """With their first slots."""
        self._waited: deque[int] = deque(maxlen=LOOKED_AT)
        """Slots, of the latest pieces."""
        self._end = -1
        self.waiting_slots = 0
        """How long the first piece of the latest block had to wait for its turn."""
        self._skipped_pieces = 0

    @property
    def skipped_blocks(self) -> int:
        """As many as were left out to catch up; a part of one counts."""
        return -(-self._skipped_pieces // PIECES)

    def put(self, piece: LivePiece, now: int) -> None:
        """Place a piece; `now` is the slot that is due."""
        begin = self._end if self._end >= now else now + CUSHION_SLOTS
        behind = begin - now
        if behind > MOST_BEHIND_SLOTS or (behind > BEHIND_SLOTS and not piece.spoken):
            self._skipped_pieces += 1
            return
        self._waited.append(behind)
        if piece.place == 0:
            self.waiting_slots = behind
        piece = self._shortened(piece)
        self._pieces.append((begin, piece))
        self._end = begin + IMAGE_SLOTS * len(piece.images)

    def audio(self, slot: int) -> np.ndarray:
        """The sound of a slot, float32 [960]; silence where no piece is."""
        for begin, piece in self._pieces:
            start = (slot - begin) * SLOT_SAMPLES
            if 0 <= start < len(piece.audio):
                return piece.audio[start : start + SLOT_SAMPLES]
        return np.zeros(SLOT_SAMPLES, np.float32)

    def image(self, after: int, until: int) -> tuple[int, np.ndarray] | None:
        """The latest picture, uint8 [H, W, 3], that begins behind slot `after` and by `until`, and when it does."""
        for begin, piece in reversed(self._pieces):
            number = min((until - begin) // IMAGE_SLOTS, len(piece.images) - 1)
            if number >= 0 and (slot := begin + number * IMAGE_SLOTS) > after:
                return slot, piece.images[number]
        return None

    def _shortened(self, piece: LivePiece) -> LivePiece:
        """The piece without its first picture, where all pieces wait longer than they need to, and it is a pause."""
        spare = min(self._waited) - CUSHION_SLOTS if len(self._waited) == LOOKED_AT else 0
        if spare < IMAGE_SLOTS or np.abs(piece.audio).max() > QUIET:
            return piece
        self._waited = deque((waited - IMAGE_SLOTS for waited in self._waited), LOOKED_AT)
        sound = piece.audio[IMAGE_SLOTS * SLOT_SAMPLES :]
        return dataclasses.replace(piece, images=piece.images[1:], audio=sound)
