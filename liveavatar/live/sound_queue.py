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
    """Hands sounds to a session, each to the speaker who says it. May be used from any thread.

    Args:
        sounds: of each speaker, from the first one on: any rate and channels, which follow each other without a pause.
            All speakers begin together.
        then_end: whether the session ends when all is said.
    """

    def __init__(self, *sounds: Sequence[AudioClip], then_end: bool = False):
        self._tracks, self._then_end = [_Track(each) for each in sounds], then_end
        self._changed = threading.Lock()
        self.over = not any(sounds) and not then_end
        """Whether all has been handed out."""

    def feed(self, session: LiveSession) -> None:
        """Hand out what there is room for; to be called at least once a second of what is said."""
        with self._changed:
            if self.over:
                return
            for speaker, track in enumerate(self._tracks, 1):
                while not track.over and session.feeds[speaker - 1].queued_seconds < AHEAD_SECONDS:
                    if (piece := track.next_piece()) is not None:
                        session.push(*piece, speaker)
                    else:
                        track.over = True
                        session.end_of_speech(speaker)
            self.over = all(track.over for track in self._tracks)
            if self.over and self._then_end:
                session.end()

    def clear(self, speaker: int | None = None) -> None:
        """Say no more of them, of one speaker or of all."""
        with self._changed:
            for number, track in enumerate(self._tracks, 1):
                if speaker in (None, number):
                    track.clear()


class _Track:
    """What one speaker says, in pieces.

    Args:
        sounds: one after the other.
    """

    def __init__(self, sounds: Sequence[AudioClip]):
        self._sounds, self._position = deque(sounds), 0
        self.over = False
        """Whether its end has been told."""

    def next_piece(self) -> tuple[np.ndarray, int] | None:
        """The next second, mono, and its rate; None after the last one."""
        if not self._sounds:
            return None
        sound = self._sounds[0]
        begin, self._position = self._position, self._position + round(_PIECE_SECONDS * sound.rate)
        piece = np.asarray(sound.samples[begin : self._position], np.float32)
        if self._position >= len(sound.samples):
            self._sounds.popleft()
            self._position = 0
        channel = sound.mixdown.channel
        return piece.mean(1, dtype=np.float32) if channel is None else piece[:, channel], sound.rate

    def clear(self) -> None:
        """Say no more."""
        self._sounds.clear()
        self._position = 0
