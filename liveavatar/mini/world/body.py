"""Wall, shoulders and neck: what stays still while the head moves."""

from __future__ import annotations

from .canvas import Canvas, Outline, ellipse, mirrored
from .identity import Identity
from .palette import RGB, darker, lighter


def draw_wall(c: Canvas, colour: RGB) -> None:
    """A plain wall with two quiet rings of light behind the head."""
    everything = c.cover
    c.shape(ellipse(256, 256, 214, 214), lighter(colour, 0.16), everything)
    c.shape(ellipse(256, 256, 172, 172), lighter(colour, 0.32), everything)


def draw_body(c: Canvas, who: Identity) -> None:
    """Shoulders, collar and neck. The clothes go on below the portrait, for tall pictures."""
    cloth, dark = who.clothes, darker(who.clothes, 0.24)
    half: Outline = [(256, 410), (206, 406), (168, 424), (104, 444), (60, 480), (42, 530)]
    half += [(36, 620), (34, 900), (34, 1250), (256, 1300)]
    body = c.shape(half + mirrored(half)[1:-1], cloth)
    side: Outline = [(20, 470), (86, 446), (110, 500), (100, 580), (20, 580)]
    for points in (side, mirrored(side)):
        c.shade(points, dark, 12, 0.7, body)
    c.shade(ellipse(256, 424, 96, 46), dark, 12, 0.6, body)
    _neck(c, who)
    {"round": _round, "crew": _crew, "shirt": _shirt, "roll": _roll}[who.collar](c, who)


def _neck(c: Canvas, who: Identity) -> None:
    half: Outline = [(256, 456), (226, 446), (210, 426), (214, 396), (216, 340), (256, 330)]
    mask = c.shape(half + mirrored(half)[1:-1], who.tones.base)
    c.shade(ellipse(256, 392, 70, 44), darker(who.tones.shade, 0.08), 8, 0.95, mask)


def _round(c: Canvas, who: Identity) -> None:
    white = lighter(who.clothes, 0.78)
    c.shape([(186, 418), (200, 402), (256, 446), (312, 402), (326, 418), (312, 456), (256, 484), (200, 456)], white)
    c.line([(196, 432), (214, 456), (256, 472), (298, 456), (316, 432)], (1, 2.5, 1), darker(white, 0.2))


def _crew(c: Canvas, who: Identity) -> None:
    rim = darker(who.clothes, 0.22)
    c.line([(198, 412), (214, 440), (256, 456), (298, 440), (314, 412)], (11, 11, 11), rim)
    c.line([(194, 416), (212, 446), (256, 463), (300, 446), (318, 416)], (2, 2, 2), darker(rim, 0.25))


def _shirt(c: Canvas, who: Identity) -> None:
    cloth = lighter(who.clothes, 0.22)
    left: Outline = [(200, 400), (190, 416), (186, 446), (216, 470), (238, 476), (256, 462), (228, 440)]
    for points in (left, mirrored(left)):
        mask = c.shape(points, cloth)
        c.shade(points[:3] + points[-2:], darker(cloth, 0.2), 8, 0.4, mask)
        c.line([*points[2:6]], (1, 3, 1), darker(cloth, 0.3))
    c.line([(256, 464), (256, 700)], (2, 3, 3), darker(who.clothes, 0.3))


def _roll(c: Canvas, who: Identity) -> None:
    cloth = lighter(who.clothes, 0.1)
    half: Outline = [(256, 424), (224, 420), (200, 402), (192, 414), (194, 446), (224, 462), (256, 464)]
    mask = c.shape(half + mirrored(half)[1:-1], cloth)
    c.shade(ellipse(256, 460, 60, 10), darker(cloth, 0.3), 6, 0.7, mask)
    c.line([(198, 424), (222, 440), (256, 444), (290, 440), (314, 424)], (1, 2.5, 1), darker(cloth, 0.22))
