"""Eyes with lids that close."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .canvas import UNITS, Canvas, spline
from .face import EYE_Y, Geometry
from .identity import Identity
from .palette import INK, RGB, darker, lighter, mix

_TOP = np.array([(-34, 3), (-20, -10), (-2, -17.5), (17, -12), (31, 3)], np.float64)
_BOTTOM = np.array([(-34, 3), (-19, 13), (-2, 18), (16, 13.5), (31, 3)], np.float64)
_LIDS = {"neutral": (0.0, 0.0), "cheerful": (0.0, 0.2), "stern": (0.2, 0.0)}
"""How far the upper and the lower lid stand in the eye at rest, 0..1."""


def draw_eyes(c: Canvas, who: Identity, where: Geometry, mood: str, blink: float) -> None:
    """Both eyes, closed by `blink` 0..1."""
    upper, lower = _LIDS[mood]
    closed = upper + (1 - upper) * blink
    for flip in (1, -1):
        _eye(c, who, where, flip, closed, lower * (1 - blink))


def _eye(c: Canvas, who: Identity, where: Geometry, flip: int, closed: float, raised: float) -> None:
    x = where.eye_x if flip > 0 else UNITS - where.eye_x
    size = np.array([flip, 1.0]) * who.eye_size

    def at(points: np.ndarray) -> np.ndarray:
        return points * size + (x, EYE_Y)

    top, bottom = at(_TOP), at(_BOTTOM)
    low = bottom + raised * (top - bottom)
    rim = top + 0.92 * closed * (low - top)
    ball = c.outline(np.vstack([spline(rim.tolist(), False), spline(low.tolist(), False)[::-1]]))
    c.fill(c.outline(np.vstack([spline(top.tolist(), False), spline(bottom.tolist(), False)[::-1]])), who.tones.shade)
    if closed < 0.95:
        _ball(c, who, x, ball)
    lash = (4, 7.5, 4) if who.lashes else (3, 6, 3)
    c.line(rim.tolist(), lash, INK)
    if who.lashes:
        px, py = rim[0].tolist()
        c.line([(px + 4 * flip, py), (px - 6 * flip, py - 3), (px - 11 * flip, py - 9)], (5, 3.5, 1.5), INK)
    c.line(low[1:-1].tolist(), (1, 2, 1), mix(who.tones.shade, (110, 60, 44), 0.4))
    crease = (top + 0.45 * closed * (bottom - top) + (0, -8))[1:-1]
    c.line(crease.tolist(), (0.6, 2.4, 0.6), mix(who.tones.shade, (110, 60, 44), 0.3))


def _ball(c: Canvas, who: Identity, x: float, inside: Image.Image) -> None:
    """White, iris, pupil and two lights."""

    s, y = who.eye_size, EYE_Y
    iris: RGB = who.iris
    c.fill(inside, (255, 251, 246))
    c.disc(x, y, 17.5 * s, 18 * s, darker(iris, 0.4), inside)
    c.disc(x, y + 0.5, 15 * s, 15.5 * s, iris, inside)
    c.disc(x, y + 6, 10 * s, 8.5 * s, lighter(iris, 0.3), inside)
    c.disc(x, y, 8.4 * s, 9 * s, (20, 15, 16), inside)
    c.disc(x + 5.5 * s, y - 6, 4.6 * s, 4.6 * s, (255, 255, 255), inside)
    c.disc(x - 5 * s, y + 7, 2.4, 2.4, (240, 255, 250), inside)
