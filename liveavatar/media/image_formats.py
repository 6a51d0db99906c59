"""Image files as they come: which formats are read, what decoding them takes, and what others are called."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ImageError
from ..utils import format_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

READABLE = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "AVIF", "JPEG2000", "TGA", "PSD", "PCX", "QOI")
"""Pillow's names of the formats that are read; its other readers are for drawings, icons, films and instruments."""
SAVE_AS = "Save it as PNG, JPEG or WebP."
MIN_SIDE = 16
"""Pixels below which a side holds no portrait."""
MAX_PIXELS = 120_000_000
"""Pixels above which an image is not decoded: more than most cameras make."""
MAX_DECODING_BYTES = 600_000_000
"""Most memory that a decoder may take: with Python and the result, a process stays under 1 GB."""
KEPT_PIXELS = 32_000_000
"""Pixels of the largest image that is handed on as it is: 15 times the largest frame of a video."""
MAX_MISSING_SHARE = 1 / 16
"""Share of the rows that a JPEG which was cut off may lack."""

_DECODER_BYTES = {"WEBP": 17, "AVIF": 15, "JPEG2000": 24}
"""Bytes per pixel of decoders that keep more than the result; measured, of images with an alpha channel."""
_ORIENTATION, _ROWS_PER_STRIP, _TILE_WIDTH, _TILE_LENGTH, _DNG_VERSION = 274, 278, 322, 323, 50706
"""Tags of TIFF; the last one is in raw files only."""
_ONE_PICTURE = ("MPO", "PSD")
"""Formats whose further frames are parts of the same photograph."""
_WIDE_GREY = ("PNG", "PPM")
"""Formats whose 16-bit grey some versions of Pillow call 32-bit."""


def check_header(image: Image, path: Path, min_side: int = MIN_SIDE) -> None:
    """Refuse an opened image whose decoding would be of no use or take too much; nothing has been decoded yet.

    Args:
        image, path: of the file.
        min_side: as of `read_image`.

    Raises:
        ImageError: sides, samples or memory out of bounds.
    """
    if _DNG_VERSION in getattr(image, "tag_v2", {}):
        raise raw_refusal(path, "DNG")
    width, height = image.size
    check_sides(width, height, str(path), min_side)
    if image.mode == "F":
        raise ImageError(
            f"{path} holds 32-bit floating point samples (HDR), whose black and white are not defined.",
            "Map it to 8 or 16 bits per sample in the program that made it, and save it as PNG.",
        )
    if image.mode == "I" and image.format not in _WIDE_GREY:
        raise ImageError(
            f"{path} holds 32-bit or signed samples, whose black and white are not defined.",
            "Save it as PNG with 8 or 16 bits per sample.",
        )
    if width * height > MAX_PIXELS:
        raise too_large(path, f" ({width}x{height})")
    needed = decoding_bytes(image)
    if needed > MAX_DECODING_BYTES:
        raise ImageError(
            f"{path} has {width}x{height} pixels: as {_kind(image)} it would take {format_bytes(needed)} of memory to "
            "decode.",
            "Scale it down first: the video has fewer than 2 million pixels per frame.",
        )


def check_sides(width: int, height: int, source: str, min_side: int = MIN_SIDE) -> None:
    """Refuse an image that is too small.

    Raises:
        ImageError: a side of fewer pixels than `min_side`.
    """
    if min(width, height) < min_side:
        raise ImageError(
            f"{source} has {width}x{height} pixels, too few to show a face.",
            f"Both sides need at least {min_side}; 512 and more look good.",
        )


def too_large(path: Path, size: str) -> ImageError:
    """The refusal of an image with too many pixels."""
    return ImageError(
        f"{path} has more than {MAX_PIXELS // 1_000_000} million pixels{size}.",
        "Scale it down first: the video has fewer than 2 million per frame.",
    )


def reduction(width: int, height: int) -> int:
    """The whole number by which both sides are divided while an image is read; 1 for all but very large ones."""
    factor = 1
    while width * height > KEPT_PIXELS * factor**2:
        factor += 1
    return factor


