"""Audio files: any container and codec to a clip. Damage is read over like a player does, and told in the notes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..errors import AudioError
from ..spool import Spool
from ..utils import check_input_file
from .audio import AudioClip, check_rate, check_samples, no_samples, to_float
from .containers import MATROSKA, MP4, ends_as_ogg, is_whole, lacks_its_index, ogg_is_damaged, promised_seconds, tag_end
from .wav import WavSamples, read_wav_header

if TYPE_CHECKING:
    from av import AudioFrame

PAUSING = (MP4, MATROSKA, "mpegts", "mpeg", "flv", "asf", "rm")
"""Formats with time stamps of their own, which a recorder that pauses leaves out; in others they count what was read,
and what they leave out is lost."""
_COUNTED = ("mp3", "aac", "ac3", "eac3", "dts")
"""Formats without time stamps, where only the bytes tell how long a damaged stretch lasted."""
ABSOLUTE_TIMES = (MP4, MATROSKA)
"""Formats whose time 0 is the beginning, also where nothing sounds there."""
TOLERANCE_SECONDS = 0.25
"""How much shorter than announced a file may be; encoders' padding is a tenth of it."""
GAP_SECONDS = 0.05
"""Time stamps that leave out less are imprecise, and the sound goes on."""
RESTART_SECONDS = 1.0
"""Time stamps that go back so far have begun anew."""
MAX_SILENCE_SECONDS = 600.0
"""Time stamps that leave out more, all together, are taken to be wrong."""
READABLE_SHARE = 0.5
"""A file of which less can be read is refused."""

_ODD_FRAMES = 4
"""So many frames in a row of another rate or layout are a change; fewer are damage that looks like a frame."""
_FAILURES_IN_A_ROW = 1000
_SAVE_AS = "Save it as WAV, FLAC, MP3, OGG or M4A."
_AGAIN = "Export or download it again."


def read_audio(path: str | os.PathLike[str], seconds: float | None = None) -> AudioClip:
    """Decode the (best) audio stream of a file: wav, mp3, flac, ogg, m4a, a video, whatever FFmpeg reads.

    The path is only a path: a `+`, a `:` or a `%` in it is just a character, and a playlist is not followed. Files that
    state no length (OGG, raw AAC, some MP3s) are read as far as they go. Bytes that cannot be decoded are skipped,
    stretches that the time stamps leave out are silent, and the clip's notes tell both.

    Args:
        path: the file.
        seconds: read no more than so much of it; None: all.

    Raises:
        AudioError: no such file, no sound in it, cut off, more than half of it unreadable, no samples, NaN or infinite
            samples.
        OutputError: the temporary folder cannot take a long sound.
    """
    path = _existing(path)
    try:
        with path.open("rb") as file:
            wav = read_wav_header(file)
            if wav is not None:
                return _read_wav(wav, file, _Samples(path, seconds))
            with _opened(path, file) as container:
                return _Track(container, file, _Samples(path, seconds)).read()
    except OSError as e:  # FFmpeg's errors are among them
        raise AudioError(f"{path} cannot be read ({e.strerror or e}).", _AGAIN) from e


def _existing(path: str | os.PathLike[str]) -> Path:
    found = check_input_file(path, "sound", AudioError)
    if not found.stat().st_size:
        raise AudioError(f"{found} is empty: it holds 0 bytes.", _AGAIN)
    return found


