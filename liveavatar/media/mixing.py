"""Several sounds as one: clips for the file of a video with several speakers, or what they say while they say it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..spool import Spool
from .audio import CHUNK_FRAMES, AudioClip

_STEP_SECONDS, _RECOVERY_SECONDS = 0.01, 0.5
_LOUDEST = 0.98
"""What a sum that would clip is brought to: AAC gives back a tone of full scale 0.02 dB louder."""


def mix_audio(clips: Sequence[AudioClip], source: str) -> AudioClip:
    """The sum of clips that begin together, as long as the longest, at the highest of their rates.

    Levels stay as they are; only where the sum would clip, all of it is made quieter, and the notes tell by how much.
    Clips of equal channels keep them; else mono is heard on both sides, and more channels than two are made one first.

    Args:
        clips: at least one, at any rate.
        source: of the result, for messages.

    Raises:
        OutputError: the temporary folder cannot take a long one.
    """
    rate = max(clip.rate for clip in clips)
    numbers = {clip.channels for clip in clips}
    channels = numbers.pop() if len(numbers) == 1 else 2
    length = max(math.ceil(len(clip.samples) * rate / clip.rate) for clip in clips)
    mixed, peak = Spool(channels), 0.0
    pieces = [_pieces(clip, rate, channels) for clip in clips]
    for start in range(0, length, CHUNK_FRAMES):
        total = np.zeros((min(CHUNK_FRAMES, length - start), channels), np.float32)
        for one in pieces:
            piece = next(one)[: len(total)]
            total[: len(piece)] += piece
        peak = max(peak, float(np.abs(total).max()))
        mixed.append(total)
    if peak <= 1:
        return AudioClip(mixed.rows(), rate, source)
    gain = _LOUDEST / peak
    note = f"together the speakers are too loud for a file: their sum is {-20 * math.log10(gain):.2g} dB quieter in it"
    return AudioClip(_scaled(mixed, gain).rows(), rate, source, (note,))


class RunningMix:
    """The sum of sounds that are mixed piece by piece, without knowing what comes.

    Levels stay as they are. Where the sum would clip, it is made as much quieter as it has to be, and becomes as loud
    as before within half a second.

    Args:
        rate: samples per second.
    """

    def __init__(self, rate: int):
        self._step = round(_STEP_SECONDS * rate)
        self._recovery = _STEP_SECONDS / _RECOVERY_SECONDS
        self._gain = 1.0

    def add(self, sounds: Sequence[np.ndarray]) -> np.ndarray:
        """The next piece of the sum: float32 [n], of sounds float32 [n]; n is a multiple of 10 ms."""
        total: np.ndarray = np.stack(sounds).sum(axis=0)
        steps = total.reshape(-1, self._step)
        most = np.minimum(1.0, 1.0 / np.maximum(np.abs(steps).max(axis=1), 1e-9))
        if self._gain == 1.0 and most.min() == 1.0:
            return total
        gains = np.minimum(most, np.append(most[1:], 1.0))  # at the end of each step
        begin = self._gain = min(self._gain, float(most[0]))
        for i, end in enumerate(gains):
            self._gain = min(float(end), self._gain + self._recovery)
            steps[i] *= np.linspace(begin, self._gain, self._step, dtype=np.float32)
            begin = self._gain
        return total


def _scaled(spool: Spool, factor: float) -> Spool:
    scaled = Spool(spool.width)
    for start in range(0, len(spool), CHUNK_FRAMES):
        scaled.append(spool.read(start, min(start + CHUNK_FRAMES, len(spool))) * np.float32(factor))
    return scaled


def _pieces(clip: AudioClip, rate: int, channels: int) -> Iterator[np.ndarray]:
    """A clip at a rate, as float32 [CHUNK_FRAMES, channels] again and again; its last piece is shorter, and empty ones
    follow without end."""
    kept = np.zeros((0, channels), np.float32)
    for piece in _resampled(clip, rate, channels):
        kept = np.concatenate((kept, piece))
        while len(kept) >= CHUNK_FRAMES:
            yield kept[:CHUNK_FRAMES]
            kept = kept[CHUNK_FRAMES:]
    yield kept
    while True:
        yield kept[:0]


def _resampled(clip: AudioClip, rate: int, channels: int) -> Iterator[np.ndarray]:
    import soxr

    samples = clip.samples
    own = channels if clip.channels == channels else 1
    resampler = None if clip.rate == rate else soxr.ResampleStream(clip.rate, rate, own, dtype="float32", quality="HQ")
    for start in range(0, len(samples), CHUNK_FRAMES):
        piece = _with_channels(clip, np.asarray(samples[start : start + CHUNK_FRAMES]), channels)
        if resampler is not None:
            given, last = piece if own > 1 else piece[:, 0], start + CHUNK_FRAMES >= len(samples)
            piece = resampler.resample_chunk(given, last=last).reshape(-1, own)
        yield np.repeat(piece, channels, axis=1) if own < channels else piece


def _with_channels(clip: AudioClip, piece: np.ndarray, channels: int) -> np.ndarray:
    """Samples of a clip: as they are, or as one channel."""
    if clip.channels in (1, channels):
        return piece
    channel = clip.mixdown.channel
    return piece.mean(axis=1, dtype=np.float32)[:, None] if channel is None else piece[:, channel : channel + 1]
