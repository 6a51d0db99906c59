"""Audio: from any file with sound to samples, and to the 16 kHz mono that the audio encoder takes."""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..config import AUDIO_SAMPLE_RATE
from ..errors import AudioError
from ..spool import Rows, Spool

if TYPE_CHECKING:
    from av import AudioFrame


STREAMING_SIZE = 0x7FFF_0000
"""Sizes from here up are what writers to a pipe put where the size is not known."""
SLACK_BYTES = 1024
"""Some writers count their header as sound."""
EXACT_DURATION = ("flac", "aiff", "w64", "tta", "wv")
"""Formats whose header counts the samples."""


def missing_wav_bytes(file: IO[bytes]) -> int:
    """Bytes of sound that a RIFF WAVE file announces and does not hold; 0 for a whole file and for other formats.

    The position in the file is moved.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return 0
    position = 12
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"data":
            missing = length - (size - position - 8)
            return missing if missing > SLACK_BYTES and length < STREAMING_SIZE else 0
        position += 8 + length + length % 2
    return 0


def promised_seconds(container: Any, stream: Any, file: IO[bytes]) -> float | None:
    """The length in seconds that the header of an opened file counts exactly, or None where it is an estimate.

    Args:
        container, stream: of PyAV.
        file: the same file, opened once more; its position is moved.
    """
    if container.format.name in EXACT_DURATION and stream.duration:
        return float(stream.duration * stream.time_base)
    if container.format.name == "matroska,webm" and container.duration and not container.streams.video:
        return container.duration / 1e6
    if container.format.name == "mp3" and container.duration and _counts_its_frames(file):
        return container.duration / 1e6
    return None


def _counts_its_frames(file: IO[bytes]) -> bool:
    """Whether an MP3's first frame is the header that encoders write when they know the length."""
    file.seek(0)
    head = file.read(10)
    start = 0
    if len(head) == 10 and head[:3] == b"ID3":
        start = 10 + sum((byte & 0x7F) << (7 * (3 - i)) for i, byte in enumerate(head[6:10]))
    file.seek(start)
    first = file.read(4096)
    return any(mark in first for mark in (b"Xing", b"Info", b"VBRI"))


MIN_RATE, MAX_RATE = 1_000, 1_000_000
"""Samples per second outside which a header is taken to be damaged."""
MAX_CHANNELS = 32
"""More columns than this are samples laid out the other way round."""
TOLERANCE_SECONDS = 0.25
"""How much shorter than announced a file may be; encoders' padding is a tenth of it."""
CHUNK_FRAMES = 1 << 18
"""Samples per channel resampled at a time."""

_INTEGER_MIDDLE = {"u1": 128.0}
_FULL_SCALE = {"u1": 128.0, "i2": 32768.0, "i4": 2147483648.0}


