"""The video file, written while frames are made and playable at any moment; and what a written file holds."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
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
from ..files import OutputClaim, path_of, refusal, remove_leftovers
from .mp4 import METADATA_KEYS, GrowingFile, make_plain

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import OutputContainer

    from .audio import AudioClip


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
        end = min(len(self._audio.samples), int(seconds * self._audio.rate))
        while self._position < end:
            piece = self._audio.samples[self._position : min(end, self._position + CHUNK)]
            yield from self._encoded(np.asarray(piece, np.float32))

    def _encoded(self, piece: np.ndarray) -> Iterator[Packet]:
        import av

        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece.T), "fltp", self._layout)
        frame.sample_rate = self._audio.rate
        frame.time_base = Fraction(1, self._audio.rate)
        frame.pts = self._position
        self._position += len(piece)
        yield from self._stream.encode(frame)

    def rest(self, seconds: Fraction) -> Iterator[Packet]:
        """Silence up to this time and what the encoder still holds; to be called once, at the end."""
        count = int(seconds * self._audio.rate)
        while self._position < count:
            shape = min(CHUNK, count - self._position), self._audio.samples.shape[1]
            yield from self._encoded(np.zeros(shape, np.float32))
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
        # FFmpeg before 8 takes every packet of sound for a whole one; the file says how much of the last counts: an
        # ordinary one from the start of the sound on, fragments from that of AAC's start-up samples.
        begin = audio.start_time or 0 if audio.frames == counts["audio"] else first["audio"]
        ends["audio"] = min(ends["audio"], (begin + audio.duration) * audio.time_base)
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
        OutputError: no .mp4 name; see `target_of` and `OutputClaim`; its folder cannot be written, a full disk; or this
            PyAV cannot encode H.264 and AAC.
    """
    import av

    path = path_of(path, "The video")
    with OutputClaim(path, "The video") as claim:
        folder = claim.target.parent
    if path.suffix.lower() != ".mp4":
        raise OutputError(
            f"The video would be called {path.name!r}, which is no MP4.", "Give a name that ends in .mp4."
        )
    if missing := {"libx264", "aac"} - av.codecs_available:
        raise OutputError(
            f"The installed PyAV lacks {', '.join(sorted(missing))}.",
            "Install the published PyAV wheel (package av), which has them.",
        )
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            probe.write(bytes(1 << 16))
    except OSError as error:
        raise refusal(path, error) from error


class FrameConverter:
    """RGB images as video frames: yuv420p, BT.709, limited range."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()

    def frame(self, image: np.ndarray, number: int, fps: int) -> VideoFrame:
        """An image uint8 [H, W, 3] as frame `number` of a video."""
        import av

        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(image, "rgb24"),
            format="yuv420p",
            dst_colorspace=_BT709,
            src_color_range=_FULL,
            dst_color_range=_LIMITED,
        )
        frame.pts = number
        frame.time_base = Fraction(1, fps)
        return frame


def set_colours(context: Any) -> None:
    """Say in an encoder's settings what `FrameConverter` makes."""
    context.color_range = _LIMITED
    context.color_primaries = context.color_trc = context.colorspace = _BT709


