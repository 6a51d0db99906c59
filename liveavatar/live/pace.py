"""When the next block begins and what is said in it: speech as it comes, silence where nobody speaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

from ..config import AUDIO_SAMPLE_RATE
from .audio_feed import BLOCK_SAMPLES, BLOCK_SECONDS, AudioFeed, BlockAudio

LOOKAHEAD_SECONDS = 0.16
"""Sound after a block that its features know; the mouth opens before its sound."""
PATIENCE_SECONDS = 0.2
"""Sound that does not come for so long has paused."""
_POLL_SECONDS = 0.02


class Pace:
    """Takes the sound of one block after the other from a feed.

    In real time, blocks begin every 0.48 s. Speech begins inside a block, so that with its look-ahead it is there; a
    block in which nobody speaks is silent. Speech that had to wait is caught up with: its blocks begin at once until
    they are in time again. Otherwise blocks begin as soon as their sound and its look-ahead are there, and nothing is
    filled in but behind an utterance: the same sound gives the same blocks, however it was pushed.

    Args:
        feed: where sound comes from.
        lookahead: seconds.
        real_time: see above.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        feed: AudioFeed,
        lookahead: float = LOOKAHEAD_SECONDS,
        real_time: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.feed, self.ahead, self.real_time = feed, round(lookahead * AUDIO_SAMPLE_RATE), real_time
        self._clock = clock
        self._stopped = threading.Event()
        self._due: float | None = None
        self._due_lock = threading.Lock()  # blocks may begin in another thread than they are handed out
        self._in_speech = False
        self.late_blocks = 0
        """Blocks that began more than half a block after their time."""
        self._was_late = False

    @property
    def is_late(self) -> bool:
        """Whether the latest block began late, or the next one is late already."""
        due = self._due
        return self._was_late or (self.real_time and due is not None and self._is_late(due))

    def hold(self, seconds: float) -> None:
        """Let all that follows be due so much later: nobody has read what was made."""
        with self._due_lock:
            if self._due is not None:
                self._due += seconds

    def next_audio(self, wait: bool) -> BlockAudio | Literal["later", "never"]:
        """The sound of the next block; "later" where it would have to be waited for, "never" after the last one.

        Args:
            wait: until it is there.
        """
        while not self._stopped.is_set():
            if self.feed.ended and not self.feed.queued:
                return "never"
            silence = self._silence_before() if self._is_time() else None
            if silence is not None:
                return self._take(silence)
            if not wait:
                return "later"
            self.feed.wait_for_change(_POLL_SECONDS)
        return "never"

    def stop(self) -> None:
        """Let no more blocks begin."""
        self._stopped.set()

    def _is_time(self) -> bool:
        return not self.real_time or self._due is None or self._clock() >= self._due

    def _silence_before(self) -> int | None:
        """Samples of silence in front of what is said in the next block; None: that is not known yet."""
        queued = self.feed.queued
        if queued >= BLOCK_SAMPLES + self.ahead or (queued and self.feed.whole_utterance):
            return 0
        if not self.real_time:
            return None
        if not queued:
            return BLOCK_SAMPLES if not self._in_speech or self._has_paused else None
        if not self._in_speech:
            return BLOCK_SAMPLES - max(0, queued - self.ahead)
        return 0 if self._has_paused else None

    @property
    def _has_paused(self) -> bool:
        return self.feed.whole_utterance or self.feed.seconds_since_push > PATIENCE_SECONDS

    def _take(self, silence: int) -> BlockAudio:
        audio = self.feed.take(self.ahead, silence)
        self._in_speech = audio.silence + audio.spoken == BLOCK_SAMPLES and audio.spoken > 0
        now = self._clock()
        with self._due_lock:
            due = now if self._due is None else self._due
            starts_anew = not audio.spoken and now - due >= BLOCK_SECONDS  # silence has nothing to catch up with
            self._due = (now if starts_anew else due) + BLOCK_SECONDS
        self._was_late = self.real_time and self._is_late(due)
        self.late_blocks += self._was_late
        return audio

    def _is_late(self, due: float) -> bool:
        return self._clock() - due > BLOCK_SECONDS / 2
