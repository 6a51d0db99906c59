"""Every kind of picture that people have: profiles, depths, transparency, cut-off files, and what others are called."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from media.profiles import cmyk_profile, grey_profile, rgb_profile
from PIL import Image, ImageCms

from liveavatar.errors import ImageError
from liveavatar.media.image import read_image

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "cases"


def gradient(width: int = 64, height: int = 48) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (3 * x + y) % 256], 2).astype(np.uint8)


def of_profile(image: Image.Image, profile: bytes) -> np.ndarray:
    """What the colour management itself makes of the whole picture."""
    given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return np.asarray(ImageCms.profileToProfile(image, given, ImageCms.createProfile("sRGB"), outputMode="RGB"))


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize(("kind", "profile"), [("RGB", rgb_profile()), ("L", grey_profile(1.8))])
@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
def test_colour_profiles_are_applied(kind: str, profile: bytes, ending: str, tmp_path: Path) -> None:
    Image.fromarray(gradient()).convert(kind).save(tmp_path / f"x.{ending}", icc_profile=profile)
    notes: list[str] = []
    read = read_image(tmp_path / f"x.{ending}", notes)
    stored = Image.open(tmp_path / f"x.{ending}")
    assert difference(read, of_profile(stored, profile)) <= 4 < difference(read, np.asarray(stored.convert("RGB")))
    assert not notes


def test_profile_of_inks_is_applied(tmp_path: Path) -> None:
    inks = Image.fromarray(np.concatenate([gradient(), gradient()[..., :1] // 2], 2), "CMYK")
    for ending in ("tif", "jpg"):
        inks.save(tmp_path / f"x.{ending}", icc_profile=cmyk_profile())
        stored = Image.open(tmp_path / f"x.{ending}")
        assert difference(read_image(tmp_path / f"x.{ending}"), of_profile(stored, cmyk_profile())) <= 4
        assert difference(read_image(tmp_path / f"x.{ending}"), np.asarray(stored.convert("RGB"))) > 60


def test_profile_is_applied_to_what_is_seen_of_palettes_and_transparency(tmp_path: Path) -> None:
    rgba = np.dstack([gradient(), np.where(np.arange(64) < 32, 0, 255)[None].repeat(48, 0)]).astype(np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png", icc_profile=rgb_profile())
    read = read_image(tmp_path / "rgba.png")
    assert (read[:, :32] == 255).all()
    assert difference(read[:, 32:], of_profile(Image.fromarray(gradient()), rgb_profile())[:, 32:]) <= 4
    palette = Image.fromarray(gradient()).quantize(16)
    palette.save(tmp_path / "palette.png", icc_profile=rgb_profile())
    expected = of_profile(palette.convert("RGB"), rgb_profile())
    assert difference(read_image(tmp_path / "palette.png"), expected) <= 4


def test_grey_of_16_bits_goes_through_its_profile(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "x.png", icc_profile=grey_profile(1.0))
    linear = grey / 65535
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(read_image(tmp_path / "x.png") - srgb[..., None]).max() <= 4


@pytest.mark.parametrize("profile", [b"not a profile", rgb_profile()[:200], grey_profile(2.2)])
def test_profile_that_cannot_be_applied_is_told(profile: bytes, tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "x.png", icc_profile=profile)
    notes: list[str] = []
    assert np.array_equal(read_image(tmp_path / "x.png", notes), gradient())
    assert len(notes) == 1 and "colour profile" in notes[0]


def tiff(bits: int, photometric: int, values: bytes, side: int) -> bytes:
    """One uncompressed grey strip, little-endian."""
    tags = {256: side, 257: side, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: side, 279: len(values)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(values)) + values
    return head + struct.pack("<H", len(tags)) + entries + bytes(4)


def packed_12(values: np.ndarray) -> bytes:
    """Two values in three bytes."""
    one, two = values.reshape(-1, 2).astype(np.uint32).T
    return np.stack([one >> 4, (one & 15) << 4 | two >> 8, two & 255], 1).astype(np.uint8).tobytes()


def test_bits_per_sample_decide_what_is_white(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 32 * 32).reshape(32, 32)
    wanted = np.rint(ramp * 255)
    files = {
        "12": (tiff(12, 1, packed_12(np.rint(ramp * 4095)), 32), wanted),
        "16": (tiff(16, 1, np.rint(ramp * 65535).astype("<u2").tobytes(), 32), wanted),
        "16 white is zero": (tiff(16, 0, np.rint(ramp * 65535).astype("<u2").tobytes(), 32), 255 - wanted),
        "8 white is zero": (tiff(8, 0, wanted.astype(np.uint8).tobytes(), 32), 255 - wanted),
        "4095": (b"P5 32 32 4095\n" + np.rint(ramp * 4095).astype(">u2").tobytes(), wanted),
    }
    for name, (data, expected) in files.items():
        (tmp_path / "x").write_bytes(data)
        assert np.abs(read_image(tmp_path / "x")[..., 0] - expected).max() <= 1, name


def png(bits: int, kind: int, rows: bytes, transparent: bytes, side: int) -> bytes:
    """A PNG with a transparent colour; `rows` begin with their filter."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, bits, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"tRNS", transparent) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_grey_becomes_white_in_every_depth(bits: int, tmp_path: Path) -> None:
    """The left half is the darkest but one (of one bit: black), and transparent; the right half is black."""
    value = 1 if bits > 1 else 0
    line = [value] * 16 + [0 if bits > 1 else 1] * 16
    packed = np.packbits([value >> (bits - 1 - i) & 1 for value in line for i in range(bits)]).tobytes()
    (tmp_path / "x.png").write_bytes(png(bits, 0, 32 * (b"\0" + packed), struct.pack(">H", value), 32))
    read = read_image(tmp_path / "x.png")
    assert (read[:, :16] == 255).all() and (read[:, 16:] == (0 if bits > 1 else 255)).all()


