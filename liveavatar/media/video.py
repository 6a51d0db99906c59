"""The video file, written while frames are made and playable at any moment; and what a written file holds."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import logging
import math
import os
import struct
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import BLOCK_FRAMES, FPS
from ..errors import AudioError, LiveAvatarError, OutputError, SizeError

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import OutputContainer

    from .audio import AudioClip


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


RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
"""Samples per second that are kept: AAC has them and every player plays them."""
BIT_RATE = 192_000
"""Bits per second, less where AAC's limit per channel is lower."""
CHUNK = 16_384
"""Samples per channel handed to the encoder at a time."""

_LAYOUTS = ("mono", "stereo", "2.1", "4.0", "5.0", "5.1", "6.1", "7.1")
_BITS_PER_SAMPLE = 6  # what AAC can spend at most, per channel


def check_channels(audio: AudioClip) -> None:
    """Make sure that audio can be encoded.

    Raises:
        AudioError: more than 8 channels, for which no mixing to stereo is known.
    """
    if (channels := audio.samples.shape[1]) > len(_LAYOUTS):
        raise AudioError(
            f"The sound has {channels} channels, and how to mix them is not known.", "Mix it down to mono or stereo."
        )


class Soundtrack:
    """Encodes audio into a stream of an open container.

    Mono and stereo stay what they are, more channels are mixed down to stereo. Rates that `RATES` does not have become
    the next higher one, or 48 kHz.

    Args:
        container: a PyAV container to which no packet has been written.
        audio: samples float32 [n, channels], perhaps in a file: read once, from front to back. See `check_channels`.
    """

    def __init__(self, container: OutputContainer, audio: AudioClip):
        channels = audio.samples.shape[1]
        self._audio = audio
        self._layout = _LAYOUTS[channels - 1]
        self._position = 0
        rate = next((r for r in RATES if r >= audio.rate), RATES[-1])
        out_channels = min(channels, 2)
        stream: Any = container.add_stream("aac", rate=rate)
        stream.codec_context.layout = _LAYOUTS[out_channels - 1]
        stream.codec_context.format = "fltp"
        stream.codec_context.bit_rate = min(BIT_RATE, _BITS_PER_SAMPLE * rate * out_channels)
        self._stream = stream

    def until(self, seconds: Fraction) -> Iterator[Packet]:
        """Packets of the audio from where the last call stopped to this time, as far as the encoder gives them."""
        import av

        end = min(len(self._audio.samples), int(seconds * self._audio.rate))
        while self._position < end:
            piece = np.asarray(self._audio.samples[self._position : min(end, self._position + CHUNK)], np.float32)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece.T), "fltp", self._layout)
            frame.sample_rate = self._audio.rate
            frame.time_base = Fraction(1, self._audio.rate)
            frame.pts = self._position
            self._position += len(piece)
            yield from self._stream.encode(frame)

    def rest(self) -> Iterator[Packet]:
        """What the encoder still holds; to be called once, at the end."""
        end = Fraction(self._position, self._audio.rate)
        for packet in self._stream.encode(None):
            # Encoders before FFmpeg 8 count the zeros that fill the last packet as sound.
            left = math.ceil(end / packet.time_base) - packet.pts
            if 0 < left < packet.duration:
                packet.duration = left
            yield packet


@dataclasses.dataclass(frozen=True)
class Probed:
    """The streams of a video file. What concerns audio is None where there is none.

    Attributes:
        width, height: pixels.
        frames: packets of the image, counted; none is decoded.
        fps: frames per second.
        video_start, audio_start: start of the first frame and of the first sample, seconds.
        video_seconds, audio_seconds: from there to the end of the last one.
        audio_rate: samples per second.
        audio_channels: 1 or 2.
        av_difference: end of the audio minus end of the image, seconds.
    """

    width: int
    height: int
    frames: int
    fps: float
    video_start: float
    video_seconds: float
    audio_rate: int | None
    audio_channels: int | None
    audio_start: float | None
    audio_seconds: float | None
    av_difference: float | None


def probe(path: Path) -> Probed:
    """Read a video's packets.

    Raises:
        OutputError: not a file that can be read, or no picture in it.
    """
    import av

    try:
        with av.open(f"file:{Path(path).absolute()}") as container:
            if not container.streams.video:
                raise OutputError(f"{path} holds no picture.", "Write it again.")
            return _probed(container)
    except (OSError, av.error.FFmpegError) as error:
        raise OutputError(f"{path} is not a video that can be read ({error}).", "Write it again.") from error


