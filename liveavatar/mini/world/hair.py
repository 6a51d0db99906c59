"""Hair: a part behind the head and one in front of it, in six cuts."""

from __future__ import annotations

from PIL import Image

from .canvas import Canvas, Outline, Points, ellipse, mirrored
from .face import Geometry
from .identity import Identity
from .palette import darker, lighter

BEHIND = ("bob", "long", "curly", "bun")
"""Cuts that show behind the head."""
_STRANDS = (
    [(300, 116), (262, 148), (214, 168), (168, 184)],
    [(286, 84), (236, 112), (186, 134), (152, 178)],
    [(306, 112), (336, 142), (362, 182), (374, 226)],
)


def draw_behind(c: Canvas, who: Identity, where: Geometry) -> None:
    """What hangs or stands behind ears and neck."""
    if who.hair_style == "bob":
        _hang(c, who, where, [(256, 48), (190, 58), (136, 104), (112, 176), (106, 258), (98, 330), (118, 384),
                              (160, 404), (210, 400)])  # fmt: skip
    elif who.hair_style == "long":
        _hang(c, who, where, [(256, 52), (190, 60), (134, 104), (108, 176), (102, 258), (94, 340), (84, 420),
                              (88, 500), (130, 524), (196, 520), (206, 420)])  # fmt: skip
    elif who.hair_style == "curly":
        _cloud(c, who, where)
    elif who.hair_style == "bun":
        mask = c.disc(256, 84, 54, 42, who.hair)
        c.shade(ellipse(256, 112, 50, 16), darker(who.hair, 0.4), 8, 0.9, mask)
        c.shade(ellipse(240, 66, 22, 9), lighter(who.hair, 0.3), 6, 0.8, mask)


def draw_front(c: Canvas, who: Identity, where: Geometry) -> None:
    """What frames the forehead."""
    {"bob": _swept, "long": _parted, "short": _quiff, "curly": _curls, "bun": _combed, "crop": _crop}[who.hair_style](
        c, who, where
    )


def _wide(where: Geometry, points: Points) -> Outline:
    return [(where.across(x), y) for x, y in points]


def _hang(c: Canvas, who: Identity, where: Geometry, left: Points) -> None:
    left = _wide(where, left)
    mask = c.shape([*left, *mirrored(left)[:-1]], darker(who.hair, 0.22))
    c.shade(ellipse(256, 336, 120, 110), darker(who.hair, 0.55), 18, 0.6, mask)


def _cloud(c: Canvas, who: Identity, where: Geometry) -> None:
    dark = darker(who.hair, 0.2)
    ring = [(256, 100, 56), (196, 102, 56), (146, 118, 56), (116, 172, 54), (106, 232, 50), (112, 288, 46)]
    ring.append((130, 334, 38))
    body = c.shape(ellipse(256, 200, 150, 150), dark)
    for x, y, r in ring:
        for at in {where.across(x), 512 - where.across(x)}:
            c.disc(at, y, r, r, dark)
            c.shade(ellipse(at - 8, y - 14, r * 0.5, r * 0.4), lighter(who.hair, 0.16), 9, 0.75, c.cover)
    c.shade(ellipse(256, 300, 110, 90), darker(who.hair, 0.5), 16, 0.5, body)


def _sheen(c: Canvas, who: Identity, mask: Image.Image) -> None:
    light = lighter(who.hair, 0.22)
    c.shade([(150, 150), (190, 100), (262, 78), (290, 92), (216, 120), (172, 170)], light, 10, 0.9, mask)
    c.shade([(330, 96), (364, 140), (372, 200), (352, 160)], light, 9, 0.6, mask)


def _swept(c: Canvas, who: Identity, where: Geometry) -> None:
    top = [(150, 268), (130, 276), (118, 230), (120, 168), (146, 102), (196, 62), (256, 48), (318, 62), (368, 102),
           (392, 168), (394, 230), (382, 276), (362, 268), (360, 222), (346, 186), (318, 158), (296, 134), (262, 166),
           (212, 188), (174, 200), (156, 228)]  # fmt: skip
    mask = c.shape(_wide(where, top), who.hair)
    _sheen(c, who, mask)
    for strand in _STRANDS:
        c.line(strand, (1, 3, 1), darker(who.hair, 0.28), mask)


