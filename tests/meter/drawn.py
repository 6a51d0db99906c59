"""The miniature's judge as a face reader: it knows who is drawn, and measures the drawing's mouth and the rest."""

from __future__ import annotations

import numpy as np

from liveavatar.meter.faces import Face
from liveavatar.mini.world.artist import Artist
from liveavatar.mini.world.identity import Identity
from liveavatar.mini.world.measure import opening, outside_mouth
from liveavatar.mini.world.motion import track
from liveavatar.mini.world.pose import Pose
from liveavatar.mini.world.speech import mouth

SIDE = 128


class DrawnReader:
    """Reads the drawings of one person."""

    name = "the judge of the drawn world"
    same_person = 15.0

    def __init__(self, identity: Identity):
        self._identity = identity
        self._mask = outside_mouth(identity, SIDE, SIDE)

    def read(self, frame: np.ndarray, embed: bool = False) -> Face:
        return Face(float(opening(frame[None], self._identity)[0]), self.embedding(frame) if embed else None)

    def embedding(self, picture: np.ndarray) -> np.ndarray:
        return picture[self._mask].astype(np.float32)

    def distance(self, a: np.ndarray, b: np.ndarray) -> float:
        """Mean absolute difference of the pixels outside mouth and eyes, 0..255."""
        return float(np.abs(a - b).mean())


def talking(identity: Identity, wave: np.ndarray, late_frames: int = 0) -> np.ndarray:
    """The true video of a sound at 16 kHz, its picture so many frames late: uint8 [n, SIDE, SIDE, 3]."""
    poses = list(track(mouth(wave)).poses())
    order = [poses[max(0, min(i - late_frames, len(poses) - 1))] for i in range(len(poses))]
    return Artist(identity, None, SIDE, SIDE).clip(order)


def portrait(identity: Identity) -> np.ndarray:
    return Artist(identity, None, SIDE, SIDE).frame(Pose())
