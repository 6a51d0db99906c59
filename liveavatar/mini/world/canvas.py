"""Drawing in the coordinates of a 512 x 512 portrait, at four times the pixels of the picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .palette import RGB

UNITS = 512
"""Width and height of the portrait in drawing coordinates; (256, 256) is its middle."""
SUPERSAMPLING = 4
"""Canvas pixels per pixel of the picture, in each direction."""
ZOOM, ZOOM_X, ZOOM_Y = 1.12, 256.0, 290.0
"""How much larger than the coordinates say things are drawn, and the point that stays: a big mouth shows more."""
Points = Sequence[tuple[float, float]]
Outline = list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class View:
    """A picture of height x width pixels with the portrait in its middle."""

    height: int
    width: int

    @property
    def scale(self) -> float:
        """Pixels of the picture per drawing unit."""
        return ZOOM * min(self.height, self.width) / UNITS

    @property
    def origin(self) -> tuple[float, float]:
        """Where drawing unit (0, 0) lies, in pixels of the picture."""
        side = min(self.height, self.width)
        x = (self.width - side) / 2 + side / UNITS * ZOOM_X - self.scale * ZOOM_X
        y = (self.height - side) / 2 + side / UNITS * ZOOM_Y - self.scale * ZOOM_Y
        return x, y

    def to_pixels(self, points: np.ndarray | Points, per_pixel: float = 1.0) -> np.ndarray:
        """Drawing units [n, 2] to coordinates of a picture with so many samples per pixel."""
        return (np.asarray(points, np.float64) * self.scale + self.origin) * per_pixel


def spline(points: Points, closed: bool, pieces: int = 12) -> np.ndarray:
    """A Catmull-Rom spline through points, float64 [n, 2], with so many straight pieces between each two."""
    p = np.asarray(points, np.float64)
    ends = np.vstack([p[-1:], p, p[:2]]) if closed else np.vstack([p[:1], p, p[-1:]])
    a, b, c, d = (ends[i : len(ends) - 3 + i, None] for i in range(4))
    t = (np.arange(pieces) / pieces)[None, :, None]
    path = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    path = path.reshape(-1, 2)
    return path if closed else np.vstack([path, p[-1:]])


def mirrored(points: Points) -> Outline:
    """The points on the other side of the face, in reverse order so that outlines stay closed."""
    return [(UNITS - x, y) for x, y in reversed(points)]


def ellipse(x: float, y: float, rx: float, ry: float) -> Outline:
    """Twelve points of an upright ellipse."""
    a = np.arange(12) * np.pi / 6
    return list(zip(x + rx * np.cos(a), y + ry * np.sin(a), strict=True))


def stroke(points: Points, widths: tuple[float, float, float]) -> np.ndarray:
    """Outline [n, 2] of a smooth line whose width goes from the first over the middle to the last."""
    path = spline(points, closed=False)
    t = np.linspace(0, 1, len(path))
    radius = np.interp(t, [0, 0.5, 1], np.asarray(widths) / 2)[:, None]
    along = np.gradient(path, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    normal = np.stack([-along[:, 1], along[:, 0]], 1)
    turn = np.linspace(0, np.pi, 9)[1:-1, None]
    end = path[-1] + radius[-1] * (np.cos(turn) * normal[-1] + np.sin(turn) * along[-1])
    start = path[0] - radius[0] * (np.cos(turn) * normal[0] + np.sin(turn) * along[0])
    return np.vstack([path + radius * normal, end, (path - radius * normal)[::-1], start])


class Canvas:
    """An oversized layer: colours and how much of them covers what is behind."""

    def __init__(self, view: View, colour: RGB, opaque: bool = False):
        self.view = view
        size = (view.width * SUPERSAMPLING, view.height * SUPERSAMPLING)
        self.image = Image.new("RGB", size, colour)
        self.cover = Image.new("L", size, 255 if opaque else 0)

    def path(self, points: np.ndarray | Points) -> Outline:
        """Drawing units to canvas coordinates as Pillow takes them."""
        return [tuple(p) for p in self.view.to_pixels(points, SUPERSAMPLING).tolist()]

    def outline(self, path: np.ndarray | Points) -> Image.Image:
        """Mask of a polygon."""
        mask = Image.new("L", self.image.size, 0)
        ImageDraw.Draw(mask).polygon(self.path(path), fill=255)
        return mask

    def fill(self, mask: Image.Image, colour: RGB, inside: Image.Image | None = None) -> Image.Image:
        """Paint a mask, only inside another where one is given; returns what was painted."""
        if inside is not None:
            mask = ImageChops.multiply(mask, inside)
        self.image.paste(colour, mask=mask)
        self.cover = ImageChops.lighter(self.cover, mask)
        return mask

    def shape(self, points: Points, colour: RGB, inside: Image.Image | None = None) -> Image.Image:
        """Fill a smooth closed outline; returns its mask, for shading inside it."""
        return self.fill(self.outline(spline(points, closed=True)), colour, inside)

    def disc(
        self, x: float, y: float, rx: float, ry: float, colour: RGB, inside: Image.Image | None = None
    ) -> Image.Image:
        """Fill an upright ellipse; returns its mask."""
        return self.shape(ellipse(x, y, rx, ry), colour, inside)

    def line(
        self, points: Points, widths: tuple[float, float, float], colour: RGB, inside: Image.Image | None = None
    ) -> None:
        """A smooth stroke of changing width."""
        self.fill(self.outline(stroke(points, widths)), colour, inside)

    def ring(self, points: Points, width: float, colour: RGB) -> None:
        """A closed smooth line of even width."""
        path = spline(points, closed=True)
        along = np.roll(path, -1, axis=0) - np.roll(path, 1, axis=0)
        along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
        normal = np.stack([-along[:, 1], along[:, 0]], 1) * width / 2
        masks = self.outline(path + normal), self.outline(path - normal)
        self.fill(ImageChops.difference(*masks), colour)

    def shade(self, points: Points, colour: RGB, blur: float, strength: float, inside: Image.Image) -> None:
        """Tint a blurred outline inside a mask; blur in drawing units, strength 0..1."""
        w, h = self.image.size
        fine = 2 if min(self.view.height, self.view.width) <= 256 else 1  # samples per pixel; blurs need no more
        soft = Image.new("L", (self.view.width * fine, self.view.height * fine), 0)
        path = self.view.to_pixels(spline(points, closed=True), fine)
        ImageDraw.Draw(soft).polygon([tuple(p) for p in path.tolist()], fill=round(255 * strength))
        soft = soft.filter(ImageFilter.GaussianBlur(blur * self.view.scale * fine))
        mask = ImageChops.multiply(soft.resize((w, h), Image.Resampling.BILINEAR), inside)
        self.image.paste(colour, mask=mask)

    def layer(self) -> Image.Image:
        """The drawing as RGBA at canvas size."""
        out = self.image.copy()
        out.putalpha(self.cover)
        return out