@dataclasses.dataclass(frozen=True, eq=False)
class AudioClip:
    """A decoded audio clip.

    Attributes:
        samples: float32 [n, channels], n >= 1, finite; full scale is -1..1 (a float file may exceed it). Those of long
            sounds lie in a temporary file, which disappears with them: slice, then `numpy.asarray`.
        rate: samples per second and channel.
        source: where it came from, for messages and receipts.
    """

    samples: np.ndarray | Rows
    rate: int
    source: str

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.samples.shape[1]

    @classmethod
    def from_array(cls, samples: Any, rate: float, source: str = "array") -> AudioClip:
        """Wrap samples that are already decoded.

        Args:
            samples: [n] or [n, channels] (time first), anything numpy takes: floats with full scale -1..1, or
                uint8, int16 or int32 with the full scale of their type.
            rate: samples per second, a whole number.
            source: a name for messages.

        Raises:
            AudioError: another shape ([channels, n] has to be transposed) or type, no samples, NaN or infinite
                samples, an unusable rate.
        """
        array = np.asarray(samples)
        if array.ndim == 1:
            array = array[:, None]
        if array.ndim != 2 or not 1 <= array.shape[1] <= MAX_CHANNELS:
            raise AudioError(
                f"Samples of shape {list(np.shape(samples))} are not [n] or [n, channels].",
                "Transpose [channels, n], and give one sound at a time.",
            )
        if array.dtype.kind != "f" and array.dtype.str[1:] not in _FULL_SCALE:
            raise AudioError(f"Samples of type {array.dtype} have no known full scale.", "Give float32 in -1..1.")
        if len(array) == 0:
            raise _no_samples(source)
        values = np.ascontiguousarray(_to_float(array))
        _check_finite(values, 0, _check_rate(rate, source), source)
        return cls(values, int(rate), source)

    def limited(self, seconds: float) -> AudioClip:
        """The first `seconds` seconds (rounded up to a sample), or all of it where it is shorter. Nothing is copied.

        Raises:
            AudioError: not a positive number of seconds.
        """
        if not (math.isfinite(seconds) and seconds > 0):
            raise AudioError(f"A sound cannot be limited to {seconds} s.", "Give a number of seconds above 0.")
        count = math.ceil(seconds * self.rate - 1e-6)
        return self if count >= len(self.samples) else dataclasses.replace(self, samples=self.samples[: max(count, 1)])


def read_audio(path: str | os.PathLike[str]) -> AudioClip:
    """Decode the (best) audio stream of a file: wav, mp3, flac, ogg, m4a, a video, whatever FFmpeg reads.

    The path is only a path: a `+`, a `:` or a `%` in it is just a character, and a playlist is not followed. Files that
    state no length (OGG, raw AAC, some MP3s) are read as far as they go.

    Raises:
        AudioError: no such file, no sound in it, damaged or cut off, no samples, NaN or infinite samples.
        OutputError: the temporary folder cannot take a long sound.
    """
    import av

    path = Path(path)
    if not path.exists():
        raise AudioError(f"There is no sound at {path}.", "Check the path.")
    if not path.is_file():
        raise AudioError(f"{path} is not a file.", "Give the sound itself, not its folder.")
    try:
        with path.open("rb") as file, path.open("rb") as again:
            if missing := missing_wav_bytes(again):
                raise _cut_off(path, f"{missing} bytes of it are missing")
            try:
                # a file object: FFmpeg would read a name as a protocol or a pattern
                container = av.open(file, options={"protocol_whitelist": "none"})
            except av.error.FFmpegError as e:
                raise AudioError(f"{path} is not sound this program can read ({e.strerror}).", _SAVE_AS) from e
            with container:
                return _decode(container, again, path)
    except OSError as e:  # FFmpeg's errors of decoding are among them
        raise AudioError(f"{path} cannot be read ({e.strerror or e}).", "Export or download it again.") from e


