"""The video file, written while frames are made and playable at any moment."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import BLOCK_FRAMES, FPS
from ..errors import LiveAvatarError, OutputError, SizeError
from .fragments import cut_to_whole_fragments
from .soundtrack import Soundtrack, check_channels

if TYPE_CHECKING:
    from av import Packet, VideoFrame

    from .sound import Sound

_log = logging.getLogger(__name__)

CRF = 17
"""x264's quality: visually lossless for most eyes."""
METADATA_KEYS = frozenset(
    {"title", "artist", "album", "album_artist", "date", "comment", "genre", "copyright", "description", "synopsis"}
)
"""What an MP4 carries so that every player shows it; `comment` is the place for JSON."""

_BT709 = 1  # the number H.264 and FFmpeg give to the primaries, the transfer curve and the matrix of BT.709
_LIMITED, _FULL = 1, 2  # FFmpeg's numbers for luma 16..235 and 0..255
_CONTAINER = {
    # A fragment per block, each complete in itself. Delaying the header until the first packets are known lets it say
    # how many samples of AAC's start-up to skip: without that, the sound begins 1024 samples before the picture.
    "movflags": "frag_keyframe+empty_moov+default_base_moof+delay_moov",
    "flush_packets": "1",
}
_ENCODER = {
    "preset": "veryfast",
    "g": str(BLOCK_FRAMES),
    "sc_threshold": "0",  # key frames, and so fragments, at every block and nowhere else
    "bf": "0",  # B-frames would delay the picture's first time stamp
    "rc-lookahead": "4",  # frames the file lags behind; without any, files are more than twice as large
    "threads": "1",  # every further one would add a frame of lag, and one is ten times faster than real time
}


def check_writable(path: Path) -> None:
    """Make sure, before anything heavy runs, that a video can be written here. An existing file is left as it is.

    Raises:
        OutputError: no .mp4 name, a folder in its place, its folder is missing or cannot be written, a full disk; or
            this PyAV cannot encode H.264 and AAC.
    """
    import av

    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder.", f"Name a file in it, for example {path / 'video.mp4'}.")
    if path.suffix.lower() != ".mp4":
        raise OutputError(
            f"The video would be called {path.name!r}, which is no MP4.", "Give a name that ends in .mp4."
        )
    folder = path.absolute().parent
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise OutputError(f"The path {path} holds bytes that are no text.", "Choose a name in UTF-8.") from error
    if not folder.is_dir():
        raise OutputError(f"The folder {folder} does not exist.", "Create it, or choose one that exists.")
    if missing := {"libx264", "aac"} - av.codecs_available:
        raise OutputError(
            f"The installed PyAV lacks {', '.join(sorted(missing))}.",
            "Install the published PyAV wheel (package av), which has them.",
        )
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            probe.write(bytes(1 << 16))
        if path.exists():
            os.close(os.open(path, os.O_WRONLY))
    except OSError as error:
        raise _refusal(path, error) from error


