"""What container formats say about their own length and end, beyond what FFmpeg tells."""

from __future__ import annotations

import struct
import zlib
from typing import IO, Any

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
MATROSKA = "matroska,webm"
"""FFmpeg's names of them."""
EXACT_DURATION = ("flac", "aiff", "au", "tta", "wv", "ogg", MP4)
"""Formats that count the samples of a stream."""
_OGG_TAIL = 1 << 18
_MATROSKA_HEAD = 4096
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def promised_seconds(container: Any, stream: Any, file: IO[bytes]) -> float | None:
    """The length in seconds that the header of an opened file counts exactly, or None where it is an estimate."""
    if container.format.name in (*EXACT_DURATION, "avi") and stream.duration:
        return float(stream.duration * stream.time_base)
    if container.format.name == MATROSKA and container.duration and not container.streams.video:
        return container.duration / 1e6
    if container.format.name == "mp3" and stream.rate:
        frames = _counted_frames(file)
        return frames * (1152 if stream.rate >= 32_000 else 576) / stream.rate if frames else None
    return None


def _counted_frames(file: IO[bytes]) -> int:
    """The number of frames that an MP3's first one counts where the encoder knew it, or 0.

    FFmpeg estimates the length of a file that is longer than that, so its own is not the one in the header. The
    position in the file stays.
    """
    position = file.tell()
    file.seek(0)
    file.seek(_id3_bytes(file.read(10)))
    first = file.read(4096)
    file.seek(position)
    for mark, offset in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 14)):
        at = first.find(mark)
        if at >= 0 and len(first) >= at + offset + 4 and (mark == b"VBRI" or first[at + 7] & 1):
            return int(struct.unpack(">I", first[at + offset : at + offset + 4])[0])
    return 0


def is_whole(format_name: str, file: IO[bytes]) -> bool:
    """Whether a file ends where it says it does, as far as that is known: then what is missing is damage inside."""
    if format_name == "ogg":
        return ends_as_ogg(file)
    if format_name == MP4:
        return not lacks_its_index(file)
    return format_name == MATROSKA and _ends_as_matroska(file)


def ends_as_ogg(file: IO[bytes]) -> bool:
    """Whether the last page of an OGG says that it is the last."""
    file.seek(max(file.seek(0, 2) - _OGG_TAIL, 0))
    tail = file.read()
    at = tail.rfind(b"OggS")
    return 0 <= at < len(tail) - 5 and bool(tail[at + 5] & 4)


def ogg_is_damaged(file: IO[bytes]) -> bool:
    """Whether pages of an OGG are missing or differ from their checksums. All of the file is read; its position stays.

    A stream that was recorded from its middle on is not damaged: numbers may leap between its head and its sound.
    """
    position, size = file.tell(), file.seek(0, 2)
    file.seek(0)
    numbers: dict[bytes, int] = {}
    damaged = last = False
    while not damaged and file.tell() < size:
        page = _ogg_page(file)
        if page is None:
            damaged = not last
            break
        granule, serial, number = struct.unpack("<q4sI", page[6:22])
        damaged = granule > 0 and numbers.get(serial, number) != number
        last = bool(page[5] & 4)
        if granule > 0:
            numbers[serial] = number + 1
    file.seek(position)
    return damaged


def _ogg_page(file: IO[bytes]) -> bytes | None:
    """The page at the position of a file, or None where there is none that is whole."""
    head = file.read(27)
    if len(head) < 27 or head[:4] != b"OggS":
        return None
    lengths = file.read(head[26])
    page = head + lengths + file.read(sum(lengths))
    # The checksum is that of zlib with the bits of every byte reversed, and with nothing inverted.
    zeroed = (page[:22] + bytes(4) + page[26:]).translate(_REVERSED_BITS)
    found = f"{zlib.crc32(zeroed, 0xFFFF_FFFF) ^ 0xFFFF_FFFF:032b}"
    return page if int(found[::-1], 2) == int.from_bytes(page[22:26], "little") else None


def _ends_as_matroska(file: IO[bytes]) -> bool:
    """Whether the file reaches to the end that its segment states."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(_MATROSKA_HEAD)
    at = head.find(b"\x18\x53\x80\x67") + 4
    if at < 4 or at >= len(head) or not head[at]:
        return False
    width = 9 - head[at].bit_length()
    length = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
    return length != (1 << 7 * width) - 1 and at + width + length <= size


def lacks_its_index(file: IO[bytes]) -> bool:
    """Whether an MP4 or its like ends in the middle of a box, or before the one that says where its samples lie."""
    size, position, names = file.seek(0, 2), 0, []
    while position + 8 <= size:
        file.seek(position)
        length, name = struct.unpack(">I4s", file.read(8))
        if length == 1:
            wide = file.read(8)
            length = struct.unpack(">Q", wide)[0] if len(wide) == 8 else 0
        names.append(name)
        position = size if length == 0 else position + length if length >= 8 else size + 1
    return bool(names) and names[0] == b"ftyp" and (b"moov" not in names or position > size)


def tag_end(packet: Any) -> int:
    """Where in the file an ID3 tag ends that FFmpeg takes for sound, or 0."""
    head = bytes(packet)[:10] if packet.size >= 10 and packet.pos is not None else b""
    return packet.pos + _id3_bytes(head) if head[:3] == b"ID3" else 0


def _id3_bytes(head: bytes) -> int:
    """Bytes of the ID3 tag that begins with these ten, or 0."""
    if len(head) < 10 or head[:3] != b"ID3":
        return 0
    return 10 + sum((byte & 0x7F) << (7 * (3 - i)) for i, byte in enumerate(head[6:10]))