class _Samples:
    """The samples of a file as they are read, up to a number of seconds."""

    def __init__(self, path: Path, seconds: float | None):
        self.path = path
        self.rate = 0
        self._seconds = seconds
        self._spool: Spool | None = None

    def __len__(self) -> int:
        return 0 if self._spool is None else len(self._spool)

    @property
    def channels(self) -> int:
        """0 as long as there are none."""
        return 0 if self._spool is None else self._spool.width

    @property
    def seconds(self) -> float:
        """How much there is."""
        return len(self) / self.rate if self.rate else 0.0

    @property
    def full(self) -> bool:
        """Whether no more are asked for."""
        return self._left() == 0

    def append(self, values: np.ndarray, rate: int) -> None:
        """Add samples [n, channels], floats or integers of known full scale; the first decide rate and channels."""
        if self._spool is None:
            self.rate, self._spool = check_rate(rate, str(self.path)), Spool(values.shape[1])
        floats = to_float(values)
        check_samples(floats, len(self), self.rate, str(self.path))
        left = self._left()
        self._spool.append(floats if left is None else floats[:left])

    def silence(self, count: int) -> None:
        """Add so many zeros."""
        assert self._spool is not None
        left = self._left()
        count = count if left is None else min(count, left)
        for start in range(0, count, self.rate):
            self._spool.append(np.zeros((min(self.rate, count - start), self.channels), np.float32))

    def clip(self, notes: Sequence[str]) -> AudioClip:
        """All of them.

        Raises:
            AudioError: there are none.
        """
        if self._spool is None or not len(self._spool):
            raise no_samples(str(self.path))
        return AudioClip(self._spool.rows(), self.rate, self.path.name, tuple(notes))

    def _left(self) -> int | None:
        if self._seconds is None or not self.rate:
            return None
        return max(math.ceil(self._seconds * self.rate - 1e-6) - len(self), 0)


def _read_wav(wav: WavSamples, file: IO[bytes], samples: _Samples) -> AudioClip:
    path, rate = samples.path, check_rate(wav.rate, str(samples.path))
    for values in wav.read(file):
        samples.append(values, rate)
        if samples.full:
            return samples.clip(wav.notes)
    if wav.missing:
        raise _cut_off(path, f"{wav.missing} bytes of it are missing")
    return samples.clip(wav.notes)


