"""Uncompressed WAV files: their headers, whatever stands in them for the length, and their samples."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import IO

import numpy as np

from ..errors import AudioError

SLACK_BYTES = 1024
"""Some writers count their header as sound."""
STREAMING_SIZE = 0x7FFF_0000
"""Sizes from here up are what writers to a pipe put where the size is not known."""
READ_FRAMES = 1 << 16
"""Samples per channel that are read at a time."""

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
"""What follows the two bytes of the format in the GUID of an extensible header."""
_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
"""The end of the GUIDs of all chunks of Sony's Wave64 but the first."""
_HEAD_BYTES = 64
"""Writers add or take off the size of their header."""


@dataclasses.dataclass(frozen=True)
class WavSamples:
    """Where the samples of an uncompressed WAV lie, and how they are written.

    Attributes:
        channels, rate: as the header says; unchecked.
        dtype: of numpy, with its byte order; "i3" stands for three bytes.
        offset, size: bytes of the samples in the file, as far as they are there.
        missing: bytes that the header announces and the file does not hold; 0 where the announced size is one of
            those that writers put where they do not know it.
        padded: whether the header says 24 bits in four bytes.
        notes: what is to be told of the header, a sentence each.
    """

    channels: int
    rate: int
    dtype: str
    offset: int
    size: int
    missing: int
    padded: bool = False
    notes: tuple[str, ...] = ()

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels."""
        return int(self.dtype[-1]) * self.channels

    def read(self, file: IO[bytes]) -> Iterator[np.ndarray]:
        """The samples in pieces [n, channels]: floats, or integers with the full scale of their type."""
        right_aligned = self.dtype[1:] == "i4" and self._is_right_aligned(file)
        done, whole = 0, self.size // self.frame_bytes
        while done < whole:
            file.seek(self.offset + done * self.frame_bytes)
            data = file.read(min(READ_FRAMES, whole - done) * self.frame_bytes)
            values = _values(data[: len(data) // self.frame_bytes * self.frame_bytes], self.dtype)
            values = values.reshape(-1, self.channels)
            if not len(values):
                return
            yield values << 8 if right_aligned else values
            done += len(values)

    def _is_right_aligned(self, file: IO[bytes]) -> bool:
        """Whether 24 bits stand in the lower three bytes of four, as ALSA writes them, and not in the upper ones.

        The lowest byte of the upper ones is 0, and 8 bits of silence in front of every sample are no recording.
        """
        if not self.padded:
            return False
        file.seek(self.offset)
        data = file.read(min(self.size, READ_FRAMES * self.frame_bytes))
        values = _values(data[: len(data) // 4 * 4], self.dtype)
        return bool((values & 0xFF).any()) and int(np.abs(values.astype(np.int64)).max(initial=0)) <= 1 << 23


def read_wav_header(file: IO[bytes]) -> WavSamples | None:
    """What the header of a RIFF, RIFX, RF64, BW64 or Wave64 file says; None for other and for compressed files.

    The position in the file is moved.

    Raises:
        AudioError: a header without channels.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(40)
    if head[:16] == _W64_RIFF:
        chunks, order = _w64_chunks(file, size), "<"
    elif head[8:12] == b"WAVE" and head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        order = ">" if head[:4] == b"RIFX" else "<"
        chunks = _riff_chunks(file, size, order)
    else:
        return None
    form, long_size = None, None
    for name, offset, length in chunks:
        if name == b"fmt ":
            form = _form(_read_at(file, offset, min(length, 40)), order)
        elif name == b"ds64":
            content = _read_at(file, offset, 16)
            long_size = struct.unpack("<8xQ", content)[0] if len(content) == 16 else None
        elif name == b"data":
            if form is None:
                return None
            announced = long_size if long_size is not None and length == 0xFFFF_FFFF else length
            return _located(form, file, offset, announced, size)
    return None


