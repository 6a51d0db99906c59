"""What moves in a talking face, at one video frame or over a whole video."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Pose:
    """One video frame.

    Attributes:
        opening: of the mouth, 0 (shut) to 1.
        width: of the mouth, -1 (rounded) to 1 (spread).
        blink: 0 (eyes open) to 1.
        dx, dy: of the head, in 128ths of the picture's shorter side, right and down.
        tilt: of the head, degrees clockwise.
    """

    opening: float = 0.0
    width: float = 0.0
    blink: float = 0.0
    dx: float = 0.0
    dy: float = 0.0
    tilt: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Track:
    """A pose for every video frame, 25 a second: float32 [n] each, with the meaning of `Pose`."""

    opening: np.ndarray
    width: np.ndarray
    blink: np.ndarray
    dx: np.ndarray
    dy: np.ndarray
    tilt: np.ndarray

    def __len__(self) -> int:
        return len(self.opening)

    def __getitem__(self, i: int) -> Pose:
        return Pose(*(float(getattr(self, f.name)[i]) for f in dataclasses.fields(Pose)))

    def poses(self) -> list[Pose]:
        """All frames in order."""
        return [self[i] for i in range(len(self))]