def _probed(container: Any) -> Probed:
    video: Any = container.streams.video[0]
    audio: Any = next(iter(container.streams.audio), None)
    counts: defaultdict[str, int] = defaultdict(int)
    ends: defaultdict[str, Fraction] = defaultdict(Fraction)
    first: dict[str, int] = {}
    for packet in container.demux([s for s in (video, audio) if s is not None]):
        if packet.pts is not None and packet.size:
            kind = packet.stream.type
            counts[kind] += 1
            first.setdefault(kind, packet.pts)
            ends[kind] = max(ends[kind], (packet.pts + (packet.duration or 0)) * packet.time_base)
    if counts["audio"] and audio.duration:
        # FFmpeg before 8 takes every packet of sound for a whole one; the fragments say how much of the last counts.
        ends["audio"] = min(ends["audio"], (first["audio"] + audio.duration) * audio.time_base)
    start = _start(video)
    seconds = ends["video"] - start
    track = audio if counts["audio"] else None
    return Probed(
        width=video.codec_context.width,
        height=video.codec_context.height,
        frames=counts["video"],
        fps=float(counts["video"] / seconds) if seconds else 0.0,
        video_start=float(start),
        video_seconds=float(seconds),
        audio_rate=track and track.codec_context.sample_rate,
        audio_channels=track and track.codec_context.layout.nb_channels,
        audio_start=track and float(_start(track)),
        audio_seconds=track and float(ends["audio"] - _start(track)),
        av_difference=track and float(ends["audio"] - ends["video"]),
    )


def _start(stream: Any) -> Fraction:
    """When the stream is first presented. Not the first packet's time: AAC's start-up samples lie before it."""
    return (stream.start_time or 0) * stream.time_base


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
    # how many samples of AAC's start-up to skip: without that, the audio begins 1024 samples before the image.
    "movflags": "frag_keyframe+empty_moov+default_base_moof+delay_moov",
    "flush_packets": "1",
}
_ENCODER = {
    "preset": "veryfast",
    "g": str(BLOCK_FRAMES),
    "sc_threshold": "0",  # key frames, and so fragments, at every block and nowhere else
    "bf": "0",  # B-frames would delay the image's first time stamp
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
    """Writes frames and their audio to a fragmented MP4: H.264 (yuv420p, BT.709, limited range) and AAC.

    The file is created by the first frame; until then an earlier file of that name stays untouched. From the second
    block on it plays at any moment, and lags at most two blocks behind what was written, also if the process is
    killed. Sound is written as far as the image goes, and never beyond its end; audio that is shorter than the
    video just ends. Video and audio both start at 0.000. Memory does not grow with the length.

    As a context manager it closes the file however the block is left, so Ctrl-C and Cancel leave a playable file too.

    Args:
        path: where to; see `check_writable`, which belongs before the heavy work.
        width, height: pixels, even.
        audio: the whole sound, or None for a silent film.
        frames: how many frames the whole video has; more are refused.
        metadata: for the file's header; keys of `METADATA_KEYS`.
        fps: frames per second.
        crf: x264's quality, 0 (lossless) to 51.

    Raises:
        SizeError: an odd width or height.
        AudioError: audio of more than 8 channels.
        ValueError: metadata that an MP4 would silently lose.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        audio: AudioClip | None,
        frames: int,
        metadata: Mapping[str, str],
        fps: int = FPS,
        crf: int = CRF,
    ):
        if width < 2 or height < 2 or width % 2 or height % 2:
            raise SizeError(f"H.264 cannot hold {width}x{height} pixels.", "Use an even width and an even height.")
        if audio is not None:
            check_channels(audio)
        if lost := sorted(set(metadata) - METADATA_KEYS):
            raise ValueError(f"MP4 has no place for {lost}; it has {sorted(METADATA_KEYS)}.")
        self.path = Path(path)
        self.width, self.height, self.frames, self.fps, self.crf = width, height, frames, fps, crf
        self.frames_written = 0
        self.packets_written = 0
        """Packets of the image handed to the file."""
        self._sound, self._metadata = audio, dict(metadata)
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
        """Append frames uint8 [n, height, width, 3] and the audio that belongs to them.

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
            for image in rgb:
                self._mux_picture(self._stream.encode(self._frame(image)))
                self._sha.update(image.data)
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

    def _frame(self, image: np.ndarray) -> VideoFrame:
        import av

        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(image, "rgb24"),
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