def test_transparent_colour_of_16_bits_becomes_white(tmp_path: Path) -> None:
    line = struct.pack(">HHH", 2570, 300, 90) * 16 + struct.pack(">HHH", 65535, 0, 0) * 16
    transparent = struct.pack(">HHH", 2570, 300, 90)
    (tmp_path / "x.png").write_bytes(png(16, 2, 32 * (b"\0" + line), transparent, 32))
    read = read_image(tmp_path / "x.png")
    assert (read[:, :16] == 255).all() and (read[:, 16:] == (255, 0, 0)).all()


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_over_white_in_every_mode(mode: str, tmp_path: Path) -> None:
    grey, alpha = np.full((32, 32), 60, np.uint8), np.full((32, 32), 51, np.uint8)
    image = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]).convert(mode)
    image.save(tmp_path / "x.png")
    assert difference(read_image(tmp_path / "x.png"), np.full((32, 32, 3), 216)) <= 1


def photograph(**options: object) -> tuple[np.ndarray, bytes]:
    out = io.BytesIO()
    Image.fromarray(gradient(640, 480)).save(out, "JPEG", quality=90, **options)
    return np.asarray(Image.open(out)), out.getvalue()


@pytest.mark.parametrize("lacking", [2, 3, 200])
def test_jpeg_that_lacks_its_last_bytes_is_read_and_told(lacking: int, tmp_path: Path) -> None:
    whole, data = photograph()
    (tmp_path / "x.jpg").write_bytes(data[:-lacking])
    notes: list[str] = []
    read = read_image(tmp_path / "x.jpg", notes)
    assert len(read) >= 460 and np.array_equal(read[:-2], whole[: len(read) - 2])
    assert lacking > 2 or len(read) == 480
    assert len(notes) == 1 and "cut off" in notes[0]


def test_jpeg_in_passes_may_lack_the_last_details(tmp_path: Path) -> None:
    whole, data = photograph(progressive=True)
    (tmp_path / "x.jpg").write_bytes(data[: len(data) * 9 // 10])
    notes: list[str] = []
    read = read_image(tmp_path / "x.jpg", notes)
    assert read.shape == whole.shape and np.abs(read.astype(int) - whole).mean() < 4
    assert len(notes) == 1 and "details" in notes[0]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_jpeg_that_lacks_much_is_refused(progressive: bool, share: float, tmp_path: Path) -> None:
    data = photograph(progressive=progressive)[1]
    (tmp_path / "x.jpg").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match="cut off"):
        read_image(tmp_path / "x.jpg")


def test_damaged_exif_leaves_the_picture_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "x.png", exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    assert np.array_equal(read_image(tmp_path / "x.png"), gradient())


@pytest.mark.parametrize(("ending", "word"), [("gif", "frame"), ("webp", "frame"), ("png", "frame"), ("tif", "page")])
def test_further_frames_and_pages_are_told(ending: str, word: str, tmp_path: Path) -> None:
    one, two = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    one.save(tmp_path / f"x.{ending}", save_all=True, append_images=[two])
    notes: list[str] = []
    read_image(tmp_path / f"x.{ending}", notes)
    assert len(notes) == 1 and word in notes[0] and "first" in notes[0]


def test_photograph_with_a_second_picture_inside_is_one_picture(tmp_path: Path) -> None:
    one, depth = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (32, 32), "grey")
    one.save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[depth])
    notes: list[str] = []
    assert difference(read_image(tmp_path / "x.jpg", notes), np.full((64, 64, 3), (255, 0, 0))) <= 3
    assert not notes


