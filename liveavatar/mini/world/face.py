"""The head without hair: where its parts lie, and everything on it that does not move by itself."""

from __future__ import annotations

import dataclasses

from PIL import Image

from .canvas import UNITS, Canvas, Outline, ellipse, mirrored
from .identity import Identity
from .palette import darker, lighter, mix

Point = tuple[float, float]
MIDDLE = UNITS / 2
EYE_Y, MOUTH_Y = 248.0, 341.0
_OUTLINE: Outline = [(256, 96), (196, 104), (154, 146), (138, 210), (140, 268), (154, 322), (186, 366), (224, 390)]
_OUTLINE.append((256, 395))


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where the parts of a face lie, in drawing units.

    Attributes:
        outline: left half from crown to chin.
        eye_x: of the left eye; the right one mirrors it.
        mouth_y: where closed lips meet.
        mouth_half: half the width of the mouth at rest.
        chin_y: lowest point.
    """

    outline: tuple[Point, ...]
    eye_x: float
    mouth_y: float
    mouth_half: float
    chin_y: float

    @classmethod
    def of(cls, identity: Identity) -> Geometry:
        """Stretch the average face."""
        chin = 400 + 14 * identity.chin
        corner = {5: 5.0, 6: 16.0, 7: 15.0}
        points = []
        for i, (x, y) in enumerate(_OUTLINE):
            x -= corner.get(i, 0.0) * identity.jaw
            y = y if y < 268 else 268 + (y - 268) * (chin - 268) / 127
            points.append((MIDDLE + (x - MIDDLE) * identity.face_width, y))
        stretch = (chin - 268) / 127
        return cls(
            tuple(points),
            eye_x=MIDDLE - 50 * identity.eye_spacing * (0.5 + 0.5 * identity.face_width),
            mouth_y=268 + (MOUTH_Y - 268) * (0.6 + 0.4 * stretch),
            mouth_half=42 * identity.mouth_width,
            chin_y=chin,
        )

    def across(self, x: float) -> float:
        """A horizontal position of the average face, moved with the width of this one."""
        return MIDDLE + (x - MIDDLE) * (MIDDLE - self.outline[4][0]) / 116


def draw_ears(c: Canvas, who: Identity, where: Geometry) -> None:
    """Both ears, to be drawn before the face."""
    dx = where.across(142) - 142
    left = [(x + dx, y) for x, y in ((146, 244), (128, 236), (118, 252), (123, 284), (135, 304), (150, 300))]
    for points, middle in ((left, 133 + dx), (mirrored(left), UNITS - 133 - dx)):
        mask = c.shape(points, who.tones.base)
        c.shade(ellipse(middle, 270, 6, 18), who.tones.shade, 3, 0.9, mask)
        if who.earrings:
            c.disc(middle, 308, 6.5, 6.5, (246, 206, 96))
            c.disc(middle - 1.5, 306, 2.5, 2.5, (255, 244, 200))


def draw_face(c: Canvas, who: Identity, where: Geometry, mood: str) -> Image.Image:
    """Skin with its shading, beard, nose, freckles and cheeks; returns the mask of the face."""
    tones, half = who.tones, list(where.outline)
    mask = c.shape(half + mirrored(half)[1:-1], tones.base)
    c.shade([(256, 116), (190, 124), (150, 190), (160, 216), (256, 190), (352, 216), (362, 190), (322, 124)],
            tones.shade, 12, 0.7, mask)  # fmt: skip
    side: Outline = [(120, 200), (146, 220), (156, 300), (196, 370), (170, 410), (110, 330)]
    side = [(where.across(x), y) for x, y in side]
    for points in (side, mirrored(side)):
        c.shade(points, tones.shade, 10, 0.5, mask)
    if who.beard:
        _beard(c, who, where, mask)
    else:
        c.shade(ellipse(MIDDLE, where.chin_y - 20, 30, 9), tones.light, 7, 0.5, mask)
    _cheeks(c, who, where, mood, mask)
    _nose(c, who, mask)
    return mask


def _cheeks(c: Canvas, who: Identity, where: Geometry, mood: str, mask: Image.Image) -> None:
    blush = {"cheerful": 1.0, "neutral": 0.5, "stern": 0.0}[mood]
    size = 1.25 if mood == "cheerful" else 1.0
    for x in (where.across(180), UNITS - where.across(180)):
        if blush:
            c.shade(ellipse(x, 300, 27 * size, 19 * size), who.tones.blush, 8, blush, mask)
    if who.freckles:
        spot = darker(mix(who.skin, (196, 110, 64), 0.5), 0.1)
        for x, y in ((180, 284), (192, 293), (206, 286), (168, 295), (214, 297)):
            for at in (where.across(x), UNITS - where.across(x)):
                c.disc(at, y, 2.6, 2.6, spot)


def _nose(c: Canvas, who: Identity, mask: Image.Image) -> None:
    s, tones = who.nose, who.tones
    c.shade(ellipse(MIDDLE, 278, 7, 28), tones.light, 5, 0.8, mask)
    c.shade(ellipse(MIDDLE, 312, 21 * s, 8), tones.shade, 5, 0.8, mask)
    path = [(MIDDLE + x * s, y) for x, y in ((-17, 303), (-12, 310), (0, 313.5), (12, 310), (17, 303))]
    c.line(path, (2, 4, 2), darker(mix(tones.shade, (160, 70, 50), 0.4), 0.15))


def _beard(c: Canvas, who: Identity, where: Geometry, mask: Image.Image) -> None:
    """Along the jaw and under the mouth; the lips keep a ring of skin."""
    hair = mix(who.hair, who.skin, 0.12)
    y = where.mouth_y
    half: Outline = [(where.across(x), at) for x, at in ((126, 262), (148, 268), (164, 318), (192, 350))]
    half += [(214, y + 46), (236, y + 51), (MIDDLE, y + 52)]
    half += [(MIDDLE, 450), (150, 440), (100, 340)]
    beard = c.shape(half, hair, mask)
    c.shade(ellipse(where.across(170), 380, 30, 30), darker(hair, 0.3), 10, 0.7, beard)
    other = c.shape(mirrored(half), hair, mask)
    c.shade(ellipse(UNITS - where.across(170), 380, 30, 30), darker(hair, 0.3), 10, 0.7, other)
    c.shade(ellipse(MIDDLE, y + 62, 30, 5), lighter(hair, 0.25), 5, 0.6, mask)


def draw_brows(c: Canvas, who: Identity, where: Geometry, mood: str) -> None:
    """Raised and round when cheerful, low and drawn together when stern."""
    inner, middle, outer = {"cheerful": (-5, -12, -4), "neutral": (0, 0, 0), "stern": (13, 0, -7)}[mood]
    arch, weight = 3 * who.brow_arch, who.brow_weight
    x = where.eye_x - 206
    close = 6 if mood == "stern" else 0
    path = [(166 + x, 213 + outer), (184 + x, 203 - arch + (outer + middle) / 2), (208 + x, 201 - arch + middle),
            (234 + x + close, 208 + inner)]  # fmt: skip
    widths = (4 * weight, 10 * weight, 6 * weight)
    c.line(path, widths, who.brow)
    c.line(mirrored(path), widths[::-1], who.brow)
    if mood == "stern":
        furrow = mix(who.tones.shade, (120, 60, 40), 0.3)
        for flip in (1, -1):
            c.line([(MIDDLE + flip * 7, 206), (MIDDLE + flip * 5, 222)], (1, 3, 1), furrow)


def draw_glasses(c: Canvas, who: Identity, where: Geometry) -> None:
    """A frame around both eyes."""
    if who.glasses == "none":
        return
    ink = (52, 44, 56)
    dx = MIDDLE - where.eye_x
    for flip in (-1, 1):
        x = MIDDLE + flip * dx
        if who.glasses == "round":
            ring = ellipse(x, EYE_Y + 3, 41, 38)
        else:
            ring = [(x - 40, 224), (x, 220), (x + 40, 224), (x + 43, 250)]
            ring += [(x + 34, 280), (x, 284), (x - 34, 280), (x - 43, 250)]
        c.ring(ring, 6, ink)
        ear = where.across(142) if flip < 0 else UNITS - where.across(142)
        c.line([(x + flip * 40, 240), (ear, 238)], (6, 5, 4), ink)
    c.line([(MIDDLE - dx + 38, 246), (MIDDLE, 239), (MIDDLE + dx - 38, 246)], (5, 6, 5), ink)
