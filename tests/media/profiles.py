"""Colour profiles made here: the smallest ICC files that a viewer understands."""

from __future__ import annotations

import struct

WHITE = (0.9642, 1.0, 0.8249)
WIDE = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
"""Red, green and blue of Adobe RGB, as seen in the light of D50."""


def rgb_profile(gamma: float = 2.2) -> bytes:
    """Colours much wider than sRGB."""
    tags = {name: _xyz(values) for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), WIDE, strict=True)}
    return _profile(b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(gamma)))


def grey_profile(gamma: float) -> bytes:
    """Grey that is value ** gamma of white."""
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": _gamma(gamma)})


def cmyk_profile() -> bytes:
    """Inks: a table of their sixteen full mixtures, of which only black takes any light away, and cyan colours."""
    corners = bytearray()
    for mixture in range(16):
        cyan, black = mixture & 8, mixture & 1
        corners += bytes([0 if black else 255, 128 if black or not cyan else 90, 128])
    line = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + 4 * line + bytes(corners) + 3 * line
    return _profile(b"CMYK", b"Lab ", {b"A2B0": table}, kind=b"prtr")


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78), b"wtpt": _xyz(WHITE)} | tags
    offset, index, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        index += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", offset + len(body), b"test", 0x02400000, kind, space, connection) + bytes(12)
    head += b"acsp" + bytes(28) + b"".join(_number(v) for v in WHITE) + bytes(48)
    return head + index + body


def _number(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(_number(v) for v in values)


def _gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))
