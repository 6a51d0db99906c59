"""One talk: a live session whose pieces are shown to whoever watches, and who may come back after a cut."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

import numpy as np

from ..errors import RequestError
from .block import LivePiece
from .session import LiveSession
from .sound_queue import SoundQueue

Show = Callable[[LivePiece], None]
"""Shows a piece of the video to a viewer; called in the talk's own thread, and never waits for the viewer."""


class Talk:
    """Reads a session and hands its pieces to one viewer at a time.

    Without a viewer the avatar goes on talking, and nothing is encoded for one.

    Args:
        session: belongs to the talk from now on.
        on_end: called in the talk's thread when the session has ended, with what ended it or None.
        record: called with every piece; slower than real time it delays the avatar.
        sounds: said first; until then nobody else is heard.
        most_blocks: it ends after so many.
    """

    def __init__(
        self,
        session: LiveSession,
        on_end: Callable[[BaseException | None], None],
        record: Callable[[LivePiece], None] | None = None,
        sounds: SoundQueue | None = None,
        most_blocks: int | None = None,
    ):
        self.session, self.token = session, secrets.token_urlsafe(16)
        self.sounds = sounds or SoundQueue(())
        self._on_end, self._record, self._most_blocks = on_end, record, most_blocks
        self._changed = threading.Lock()
        self._viewer: Show | None = None
        self._going = threading.Event()
        self._going.set()
        self.last_heard = time.monotonic()
        """When the client last asked for anything, for whoever ends idle talks."""
        self._thread = threading.Thread(target=self._run, name="liveavatar-talk", daemon=True)
        self._thread.start()

    def watch(self, viewer: Show | None) -> None:
        """Show the video to this viewer from now on, in place of the one before; None: to nobody."""
        with self._changed:
            self._viewer = viewer

    def push(self, samples: np.ndarray, rate: int, speaker: int = 1) -> None:
        """Add sound of a speaker; a paused talk takes none, nor one that has something else to say first.

        Raises:
            RequestError: as `LiveSession.push`, or it is paused or not yet ready to listen.
        """
        if not self._going.is_set():
            raise RequestError("The talk is paused.", "Resume it first.")
        if not self.sounds.over:
            raise RequestError("The sounds that were given at the start are still being said.", "Interrupt them first.")
        self.session.push(samples, rate, speaker)

    def interrupt(self, speaker: int | None = None) -> float:
        """Drop what has not been said, the sounds of the start too; see `LiveSession.interrupt`."""
        self.sounds.clear(speaker)
        dropped = self.session.interrupt(speaker)
        self.sounds.feed(self.session)
        return dropped

    def pause(self) -> None:
        """Stand still."""
        self._going.clear()

    def resume(self) -> None:
        """Go on."""
        self._going.set()

    @property
    def paused(self) -> bool:
        """Whether it stands still."""
        return not self._going.is_set()

    def close(self) -> None:
        """End the talk and its session. May be called again."""
        self._going.set()
        self.session.close()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self.sounds.feed(self.session)
            for piece in self.session.pieces():
                self.sounds.feed(self.session)
                self._show(piece)
                if self._record is not None:
                    self._record(piece)
                if piece.is_last and piece.block + 1 == self._most_blocks:
                    break
                self._going.wait()
        except BaseException as caught:
            error = caught
        self.session.close()
        self._on_end(error)

    def _show(self, piece: LivePiece) -> None:
        with self._changed:
            if self._viewer is not None:
                self._viewer(piece)
