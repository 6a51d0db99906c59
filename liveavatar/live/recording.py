"""The recording of a talk as an ordinary MP4 file, written while it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from ..config import FPS
from ..media.audio import AudioClip
from ..media.video import VideoWriter
from .audio_feed import OUTPUT_RATE
from .block import LiveBlock, LivePiece


class TalkRecording:
    """Writes the blocks of a live session to an MP4 of any length, in constant memory.

        with TalkRecording(Path("talk.mp4"), width, height) as recording:
            for block in live.blocks():
                recording.write(block)  # the file plays while it grows
        recording.seconds               # of an ordinary MP4; without a block there is no file

    Args:
        path: where to; see `check_writable`, which belongs before the heavy work.
        width, height: pixels of the images, even.
        details: kept in the file's header as JSON.

    Raises:
        SizeError: an odd width or height.
    """

    def __init__(self, path: Path, width: int, height: int, details: Mapping[str, Any] | None = None):
        self.path, self._samples = path, _GrowingSamples()
        clip = AudioClip(cast(np.ndarray, self._samples), OUTPUT_RATE, "live")
        comment = json.dumps(dict(details or {}), ensure_ascii=False)
        self._writer = VideoWriter(path, width, height, clip, None, {"title": "Live Avatar", "comment": comment})

    @property
    def frames(self) -> int:
        """Images so far."""
        return self._writer.frames_written

    @property
    def seconds(self) -> float:
        """Length so far."""
        return self.frames / FPS

    @property
    def note(self) -> str | None:
        """Why the closed file still is in fragments; None where it is not."""
        return self._writer.note

    @property
    def frames_sha256(self) -> str:
        """See `VideoWriter`."""
        return self._writer.frames_sha256

    def write(self, part: LiveBlock | LivePiece) -> None:
        """Append a block, or a piece of one.

        Raises:
            OutputError: the file cannot be created or continued; what was written before stays playable.
        """
        self._samples.append(part.audio)
        self._writer.write(part.images)

    def close(self) -> None:
        """Make it an ordinary MP4. May be called again.

        Raises:
            OutputError: its end could not be written.
        """
        self._writer.close()

    def __enter__(self) -> TalkRecording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)


class _GrowingSamples:
    """The samples of an AudioClip that grows, float32 [n, 1]; what was read is forgotten."""

    def __init__(self) -> None:
        self._kept, self._forgotten = np.zeros((0, 1), np.float32), 0

    def __len__(self) -> int:
        return self._forgotten + len(self._kept)

    @property
    def shape(self) -> tuple[int, int]:
        """Samples and channels."""
        return len(self), 1

    def append(self, samples: np.ndarray) -> None:
        """Add float32 [n]."""
        self._kept = np.concatenate([self._kept, samples[:, None]])

    def __getitem__(self, wanted: slice) -> np.ndarray:
        found = self._kept[wanted.start - self._forgotten : wanted.stop - self._forgotten]
        self._kept, self._forgotten = self._kept[wanted.stop - self._forgotten :], wanted.stop
        return found
