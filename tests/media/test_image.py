"""Any picture a user has is read upright and in RGB, or refused with a reason; a fitted picture fills its frame."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from liveavatar.errors import ImageError
from liveavatar.media.image import fit_image, read_image, to_pixels

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def gradient(width: int = 40, height: int = 24) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], 2).astype(np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"")


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


BAD = {
    "empty file": b"",
    "text": b"this is not a picture " * 20,
    "html": b"<!doctype html><html><body>404</body></html>",
    "one pixel": encoded(Image.new("RGB", (1, 1)), "PNG"),
    "fifteen rows": encoded(Image.new("RGB", (400, 15)), "PNG"),
    "more pixels than allowed": png_header(20_000, 10_000),
    "decompression bomb": png_header(60_000, 60_000),
    "header only": png_header(64, 64),
    "cut off JPEG": encoded(gradient(400, 300), "JPEG")[:3000],
    "cut off PNG": encoded(gradient(400, 300), "PNG")[:700],
    "broken PNG checksum": encoded(gradient(), "PNG").replace(b"IDAT", b"IDAX", 1),
    "32-bit float samples": encoded(Image.new("F", (32, 32)), "TIFF"),
    "32-bit whole samples": encoded(Image.new("I", (32, 32)), "TIFF"),
    "drawing": encoded(gradient(), "EPS"),
    "sound": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(28),
}


@pytest.mark.parametrize("name", BAD)
def test_unusable_file_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(BAD[name])
    with pytest.raises(ImageError) as e:
        read_image(file)
    assert "x.png" in e.value.what and e.value.nearest


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.png", tmp_path):
        with pytest.raises(ImageError, match=str(path)):
            read_image(path)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_are_read_exactly(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "picture"
    file.write_bytes(encoded(gradient(), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.array_equal(read_image(file), np.asarray(gradient()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_camera_gives_an_upright_picture(orientation: int, tmp_path: Path) -> None:
    upright = np.asarray(gradient())
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    file = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(file, exif=exif)
    assert np.array_equal(read_image(file), upright)


def test_transparency_becomes_white(tmp_path: Path) -> None:
    rgba = np.zeros((16, 32, 4), np.uint8)
    rgba[:, 16:] = (200, 10, 20, 255)
    rgba[:, 8:16] = (0, 0, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "cutout.png")
    seen = read_image(tmp_path / "cutout.png")
    assert (seen[:, :8] == 255).all() and (seen[:, 8:16] == 127).all() and (seen[:, 16:] == (200, 10, 20)).all()
    palette = Image.fromarray(rgba[..., :3]).quantize(4)
    palette.save(tmp_path / "palette.gif", transparency=palette.getpixel((0, 0)))
    assert (read_image(tmp_path / "palette.gif")[:, :8] == 255).all()


def test_other_kinds_of_samples_become_rgb(tmp_path: Path) -> None:
    rgb = np.asarray(gradient())
    for mode in ("L", "1", "LA", "P"):
        gradient().convert(mode).save(tmp_path / "x.png")
        assert read_image(tmp_path / "x.png").shape == rgb.shape
    grey = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey16.png")
    assert np.array_equal(read_image(tmp_path / "grey16.png")[..., 1], np.rint(grey / 257).astype(np.uint8))
    gradient().convert("CMYK").save(tmp_path / "cmyk.tif")
    assert np.abs(read_image(tmp_path / "cmyk.tif").astype(int) - rgb).max() <= 1


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    for name in ("x.gif", "x.webp", "x.png"):
        red.save(tmp_path / name, save_all=True, append_images=[blue], **({"lossless": True} if "web" in name else {}))
        assert (read_image(tmp_path / name) == (255, 0, 0)).all()


@given(
    st.integers(16, 300), st.integers(16, 300), st.integers(1, 4), st.integers(1, 4), st.sampled_from(["cover", "pad"])
)
def test_fitted_picture_has_the_asked_size_and_cover_has_no_bars(w: int, h: int, i: int, j: int, mode: str) -> None:
    fitted = fit_image(np.full((h, w, 3), 200, np.uint8), 64 * i, 64 * j, mode)
    assert fitted.shape == (64 * j, 64 * i, 3) and fitted.dtype == np.uint8
    assert mode == "pad" or (fitted == 200).all()


def test_cover_keeps_the_centre_and_the_proportions() -> None:
    y, x = np.mgrid[:300, :500]
    disc = (((x - 249.5) ** 2 + (y - 149.5) ** 2 < 80**2) * 255).astype(np.uint8)
    fitted = fit_image(np.repeat(disc[..., None], 3, 2), 128, 192)[..., 0] > 127
    assert np.array_equal(fitted, fitted[::-1]) and np.array_equal(fitted, fitted[:, ::-1])
    assert abs(int(fitted.any(0).sum()) - int(fitted.any(1).sum())) <= 1


@pytest.mark.parametrize(
    ("rgb", "width", "height", "mode"),
    [
        (np.zeros((20, 20), np.uint8), 64, 64, "cover"),
        (np.zeros((20, 20, 4), np.uint8), 64, 64, "cover"),
        (np.zeros((20, 20, 3), np.float32), 64, 64, "cover"),
        (np.zeros((0, 20, 3), np.uint8), 64, 64, "cover"),
        (np.zeros((20, 20, 3), np.uint8), 0, 64, "cover"),
        (np.zeros((20, 20, 3), np.uint8), 64, 64, "stretch"),
    ],
)
def test_unfittable_pictures_are_refused(rgb: np.ndarray, width: int, height: int, mode: str) -> None:
    with pytest.raises(ImageError):
        fit_image(rgb, width, height, mode)  # type: ignore[arg-type]


def test_pixels_span_minus_one_to_one() -> None:
    rgb = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    pixels = to_pixels(rgb)
    assert pixels.shape == (1, 3, 1, 16, 16) and pixels.dtype == torch.float32
    assert pixels.min() == -1 and pixels.max() == 1
    assert torch.equal(pixels[0, :, 0].permute(1, 2, 0), torch.from_numpy(rgb).float() / 255 * 2 - 1)


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder of example pictures is not beside the project")
@pytest.mark.parametrize("file", sorted(DATA.glob("*.jpg")), ids=lambda p: p.name)
def test_every_example_picture_reads_and_fits(file: Path) -> None:
    rgb = read_image(file)
    for mode in ("cover", "pad"):
        fitted = fit_image(rgb, 384, 256, mode)
        assert fitted.shape == (256, 384, 3) and 20 < fitted.mean() < 235
