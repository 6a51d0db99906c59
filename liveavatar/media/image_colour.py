"""Decoded images in any kind of samples -> RGB in sRGB over white: depth, colour profile and transparency."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
"""Tags of TIFF."""
_WHITE_IS_ZERO = 0
_BAND_PIXELS = 1_000_000
"""Pixels that are brought to RGB at a time."""
_RGB, _GREY, _CMYK, _LAB = "RGB ", "GRAY", "CMYK", "LAB "
"""Colour spaces as profiles name them."""
_PALETTE_LIKE = ("P", "PA", "1")
"""Modes whose samples are no amounts of light: they become RGB before a profile is applied."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """What the samples of an opened image mean.

    Attributes:
        white: the largest value, which is white (or black).
        inverted: whether 0 is white.
        transparent: the grey value or RGB that is transparent, scaled as the decoded samples are; None where none is.
    """

    white: int = 255
    inverted: bool = False
    transparent: Any = None

    @classmethod
    def of(cls, image: Any) -> Samples:
        """Of an opened image that has not been decoded yet."""
        tags = getattr(image, "tag_v2", {})
        wide = image.mode in _GREY_16
        bits = int(tags.get(_BITS_PER_SAMPLE, (16,))[0]) if wide else 8
        inverted = wide and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        transparent = image.info.get("transparency")
        raw_mode = str(image.tile[0].args) if image.tile else ""
        return cls((1 << min(bits, 16)) - 1, inverted, _as_decoded(transparent, image.mode, raw_mode))


def _as_decoded(transparent: Any, mode: str, raw_mode: str) -> Any:
    """A transparent colour of a PNG, given in the depth of the file, in the depth of the decoded samples."""
    if mode == "1" and isinstance(transparent, int):
        return 255 * bool(transparent)
    if mode == "L" and isinstance(transparent, int) and raw_mode in ("L;2", "L;4"):
        return transparent * (85 if raw_mode == "L;2" else 17)
    if mode == "RGB" and isinstance(transparent, tuple) and raw_mode == "RGB;16B":
        return tuple(value >> 8 for value in transparent)
    return transparent


def to_rgb(image: Image, samples: Samples, factor: int, notes: list[str]) -> np.ndarray:
    """uint8 RGB [H, W, 3] of a decoded image, in sRGB, over white.

    The image is worked band by band, so that nothing but the result grows with it.

    Args:
        image: decoded.
        samples: what its samples mean.
        factor: both sides become ceil(side / factor), by the mean of so many pixels.
        notes: a sentence is added where the colour profile cannot be applied.
    """
    convert = _converter(image, samples, notes)
    width, height = (-(-side // factor) for side in image.size)
    result = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // (image.width * factor))
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        band = convert(image.crop((0, start * factor, image.width, min(stop * factor, image.height))))
        result[start:stop] = band if factor == 1 else _reduced(band, factor)
    return result


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours over white, as viewers, browsers and paper show them.

    Dropping alpha would bring up whatever colour a program left hidden there.

    Args:
        rgb: [h, w, 3], uint8.
        alpha: [h, w], uint8; 255 is opaque.
    """
    from PIL import Image

    if alpha.min(initial=255) == 255:
        return rgb
    white = Image.new("RGB", (rgb.shape[1], rgb.shape[0]), "white")
    white.paste(Image.fromarray(rgb), mask=Image.fromarray(alpha))
    return np.asarray(white)


Convert = Callable[["Image"], np.ndarray]
"""A band of an image -> uint8 RGB [h, w, 3]."""


def _reduced(rgb: np.ndarray, factor: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(rgb).reduce(factor))


def _converter(image: Image, samples: Samples, notes: list[str]) -> Convert:
    transform = _profile_transform(image, notes)
    if image.mode in _GREY_16:
        table = _grey_table(samples, transform)
        return lambda band: _wide_grey(band, samples, table)
    return lambda band: _narrow(band, samples, transform)


