"""Every way to write an uncompressed WAV gives the same samples, whatever its header says of the length."""

import struct
from pathlib import Path

import numpy as np
import pytest
from media.clips import float_wav, tones

from liveavatar.errors import AudioError
from liveavatar.media.audio_file import read_audio

RATE = 16_000
SOUND = tones(4000, RATE, 2)
GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")


def packed(samples: np.ndarray, kind: str, order: str = "<", right_aligned: bool = False) -> bytes:
    """Samples [n, channels] as bytes: "u1", "i2", "i3", "i3in4", "i4", "i8", "f2", "f4" or "f8"."""
    if kind[0] == "f":
        return samples.astype(f"{order}{kind}").tobytes()
    if kind == "u1":
        return np.round(samples * 127 + 128).astype(np.uint8).tobytes()
    if kind in ("i3", "i3in4"):
        wide = np.round(samples * (2**23 - 1)).astype(np.int32)
        if kind == "i3in4":
            return (wide if right_aligned else wide << 8).astype(f"{order}i4").tobytes()
        four = wide.astype(f"{order}i4").reshape(-1).view(np.uint8).reshape(-1, 4)
        return four[:, :3].tobytes() if order == "<" else four[:, 1:].tobytes()
    full = 2.0 ** (8 * int(kind[1]) - 1)
    return np.round(samples.astype(np.float64) * (full * (1 - 2**-40))).astype(f"{order}{kind}").tobytes()


