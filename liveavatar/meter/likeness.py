"""Likeness: how far the face of a video is from that of the portrait, as time goes by. Pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Likeness:
    """How near the faces of a stretch are to a reference.

    Attributes:
        distance: on average, in the unit of the reader; None where no face was compared.
        farthest: the largest one.
        compared: how many faces.
    """

    distance: float | None = None
    farthest: float | None = None
    compared: int = 0


def likeness(distances: Sequence[float] | np.ndarray) -> Likeness:
    """Of a stretch."""
    if not len(distances):
        return Likeness()
    return Likeness(round(float(np.mean(distances)), 3), round(float(np.max(distances)), 3), len(distances))


def drift(times: Sequence[float], distances: Sequence[float]) -> float | None:
    """How much the distance grows in a minute (a straight line through all); None of less than ten seconds."""
    if len(times) < 3 or times[-1] - times[0] < 10:
        return None
    return round(float(np.polyfit(np.asarray(times) / 60, np.asarray(distances), 1)[0]), 4)
