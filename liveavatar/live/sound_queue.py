"""Sounds that are said one after the other, before anybody else may speak."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

import numpy as np

from ..media.audio import AudioClip
from .session import LiveSession

AHEAD_SECONDS = 5.0
"""Sound that a session is given before it is said."""
_PIECE_SECONDS = 1.0


class SoundQueue:
    """Hands sounds to a session, whose first speaker says them. May be used from any thread.

    Args:
        sounds: any rate and channels; they follow each other without a pause.
        then_end: whether the session ends when all is said.
    """

    def __init__(self, sounds: Sequence[AudioClip], then_end: bool = False):
        self._sounds, self._then_end = deque(sounds), then_end
        self._position = 0
        self._changed = threading.Lock()
        self.over = not sounds and not then_end
        """Whether all has been handed out."""

    def feed(self, session: LiveSession) -> None:
        """Hand out what there is room for; to be called at least once a second of what is said."""
        with self._changed:
            while not self.over and session.feeds[0].queued_seconds < AHEAD_SECONDS:
                if self._sounds:
                    session.push(self._next_piece(self._sounds[0]), self._sounds[0].rate)
                    self._forget_finished()
                    continue
                self.over = True
                if self._then_end:
                    session.end()
                else:
                    session.end_of_speech(speaker=1)

    def clear(self) -> None:
        """Say no more of them."""
        with self._changed:
            self._sounds.clear()
            self._position = 0

    def _next_piece(self, sound: AudioClip) -> np.ndarray:
        """The next second of a sound, mono, and a step on in it."""
        begin, self._position = self._position, self._position + round(_PIECE_SECONDS * sound.rate)
        piece = np.asarray(sound.samples[begin : self._position], np.float32)
        channel = sound.mixdown.channel
        return piece.mean(1, dtype=np.float32) if channel is None else piece[:, channel]

    def _forget_finished(self) -> None:
        if self._position >= len(self._sounds[0].samples):
            self._sounds.popleft()
            self._position = 0
