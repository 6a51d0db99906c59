"""Colours of the drawn world: the words people use for them, and what they look like."""

from __future__ import annotations

import dataclasses

RGB = tuple[int, int, int]

BACKGROUNDS: dict[str, RGB] = {
    "teal": (143, 208, 207),
    "green": (140, 196, 112),
    "blue": (112, 162, 228),
    "yellow": (246, 212, 96),
    "orange": (244, 158, 88),
    "pink": (246, 164, 188),
    "purple": (168, 136, 212),
    "grey": (176, 180, 186),
}
"""Colour of the wall behind a person, by its word in a prompt."""
HAIR: dict[str, RGB] = {
    "brown": (98, 58, 38),
    "black": (46, 40, 46),
    "blond": (232, 190, 104),
    "red": (190, 78, 38),
    "grey": (158, 156, 160),
    "white": (232, 228, 222),
}
SKINS: tuple[RGB, ...] = (
    (252, 222, 200),
    (247, 202, 166),
    (240, 188, 150),
    (226, 168, 124),
    (204, 142, 98),
    (178, 116, 76),
    (148, 92, 60),
)
IRISES: dict[str, RGB] = {
    "green": (63, 143, 120),
    "blue": (70, 130, 196),
    "brown": (124, 78, 44),
    "hazel": (150, 120, 52),
    "grey": (116, 132, 146),
}
CLOTHES: dict[str, RGB] = {
    "coral": (232, 102, 79),
    "navy": (58, 78, 128),
    "green": (78, 148, 98),
    "mustard": (220, 166, 56),
    "violet": (134, 96, 176),
    "white": (238, 236, 230),
    "sky": (106, 176, 220),
    "charcoal": (76, 78, 88),
    "rose": (222, 112, 142),
}
INK: RGB = (58, 33, 26)
MOUTH_DARK: RGB = (84, 20, 32)
TEETH: RGB = (252, 248, 240)
TONGUE: RGB = (178, 62, 74)
"""The same in every mouth, so that what is open can be told from what is not."""


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """Colour a with so much (0..1) of b in it."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def darker(a: RGB, share: float) -> RGB:
    """Towards a warm near-black."""
    return mix(a, (34, 16, 20), share)


def lighter(a: RGB, share: float) -> RGB:
    """Towards a warm white."""
    return mix(a, (255, 246, 232), share)


@dataclasses.dataclass(frozen=True)
class SkinTones:
    """The tints one skin is painted with."""

    base: RGB
    shade: RGB
    light: RGB
    blush: RGB
    lip: RGB
    lip_light: RGB
    lip_line: RGB

    @classmethod
    def of(cls, base: RGB) -> SkinTones:
        """Mix them from the skin's own colour; deeper skins get deeper lips."""
        brightness = sum(base) / 765
        lip = mix(mix(base, (206, 84, 88), 0.68), (120, 44, 52), 0.25 * (1 - brightness))
        return cls(
            base,
            shade=mix(base, (176, 84, 50), 0.34),
            light=lighter(base, 0.38),
            blush=mix(base, (236, 96, 92), 0.52),
            lip=lip,
            lip_light=lighter(lip, 0.24),
            lip_line=darker(lip, 0.38),
        )
