"""Draw the project's own portrait: a friendly face, head and shoulders, front view, mouth closed.

    python tools/draw_portrait.py [FOLDER]

writes `portrait.png` (512 x 512, the demo's picture) into liveavatar/mini/assets and `icon.png` (256 x 256) into docs,
or both into FOLDER. The picture is drawn at four times its size and reduced, with no randomness: same file every time.
"""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE = 512
SCALE = 4
"""Pixels drawn per pixel of the picture, in each direction."""

SKIN, SKIN_SHADE, SKIN_LIGHT, BLUSH = "#f7caa6", "#dfa27c", "#ffe0c4", "#f08f7d"
HAIR, HAIR_DARK, HAIR_LIGHT = "#5a3323", "#43241a", "#7c4a30"
JUMPER, JUMPER_DARK, COLLAR = "#e8664f", "#c64c3a", "#fff3e2"
IRIS, IRIS_DARK, INK = "#3f8f78", "#245c4e", "#3a211a"
LIP, LIP_LIGHT, LIP_LINE = "#cf6a62", "#e08a7f", "#9c3f41"
Point = tuple[float, float]


def mirrored(points: list[Point]) -> list[Point]:
    """The points on the other side of the face, in reverse order so that outlines stay closed."""
    return [(SIZE - x, y) for x, y in reversed(points)]


def curve(points: list[Point], closed: bool) -> list[Point]:
    """A Catmull-Rom spline through the points, 24 straight pieces between each two, in canvas pixels."""
    ends = [points[-1], *points, points[0], points[1]] if closed else [points[0], *points, points[-1]]
    out = []
    for a, b, c, d in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        for i in range(24):
            t = i / 24
            out.append(tuple(SCALE * _catmull_rom(a[k], b[k], c[k], d[k], t) for k in (0, 1)))
    if not closed:
        out.append((points[-1][0] * SCALE, points[-1][1] * SCALE))
    return out


def _catmull_rom(a: float, b: float, c: float, d: float, t: float) -> float:
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)