class _Input:
    """A file as FFmpeg reads it; seeking to before its beginning fails without a word, where Python would raise."""

    def __init__(self, file: IO[bytes], name: str):
        self._file, self.name = file, name
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = 0) -> int:
        """The new position, or -1."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -1


@contextlib.contextmanager
def _opened(path: Path, file: IO[bytes]) -> Iterator[Any]:
    """FFmpeg's container of a file.

    Raises:
        AudioError: it is none, or one that lacks its index.
    """
    import av

    file.seek(0)
    try:
        # a file object: FFmpeg would read a name as a protocol or a pattern
        container = av.open(_Input(file, str(path)), options={"protocol_whitelist": "none"}, metadata_errors="ignore")
    except av.error.FFmpegError as e:
        if lacks_its_index(file):
            raise _cut_off(path, "the index that stands at its end is missing") from e
        if isinstance(e, av.error.EOFError):
            raise _cut_off(path, "it ends before the first sound") from e
        raise AudioError(f"{path} is not sound this program can read ({e.strerror}).", _SAVE_AS) from e
    with container:
        yield container


class _Track:
    """One audio stream of an opened container, decoded from front to back."""

    def __init__(self, container: Any, file: IO[bytes], samples: _Samples):
        self.container, self.samples, self.path = container, samples, samples.path
        self._file = file
        self.notes: list[str] = []
        self.stream = self._choose()
        self.promised = promised_seconds(container, self.stream, file)
        self.damage = _Damage()
        self._anchor: float | None = None
        self._begins_at = 0.0
        self._has_changed = False
        self._stamps_hold = True
        self._tag_end = 0
        self._silence = 0.0
        self._read_to = 0
        self._skipped_bytes = 0

    def read(self) -> AudioClip:
        """The clip of all that can be decoded."""
        for frame in self._same_format(self._frames()):
            self._catch_up(frame)
            self.samples.append(_frame_values(frame), frame.sample_rate)
            self.damage.went_on()
            if self.samples.full:
                return self.samples.clip([*self.notes, *self.damage.notes(0.0)])
        return self._end()

    def _choose(self) -> Any:
        """The stream that is read.

        Raises:
            AudioError: there is none, or none that can be decoded.
        """
        streams, path = self.container.streams.audio, self.path
        stream = self.container.streams.best("audio")
        if stream is None:
            if self.container.streams.video:
                raise AudioError(f"There is no sound in {path}, only pictures.", "Give a file with an audio track.")
            raise AudioError(f"There is no sound in {path}.", "Give a file with an audio track.")
        if stream.codec_context is None:
            raise AudioError(f"{path} holds sound in a format FFmpeg has no decoder for.", _SAVE_AS)
        if len(streams) > 1:
            number = [s.index for s in streams].index(stream.index) + 1
            named = f" ({stream.language})" if stream.language not in (None, "und") else ""
            self.notes.append(f"{path.name} has {len(streams)} audio tracks; number {number}{named} is used")
        return stream

    def _frames(self) -> Iterator[AudioFrame]:
        """All frames that can be decoded; what cannot is counted."""
        import av

        piped = self.container.format.name == "wav"  # of unknown length: its last packet counts as incomplete
        packets, packet = self.container.demux(self.stream), None
        failures = 0
        while failures < _FAILURES_IN_A_ROW:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                if self._is_tag(packet):
                    continue
                if packet.is_corrupt and not piped:
                    self.damage.failed(self.samples.seconds, packet.size)
                    continue
                frames = packet.decode()
            except av.error.PatchWelcomeError as e:
                raise self._changes() from e
            except av.error.FFmpegError:
                self.damage.failed(self.samples.seconds, 0 if packet is None else packet.size)
                packet, packets, failures = None, self.container.demux(self.stream), failures + 1
                continue
            failures = 0
            self._note_position(packet)
            self.damage.good_bytes += packet.size
            yield from frames

    def _note_position(self, packet: Any) -> None:
        """How many bytes of the file lie between a good packet and the good one before it."""
        if packet.pos is None:
            return
        self._skipped_bytes = max(0, packet.pos - self._read_to) if self._read_to and self.damage.pending else 0
        self._read_to = packet.pos + packet.size

    def _is_tag(self, packet: Any) -> bool:
        """Whether a packet lies in an ID3 tag, which FFmpeg takes for sound where MP3s are joined."""
        end = tag_end(packet)
        if end > self._tag_end:
            self._tag_end, self._stamps_hold = end, False
            self.notes.append(f"a tag at {self.samples.seconds:.2f} s, where two files were joined, was skipped")
        return (packet.pos or 0) < self._tag_end

    def _same_format(self, frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
        """Frames in the rate and number of channels of the first; those after a change are converted."""
        first: tuple[int, int] | None = None
        converter: _Converter | None = None
        for frame in _consistent_start(frames):
            form = (frame.sample_rate, frame.layout.nb_channels)
            first = first or form
            if converter is not None and not converter.fits(frame):
                if form == first and not converter.used:
                    self.damage.failed(self.samples.seconds, 0)
                converter = None
            if form == first:
                yield frame
                continue
            converter = converter or _Converter(frame, first)
            converted = converter.convert(frame)
            if converted and not self._has_changed:
                self._has_changed = True
                self._note_change(first, form)
            yield from converted

    def _changes(self) -> AudioError:
        return AudioError(
            f"{self.path} changes its rate or channels after {self.samples.seconds:.2f} s.", "Save it as one WAV."
        )

    def _note_change(self, first: tuple[int, int], then: tuple[int, int]) -> None:
        names = [f"{rate} Hz and {channels} channel{'s' * (channels > 1)}" for rate, channels in (first, then)]
        self.notes.append(
            f"the sound changes from {names[0]} to {names[1]} at {self.samples.seconds:.2f} s; it was converted"
        )

    def _catch_up(self, frame: AudioFrame) -> None:
        """Fill up with silence what the time stamp of a frame leaves out before it.

        Raises:
            AudioError: the time stamps cannot be right.
        """
        if frame.pts is None or not frame.time_base:
            return
        time, held = float(frame.pts * frame.time_base), self.samples.seconds
        if self._anchor is None:
            self._anchor = self._start(time)
        gap = time - self._anchor - held
        if gap < -RESTART_SECONDS or not self._stamps_hold:
            self._anchor, self._stamps_hold, gap = time - held, True, 0.0
        if gap < GAP_SECONDS and self.damage.pending and self.container.format.name in _COUNTED:
            gap = min(self.damage.seconds_of(self._skipped_bytes, held), (self.promised or 0.0) - held)
        if gap < GAP_SECONDS:
            return
        self._silence += gap
        if self._silence > MAX_SILENCE_SECONDS:
            raise AudioError(
                f"The time stamps of {self.path} leave out {gap:.6g} s at {held:.2f} s, more than any pause.",
                "Save it as WAV, which has no time stamps.",
            )
        if not self.samples.rate:
            values = _frame_values(frame)
            self.samples.append(values[:0], frame.sample_rate)
        self.samples.silence(round(gap * self.samples.rate))
        if self.damage.pending or not self._may_pause:
            self.damage.filled(held, gap)
        elif not held:
            self.notes.append(f"the sound begins {gap:.2f} s late by its time stamps; they are silent")
        else:
            self.notes.append(f"the time stamps leave out {gap:.2f} s at {held:.2f} s, which are silent")

    @functools.cached_property
    def _may_pause(self) -> bool:
        """Whether time stamps that leave something out mean a pause, and not a loss."""
        if self.container.format.name == "ogg":
            return not ogg_is_damaged(self._file)
        return self.container.format.name in PAUSING

    def _start(self, time: float) -> float:
        """Where on the clock of the time stamps the sound begins, given its first one."""
        start = (self.container.start_time or 0) / 1e6
        if self.container.format.name in ABSOLUTE_TIMES and time <= MAX_SILENCE_SECONDS:
            start = min(start, 0.0)
        if not GAP_SECONDS <= time - start <= MAX_SILENCE_SECONDS:
            start = time
        self._begins_at = start
        if start > MAX_SILENCE_SECONDS:
            self.notes.append(f"its time stamps begin at {start:.6g} s, which is taken for the beginning")
        return start

    def _end(self) -> AudioClip:
        """The clip, if it is enough of what was to be there.

        Raises:
            AudioError: it is not.
        """
        held, damage, format_name = self.samples.seconds, self.damage, self.container.format.name
        if not held and damage.pending:
            raise AudioError(f"{self.path} is cut off or damaged (nothing of it can be decoded).", _AGAIN)
        missing = (self.promised or 0.0) - held
        if missing > TOLERANCE_SECONDS and format_name in (MATROSKA, "ogg") and self._may_pause:
            missing -= self._begins_at  # they count from 0, also where a recording begins in the middle
        missing = missing if missing > TOLERANCE_SECONDS else 0.0
        if missing and not damage.lost and format_name != "avi" and not is_whole(format_name, self._file):
            raise _cut_off(self.path, f"it holds {held:.2f} s of {self.promised:.2f} s")
        readable = held - damage.silence
        lost = max(damage.silence + missing, damage.lost_seconds(readable))
        if missing:
            damage.went_on()
        if lost and readable < READABLE_SHARE * (readable + lost):
            raise _cut_off(self.path, f"only {readable:.2f} s of {readable + lost:.2f} s can be read")
        if format_name == "ogg" and not ends_as_ogg(self._file):
            self.notes.append(f"{self.path.name} lacks the mark of its end: its last seconds may be missing")
        return self.samples.clip([*self.notes, *damage.notes(lost)])


def _consistent_start(frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
    """Frames without a first one that differs from the second.

    FFmpeg looks ahead to know a stream, and where its rate changes later, the first frame comes with that later rate.
    """
    first, second = next(frames, None), next(frames, None)
    if first is not None and second is not None and _form_of(first) != _form_of(second):
        first = None
    yield from (frame for frame in (first, second) if frame is not None)
    yield from frames


def _form_of(frame: AudioFrame) -> tuple[Any, ...]:
    return frame.sample_rate, frame.layout.name, frame.format.name, frame.time_base


class _Converter:
    """Brings frames of one format to another rate and number of channels, once there are enough to be no damage.

    Args:
        frame: the first of them.
        form: rate and channels that are wanted.
    """

    def __init__(self, frame: AudioFrame, form: tuple[int, int]):
        import av

        self.used = False
        self._held: list[AudioFrame] = []
        self._form = _form_of(frame)
        layout = {1: "mono", 2: "stereo"}.get(form[1], f"{form[1]}c")
        self._resampler = av.AudioResampler(format="fltp", layout=layout, rate=form[0])

    def fits(self, frame: AudioFrame) -> bool:
        """Whether a frame has the format of the first."""
        return _form_of(frame) == self._form

    def convert(self, frame: AudioFrame) -> list[AudioFrame]:
        """What comes out; nothing until there have been some frames in a row."""
        self._held.append(frame)
        if not self.used and len(self._held) < _ODD_FRAMES:
            return []
        self.used = True
        held, self._held = self._held, []
        return [converted for one in held for converted in self._resampler.resample(one)]


@dataclasses.dataclass
class _Damage:
    """What could not be decoded.

    Attributes:
        good_bytes: of packets that could be decoded.
        lost: pieces that could not, with sound after them; pending: those since the last good frame.
        lost_bytes, pending_bytes: of them.
        first, last: seconds at which the first of all, and the first since the last good frame, was.
        silence: seconds that stand for them.
    """

    good_bytes: int = 0
    lost: int = 0
    pending: int = 0
    lost_bytes: int = 0
    pending_bytes: int = 0
    first: float | None = None
    last: float = 0.0
    silence: float = 0.0

    def failed(self, at: float, size: int) -> None:
        """A piece of so many bytes could not be decoded."""
        if not self.pending:
            self.last = at
        self.pending += 1
        self.pending_bytes += size

    def filled(self, at: float, seconds: float) -> None:
        """Silence stands for what was lost."""
        self.failed(at, 0)
        self.silence += seconds

    def went_on(self) -> None:
        """A frame was decoded."""
        if self.pending and self.first is None:
            self.first = self.last
        self.lost += self.pending
        self.lost_bytes += self.pending_bytes
        self.pending = self.pending_bytes = 0

    def lost_seconds(self, readable: float) -> float:
        """About how long the lost bytes lasted, where the good ones last `readable` seconds."""
        return self.seconds_of(self.lost_bytes, readable)

    def seconds_of(self, nbytes: int, readable: float) -> float:
        """About how long so many bytes last, where the good ones last `readable` seconds."""
        return readable * nbytes / self.good_bytes if self.good_bytes else 0.0

    def notes(self, lost: float) -> list[str]:
        """What is to be told, where about `lost` seconds were lost."""
        notes = []
        if self.lost or lost:
            at = "" if self.first is None else f", first at {self.first:.2f} s"
            much = f"about {lost:.2f} s of the sound" if lost >= 0.01 else "a piece of the sound"
            done = "silence stands for it" if self.silence > lost / 2 else "it was left out"
            notes.append(f"{much} could not be read{at}; {done}")
        if self.pending:
            notes.append(f"what stands in the file after {self.last:.2f} s is no sound and was left out")
        return notes


def _frame_values(frame: AudioFrame) -> np.ndarray:
    """[n, channels] of one decoded frame, planar or packed."""
    if frame.format.name.startswith("s64"):  # PyAV has no array of it
        import av

        (frame,) = av.AudioResampler(format="dbl").resample(frame)
    values = frame.to_ndarray()
    return values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)


def _cut_off(path: Path, why: str) -> AudioError:
    return AudioError(f"{path} is cut off or damaged ({why}).", _AGAIN)
