"""The mouth: lips, the dark inside, teeth and tongue, as curves of opening and width."""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw

from .canvas import View
from .face import MIDDLE, Geometry
from .identity import Identity
from .palette import MOUTH_DARK, TEETH, TONGUE

OPEN_UNITS = 50.0
"""Height of the inside of a wide open mouth, in drawing units."""
REACH_UP, REACH_DOWN, REACH_SIDE = 34.0, 66.0, 76.0
"""How far from the middle of closed lips a mouth paints, in drawing units, with a margin."""
_SMILES = {"neutral": 9.0, "cheerful": 19.0, "stern": -9.0}
_U = np.linspace(-1, 1, 33)
_BOW = 1 - np.abs(_U) ** 2.2
_THICK = (1 - np.abs(_U) ** 2.4) ** 0.6
_CUPID = 1 - 0.28 * np.exp(-((_U / 0.13) ** 2))
_MIDDLE = np.abs(_U) < 0.86


class MouthPainter:
    """Paints the mouth of one person in one mood onto a crop of the canvas.

    Args:
        view: of the picture; per_pixel: canvas samples per pixel; corner: upper left corner of the crop, in samples.
    """

    def __init__(self, who: Identity, where: Geometry, mood: str, view: View, per_pixel: int, corner: tuple[int, int]):
        self._tones, self._where = who.tones, where
        self._smile = _SMILES[mood]
        self._scale = view.scale * per_pixel
        ox, oy = view.origin
        self._shift = np.array([ox * per_pixel - corner[0], oy * per_pixel - corner[1]])

    def paint(self, draw: ImageDraw.ImageDraw, opening: float, width: float) -> None:
        """Draw with opening 0..1 and width -1 (rounded) to 1 (spread)."""
        inside = OPEN_UNITS * opening
        half = self._where.mouth_half * (1 + (0.22 if width > 0 else 0.36) * width) * (1 - 0.08 * opening)
        x = MIDDLE + half * _U
        pout = max(0.0, -width)
        rest = self._where.mouth_y + 3 - self._smile * (1 - 0.35 * opening) * (np.abs(_U) ** 2 - 0.35)
        top = rest - 0.24 * inside * _BOW
        bottom = rest + 0.76 * inside * _BOW
        upper = top - (8.5 + 3.5 * pout) * _THICK * _CUPID
        lower = bottom + (11.0 + 3.5 * pout) * _THICK
        self._band(draw, x, upper, lower, self._tones.lip)
        shine = np.abs(_U) < 0.5
        mid = bottom + 5.5
        self._band(draw, x[shine], (mid - 2.4 * _BOW)[shine], (mid + 2.4 * _BOW)[shine], self._tones.lip_light)
        line = 2.0
        self._band(draw, x, top - line, bottom + line, self._tones.lip_line)
        if inside > 1.5:
            self._inside(draw, x, top, bottom, inside)

    def _inside(
        self, draw: ImageDraw.ImageDraw, x: np.ndarray, top: np.ndarray, bottom: np.ndarray, inside: float
    ) -> None:
        self._band(draw, x, top, bottom, MOUTH_DARK)
        tongue, teeth = 0.3 * (inside - 12), 0.22 * (inside - 5)
        # Pillow fills the border too: a shape of no height would still be a line, and the inside not grow evenly.
        if tongue > 1:
            edge = bottom - (tongue - 1) * np.clip(1 - (_U / 0.72) ** 2, 0, 1)
            self._band(draw, x, np.maximum(edge, top), bottom, TONGUE)
        if teeth > 1:
            edge = np.minimum(top + (teeth - 1) * np.clip(1 - (_U / 0.9) ** 6, 0, 1), bottom)
            self._band(draw, x[_MIDDLE], top[_MIDDLE], edge[_MIDDLE], TEETH)

    def _band(
        self, draw: ImageDraw.ImageDraw, x: np.ndarray, top: np.ndarray, bottom: np.ndarray, colour: tuple[int, ...]
    ) -> None:
        """Fill between two curves over the same x."""
        path = np.concatenate([np.stack([x, top], 1), np.stack([x, bottom], 1)[::-1]])
        draw.polygon((path * self._scale + self._shift).ravel().tolist(), fill=colour)