def decoding_bytes(image: Image) -> int:
    """Bytes that decoding an opened image takes at its peak, from its header."""
    pixels = image.width * image.height
    stored = {"1": 1, "L": 1, "P": 1}.get(image.mode, 2 if image.mode.startswith("I;16") else 4)
    if image.format in ("JPEG", "MPO"):
        drafted = pixels * stored // (4 if reduction(*image.size) > 1 else 1)
        return drafted + (_coefficient_bytes(image) if image.info.get("progressive") else 0)
    if image.format == "TIFF":
        return pixels * stored + _tiff_bytes(image, stored)
    return pixels * max(stored, _DECODER_BYTES.get(image.format or "", 0))


def _tiff_bytes(image: Any, stored: int) -> int:
    """Bytes that a TIFF takes beside its pixels: a compressed strip is decoded as a whole, and a turned image twice
    there."""
    tags = image.tag_v2
    turned = image.width * image.height * stored if tags.get(_ORIENTATION, 1) != 1 else 0
    if not image.tile or image.tile[0].codec_name == "raw":
        return turned
    rows, columns = tags.get(_TILE_LENGTH, tags.get(_ROWS_PER_STRIP, image.height)), tags.get(_TILE_WIDTH, image.width)
    return max(turned, min(rows, image.height) * min(columns, image.width) * stored)


