"""The reference image: from a file to the pixels the network is given."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from einops import rearrange

from ..errors import ImageError
from ..utils import check_input_file
from .image_colour import Samples, to_rgb
from .image_formats import (
    MIN_SIDE,
    READABLE,
    camera_raw,
    check_header,
    check_sides,
    complete_jpeg,
    frame_note,
    not_read,
    raw_refusal,
    reduction,
    too_large,
)

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

Fit = Literal["cover", "pad"]


def read_image(path: str | os.PathLike[str], notes: list[str] | None = None, min_side: int = MIN_SIDE) -> np.ndarray:
    """Read an image file as uint8 RGB [H, W, 3], upright (EXIF orientation applied), in sRGB.

    Colour profiles are applied, samples of 9 to 16 bits scaled to 8, and transparent parts become white. Of an
    animation the first frame is taken. A JPEG that lacks its last rows loses them. Images of more than 32 million
    pixels are reduced by a whole number while they are read, so that memory stays under 1 GB.

    Args:
        path: the file.
        notes: a sentence is added for everything of the file that is left out or altered.
        min_side: pixels that both sides need at least.

    Raises:
        ImageError: no such file, not an image, damaged or cut off, too small, over 120 million pixels or too much
            memory to decode. Sizes are checked before anything is decoded.
    """
    from PIL import Image

    path = check_input_file(path, "picture", ImageError)
    found: list[str] = []
    try:
        with path.open("rb") as file:
            head = file.read(1024)
        if kind := camera_raw(path, head):
            raise raw_refusal(path, kind)
        rgb = _read(path, found, min_side)
    except ImageError:
        raise
    except Image.DecompressionBombError as e:
        raise too_large(path, "") from e
    except Image.UnidentifiedImageError as e:
        raise not_read(path, head) from e
    except Exception as e:  # decoders of damaged files raise errors of any kind
        raise ImageError(f"{path} is damaged or cut off ({e}).", "Export or download the picture again.") from e
    if notes is not None:
        notes += found
    return rgb


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
    check_sides(rgb.shape[1], rgb.shape[0], "The picture")
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
    import torch

    pixels = rearrange(torch.from_numpy(np.ascontiguousarray(rgb)), "h w c -> 1 c 1 h w")
    return pixels.float().div(255.0).mul(2.0).sub(1.0).contiguous()


def to_clip(frames: np.ndarray) -> torch.Tensor:
    """uint8 [n, H, W, 3] to float32 [1, 3, n, H, W], as `to_pixels`."""
    import torch

    return torch.cat([to_pixels(frame) for frame in frames], 2)


def _read(path: Path, notes: list[str], min_side: int) -> np.ndarray:
    """The upright RGB of a file that may be an image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes, whose limit here is near that, and of parts that are not used
        image, (width, height) = _open(path, path, min_side)
        with image:
            samples = Samples.of(image)
            notes += filter(None, [frame_note(image)])
            decoded = _decoded(image, path, notes)
            rgb = to_rgb(decoded, samples, reduction(*decoded.size), notes)
            if reduction(width, height) > 1:
                notes.append(f"the picture has {width}x{height} pixels; it is read at {rgb.shape[1]}x{rgb.shape[0]}")
            return upright(rgb, image, notes)


def _decoded(image: Image, path: Path, notes: list[str]) -> Image:
    """An opened image decoded; a JPEG that is cut off as far as it goes."""
    try:
        image.load()
    except OSError:
        if image.format not in ("JPEG", "MPO"):
            raise
        image, rows = complete_jpeg(path, lambda file: _load(_open(file, path)[0]))
        if rows == image.height:
            notes.append("the picture is cut off; all of its rows could be read, perhaps without the finest details")
            return image
        notes.append(f"the picture is cut off: its last {image.height - rows} rows are missing and are left away")
        return image.crop((0, 0, image.width, rows))
    return image


def _open(file: Path | io.BytesIO, path: Path, min_side: int = MIN_SIDE) -> tuple[Image, tuple[int, int]]:
    """An image whose header is in bounds, and its size; a very large JPEG will be decoded at half its size."""
    from PIL import Image

    image = Image.open(file, formats=READABLE)
    try:
        check_header(image, path, min_side)
        size = image.size
        if reduction(*size) > 1 and image.format in ("JPEG", "MPO"):
            image.draft(None, (size[0] // 2, size[1] // 2))
    except BaseException:
        image.close()
        raise
    return image, size


def _load(image: Image) -> Image:
    image.load()
    return image


def upright(rgb: np.ndarray, image: Image, notes: list[str]) -> np.ndarray:
    """Pixels [H, W, channels] turned as the file says; Pillow has turned those of a TIFF already."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # of EXIF data, every part can be damaged
        notes.append("which way up the picture is cannot be read from its EXIF data: it stays as it is stored")
        return rgb
    turned = _TURNED.get(orientation)
    return rgb if turned is None else np.ascontiguousarray(turned(rgb))


_ORIENTATION = 0x0112
_TURNED: Mapping[Any, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda rgb: rgb[:, ::-1],
    3: lambda rgb: rgb[::-1, ::-1],
    4: lambda rgb: rgb[::-1],
    5: lambda rgb: rgb.transpose(1, 0, 2),
    6: lambda rgb: np.rot90(rgb, -1),
    7: lambda rgb: rgb[::-1, ::-1].transpose(1, 0, 2),
    8: lambda rgb: np.rot90(rgb, 1),
}
"""EXIF orientation -> what makes it upright."""


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
