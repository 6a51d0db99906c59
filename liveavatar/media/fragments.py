"""The boxes of a fragmented MP4."""

from __future__ import annotations

import os
import struct
from pathlib import Path


def cut_to_whole_fragments(path: Path) -> None:
    """Cut off what a failed write left behind the last whole fragment, so that strict players accept the file.

    Where not even the first fragment is whole, the file is removed. Cutting needs no disk space.
    """
    keep = end_of_whole_fragments(path)
    if keep:
        os.truncate(path, keep)
    else:
        path.unlink(missing_ok=True)


def end_of_whole_fragments(path: Path) -> int:
    """The byte behind the last fragment (`moof` and its `mdat`) that is there in full; 0 if none is."""
    size = path.stat().st_size
    position = end = 0
    with path.open("rb") as file:
        while len(head := file.read(16)) >= 8:
            length, kind = struct.unpack(">I4s", head[:8])
            if length == 1 and len(head) == 16:
                length = struct.unpack(">Q", head[8:])[0]
            position += length
            if length < 8 or position > size:
                break
            if kind == b"mdat":
                end = position
            file.seek(position)
    return end