def _coefficient_bytes(image: Any) -> int:
    """Bytes of the coefficients of a progressive JPEG, which stay until its last scan: 2 per sample."""
    layers = image.layer
    most = max(h * v for _, h, v, _ in layers)
    return sum(2 * image.width * image.height * h * v // most for _, h, v, _ in layers)


def _kind(image: Any) -> str:
    return f"progressive {image.format}" if image.info.get("progressive") else str(image.format)


def frame_note(image: Any) -> str | None:
    """A sentence about the frames or pages that are not used; None where there are none."""
    if image.format in _ONE_PICTURE or not getattr(image, "is_animated", False):
        return None
    word = "page" if image.format == "TIFF" else "frame"
    return f"the picture has several {word}s; the first one is used"


def complete_jpeg(path: Path, decode: Callable[[io.BytesIO], Image]) -> tuple[Image, int]:
    """A JPEG that ends before its end mark, decoded as far as it goes.

    What is missing is found by decoding twice, with an end mark behind the data and with other bytes before the mark:
    the decoder takes zeros and then draws grey for data that is missing, and something else for those bytes.

    Args:
        path: the file.
        decode: opens and decodes a file.

    Returns:
        The decoded image, and its rows that are whole.

    Raises:
        ValueError: more than the end is missing.
    """
    data = path.read_bytes().rstrip(b"\xff")
    if not _only_details_follow(data):
        raise ValueError("much of it is missing")
    image = decode(io.BytesIO(data + _END))
    from PIL import ImageChops

    changed = ImageChops.difference(image, decode(io.BytesIO(data + _OTHER + _END))).getbbox()
    rows = changed[1] if changed and not image.info.get("progressive") else image.height
    if rows < image.height * (1 - MAX_MISSING_SHARE):
        raise ValueError(f"{image.height - rows} of {image.height} rows are missing")
    return image, rows


_END, _OTHER = b"\xff\xd9", b"\x5a" * 4096


def _only_details_follow(data: bytes) -> bool:
    """Whether the scan in which a JPEG ends is its only one, or one that refines what earlier ones drew.

    A progressive JPEG is drawn in passes over the whole picture; the last passes add the last bit of every number.
    """
    progressive, start, scans = b"\xff\xc2" in data[:65536], 0, []
    while progressive and (start := data.find(b"\xff\xda", start)) >= 0:
        length = int.from_bytes(data[start + 2 : start + 4], "big")
        scans.append(data[start + 2 + length - 1 : start + 2 + length])  # high and low bit position
        start += 2
    return not progressive or (bool(scans) and scans[-1] not in (b"", b"\0") and scans[-1][0] & 15 == 0)


_FIRST_BYTES = (
    (0, b"%PDF", "a PDF"),
    (0, b"%!PS", "a drawing (EPS)"),
    (0, b"\xc5\xd0\xd3\xc6", "a drawing (EPS)"),
    (0, b"\xd7\xcd\xc6\x9a", "a drawing (WMF)"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (0, b"\x76\x2f\x31\x01", "an HDR picture (OpenEXR)"),
    (0, b"#?R", "an HDR picture (Radiance)"),
    (0, b"8BPS", "a Photoshop picture of a kind that is not read"),
    (0, b"gimp xcf", "a GIMP picture (XCF)"),
    (0, b"\0\0\1\0", "an icon"),
    (0, b"icns", "an icon"),
    (4, b"ftypavi", "an AVIF picture"),
    (4, b"ftypheic", "an HEIC picture"),
    (4, b"ftypheix", "an HEIC picture"),
    (4, b"ftyphevc", "an HEIC picture"),
    (4, b"ftypmif1", "an HEIC picture"),
    (4, b"ftypmsf1", "an HEIC picture"),
    (4, b"ftyp", "a film"),
    (0, b"\x1a\x45\xdf\xa3", "a film"),
    (8, b"WAVE", "a sound"),
    (8, b"AVI ", "a film"),
    (0, b"PK\3\4", "an archive"),
    (0, b"\x1f\x8b", "a compressed file"),
    (0, b"II*\0", "a TIFF picture of a kind that is not read"),
    (0, b"MM\0*", "a TIFF picture of a kind that is not read"),
    (0, b"II+\0", "a TIFF picture of a kind that is not read"),
    (0, b"MM\0+", "a TIFF picture of a kind that is not read"),
)
"""Offset, bytes there, and what such a file is; the first that fits counts."""
_RAW_BYTES = (
    (0, b"FUJIFILMCCD-RAW", "RAF"),
    (0, b"IIRO", "ORF"),
    (0, b"IIRS", "ORF"),
    (0, b"IIU\0", "RW2"),
    (0, b"FOVb", "X3F"),
    (8, b"CR\2\0", "CR2"),
    (4, b"ftypcrx ", "CR3"),
)
"""Offset, bytes there, and the kind of raw file."""
_RAW_ENDINGS = {".dng", ".nef", ".nrw", ".arw", ".sr2", ".srw", ".pef", ".cr2", ".cr3", ".raf", ".orf", ".rw2", ".3fr"}
"""Endings of cameras' raw files that begin as a TIFF does, and hold a small preview in front."""


def camera_raw(path: Path, head: bytes) -> str | None:
    """What kind of raw file of a camera a file is, from its ending and first bytes; None where it is none."""
    if path.suffix.lower() in _RAW_ENDINGS:
        return path.suffix[1:].upper()
    return next((kind for offset, mark, kind in _RAW_BYTES if head[offset:].startswith(mark)), None)


def not_read(path: Path, head: bytes) -> ImageError:
    """The refusal of a file that is of no format that is read, and what it is where that is known.

    Args:
        path: the file.
        head: its first bytes.
    """
    if not head:
        return ImageError(f"{path} is empty.", "Export or download the picture again, as PNG, JPEG or WebP.")
    if kind := camera_raw(path, head):
        return raw_refusal(path, kind)
    name = next((name for offset, mark, name in _FIRST_BYTES if head[offset:].startswith(mark)), None)
    name = name or ("a drawing (SVG)" if b"<svg" in head.lower() else None)
    if name is None:
        return ImageError(f"{path} is not a picture this program can read.", SAVE_AS)
    return ImageError(f"{path} is {name}, which is not read.", SAVE_AS)


def raw_refusal(path: Path, kind: str) -> ImageError:
    """The refusal of a camera's raw file, whose readable part is a small preview."""
    return ImageError(
        f"{path} is a camera's raw file ({kind}), which is not read.", "Develop it, and save it as JPEG or 16-bit PNG."
    )
