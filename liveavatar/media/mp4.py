"""MP4 as a file: it grows in fragments while it is made, and becomes an ordinary MP4 at the end."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import shutil
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import OutputError
from ..files import OutputClaim, remove_leftovers, replacement, write_all

METADATA_KEYS = frozenset(
    {"title", "artist", "album", "album_artist", "date", "comment", "genre", "copyright", "description", "synopsis"}
)
"""What an MP4 carries so that every player shows it; `comment` is the place for JSON."""
_OF_THE_CONTAINER = frozenset({"major_brand", "minor_version", "compatible_brands", "encoder"})
"""What FFmpeg reads as metadata and writes anew."""
_SPARE_BYTES = 1 << 20
"""Left free on the disk beside the second copy."""
_READ_BYTES = 1 << 18


def boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The outermost boxes of an MP4: kind, and the byte behind the box. The last one may be cut off."""
    position, size = 0, file.seek(0, os.SEEK_END)
    while position <= size and file.seek(position) == position and len(head := file.read(16)) >= 8:
        length, kind = struct.unpack(">I4s", head[:8])
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
        if length == 0:  # up to the end of the file
            length = size - position
        if length < 8:
            return
        position += length
        yield kind, position


def end_of_whole_fragments(file: BinaryIO) -> int:
    """The byte behind the last fragment (`moof` and its `mdat`) that is there in full; 0 if none is."""
    size = file.seek(0, os.SEEK_END)
    end, in_fragment = 0, False
    for kind, position in boxes(file):
        if position > size:
            break
        in_fragment = in_fragment or kind == b"moof"
        if kind == b"mdat" and in_fragment:
            end = position
    return end


class GrowingFile:
    """What a fragmented MP4 is written to. It appears under its name together with its first whole fragment.

    Until then all is in memory, and an earlier file of that name stays as it is.

    Args:
        claim: on the file.

    Attributes:
        error: why nothing more is written; None while all is well. What raises here goes through C code, which keeps
            neither every error nor an interrupt.
    """

    def __init__(self, claim: OutputClaim):
        self._claim = claim
        self._begin = bytearray()
        self._file: BinaryIO | None = None
        self.error: BaseException | None = None

    @property
    def visible(self) -> bool:
        """Whether the file is there under its name."""
        return self._file is not None

    def write(self, data: bytes) -> int:
        """Append bytes; called by PyAV. After an error everything is swallowed."""
        if self.error is not None:
            return len(data)
        try:
            if self._file is not None:
                write_all(self._file, data)
            else:
                self._begin += data
                if end_of_whole_fragments(io.BytesIO(self._begin)):
                    self._appear()
        except BaseException as error:
            self.error = error
            raise OSError(getattr(error, "errno", None) or errno.EIO, str(error)) from error
        return len(data)

    def end(self) -> None:
        """Close the file, with its bytes on the disk.

        Raises:
            OSError: they could not be written.
        """
        if self._file is not None and not self._file.closed:
            with self._file as file:
                os.fsync(file.fileno())

    def cut(self) -> None:
        """Cut off what a failed write left behind the last whole fragment, so that strict players accept the file.

        It needs no disk space.
        """
        if self._file is not None and not self._file.closed:
            with self._file as file:
                file.truncate(end_of_whole_fragments(file))

    def _appear(self) -> None:
        with replacement(self._claim) as (_, file):
            write_all(file, self._begin)
        self._file = self._claim.target.open("r+b", buffering=0)
        self._file.seek(0, os.SEEK_END)
        self._begin.clear()


def make_plain(claim: OutputClaim) -> None:
    """Turn the claimed file from fragments into an ordinary MP4 with its index in front, in one step.

    The packets stay as they are, times and metadata too; what lies behind the last whole fragment is left out. Memory
    holds some tens of bytes per packet, the disk both files for a moment.

    Raises:
        OSError, ValueError, av.error.FFmpegError: it is not done: no room for both, for example. The file is as it was.
        OutputError: somebody else has put another file in its place.
    """
    whole = _fragments(claim.target)
    if shutil.disk_usage(claim.target.parent).free < whole + _SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with replacement(claim) as (temporary, file), OutputClaim(temporary):
        _copy_packets(claim.target, whole, temporary)
        os.fsync(file.fileno())


def _fragments(path: Path) -> int:
    with path.open("rb") as file:
        return end_of_whole_fragments(file)