class VideoWriter:
    """Writes frames and their audio to an MP4: H.264 (yuv420p, BT.709, limited range) and AAC.

    It grows in fragments and is turned into an ordinary MP4, with its index in front, when it is closed. The file
    appears with its first fragment; until then an earlier file of that name stays untouched, and so it does where the
    process is killed. From then on it plays at any moment, and lags at most two blocks behind what was written. Sound
    goes exactly as far as the image does; what it lacks is silence. Video and audio both start at 0.000. Memory does
    not grow with the length, but for the index: some tens of bytes per frame.

    As a context manager it closes the file however the block is left, so Ctrl-C and Cancel leave an ordinary MP4 too.

    Args:
        path: where to; see `check_writable`, which belongs before the heavy work.
        width, height: pixels, even.
        audio: the whole sound, or None for a silent film. Its samples may grow, but must be there before their image.
        frames: how many frames the whole video has; more are refused. None: nobody knows yet.
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
        frames: int | None,
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
        self.identity: tuple[int, int, int] | None = None
        """Device, number and size of the file as it was closed; None before that, or where there is none."""
        self.note: str | None = None
        """Why the closed file still is in fragments; None where it is not."""
        self._sound, self._metadata = audio, dict(metadata)
        self._sha = hashlib.sha256()
        self._claim: OutputClaim | None = None
        self._container: Any = None
        self._closed = False

    @property
    def frames_sha256(self) -> str:
        """SHA-256, as hex, over the raw RGB24 bytes of all frames written so far, in order."""
        return self._sha.hexdigest()

    @property
    def complete(self) -> bool:
        """Whether all frames were written and the file is closed."""
        return self._closed and self.frames_written == (self.frames or self.frames_written)

    def claim(self) -> None:
        """Keep others from writing the file from now on, until `close`; the first frame does so too.

        Raises:
            OutputError: as `OutputClaim`.
        """
        if self._claim is None:
            self._claim = OutputClaim(self.path, "The video")
            remove_leftovers(self._claim.target)

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
        if self.frames is not None and self.frames_written + len(rgb) > self.frames:
            raise ValueError(f"The video has {self.frames} frames, {self.frames_written + len(rgb)} were given.")
        if not len(rgb):
            return
        rgb = np.ascontiguousarray(rgb)
        with self._failing():
            if self._container is None:
                self._open()
            for image in rgb:
                self._mux_picture(self._stream.encode(self._converter.frame(image, self.frames_written, self.fps)))
                self._sha.update(image.data)
                self.frames_written += 1
            if self._track is not None:
                self._container.mux(list(self._track.until(self._time)))

    def close(self) -> None:
        """Write what the encoders still hold, and turn the file into an ordinary MP4. Without a frame there is no file.

        Where that last step fails, the file plays as it is, and `note` says so. May be called again.

        Raises:
            OutputError: the end could not be written, and what was written before stays playable; or somebody else has
                put another file in its place.
        """
        closed, self._closed = self._closed, True
        try:
            if not closed and self._container is not None:
                with self._failing():
                    self._mux_picture(self._stream.encode(None))
                    if self._track is not None:
                        self._container.mux([*self._track.until(self._time), *self._track.rest(self._time)])
                    self._container.close()
                    self._file.end()
                self._finish()
        finally:
            if self._claim is not None:
                self._claim.release()

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

        self.claim()
        assert self._claim is not None
        self._file = GrowingFile(self._claim)
        container: Any = av.open(self._file, "w", format="mp4", options=_CONTAINER)
        container.metadata.update(self._metadata)
        stream = container.add_stream("libx264", rate=self.fps, options=_ENCODER | {"crf": str(self.crf)})
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = self.width, self.height, "yuv420p"
        context.time_base = Fraction(1, self.fps)
        set_colours(context)
        self._converter = FrameConverter()
        self._track = None if self._sound is None else Soundtrack(container, self._sound)
        self._stream, self._container = stream, container

    def _mux_picture(self, packets: Iterable[Packet]) -> None:
        for packet in packets:
            self._container.mux(packet)
            self.packets_written += 1

    def _finish(self) -> None:
        """Turn the fragments into an ordinary MP4; where there is no room for both, they stay."""
        import av

        assert self._claim is not None
        if not self._claim.is_there:
            raise OutputError(f"{self.path} was removed or replaced by something else meanwhile.", "Make it again.")
        try:
            make_plain(self._claim)
        except (OSError, ValueError, av.error.FFmpegError) as error:
            _log.warning("%s stays in fragments.", self.path, exc_info=True)
            why = getattr(error, "strerror", None) or str(error)
            self.note = (
                f"{self.path} plays, but it is no ordinary MP4 ({why}), and some programs misread its length: "
                f"`liveavatar repair {self.path}` makes it one."
            )
        self.identity = self._claim.identity

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Turns a failure to write into an OutputError, and leaves the file whole up to there."""
        import av

        caught: BaseException | None = None
        try:
            yield
        except (OSError, OutputError, av.error.FFmpegError) as error:
            caught = error
        if self._container is not None:
            caught = self._file.error or caught
        if caught is None:
            return
        self._closed = True
        if self._container is not None:
            self._abandon()
        if isinstance(caught, OSError | av.error.FFmpegError):
            raise refusal(self.path, caught) from caught
        raise caught

    def _abandon(self) -> None:
        """Close what cannot be continued, and cut it to whole fragments."""
        import av

        assert self._claim is not None
        with contextlib.suppress(OSError, av.error.FFmpegError):
            self._container.close()
        with contextlib.suppress(OSError):
            self._file.cut()
        self.identity = self._claim.identity if self._file.visible else None
        self._claim.release()
