"""Contact sheets: pictures in rows, with small captions, to look at what figures cannot say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 4
"""Pixels between pictures and around them."""
LINE = 14
"""Pixels of a line of text."""
_PAPER, _INK, _FAINT = (255, 255, 255), (40, 40, 40), (120, 120, 120)


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """Pictures side by side.

    Attributes:
        pictures: uint8 [H, W, 3], all of one size.
        title: a line above the row, cut off where the sheet ends; may be empty.
        captions: a word above each picture; may be none.
    """

    pictures: Sequence[np.ndarray]
    title: str = ""
    captions: Sequence[str] = ()

    @property
    def head(self) -> int:
        """Pixels of text above the pictures."""
        return LINE * (bool(self.title) + bool(self.captions))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, with a gap after every picture and under the row."""
        height, width = self.pictures[0].shape[:2]
        return len(self.pictures) * (width + GAP), self.head + height + GAP


def contact_sheet(rows: Sequence[Row]) -> Image.Image:
    """All rows below one another, RGB; a sheet is as wide as its longest row."""
    width = max(row.size[0] for row in rows) + GAP
    sheet = Image.new("RGB", (width, sum(row.size[1] for row in rows) + GAP), _PAPER)
    draw, top = ImageDraw.Draw(sheet), GAP
    for row in rows:
        _write_head(draw, row, top, width)
        for i, picture in enumerate(row.pictures):
            sheet.paste(Image.fromarray(picture), (GAP + i * (picture.shape[1] + GAP), top + row.head))
        top += row.size[1]
    return sheet


def _write_head(draw: ImageDraw.ImageDraw, row: Row, top: int, width: int) -> None:
    font = ImageFont.load_default()
    if row.title:
        title = row.title
        while draw.textlength(title, font=font) > width - 2 * GAP:
            title = title.removesuffix("...")[:-1] + "..."
        draw.text((GAP, top), title, _INK, font)
        top += LINE
    for i, caption in enumerate(row.captions):
        draw.text((GAP + i * (row.pictures[0].shape[1] + GAP), top), caption, _FAINT, font)
