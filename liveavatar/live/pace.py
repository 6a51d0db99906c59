"""When the next block begins and what is said in it: speech as it comes, silence where nobody speaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from ..config import AUDIO_SAMPLE_RATE
from .audio_feed import BLOCK_SAMPLES, BLOCK_SECONDS, AudioFeed, BlockAudio

LOOKAHEAD_SECONDS = 0.08
"""Sound after a block that its features know; the mouth opens before its sound."""
PATIENCE_SECONDS = 0.2
"""Sound that does not come for so long has paused."""
_POLL_SECONDS = 0.02


class Pace:
    """Takes the sound of one block after the other from the feed of each speaker.

    In real time, blocks begin every 0.48 s. Speech begins inside a block, so that with its look-ahead it is there; a
    block in which nobody speaks is silent. Speech that had to wait is caught up with: its blocks begin at once until
    they are in time again. Otherwise blocks begin as soon as their sound and its look-ahead are there, and nothing is
    filled in but behind an utterance: the same sound gives the same blocks, however it was pushed.

    Of several speakers, each begins and pauses alone. A block waits for those who are speaking: in real time no longer
    than for a pause, otherwise until their sound comes, or its end is told.

    Args:
        feeds: where the sound of each speaker comes from.
        lookahead: seconds.
        real_time: see above.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        feeds: Sequence[AudioFeed],
        lookahead: float = LOOKAHEAD_SECONDS,
        real_time: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.ahead, self.real_time = round(lookahead * AUDIO_SAMPLE_RATE), real_time
        self._turns = tuple(_Turn(feed, self.ahead, real_time) for feed in feeds)
        self._clock = clock
        self._stopped = threading.Event()
        self._due: float | None = None
        self._due_lock = threading.Lock()  # blocks may begin in another thread than they are handed out
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

    def next_audio(self, wait: bool) -> tuple[BlockAudio, ...] | Literal["later", "never"]:
        """What each speaker says in the next block; "later" where it would have to be waited for, "never" after the
        last one.

        Args:
            wait: until it is there.
        """
        while not self._stopped.is_set():
            if all(turn.is_over for turn in self._turns):
                return "never"
            silences = [turn.silence_before() for turn in self._turns] if self._is_time() else [None]
            known = [silence for silence in silences if silence is not None]
            if len(known) == len(self._turns) and (self.real_time or min(known) < BLOCK_SAMPLES):
                return self._take(known)
            if not wait:
                return "later"
            unknown = silences.index(None) if None in silences else 0
            self._turns[unknown].feed.wait_for_change(_POLL_SECONDS)
        return "never"

    def stop(self) -> None:
        """Let no more blocks begin."""
        self._stopped.set()

    def _is_time(self) -> bool:
        return not self.real_time or self._due is None or self._clock() >= self._due

    def _take(self, silences: Sequence[int]) -> tuple[BlockAudio, ...]:
        audio = tuple(turn.take(silence) for turn, silence in zip(self._turns, silences, strict=True))
        now = self._clock()
        with self._due_lock:
            due = now if self._due is None else self._due
            is_silent = not any(one.spoken for one in audio)
            starts_anew = is_silent and now - due >= BLOCK_SECONDS  # silence has nothing to catch up with
            self._due = (now if starts_anew else due) + BLOCK_SECONDS
        self._was_late = self.real_time and self._is_late(due)
        self.late_blocks += self._was_late
        return audio

    def _is_late(self, due: float) -> bool:
        return self._clock() - due > BLOCK_SECONDS / 2


class _Turn:
    """What one speaker says in the next block.

    Args:
        feed: of the speaker.
        ahead: samples of look-ahead, at 16 kHz.
        real_time: see `Pace`.
    """

    def __init__(self, feed: AudioFeed, ahead: int, real_time: bool):
        self.feed, self._ahead, self._real_time = feed, ahead, real_time
        self._in_speech = False

    @property
    def is_over(self) -> bool:
        """Whether nothing will be said any more."""
        return self.feed.ended and not self.feed.queued

    def silence_before(self) -> int | None:
        """Samples of silence in front of what is said in the next block; None: that is not known yet."""
        queued, whole = self.feed.waiting
        if queued >= BLOCK_SAMPLES + self._ahead or (queued and whole):
            return 0
        if not self._real_time:
            return BLOCK_SAMPLES if whole else None
        has_paused = whole or self.feed.seconds_since_push > PATIENCE_SECONDS
        if not queued:
            return BLOCK_SAMPLES if not self._in_speech or has_paused else None
        if not self._in_speech:
            return BLOCK_SAMPLES - max(0, queued - self._ahead)
        return 0 if has_paused else None

    def take(self, silence: int) -> BlockAudio:
        """Take it from the feed, behind so much silence."""
        audio = self.feed.take(self._ahead, silence)
        self._in_speech = audio.silence + audio.spoken == BLOCK_SAMPLES and audio.spoken > 0
        return audio