class _Front:
    """The first bytes of a file, to be read by PyAV."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size = file, size

    def read(self, count: int) -> bytes:
        return self._file.read(max(0, min(count, self._size - self._file.tell())))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(self._size + offset) if whence == os.SEEK_END else self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _copy_packets(source: Path, size: int, destination: Path) -> None:
    import av

    with source.open("rb") as file, av.open(_Front(file, size), "r", format="mp4", buffer_size=_READ_BYTES) as given:
        metadata = {k: v for k, v in given.metadata.items() if k not in _OF_THE_CONTAINER}
        # Keys that a plain MP4 has no place for go to another kind of table, which fewer programs read.
        flags = "faststart" if metadata.keys() <= METADATA_KEYS else "faststart+use_metadata_tags"
        made: Any = av.open(f"file:{destination}", "w", format="mp4", options={"movflags": flags})
        counts: Counter[int] = Counter()
        with made:
            made.metadata.update(metadata)
            streams = {stream.index: made.add_stream_from_template(stream) for stream in given.streams}
            for stream in given.streams:
                streams[stream.index].metadata.update(stream.metadata)
            for packet in given.demux():
                if packet.dts is not None and packet.size:
                    packet.stream = streams[packet.stream.index]
                    counts[packet.stream.index] += 1
                    made.mux(packet)
    with av.open(f"file:{destination}") as container:
        kept = {stream.index: stream.frames for stream in container.streams}
    if kept != counts:
        raise ValueError("not every packet came through")


def check_end(path: Path, frames: int) -> None:
    """Decode the end of a finished video, picture and sound.

    Args:
        path: of the video.
        frames: how many it has, at an even rate.

    Raises:
        OutputError: its last frame cannot be decoded, or is another one.
    """
    import av

    try:
        with av.open(f"file:{Path(path).absolute()}") as container:
            video: Any = container.streams.video[0]
            last = _last_time(container, video)
            if last is None or round(last * float(video.average_rate)) != frames - 1:
                raise OutputError(f"The last frame of {path} is not the one that was written.", "Make it again.")
            for audio in container.streams.audio:
                _last_time(container, audio)
    except (OSError, av.error.FFmpegError) as error:
        raise OutputError(f"The end of {path} cannot be decoded ({error}).", "Make it again.") from error


def _last_time(container: Any, stream: Any) -> float | None:
    """When the last frame of a stream is presented, seconds; decodes from the key frame before it."""
    container.seek(max(0, (stream.duration or 1) - 1), stream=stream)
    last = None
    for frame in container.decode(stream):
        last = frame
    return None if last is None else last.time


@dataclasses.dataclass(frozen=True)
class Repaired:
    """What `repair` has done.

    Attributes:
        changed: whether the file was in fragments; else it is as it was.
        lost_bytes: of an unfinished fragment at its end, which cannot be played and was left out.
    """

    changed: bool
    lost_bytes: int


def repair(path: Path) -> Repaired:
    """Turn what a run that was killed has left, a video in fragments, into an ordinary MP4.

    Raises:
        OutputError: no such file, or no video; another run is writing it; nothing in it can be played; there is no room
            for both. The file is as it was.
    """
    import av

    with OutputClaim(path, "The video") as claim:
        if claim.identity is None:
            raise OutputError(f"There is no file {path}.", "Name the video that was left.")
        remove_leftovers(claim.target)
        with claim.target.open("rb") as file:
            kinds, lost = {kind for kind, _ in boxes(file)}, _lost_bytes(file)
        if {b"moov", b"mdat"} <= kinds and b"moof" not in kinds:
            return Repaired(False, 0)
        if b"moov" not in kinds or not _fragments(claim.target):
            raise OutputError(f"{path} holds nothing that can be played.", "Make the video again.")
        try:
            make_plain(claim)
        except (OSError, ValueError, av.error.FFmpegError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise OutputError(
                f"{path} stays as it is ({why}).", "Free some space, or move it to another disk."
            ) from error
    return Repaired(True, lost)


def _lost_bytes(file: BinaryIO) -> int:
    """Bytes of the unfinished fragment at the end; an index of the fragments, which stands there too, is none."""
    size, whole = file.seek(0, os.SEEK_END), end_of_whole_fragments(file)
    behind = [(kind, position) for kind, position in boxes(file) if position > whole]
    finished = behind and all(kind == b"mfra" and position <= size for kind, position in behind)
    return 0 if finished else size - whole