def wav(
    data: bytes,
    kind: str,
    *,
    head: bytes = b"RIFF",
    size: int | None = None,
    extensible: bool = False,
    channels: int = 2,
    before: bytes = b"",
    behind: bytes = b"",
) -> bytes:
    """A file of samples that are packed already; `size` is what the header says of them."""
    order = ">" if head == b"RIFX" else "<"
    width = 4 if kind == "i3in4" else int(kind[1])
    bits = 24 if kind == "i3in4" and not extensible else 8 * width
    tag = 0xFFFE if extensible else 3 if kind[0] == "f" else 1
    form = struct.pack(f"{order}HHIIHH", tag, channels, RATE, RATE * channels * width, channels * width, bits)
    if extensible:
        valid = 24 if kind == "i3in4" else bits
        form += struct.pack(f"{order}HHIH", 22, valid, 3, 3 if kind[0] == "f" else 1) + GUID_TAIL
    size = len(data) if size is None else size
    chunks = [b"fmt " + struct.pack(f"{order}I", len(form)) + form, before]
    if head in (b"RF64", b"BW64"):
        chunks.insert(0, b"ds64" + struct.pack("<IQQQI", 28, len(data) + 100, size, len(data) // width // channels, 0))
        size = 0xFFFF_FFFF
    chunks.append(b"data" + struct.pack(f"{order}I", size) + data + behind)
    body = b"WAVE" + b"".join(chunks)
    return head + struct.pack(f"{order}I", min(len(body) - len(data) + size, 0xFFFF_FFFF)) + body


def w64(data: bytes, size: int | None = None) -> bytes:
    """A Wave64 file of 16-bit samples."""
    tail = bytes.fromhex("f3acd3118cd100c04f8edb8a")
    form = struct.pack("<HHIIHH", 1, 2, RATE, RATE * 4, 4, 16)
    chunks = b"wave" + tail + b"fmt " + tail + struct.pack("<Q", 24 + len(form)) + form
    chunks += b"data" + tail + struct.pack("<Q", 24 + len(data) if size is None else size) + data
    return b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000") + struct.pack("<Q", 24 + len(chunks)) + chunks


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


KINDS = [
    *[(kind, b"RIFF", False) for kind in ("u1", "i2", "i3", "i4", "i8", "f2", "f4", "f8", "i3in4")],
    *[(kind, b"RIFX", False) for kind in ("u1", "i2", "i3", "i4", "i8", "f4", "f8")],
    *[(kind, b"RIFF", True) for kind in ("i2", "i3", "i4", "f4", "i3in4")],
    *[(kind, head, False) for kind in ("i2", "f4") for head in (b"RF64", b"BW64")],
]


@pytest.mark.parametrize(("kind", "head", "extensible"), KINDS)
def test_every_kind_of_sample_is_read(kind: str, head: bytes, extensible: bool, tmp_path: Path) -> None:
    data = packed(SOUND, kind, ">" if head == b"RIFX" else "<")
    clip = read_audio(written(tmp_path / "x.wav", wav(data, kind, head=head, extensible=extensible)))
    error = {"u1": 0.01, "i2": 1e-4, "f2": 1e-3}.get(kind, 1e-6)
    assert (clip.rate, clip.channels, clip.notes) == (RATE, 2, ())
    assert np.abs(clip.samples - SOUND).max() <= error


def test_24_bits_in_the_lower_three_of_four_bytes_are_not_quiet(tmp_path: Path) -> None:
    for extensible in (False, True):
        data = packed(SOUND, "i3in4", right_aligned=True)
        clip = read_audio(written(tmp_path / "x.wav", wav(data, "i3in4", extensible=extensible)))
        assert np.abs(clip.samples - SOUND).max() <= 1e-6


def test_sony_wave64_is_read(tmp_path: Path) -> None:
    clip = read_audio(written(tmp_path / "x.w64", w64(packed(SOUND, "i2"))))
    assert np.abs(clip.samples - SOUND).max() <= 1e-4


PLACEHOLDERS = [0, 0x7FFF_FFFF, 0x7FFF_FFFF - 36, 0x8000_0000, 0xFFFF_FFFF, 0xFFFF_FFFF - 44, 0xFFFF_F000, 0x7FFF_F000]
PLACEHOLDERS += [2_000_000_000, 1_000_000_000, 1_999_999_964, 4_000_000_000, 2**30, 2**29 - 1, 123_456_789_0]


@pytest.mark.parametrize("size", PLACEHOLDERS)
def test_a_placeholder_is_no_length(size: int, tmp_path: Path) -> None:
    clip = read_audio(written(tmp_path / "x.wav", wav(packed(SOUND, "i2"), "i2", size=size)))
    assert len(clip.samples) == len(SOUND)


@pytest.mark.parametrize("size", [0, 2**64 - 1, 2**63 - 1, 0xFFFF_FFFF])
def test_a_long_placeholder_is_no_length_either(size: int, tmp_path: Path) -> None:
    data = packed(SOUND, "i2")
    for name, content in (("x.wav", wav(data, "i2", head=b"RF64", size=size)), ("x.w64", w64(data, size))):
        assert len(read_audio(written(tmp_path / name, content)).samples) == len(SOUND)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_wav_that_was_cut_off_says_so(share: float, tmp_path: Path) -> None:
    whole = float_wav(tones(12_345, RATE), RATE)
    with pytest.raises(AudioError, match="is cut off or damaged"):
        read_audio(written(tmp_path / "x.wav", whole[: int(len(whole) * share)]))


def test_no_samples_and_no_channels_are_refused(tmp_path: Path) -> None:
    lists = b"LIST" + struct.pack("<I", 4) + b"INFO"
    for behind in (b"", lists):
        with pytest.raises(AudioError, match="0 s long"):
            read_audio(written(tmp_path / "x.wav", wav(b"", "i2", behind=behind)))
    with pytest.raises(AudioError, match="no channels"):
        read_audio(written(tmp_path / "x.wav", wav(b"", "i2", channels=0)))


@pytest.mark.parametrize("letters", ["Künstler".encode("latin-1"), "声優".encode("shift-jis"), "声音".encode("gbk")])
def test_tags_in_any_letters_are_no_matter(letters: bytes, tmp_path: Path) -> None:
    tag = b"INFOIART" + struct.pack("<I", len(letters)) + letters + bytes(len(letters) % 2)
    tags = b"LIST" + struct.pack("<I", len(tag)) + tag
    content = wav(packed(SOUND, "i2"), "i2", before=tags, behind=tags)
    assert len(read_audio(written(tmp_path / "x.wav", content)).samples) == len(SOUND)


def test_a_second_wav_behind_the_first_is_told(tmp_path: Path) -> None:
    one = wav(packed(SOUND, "i2"), "i2")
    clip = read_audio(written(tmp_path / "x.wav", one + one))
    assert len(clip.samples) == len(SOUND) and "second" in clip.notes[0]


NO_SOUND = [(np.nan, "not a number"), (np.inf, "infinite"), (32767.0, "full scale is 1")]


@pytest.mark.parametrize(("value", "told"), NO_SOUND)
def test_values_that_are_no_sound_are_refused_with_their_place(value: float, told: str, tmp_path: Path) -> None:
    for kind in ("f4", "f8"):
        broken = SOUND.copy()
        broken[2000:, 1] = value
        with pytest.raises(AudioError, match=told) as error:
            read_audio(written(tmp_path / "x.wav", wav(packed(broken, kind), kind)))
        assert "sample 2000 (0.125 s)" in error.value.what


def test_only_the_seconds_that_are_asked_for_are_read(tmp_path: Path) -> None:
    path = written(tmp_path / "x.wav", wav(packed(SOUND, "i2"), "i2", size=0xFFFF_FFFF))
    with path.open("r+b") as file:
        file.truncate(3 << 30)  # a hole: nobody has the time to read it
    clip = read_audio(path, 0.5)
    assert len(clip.samples) == RATE // 2 and np.abs(clip.samples[: len(SOUND)] - SOUND).max() <= 1e-4