def _wide_grey(band: Image, samples: Samples, table: np.ndarray) -> np.ndarray:
    """16-bit grey through a table of all its values."""
    values = np.asarray(band)  # Pillow's own conversion clips at 255
    rgb = table[np.clip(values, 0, samples.white)]
    if samples.transparent is not None:
        rgb[values == samples.transparent] = 255
    return rgb


def _grey_table(samples: Samples, transform: Transform | None) -> np.ndarray:
    """RGB [white + 1, 3], uint8, of every grey value; between the 256 that a profile is asked for, in a line."""
    from PIL import Image

    steps = np.linspace(1.0, 0.0, samples.white + 1) if samples.inverted else np.linspace(0.0, 1.0, samples.white + 1)
    known = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    colours = np.asarray(transform(known) if transform else known.convert("RGB"))[0].astype(np.float64)
    columns = [np.interp(255 * steps, np.arange(256), colours[:, channel]) for channel in range(3)]
    return np.rint(np.stack(columns, 1)).astype(np.uint8)


def _narrow(band: Image, samples: Samples, transform: Transform | None) -> np.ndarray:
    """8-bit samples of any kind."""
    alpha, colours = _alpha(band, samples), band
    if band.mode in _PALETTE_LIKE:
        colours = band.convert("RGB")
    if transform:
        colours = transform(colours)
    elif colours.mode == "LAB":
        colours = _lab_transform()(colours)
    rgb = np.asarray(colours.convert("RGB"))
    return rgb if alpha is None else over_white(rgb, alpha)


def _alpha(band: Image, samples: Samples) -> np.ndarray | None:
    """Alpha [h, w], uint8; None where everything is opaque."""
    if "A" in band.getbands() or "a" in band.getbands():
        return np.asarray(band if band.mode in ("RGBA", "LA", "PA") else band.convert("RGBA"))[..., -1]
    if samples.transparent is None:
        return None
    if band.mode == "P":
        return np.asarray(band.convert("RGBA").getchannel("A"))
    if band.mode in ("1", "L", "RGB"):
        values = np.asarray(band.convert("L") if band.mode == "1" else band)
        same = values == np.asarray(samples.transparent, values.dtype)
        return np.where(same if same.ndim == 2 else same.all(-1), 0, 255).astype(np.uint8)
    return None


Transform = Callable[["Image"], "Image"]
"""Colours of an image's profile -> RGB in sRGB."""


def _profile_transform(image: Image, notes: list[str]) -> Transform | None:
    """The conversion from an image's colour profile, by its own rendering intent; None where it has no usable one."""
    if "icc_profile" not in image.info:
        return None
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        space = profile.profile.xcolor_space
        mode = _mode_for(image.mode, space)
        if mode is None:
            notes.append(f"the picture's colour profile is for {space.strip()}, not for its colours: it is not applied")
            return None
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(profile))
        if intent == ImageCms.Intent.ABSOLUTE_COLORIMETRIC:  # would paint the paper
            intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        # of a curve alone, what is precomputed would be coarse in the dark
        exact = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB", intent, exact)
    except Exception:  # a profile is a program of its own, and damaged in as many ways
        notes.append("the picture's colour profile is damaged: its colours are taken for sRGB")
        return None
    return lambda band: transform.apply(_in_mode(band, mode))


def _mode_for(mode: str, space: str) -> str | None:
    """The mode in which samples are given to a profile; None where it is for other colours."""
    if space == _GREY:
        return "L" if mode in (*_GREY_16, "L", "LA", "La", "1") else None
    if space == _RGB:
        return None if mode in ("CMYK", "LAB") else "RGB"
    return mode if (space, mode) in ((_CMYK, "CMYK"), (_LAB, "LAB")) else None


def _in_mode(band: Image, mode: str) -> Image:
    return band if band.mode == mode else band.convert(mode)


def _lab_transform() -> Transform:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
    return lambda band: transform.apply(band)
