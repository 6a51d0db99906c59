"""The reference image: from a file to the pixels the network is given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from einops import rearrange

from ..errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

MIN_SIDE = 16
"""Pixels below which a side holds no portrait."""
MAX_PIXELS = 120_000_000
"""Pixels above which an image is not decoded: more than any camera portrait, 360 MB of RGB."""

Fit = Literal["cover", "pad"]

_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_GREY_16_FORMATS = ("PNG", "PPM")  # some Pillow versions call their 16-bit grey "I"
_NEEDS_OTHER_PROGRAMS = ("EPS", "WMF")


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as uint8 RGB [H, W, 3], upright (EXIF orientation applied).

    Transparent parts become white, as viewers, browsers and paper show them; dropping the alpha channel would bring
    up whatever colour a program left hidden there, and black would look like the bars we avoid. Of an animation the
    first frame is taken. 16-bit samples are scaled to 8 bits; colour profiles are not applied, as in the published
    implementation.

    Raises:
        ImageError: no such file, not an image, damaged or cut off, a side under 16 pixels, over 120 million pixels.
            Sizes are checked before anything is decoded.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    if not path.exists():
        raise ImageError(f"There is no picture at {path}.", "Check the path.")
    if not path.is_file():
        raise ImageError(f"{path} is not a file.", "Give the picture itself, not its folder.")
    try:
        with Image.open(path) as image:
            _check_header(image, path)
            return _to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except Image.DecompressionBombError as e:
        raise _too_large(path, "") from e
    except Image.UnidentifiedImageError as e:
        raise ImageError(f"{path} is not a picture this program can read.", "Save it as PNG, JPEG or WebP.") from e
    except Exception as e:  # decoders of damaged files raise errors of any kind
        raise ImageError(f"{path} is damaged or cut off ({e}).", "Export or download the picture again.") from e


def check_image(rgb: np.ndarray) -> np.ndarray:
    """An image that is already decoded, as it is.

    Raises:
        ImageError: not uint8 [H, W, 3], a side under 16 pixels.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ImageError(
            f"A picture of type {rgb.dtype} and shape {list(rgb.shape)} is not understood.",
            "Give uint8 values of shape [height, width, 3].",
        )
    _check_sides(rgb.shape[1], rgb.shape[0], "The picture")
    return rgb


def fit_image(rgb: np.ndarray, width: int, height: int, mode: Fit = "cover") -> np.ndarray:
    """Bring an image uint8 [H, W, 3] to uint8 [height, width, 3].

    Args:
        mode: "cover" scales the largest centred part of the wanted shape, so the image fills the frame without
            bars. "pad" repeats the published implementation for comparisons: the short edge becomes
            min(width, height), the long one int(min * long / short), and the centre is cut out, black where the
            scaled picture is too short.

    Both scale with Pillow's area-aware bilinear filter.

    Raises:
        ImageError: not uint8 [H, W, 3], an empty size, an unknown mode.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ImageError(
            f"A picture of type {rgb.dtype} and shape {list(rgb.shape)} cannot be fitted.",
            "Give uint8 values of shape [height, width, 3].",
        )
    if width < 1 or height < 1:
        raise ImageError(f"A frame of {width}x{height} pixels is empty.", "Both sides must be at least 1.")
    if mode == "cover":
        return _cover(rgb, width, height)
    if mode == "pad":
        return _center_crop(_resize_short_edge(rgb, min(width, height)), width, height)
    raise ImageError(f"There is no fit named {mode!r}.", f"Choose one of {', '.join(get_args(Fit))}.")


def to_pixels(rgb: np.ndarray) -> torch.Tensor:
    """uint8 [H, W, 3] to float32 [1, 3, 1, H, W] in [-1, 1]: value / 255 * 2 - 1."""
    pixels = rearrange(torch.from_numpy(np.ascontiguousarray(rgb)), "h w c -> 1 c 1 h w")
    return pixels.float().div(255.0).mul(2.0).sub(1.0).contiguous()


def _check_header(image: Image, path: Path) -> None:
    if image.format in _NEEDS_OTHER_PROGRAMS:
        raise ImageError(f"{path} is a drawing ({image.format}), not pixels.", "Save it as PNG, JPEG or WebP.")
    width, height = image.size
    _check_sides(width, height, str(path))
    if image.mode == "F" or (image.mode == "I" and image.format not in _GREY_16_FORMATS):
        raise ImageError(
            f"{path} holds 32-bit samples, whose black and white are not defined.",
            "Save it with 8 or 16 bits per sample.",
        )
    if width * height > MAX_PIXELS:
        raise _too_large(path, f" ({width}x{height})")


def _check_sides(width: int, height: int, source: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{source} has {width}x{height} pixels, too few to show a face.",
            f"Both sides need at least {MIN_SIDE}; 512 and more look good.",
        )


def _too_large(path: Path, size: str) -> ImageError:
    return ImageError(
        f"{path} has more than {MAX_PIXELS // 1_000_000} million pixels{size}.",
        "Scale it down first: the video has fewer than 2 million per frame.",
    )


def _to_rgb(image: Image) -> np.ndarray:
    from PIL import Image

    if image.mode in _GREY_16:
        grey = np.asarray(image).astype(np.float64).clip(0, 65535) / 257  # Pillow's own conversion clips at 255
        return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return np.array(image.convert("RGB"))


def _cover(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scale the centred box of the frame's shape; the box may lie between pixels, so nothing shifts or stretches."""
    from PIL import Image

    h, w = rgb.shape[:2]
    scale = max(width / w, height / h)
    box_w, box_h = min(width / scale, w), min(height / scale, h)
    left, top = (w - box_w) / 2, (h - box_h) / 2
    box = (left, top, min(left + box_w, w), min(top + box_h, h))
    return np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR, box=box))


def _resize_short_edge(rgb: np.ndarray, short: int) -> np.ndarray:
    from PIL import Image

    h, w = rgb.shape[:2]
    size = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
    return np.array(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR))


def _center_crop(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """Cut out or pad with black around the centre; a missing odd pixel is added at the right and the bottom."""
    missing_h, missing_w = max(height - rgb.shape[0], 0), max(width - rgb.shape[1], 0)
    pads = ((missing_h // 2, (missing_h + 1) // 2), (missing_w // 2, (missing_w + 1) // 2), (0, 0))
    padded = np.pad(rgb, pads)
    # round() to even is part of the published numbers
    top, left = round((padded.shape[0] - height) / 2.0), round((padded.shape[1] - width) / 2.0)
    return np.ascontiguousarray(padded[top : top + height, left : left + width])
