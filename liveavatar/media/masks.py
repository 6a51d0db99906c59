"""Speakers' masks: from a mask that lies over a picture to the tokens of a video that hear each speaker.

A mask is laid over the picture, cut and padded with it, and pooled to tokens of 16x16 pixels. What is said there is the
published rule: a speaker is heard everywhere but near the others, so that the background hears all. The published
implementation stretches masks to the frame, whatever is cut off the picture; and where the surroundings of two speakers
meet, it leaves tokens without any sound. Here every token is heard by somebody, and a speaker's own tokens by nobody
else.
"""

from __future__ import annotations

import itertools
import os
import warnings
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ..config import SPATIAL_STRIDE
from ..errors import ImageError, shown
from .image import Fit, fit_image, read_image, upright

Half = Literal["left", "right"]
"""Of a picture, as it is seen."""
HALVES: tuple[Half, ...] = get_args(Half)
TOKEN = 2 * SPATIAL_STRIDE
"""Pixels of a token's side."""
WHITE = 128
"""From here on a pixel of a mask, 0 to 255, is the speaker's."""
_OWNED_SHARE = 0.5
"""Of a token's pixels: from here on it is the speaker's."""
_SURROUNDINGS = 0.1
"""How far what surrounds a speaker reaches, against the larger side of the speaker's box."""
MOST_SHARED = 0.1
"""Masks may have so much of the smaller one in common: their edges are soft, or painted by hand."""
_ASPECT_SLACK = 0.02
"""A mask may be narrower or wider than the picture by so much: sides of scaled ones are rounded."""


def read_mask(path: str | os.PathLike[str], notes: list[str] | None = None) -> np.ndarray:
    """Read a mask from a picture file: white is the speaker; where the picture has transparency, what is opaque is.

    Args:
        path: of a picture of any size.
        notes: as of `read_image`.

    Returns:
        uint8 [H, W], upright.

    Raises:
        ImageError: as `read_image`.
    """
    from PIL import Image

    grey = read_image(path, notes, min_side=1).mean(axis=2)
    with warnings.catch_warnings(), Image.open(Path(path)) as image:
        warnings.simplefilter("ignore")
        if "A" in image.getbands() or "transparency" in image.info:
            alpha = np.asarray(image.convert("RGBA").getchannel("A"))
            if alpha.min() < WHITE:
                return upright(alpha[..., None], image, [])[..., 0]
    return np.rint(grey).astype(np.uint8)


def mask_of(values: np.ndarray) -> np.ndarray:
    """A mask that is already decoded, as uint8 [H, W].

    Args:
        values: [H, W] of bool, of uint8 up to 255 or of 0 and 1 alone, or of floats from 0 to 1.

    Raises:
        ImageError: another shape or type, or other values.
    """
    if values.ndim != 2 or not values.size:
        raise ImageError(f"A mask of shape {list(values.shape)} is not understood.", "Give it as [height, width].")
    if values.dtype == bool or (values.dtype == np.uint8 and values.max() == 1):
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f":
        raise ImageError(f"A mask of type {values.dtype} is not understood.", "Give bool, uint8, or floats of 0 to 1.")
    if not (np.isfinite(values).all() and values.min() >= -1e-3 and values.max() <= 1 + 1e-3):
        raise ImageError(
            f"A mask holds values from {shown(float(values.min()))} to {shown(float(values.max()))}.",
            "Give floats from 0 to 1, where 1 is the speaker.",
        )
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def half_mask(half: Half, picture: tuple[int, int]) -> np.ndarray:
    """A mask uint8 [H, W] that is one half of a picture of this width and height."""
    width, height = picture
    mask = np.zeros((height, width), np.uint8)
    mask[:, slice(None, width // 2) if half == "left" else slice(width - width // 2, None)] = 255
    return mask


def fit_mask(mask: np.ndarray, picture: tuple[int, int], width: int, height: int, fit: Fit) -> np.ndarray:
    """A mask uint8 [H, W] of any size, laid over a picture and cut or padded with it to uint8 [height, width].

    Args:
        mask: white is the speaker.
        picture: width and height of the picture.
        width, height, fit: as of `fit_image`.
    """
    from PIL import Image

    if mask.shape[::-1] != picture:
        mask = np.asarray(Image.fromarray(mask).resize(picture, Image.Resampling.BILINEAR))
    return fit_image(np.repeat(mask[..., None], 3, axis=2), width, height, fit)[..., 0]


def same_aspect(mask: np.ndarray, picture: tuple[int, int]) -> bool:
    """Whether a mask can lie over a picture: but for rounding, both are of one shape."""
    height, width = mask.shape
    wanted = width * picture[1] / picture[0]
    return abs(height - wanted) <= max(1.0, _ASPECT_SLACK * max(height, wanted))


def owned_tokens(fitted: np.ndarray) -> np.ndarray:
    """Which tokens are whose: bool [speakers, rows, columns]; none is two speakers'.

    Args:
        fitted: masks of the frame, uint8 [speakers, height, width]. What several claim is the one's with the largest
            share; of a mask that fills half of no token, the fullest is the speaker's.
    """
    count, height, width = fitted.shape
    tokens = fitted.reshape(count, height // TOKEN, TOKEN, width // TOKEN, TOKEN)
    shares = tokens.mean(axis=(2, 4), dtype=np.float64) / 255
    enough = np.minimum(_OWNED_SHARE, shares.max(axis=(1, 2), keepdims=True))
    largest = shares.argmax(axis=0) == np.arange(count)[:, None, None]
    return (shares >= enough) & (shares > 0) & largest


def hearing_tokens(owned: np.ndarray) -> np.ndarray:
    """Which tokens hear which speaker: bool [speakers, rows, columns].

    Args:
        owned: see `owned_tokens`; each speaker has some.
    """
    near = np.stack([_with_surroundings(one) for one in owned])
    near_others = near.sum(axis=0, keepdims=True) - near > 0
    hears = ~near_others | owned
    return np.where(hears.any(axis=0), hears, True)


def overlaps(fitted: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs of masks with something in common, and how much of the smaller one that is; the most first.

    Args:
        fitted: see `owned_tokens`.
    """
    white = fitted >= WHITE
    pairs = []
    for a, b in itertools.combinations(range(len(white)), 2):
        if common := int((white[a] & white[b]).sum()):
            pairs.append((a, b, common / int(min(white[a].sum(), white[b].sum()))))
    return sorted(pairs, key=lambda pair: -pair[2])


def _with_surroundings(owned: np.ndarray) -> np.ndarray:
    """Tokens [rows, columns] of a speaker, and those so near that they may move with the speaker's face."""
    rows, columns = (np.flatnonzero(owned.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return owned
    box = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    radius = max(1, int(_SURROUNDINGS * box + 0.9999))
    padded = np.pad(owned, radius)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(windows.any(axis=(2, 3)))