NAMED = {
    "HEIC": ("x.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
    "HEIC of a burst": ("x.jpg", b"\0\0\0\x18ftypmsf1\0\0\0\0mif1heic"),
    "JPEG XL": ("x.jxl", b"\xff\x0a\xfa\x7f"),
    "JPEG XL in its container": ("x.jxl", b"\0\0\0\x0cJXL \r\n\x87\n"),
    "SVG": ("x.svg", b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>"),
    "CR2": ("x.jpg", b"II*\0\x10\0\0\0CR\2\0" + bytes(100)),
    "CR3": ("x.cr3", b"\0\0\0\x18ftypcrx \0\0\0\1"),
    "NEF": ("x.nef", tiff(8, 1, bytes(32 * 32), 32)),
    "OpenEXR": ("x.exr", b"\x76\x2f\x31\x01\2\0\0\0"),
    "Photoshop": ("x.psd", b"8BPS\0\1" + bytes(20)),
    "PDF": ("x.pdf", b"%PDF-1.7"),
    "film": ("x.mp4", b"\0\0\0\x18ftypisom\0\0\0\0"),
    "icon": ("x.ico", b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0" + bytes(8)),
    "TIFF": ("x.tif", tiff(24, 1, bytes(32 * 32 * 3), 32)),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_is_not_read_is_called_by_its_name(name: str, tmp_path: Path) -> None:
    file, data = NAMED[name]
    (tmp_path / file).write_bytes(data)
    with pytest.raises(ImageError) as e:
        read_image(tmp_path / file)
    assert name.split()[0] in e.value.what and "PNG" in e.value.nearest


def test_floating_point_is_called_by_its_name(tmp_path: Path) -> None:
    Image.fromarray(np.ones((32, 32), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(ImageError, match=r"HDR.*8 or 16 bits"):
        read_image(tmp_path / "x.tif")


def test_raw_pictures_of_wide_samples_and_modern_formats_are_read(tmp_path: Path) -> None:
    line = b"".join(struct.pack(">HHH", 65535, 257 * 128, 0) for _ in range(32))
    (tmp_path / "x.png").write_bytes(png(16, 2, 32 * (b"\0" + line), struct.pack(">HHH", 1, 2, 3), 32))
    assert (read_image(tmp_path / "x.png") == (255, 128, 0)).all()
    if "AVIF" in Image.registered_extensions().values():
        Image.new("RGB", (32, 32), (255, 128, 0)).save(tmp_path / "x.avif")
        assert difference(read_image(tmp_path / "x.avif"), np.full((32, 32, 3), (255, 128, 0))) <= 4


PEAK = """
import resource, sys
import numpy as np
from liveavatar.media.image import read_image
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB
notes, before = [], peak()
shape = read_image(sys.argv[1], notes).shape
print(before, peak(), *shape, len(notes))
"""


def test_memory_of_a_large_picture_is_bounded(tmp_path: Path) -> None:
    """Seven bytes a pixel beside 0.2 GB for Python: 120 million, the most that is read, stay under 1.1 GB."""
    pytest.importorskip("resource", reason="measures a process")
    side = 6_912
    lines, packer, checksum = (b"\0" + b"\x80\x40\x20\x80" * side) * 64, zlib.compressobj(1, wbits=-15), 1
    packed = packer.compress(lines) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(side // 64):
        checksum = zlib.adler32(lines, checksum)
    body = b"\x78\x01" + packed * (side // 64) + packer.flush() + struct.pack(">I", checksum)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "x.png")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    before, peak, height, width, _, notes = map(float, ran.stdout.split())
    assert peak - before < 7e-9 * side**2 and (height, width, notes) == (side / 2, side / 2, 1)


@pytest.mark.skipif(not CASES.is_dir(), reason="the folder of example files is not beside the project")
def test_example_files_have_their_right_values() -> None:
    assert abs(read_image(CASES / "grey12.tif").mean() - 157) < 2
    assert set(np.unique(read_image(CASES / "grey16_transparent.png"))) == {156, 255}
    for name in ("icc_display_p3.png", "icc_adobe_rgb.png"):
        stored = Image.open(CASES / name)
        assert difference(read_image(CASES / name), of_profile(stored, stored.info["icc_profile"])) <= 4