def mono_16k(audio: AudioClip) -> np.ndarray | Rows:
    """The mean of all channels, resampled to 16 kHz: float32 [ceil(n * 16000 / rate)].

    Resampled by soxr at its HQ setting, as the published implementation does through librosa, in pieces; the pieces
    give the same numbers as the whole. A long result lies in a temporary file.

    Raises:
        OutputError: the temporary folder cannot take it.
    """
    length = -(-len(audio.samples) * AUDIO_SAMPLE_RATE // audio.rate)
    spool = Spool(1)
    for piece in _resampled(audio):
        spool.append(piece[: length - len(spool)])
    if len(spool) < length:  # the resampler rounds the length, librosa rounds it up with zeros
        spool.append(np.zeros(length - len(spool), np.float32))
    return spool.rows(flat=True)


_SAVE_AS = "Save it as WAV, FLAC, MP3, OGG or M4A."


def _decode(container: Any, again: IO[bytes], path: Path) -> AudioClip:
    import av

    stream = container.streams.best("audio")
    if stream is None:
        raise AudioError(f"There is no sound in {path}.", "Give a file with an audio track.")
    if stream.codec_context is None:
        raise AudioError(f"{path} holds sound in a format FFmpeg has no decoder for.", _SAVE_AS)
    promised = promised_seconds(container, stream, again)
    spool: Spool | None = None
    rate = 0
    try:
        for frame in _frames(container, stream, path):
            values = _frame_values(frame)
            if spool is None:
                rate, spool = _check_rate(frame.sample_rate, str(path)), Spool(values.shape[1])
            if frame.sample_rate != rate or values.shape[1] != spool.width:
                raise AudioError(
                    f"{path} changes its rate or channels after {len(spool) / rate:.2f} s.", "Save it as one WAV."
                )
            _check_finite(values, len(spool), rate, str(path))
            spool.append(values)
    except av.error.FFmpegError as e:
        at = f" after {len(spool) / rate:.2f} s" if spool is not None else ""
        raise _cut_off(path, f"decoding fails{at}: {e.strerror}") from e
    if spool is None or not len(spool):
        raise _no_samples(str(path))
    if promised is not None and len(spool) / rate < promised - TOLERANCE_SECONDS:
        raise _cut_off(path, f"it holds {len(spool) / rate:.2f} s of {promised:.2f} s")
    return AudioClip(spool.rows(), rate, path.name)


def _frames(container: Any, stream: Any, path: Path) -> Iterator[AudioFrame]:
    piped = container.format.name == "wav"  # of unknown length: its last packet counts as incomplete
    for packet in container.demux(stream):
        if packet.is_corrupt and not piped:
            raise _cut_off(path, f"a packet is incomplete at {float((packet.pts or 0) * packet.time_base):.2f} s")
        yield from packet.decode()


def _frame_values(frame: AudioFrame) -> np.ndarray:
    """float32 [n, channels] of one decoded frame, planar or packed."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        return _to_float(values.reshape(-1, frame.layout.nb_channels))
    return _to_float(values.T)


def _to_float(values: np.ndarray) -> np.ndarray:
    """Integers scaled by their type's full scale, as float32."""
    kind = values.dtype.str[1:]
    if kind not in _FULL_SCALE:
        return values.astype(np.float32, copy=False)
    return ((values.astype(np.float64) - _INTEGER_MIDDLE.get(kind, 0.0)) / _FULL_SCALE[kind]).astype(np.float32)


def _resampled(audio: AudioClip) -> Iterator[np.ndarray]:
    import soxr

    same = audio.rate == AUDIO_SAMPLE_RATE
    resampler = None if same else soxr.ResampleStream(audio.rate, AUDIO_SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    for start in range(0, len(audio.samples), CHUNK_FRAMES):
        piece = np.asarray(audio.samples[start : start + CHUNK_FRAMES])
        mono = np.array(piece[:, 0]) if audio.channels == 1 else piece.mean(axis=1, dtype=np.float32)
        last = start + CHUNK_FRAMES >= len(audio.samples)
        yield mono if resampler is None else resampler.resample_chunk(mono, last=last)


def _check_rate(rate: float, source: str) -> int:
    if isinstance(rate, bool) or rate != rate or int(rate) != rate or not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(
            f"{source} has a rate of {rate} samples per second.", f"Use {MIN_RATE} to {MAX_RATE}, for example 48000."
        )
    return int(rate)


def _check_finite(values: np.ndarray, start: int, rate: int, source: str) -> None:
    good = np.isfinite(values)
    if not good.all():
        first = start + int(np.argmin(good.all(axis=1)))
        raise AudioError(
            f"{source} holds a value that is not a number or infinite, first at sample {first} ({first / rate:.3f} s).",
            "Export the sound again from the program that made it.",
        )


def _no_samples(source: str) -> AudioError:
    return AudioError(f"{source} holds no samples: it is 0 s long.", "The shortest usable sound has 0.025 s.")


def _cut_off(path: Path, why: str) -> AudioError:
    return AudioError(f"{path} is cut off or damaged ({why}).", "Export or download it again.")