def _parted(c: Canvas, who: Identity, where: Geometry) -> None:
    half = [(256, 52), (196, 62), (144, 102), (116, 170), (110, 240), (112, 300), (132, 330), (148, 280), (152, 232),
            (176, 186), (222, 146), (256, 112)]  # fmt: skip
    left = _wide(where, half)
    mask = c.shape([*left, *mirrored(left)[1:-1]], who.hair)
    _sheen(c, who, mask)
    dark = darker(who.hair, 0.28)
    for strand in ([(250, 80), (206, 112), (160, 164), (138, 236)], [(240, 64), (182, 92), (136, 152), (124, 250)]):
        c.line(_wide(where, strand), (1, 3, 1), dark, mask)
        c.line(mirrored(_wide(where, strand)), (1, 3, 1), dark, mask)
    c.line([(256, 54), (256, 112)], (1.5, 2.5, 1.5), dark, mask)


def _quiff(c: Canvas, who: Identity, where: Geometry) -> None:
    top = [(144, 240), (134, 244), (128, 190), (134, 132), (160, 90), (206, 62), (272, 46), (338, 60), (374, 96),
           (386, 150), (384, 200), (378, 244), (368, 240), (362, 196), (346, 160), (300, 150), (240, 154), (186, 140),
           (164, 166), (152, 200)]  # fmt: skip
    mask = c.shape(_wide(where, top), who.hair)
    _sheen(c, who, mask)
    for strand in ([(176, 136), (220, 108), (290, 92), (350, 108)], [(196, 90), (250, 74), (310, 72)],
                   [(240, 150), (300, 134), (352, 150)]):  # fmt: skip
        c.line(strand, (1, 3, 1), darker(who.hair, 0.28), mask)


def _crop(c: Canvas, who: Identity, where: Geometry) -> None:
    half = [(256, 74), (204, 80), (158, 108), (134, 158), (130, 214), (136, 246), (146, 240), (150, 204), (162, 168),
            (196, 150), (226, 144), (256, 148)]  # fmt: skip
    left = _wide(where, half)
    mask = c.shape([*left, *mirrored(left)[1:-1]], who.hair)
    c.shade(ellipse(240, 100, 70, 16), lighter(who.hair, 0.25), 10, 0.7, mask)
    c.shade(ellipse(256, 156, 110, 12), darker(who.hair, 0.35), 7, 0.5, mask)


def _curls(c: Canvas, who: Identity, where: Geometry) -> None:
    tops = ((150, 184, 26), (164, 148, 30), (194, 122, 32), (232, 110, 33), (256, 106, 32))
    dark = darker(who.hair, 0.34)
    for x, y, r in tops:
        for at in sorted({where.across(x), 512 - where.across(x)}):
            mask = c.disc(at, y, r, r, who.hair)
            c.shade(ellipse(at, y + r * 0.8, r * 0.8, r * 0.4), dark, 5, 0.5, mask)
            c.shade(ellipse(at - 6, y - 10, r * 0.4, r * 0.3), lighter(who.hair, 0.28), 6, 0.8, mask)


def _combed(c: Canvas, who: Identity, where: Geometry) -> None:
    half = [(256, 84), (200, 88), (152, 114), (128, 164), (124, 224), (132, 268), (144, 262), (148, 216), (170, 176),
            (212, 150), (256, 142)]  # fmt: skip
    left = _wide(where, half)
    mask = c.shape([*left, *mirrored(left)[1:-1]], who.hair)
    _sheen(c, who, mask)
    dark = darker(who.hair, 0.26)
    strands: list[Outline] = [[(256, 140), (236, 120), (244, 96)], [(206, 150), (196, 122), (222, 98)]]
    strands.append([(164, 184), (158, 144), (196, 108)])
    for strand in strands:
        c.line(_wide(where, strand), (1, 2.6, 1), dark, mask)
        c.line(mirrored(_wide(where, strand)), (1, 2.6, 1), dark, mask)