class Canvas:
    """An oversized picture with drawing in the coordinates of the final one."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), "#8fd0cf")

    def mask(self, points: list[Point]) -> Image.Image:
        """A filled smooth outline as a mask."""
        mask = Image.new("L", self.image.size, 0)
        ImageDraw.Draw(mask).polygon(curve(points, closed=True), fill=255)
        return mask

    def shape(self, points: list[Point], colour: str) -> Image.Image:
        """Fill a smooth outline; returns its mask, for shading inside it."""
        mask = self.mask(points)
        self.image.paste(colour, mask=mask)
        return mask

    def disc(self, centre: Point, radii: Point, colour: str, inside: Image.Image | None = None) -> Image.Image:
        """Fill an upright ellipse, only `inside` a mask where one is given."""
        (x, y), (rx, ry) = centre, radii
        mask = Image.new("L", self.image.size, 0)
        ImageDraw.Draw(mask).ellipse([(x - rx) * SCALE, (y - ry) * SCALE, (x + rx) * SCALE, (y + ry) * SCALE], fill=255)
        if inside is not None:
            mask = ImageChops.multiply(mask, inside)
        self.image.paste(colour, mask=mask)
        return mask

    def shade(self, points: list[Point], colour: str, blur: float, strength: float, inside: Image.Image) -> None:
        """Tint a blurred outline inside a mask; `blur` in pixels of the picture, strength in 0..1."""
        soft = self.mask(points).filter(ImageFilter.GaussianBlur(blur * SCALE))
        soft = ImageChops.multiply(soft, inside).point(lambda v: int(v * strength))
        self.image.paste(colour, mask=soft)

    def line(self, points: list[Point], widths: tuple[float, float, float], colour: str) -> None:
        """A smooth stroke whose width goes from the first to the second at the middle to the third at the end."""
        draw = ImageDraw.Draw(self.image)
        path = curve(points, closed=False)
        dense = [((1 - t) * a[0] + t * b[0], (1 - t) * a[1] + t * b[1])
                 for a, b in itertools.pairwise(path) for t in (0, 0.25, 0.5, 0.75)]  # fmt: skip
        for i, (x, y) in enumerate(dense):
            t = 2 * i / (len(dense) - 1)
            first, middle, last = widths
            radius = SCALE / 2 * (first + (middle - first) * t if t < 1 else middle + (last - middle) * (t - 1))
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def ellipse(centre: Point, radii: Point) -> list[Point]:
    """Eight points of an ellipse, for `shape` and `shade`."""
    (x, y), (rx, ry) = centre, radii
    eighths = [i * math.pi / 4 for i in range(8)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in eighths]


def background(c: Canvas) -> None:
    """Two quiet rings of light behind the head."""
    c.disc((256, 250), (236, 236), "#a2dad7")
    c.disc((256, 250), (192, 192), "#b9e5e0")


def hair_behind(c: Canvas) -> None:
    left = [(256, 48), (190, 58), (136, 104), (112, 176), (106, 258), (98, 330), (118, 384), (160, 404), (210, 400)]
    mask = c.shape(left + mirrored(left)[:-1], HAIR_DARK)
    c.shade(ellipse((256, 330), (120, 110)), "#2c150f", 18, 0.55, mask)


def shoulders(c: Canvas) -> None:
    half = [(256, 408), (206, 404), (168, 424), (104, 444), (66, 474), (50, 530), (150, 560), (256, 560)]
    body = c.shape(half + mirrored(half)[1:-1], JUMPER)
    c.shade([(30, 470), (90, 446), (112, 500), (100, 560), (30, 560)], JUMPER_DARK, 12, 0.7, body)
    c.shade([(482, 470), (422, 446), (400, 500), (412, 560), (482, 560)], JUMPER_DARK, 12, 0.7, body)
    c.shade(ellipse((256, 424), (96, 46)), JUMPER_DARK, 12, 0.6, body)
    c.shape([(186, 414), (200, 396), (256, 440), (312, 396), (326, 414), (312, 452), (256, 480), (200, 452)], COLLAR)
    c.line([(196, 428), (214, 452), (256, 468), (298, 452), (316, 428)], (1, 2, 1), "#e6d3bb")


def neck(c: Canvas) -> None:
    half = [(256, 452), (226, 442), (208, 420), (210, 392), (214, 340), (256, 330)]
    mask = c.shape(half + mirrored(half)[1:-1], SKIN)
    c.shade(ellipse((256, 356), (66, 42)), SKIN_SHADE, 9, 0.95, mask)


def ears(c: Canvas) -> None:
    left = [(142, 246), (126, 236), (117, 252), (122, 284), (134, 304), (146, 300)]
    for points, middle in ((left, 132), (mirrored(left), SIZE - 132)):
        mask = c.shape(points, SKIN)
        c.shade(ellipse((middle, 270), (6, 18)), SKIN_SHADE, 3, 0.9, mask)


def face(c: Canvas) -> Image.Image:
    half = [(256, 96), (196, 104), (154, 146), (138, 210), (140, 268), (154, 322), (186, 366), (224, 390), (256, 395)]
    mask = c.shape(half + mirrored(half)[1:-1], SKIN)
    c.shade([(256, 120), (190, 128), (150, 190), (160, 226), (256, 196), (352, 226), (362, 190), (322, 128)],
            SKIN_SHADE, 12, 0.75, mask)  # fmt: skip
    c.shade([(120, 200), (146, 220), (156, 300), (196, 366), (170, 400), (110, 330)], SKIN_SHADE, 10, 0.5, mask)
    c.shade([(392, 200), (366, 220), (356, 300), (316, 366), (342, 400), (402, 330)], SKIN_SHADE, 10, 0.5, mask)
    c.shade(ellipse((256, 366), (34, 12)), SKIN_LIGHT, 7, 0.7, mask)
    for x in (182, SIZE - 182):
        c.shade(ellipse((x, 300), (27, 19)), BLUSH, 9, 0.6, mask)
    return mask


def eyes(c: Canvas) -> None:
    outline = [(176, 252), (186, 238), (204, 231), (222, 236), (234, 250), (222, 261), (204, 266), (187, 262)]
    for flip in (False, True):

        def side(points: list[Point], flip: bool = flip) -> list[Point]:
            return mirrored(points) if flip else points

        x = SIZE - 206 if flip else 206
        white = c.shape(side(outline), "#fffaf4")
        c.disc((x, 248), (17.5, 18.5), IRIS_DARK, white)
        c.disc((x, 249), (15.5, 16.5), IRIS, white)
        c.disc((x, 254), (11, 9.5), "#66b79b", white)
        c.disc((x, 248), (8.2, 8.8), "#16120f", white)
        c.shade(side([(170, 250), (186, 236), (204, 229), (224, 234), (238, 250), (222, 243), (204, 239), (188, 244)]),
                "#8c6a5c", 2, 0.6, white)  # fmt: skip
        c.disc((x + 5.5, 242), (4.2, 4.2), "#ffffff")
        c.disc((x - 5, 255), (2.2, 2.2), "#e8fff6")
        c.line(side([(172, 250), (185, 237), (204, 230), (223, 235), (236, 251)]), (3, 6, 3), INK)
        c.line(side([(172, 250), (166, 246), (161, 240)]), (3, 2.5, 1) if not flip else (1, 2.5, 3), INK)
        c.line(side([(186, 263), (204, 267.5), (224, 262)]), (1, 2, 1), "#b9785c")
        c.line(side([(182, 230), (203, 222), (226, 228)]), (0.6, 2, 0.6), "#c4876a")
        c.line(side([(166, 214), (184, 203), (208, 201), (234, 209)]), (4, 9, 5) if not flip else (5, 9, 4), HAIR_DARK)


def nose_and_mouth(c: Canvas, skin: Image.Image) -> None:
    c.shade(ellipse((256, 276), (7, 30)), SKIN_LIGHT, 5, 0.8, skin)
    c.shade(ellipse((256, 313), (21, 8)), SKIN_SHADE, 5, 0.8, skin)
    c.line([(238, 304), (243, 311), (256, 314.5), (269, 311), (274, 304)], (1.5, 3.2, 1.5), "#b9735a")
    lips = [(210, 333), (232, 335), (247, 334.5), (256, 337), (265, 334.5), (280, 335), (302, 333), (284, 350),
            (256, 358), (228, 350)]  # fmt: skip
    mask = c.shape(lips, LIP)
    c.shade(ellipse((256, 350.5), (18, 4)), LIP_LIGHT, 3, 0.9, mask)
    smile = [(206, 329), (222, 338), (240, 343), (256, 344), (272, 343), (290, 338), (306, 329)]
    c.line(smile, (2, 3.4, 2), LIP_LINE)
    for x, y in ((188, 284), (200, 291), (214, 285), (298, 285), (312, 291), (324, 284)):
        c.disc((x, y), (1.7, 1.7), "#d4946f")


def hair_in_front(c: Canvas) -> None:
    top = [(150, 268), (130, 276), (118, 230), (120, 168), (146, 102), (196, 62), (256, 48), (318, 62), (368, 102),
           (392, 168), (394, 230), (382, 276), (362, 268), (360, 222), (346, 186), (318, 158), (296, 134), (262, 166),
           (212, 188), (174, 200), (156, 228)]  # fmt: skip
    mask = c.shape(top, HAIR)
    c.shade([(150, 150), (190, 100), (262, 78), (290, 92), (216, 120), (172, 170)], HAIR_LIGHT, 10, 0.9, mask)
    c.shade([(330, 96), (364, 140), (372, 200), (352, 160)], HAIR_LIGHT, 9, 0.7, mask)
    for strand in (
        [(300, 116), (262, 148), (214, 168), (168, 184)],
        [(286, 84), (236, 112), (186, 134), (152, 178)],
        [(262, 66), (206, 84), (160, 122), (138, 180)],
        [(306, 112), (336, 142), (362, 182), (374, 236)],
        [(316, 84), (352, 116), (378, 170), (384, 224)],
    ):
        c.line(strand, (1, 2.4, 0.8), HAIR_DARK)


def draw() -> Image.Image:
    """The portrait, 512 x 512 RGB."""
    c = Canvas()
    background(c)
    hair_behind(c)
    shoulders(c)
    neck(c)
    ears(c)
    skin = face(c)
    eyes(c)
    nose_and_mouth(c, skin)
    hair_in_front(c)
    return c.image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def main() -> None:
    root = Path(__file__).parents[1]
    named = [Path(a) for a in sys.argv[1:]]
    picture = draw()
    portrait = (named[0] if named else root / "liveavatar" / "mini" / "assets") / "portrait.png"
    icon = (named[0] if named else root / "docs") / "icon.png"
    for path, image in ((portrait, picture), (icon, picture.resize((256, 256), Image.Resampling.LANCZOS))):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