def _read_at(file: IO[bytes], offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _riff_chunks(file: IO[bytes], size: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset and announced length of every chunk's content, to the data at most."""
    position = 12
    while position + 8 <= size:
        name, length = struct.unpack(f"{order}4sI", _read_at(file, position, 8))
        yield name, position + 8, length
        position += 8 + length + length % 2


def _w64_chunks(file: IO[bytes], size: int) -> Iterator[tuple[bytes, int, int]]:
    """As `_riff_chunks`: names are GUIDs there, lengths have 64 bits and count the 24 bytes in front of the content."""
    position = 40
    while position + 24 <= size:
        guid, length = struct.unpack("<16sQ", _read_at(file, position, 24))
        name = guid[:4] if guid[4:] == _W64_TAIL else b""
        yield name, position + 24, max(length - 24, 0)
        position += -(-max(length, 24) // 8) * 8


_Form = tuple[int, int, str, bool]
"""Channels, rate, dtype, and whether 24 bits stand in four bytes."""


def _form(content: bytes, order: str) -> _Form | None:
    """What a `fmt ` chunk says; None for compressed sound, and for what this reader does not know."""
    if len(content) < 16:
        return None
    tag, channels, rate, _, block, bits = struct.unpack(f"{order}HHIIHH", content[:16])
    if tag == _EXTENSIBLE:
        if len(content) < 40 or content[26:] != _GUID_TAIL:
            return None
        tag, bits = struct.unpack(f"{order}H", content[24:26])[0], bits or struct.unpack(f"{order}H", content[18:20])[0]
    if not channels:
        raise AudioError("The sound has no channels.", "Export it again.")
    width = block // channels if block and block % channels == 0 and block // channels * 8 >= bits else -(-bits // 8)
    kind = {_PCM: "i", _FLOAT: "f"}.get(tag, "")
    if not kind or width not in ((1, 2, 3, 4, 8) if kind == "i" else (2, 4, 8)) or not bits:
        return None
    if width == 1:
        return channels, rate, "|u1", False
    valid = struct.unpack(f"{order}H", content[18:20])[0] if len(content) >= 40 else bits
    return channels, rate, f"{order}{kind}{width}", kind == "i" and width == 4 and 24 in (bits, valid)


def _located(form: _Form, file: IO[bytes], offset: int, announced: int, size: int) -> WavSamples:
    channels, rate, dtype, padded = form
    there = size - offset
    notes = []
    if announced == 0:
        known = _is_chunk(_read_at(file, offset, 8), there)
    else:
        known = announced <= there + SLACK_BYTES or not _is_placeholder(announced, there)
        if not known and announced < STREAMING_SIZE:
            notes.append(f"its header announces {announced} bytes of sound; {there} are there, and all are read")
    held = min(announced, there) if known else there
    missing = announced - there if known and announced - there > SLACK_BYTES else 0
    if _read_at(file, offset + held + held % 2, 4) in (b"RIFF", b"RIFX", b"RF64"):
        notes.append("a second WAV stands behind the first in the file and is not read")
    return WavSamples(channels, rate, dtype, offset, held, missing, padded, tuple(notes))


def _is_chunk(head: bytes, there: int) -> bool:
    """Whether what follows is the head of another chunk, or nothing."""
    if len(head) < 8:
        return True
    return head[:4].isascii() and head[:4].isalnum() and struct.unpack("<I", head[4:])[0] <= there


def _is_placeholder(announced: int, there: int) -> bool:
    """Whether a size that the file does not hold was never meant: it is near the largest that a header can tell, near
    a round number, or far beyond what is there."""
    if announced >= STREAMING_SIZE:
        return True
    near_round = any((announced + _HEAD_BYTES) % unit <= 2 * _HEAD_BYTES for unit in (1_000_000, 1 << 20))
    mostly_missing = announced >= 1_000_000 and there < announced // 2
    return (near_round and mostly_missing) or (announced >= 1 << 28 and there < announced // 1000)


def _values(data: bytes, dtype: str) -> np.ndarray:
    """Samples in the byte order of this machine; three bytes become the upper ones of four."""
    if dtype[1:] != "i3":
        values = np.frombuffer(data, dtype)
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    wide = np.zeros((len(data) // 3, 4), np.uint8)
    first = 1 if dtype[0] == "<" else 0
    wide[:, first : first + 3] = np.frombuffer(data, np.uint8).reshape(-1, 3)
    return wide.view(f"{dtype[0]}i4")[:, 0].astype(np.int32)