class VideoWriter:
    """Writes frames and their sound to a fragmented MP4: H.264 (yuv420p, BT.709, limited range) and AAC.

    The file is created by the first frame; until then an earlier file of that name stays untouched. From the second
    block on it plays at any moment, and lags at most two blocks behind what was written, also if the process is
    killed. Sound is written as far as the picture goes, and never beyond its end; a sound that is shorter than the
    picture just ends. Picture and sound both start at 0.000. Memory does not grow with the length.

    As a context manager it closes the file however the block is left, so Ctrl-C and Cancel leave a playable file too.

    Args:
        path: where to; see `check_writable`, which belongs before the heavy work.
        width, height: pixels, even.
        sound: the whole sound, or None for a silent film.
        frames: how many frames the whole video has; more are refused.
        metadata: for the file's header; keys of `METADATA_KEYS`.
        fps: frames per second.
        crf: x264's quality, 0 (lossless) to 51.

    Raises:
        SizeError: an odd width or height.
        AudioError: a sound of more than 8 channels.
        ValueError: metadata that an MP4 would silently lose.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        sound: Sound | None,
        frames: int,
        metadata: Mapping[str, str],
        fps: int = FPS,
        crf: int = CRF,
    ):
        if width < 2 or height < 2 or width % 2 or height % 2:
            raise SizeError(f"H.264 cannot hold {width}x{height} pixels.", "Use an even width and an even height.")
        if sound is not None:
            check_channels(sound)
        if lost := sorted(set(metadata) - METADATA_KEYS):
            raise ValueError(f"MP4 has no place for {lost}; it has {sorted(METADATA_KEYS)}.")
        self.path = Path(path)
        self.width, self.height, self.frames, self.fps, self.crf = width, height, frames, fps, crf
        self.frames_written = 0
        self.packets_written = 0
        """Packets of the picture handed to the file."""
        self._sound, self._metadata = sound, dict(metadata)
        self._sha = hashlib.sha256()
        self._container: Any = None
        self._closed = False

    @property
    def frames_sha256(self) -> str:
        """SHA-256, as hex, over the raw RGB24 bytes of all frames written so far, in order."""
        return self._sha.hexdigest()

    @property
    def complete(self) -> bool:
        """Whether all frames were written and the file is closed."""
        return self._closed and self.frames_written == self.frames

    def write(self, rgb: np.ndarray) -> None:
        """Append frames uint8 [n, height, width, 3] and the sound that belongs to them.

        Raises:
            OutputError: the file cannot be created or continued, for example because the disk is full. What was written
                before stays playable; nothing more can be written.
            ValueError: frames of another shape or type, more frames than announced, or after `close`.
        """
        if rgb.ndim != 4 or rgb.shape[1:] != (self.height, self.width, 3) or rgb.dtype != np.uint8:
            raise ValueError(f"Frames are uint8 [n, {self.height}, {self.width}, 3], not {rgb.dtype} {rgb.shape}.")
        if self._closed:
            raise ValueError("The video is closed.")
        if self.frames_written + len(rgb) > self.frames:
            raise ValueError(f"The video has {self.frames} frames, {self.frames_written + len(rgb)} were given.")
        if not len(rgb):
            return
        rgb = np.ascontiguousarray(rgb)
        with self._failing():
            if self._container is None:
                self._open()
            for picture in rgb:
                self._mux_picture(self._stream.encode(self._frame(picture)))
                self._sha.update(picture.data)
                self.frames_written += 1
            if self._track is not None:
                self._container.mux(list(self._track.until(self._time)))

    def close(self) -> None:
        """Write what the encoders still hold and close the file. Without a frame there is no file. May be called again.

        Raises:
            OutputError: the end could not be written; what was written before stays playable.
        """
        if self._closed:
            return
        self._closed = True
        if self._container is None:
            return
        with self._failing():
            self._mux_picture(self._stream.encode(None))
            if self._track is not None:
                self._container.mux([*self._track.until(self._time), *self._track.rest()])
            self._container.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except LiveAvatarError:
            if error is None:
                raise
            _log.warning("The end of %s could not be written.", self.path, exc_info=True)

    @property
    def _time(self) -> Fraction:
        return Fraction(self.frames_written, self.fps)

    def _open(self) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self.path.open("wb").close()  # FFmpeg would open it some frames later, and say later that it cannot
        # "file:" keeps FFmpeg from reading a protocol into a name with a colon
        container: Any = av.open(f"file:{self.path.absolute()}", "w", format="mp4", options=_CONTAINER)
        container.metadata.update(self._metadata)
        stream = container.add_stream("libx264", rate=self.fps, options=_ENCODER | {"crf": str(self.crf)})
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = self.width, self.height, "yuv420p"
        context.time_base = Fraction(1, self.fps)
        context.color_range = _LIMITED
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        self._reformatter = VideoReformatter()
        self._track = None if self._sound is None else Soundtrack(container, self._sound)
        self._stream, self._container = stream, container

    def _frame(self, picture: np.ndarray) -> VideoFrame:
        import av

        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(picture, "rgb24"),
            format="yuv420p",
            dst_colorspace=_BT709,
            src_color_range=_FULL,
            dst_color_range=_LIMITED,
        )
        frame.pts = self.frames_written
        frame.time_base = Fraction(1, self.fps)
        return frame

    def _mux_picture(self, packets: Iterable[Packet]) -> None:
        for packet in packets:
            self._container.mux(packet)
            self.packets_written += 1

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Turns a failure to write into an OutputError, and leaves the file whole up to there."""
        import av

        try:
            yield
        except (OSError, av.error.FFmpegError) as error:
            self._closed = True
            if self._container is not None:
                with contextlib.suppress(OSError, av.error.FFmpegError):
                    self._container.close()
                with contextlib.suppress(OSError):
                    cut_to_whole_fragments(self.path)
            raise _refusal(self.path, error) from error


def _refusal(path: Path, error: Exception) -> OutputError:
    code = getattr(error, "errno", None)
    why = getattr(error, "strerror", None) or str(error)
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(
            f"There is no room left to write {path} ({why}).",
            "Free some space (about 0.5 GB per hour of video at 704x384), or write to another disk.",
        )
    return OutputError(f"{path} cannot be written ({why}).", "Check the permissions, or choose another folder.")
