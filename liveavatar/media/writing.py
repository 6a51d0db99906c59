"""Writing a video in a thread of its own, while the next frames are made."""

from __future__ import annotations

import queue
import threading
from types import TracebackType

import numpy as np

from .video import VideoWriter

_DEPTH = 2
"""Blocks that wait to be written at most; whoever makes more waits, so memory stays flat."""


class WriterThread:
    """Colour conversion, hashing, encoding and writing of frames in another thread; as a context manager.

    What was accepted is written before the context is left, however it is left, unless writing fails: then that error
    is raised by the next `write`, or at the end.

    Args:
        writer: used by nobody else inside.
    """

    def __init__(self, writer: VideoWriter):
        self._writer = writer
        self._waiting: queue.Queue[np.ndarray | None] = queue.Queue(_DEPTH)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="liveavatar-writer", daemon=True)
        self.frames = writer.frames_written
        """Frames that were accepted."""

    def write(self, rgb: np.ndarray) -> None:
        """Append frames uint8 [n, height, width, 3], which must not be changed any more; waits while two blocks wait.

        Raises:
            Whatever `VideoWriter.write` raised for earlier ones.
        """
        self._raise()
        self._waiting.put(rgb)
        self.frames += len(rgb)

    def __enter__(self) -> WriterThread:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def _run(self) -> None:
        while (rgb := self._waiting.get()) is not None:
            if self._error is None:
                try:
                    self._writer.write(rgb)
                except BaseException as failure:  # it belongs to the thread that makes the frames
                    self._error = failure

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
