"""Icon and banner of the registry's page: the pack's own portrait; its voice as a wave, and frames that the miniature
made of both.

python -m tools.banner            writes docs/icon.png, square, and docs/banner.png, of 21:9
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from liveavatar.media.audio_file import read_audio

DOCS = Path(__file__).parents[1] / "docs"
ASSETS = Path(__file__).parents[1] / "liveavatar" / "mini" / "assets"
SIZE = (1260, 540)
BACK, WAVE, TEXT, FAINT = "#17171c", "#60a5fa", "#f2f2f6", "#a2a2b2"
ICON, PORTRAIT, FRAME, FRAMES, MARGIN, BARS = 400, 396, 128, 5, 72, 61


def portrait(side: int) -> Image.Image:
    """The portrait, square."""
    with Image.open(ASSETS / "portrait.png") as image:
        return image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def draw() -> Image.Image:
    """The banner."""
    image = Image.new("RGB", SIZE, BACK)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, 92), "Live Avatar S2V", fill=TEXT, font=ImageFont.load_default(68), anchor="lm")
    line = "A portrait and a voice become a talking video, while it is made"
    pen.text((MARGIN, 158), line, fill=FAINT, font=ImageFont.load_default(22), anchor="lm")
    image.paste(portrait(PORTRAIT), (SIZE[0] - MARGIN - PORTRAIT, (SIZE[1] - PORTRAIT) // 2), _rounded(PORTRAIT, 28))
    _draw_wave(pen, 258, SIZE[0] - 2 * MARGIN - PORTRAIT - 32)
    with Image.open(DOCS / "demo.png") as frames:
        for number in range(FRAMES):
            one = frames.convert("RGB").crop((number * FRAME, 0, (number + 1) * FRAME, FRAME)).resize((118, 118))
            image.paste(one, (MARGIN + number * 130, 340), _rounded(118, 12))
    return image


def _draw_wave(pen: ImageDraw.ImageDraw, middle: int, right: int) -> None:
    """The loudness of the voice as bars."""
    samples = np.array(read_audio(ASSETS / "voice.wav").samples[:])[:, 0]
    loudness = np.array([np.sqrt(np.square(part).mean()) for part in np.array_split(samples, BARS)])
    step = (right - MARGIN) / BARS
    for number, height in enumerate(loudness / loudness.max()):
        x, reach = MARGIN + number * step, 3 + 40 * height
        pen.rounded_rectangle((x, middle - reach, x + step * 0.55, middle + reach), 3, fill=WAVE)


def _rounded(side: int, radius: int) -> Image.Image:
    """A mask with round corners."""
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side - 1, side - 1), radius, fill=255)
    return mask


def main() -> int:
    """Write them."""
    portrait(ICON).save(DOCS / "icon.png", optimize=True)
    draw().save(DOCS / "banner.png", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
