"""The size of the video: what was written, and what the picture's aspect makes of it."""

from __future__ import annotations

import math
import re

from .config import SIZE_MULTIPLE
from .errors import SizeError

MAX_AREA = 1920 * 1088
"""Pixels of the largest frame; nothing above has ever been tried."""


def parse_size(text: str) -> tuple[int, int]:
    """Read a size: 704*384, 704x384, 704X384, 704×384, 704,384 or 704 384, with spaces anywhere.

    Returns:
        Width and height as written.

    Raises:
        SizeError: not two whole numbers, or an area out of range.
    """
    numbers = re.fullmatch(r"\s*(\d{1,6})\s*(?:[xX×*,;]|\s)\s*(\d{1,6})\s*", str(text))
    if not numbers:
        raise SizeError(f"The size {text!r} is not understood.", f"Write width x height, for example {_guess(text)}.")
    width, height = int(numbers[1]), int(numbers[2])
    if width * height < SIZE_MULTIPLE**2:
        raise SizeError(f"The size {width}x{height} is too small.", "The smallest is 64x64.")
    if width * height > MAX_AREA:
        nearest = "x".join(map(str, _largest_like(width, height)))
        raise SizeError(f"The size {width}x{height} is too large.", f"The nearest that works is {nearest}.")
    return width, height


def effective_size(picture: tuple[int, int], area: int) -> tuple[int, int]:
    """Width and height, multiples of 64, of at most `area`, in the picture's aspect; never larger than needed.

    The search of the published implementation: scales are tried from large to small in a hundred steps, both sides
    rounded up, and the first product that fits wins. Small pictures are not enlarged.

    Args:
        picture: width and height of the picture.
        area: largest product of the result.

    Raises:
        SizeError: the picture is too elongated for the area.
    """
    image_width, image_height = picture
    found = _search_size(image_height, image_width, area) or _fallback_size(image_height, image_width, area)
    height, width = found
    if min(height, width) < SIZE_MULTIPLE:
        longest = max(picture) / min(picture)
        needed = SIZE_MULTIPLE * SIZE_MULTIPLE * math.ceil(longest)
        side = SIZE_MULTIPLE * math.ceil(longest)
        raise SizeError(
            f"A picture of {image_width}x{image_height} is too elongated for an area of {area} pixels.",
            f"Crop the picture, or ask for at least {side}x64." if needed <= MAX_AREA else "Crop the picture.",
        )
    return width, height


def picture_for(size: str) -> tuple[int, int]:
    """Width and height of a picture of the asked aspect, large enough that nothing of the area is lost.

    Raises:
        SizeError: as `parse_size`.
    """
    width, height = parse_size(size)
    factor = -(-1920 // min(width, height))
    return width * factor, height * factor


def _largest_like(width: int, height: int) -> tuple[int, int]:
    """The largest size in about this aspect."""
    scale = math.sqrt(MAX_AREA / (width * height))
    short = max(SIZE_MULTIPLE, int(min(width, height) * scale) // SIZE_MULTIPLE * SIZE_MULTIPLE)
    long = min(int(max(width, height) * scale), MAX_AREA // short) // SIZE_MULTIPLE * SIZE_MULTIPLE
    return (long, short) if width >= height else (short, long)


def _search_size(image_height: int, image_width: int, area: int) -> tuple[int, int] | None:
    pixels, margin = image_height * image_width, SIZE_MULTIPLE - 1
    if pixels <= area:
        low, high = 0.1, 1.0
    else:
        high = math.sqrt(area / pixels)
        b, c = margin * (image_height + image_width), margin**2 - area
        # Only a bound of the search; the factor 2 (not 4) under the root is how it was published.
        low = (-b + math.sqrt(b * b - 2 * pixels * c)) / (2 * pixels)
    for i in range(100):
        scale = high - (high - low) * i / 100
        sides = [_round_up(int(n * scale)) for n in (image_height, image_width)]
        if sides[0] * sides[1] <= area:
            return sides[0], sides[1]
    return None


def _fallback_size(image_height: int, image_width: int, area: int) -> tuple[int, int]:
    ratio = image_width / image_height
    height, width = (int(math.sqrt(x) // SIZE_MULTIPLE * SIZE_MULTIPLE) for x in (area / ratio, area * ratio))
    if width >= image_width or height >= image_height:
        height, width = (n // SIZE_MULTIPLE * SIZE_MULTIPLE for n in (image_height, image_width))
    return height, width


def _round_up(n: int) -> int:
    return -(-n // SIZE_MULTIPLE) * SIZE_MULTIPLE


def _guess(text: str) -> str:
    """A size near what was probably meant."""
    numbers = [int(n) for n in re.findall(r"\d{1,6}", str(text))]
    sides = [min(1920, max(SIZE_MULTIPLE, round(n / SIZE_MULTIPLE) * SIZE_MULTIPLE)) for n in numbers[:2]]
    if len(sides) == 2:
        return f"{sides[0]}x{sides[1]}"
    return f"{sides[0]}x{max(SIZE_MULTIPLE, sides[0] * 9 // 16 // 64 * 64)}" if sides else "704x384"
