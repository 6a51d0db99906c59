"""Several speakers in one picture: what is given of each, as it was read, and where in the frame each is heard."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .config import BLOCK_LATENTS
from .errors import ImageError, RequestError, SpeakerError, shown
from .media.audio import AudioClip, audio_notes
from .media.audio_file import read_audio
from .media.image import Fit
from .media.masks import (
    HALVES,
    MOST_SHARED,
    WHITE,
    Half,
    fit_mask,
    half_mask,
    hearing_tokens,
    mask_of,
    overlaps,
    owned_tokens,
    read_mask,
    same_aspect,
)
from .media.mixing import mix_audio
from .request import Request, sample_count

if TYPE_CHECKING:
    import torch

MAX_SPEAKERS = 8
"""In one picture; the faces of more would be a few tokens each."""
_TOLD_SILENCE = 0.1
"""Seconds by which a sound may be shorter than the longest without a word."""
_TOLD_OVERLAP = 0.02
"""Share of the smaller of two masks from which it is told that they overlap: edges that touch may share a line."""

GivenMask = str | os.PathLike[str] | np.ndarray
"""Where in the picture a speaker is: a picture file (white is the speaker), or [H, W] of bool, of uint8 up to 255 or of
floats from 0 to 1; it lies over the picture, and may be of any size of that shape. Or a half of it: "left", "right"."""
_REST = "the rest of the picture"


@dataclasses.dataclass(frozen=True, eq=False)
class Speaker:
    """One of the speakers in a picture.

    Attributes:
        audio: a file, or an `AudioClip`.
        mask: where in the picture the speaker is (see `GivenMask`); of one speaker, all else hears silence. None: there
            is but one, and all of it is theirs.
    """

    audio: str | os.PathLike[str] | AudioClip
    mask: GivenMask | None = None


GivenSpeakers = list[Speaker] | tuple[Speaker, ...]
GivenAudio = str | os.PathLike[str] | AudioClip | Speaker | GivenSpeakers
"""What a video is spoken by: one voice, or several speakers."""


@dataclasses.dataclass(frozen=True)
class SpeakerReport:
    """A speaker as a receipt lists it.

    Attributes:
        audio: where the sound came from.
        seconds: of it.
        mask: where the mask came from.
        share: of the frame that is the speaker's own, 0 to 1.
    """

    audio: str
    seconds: float
    mask: str
    share: float


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedMask:
    """A mask as read.

    Attributes:
        name: of its speaker, for messages: "speaker 2 (b.wav)".
        values: uint8 [H, W], or a half of any picture.
        source: where it came from.
        notes: what is to be told of its file, a sentence each.
    """

    name: str
    values: np.ndarray | Half
    source: str
    notes: tuple[str, ...] = ()

    @property
    def is_rest(self) -> bool:
        """Whether it is what one speaker's mask leaves, where nobody speaks."""
        return self.source == _REST

    def rest(self) -> OpenedMask | None:
        """What it leaves of the picture; None where that is nothing."""
        if isinstance(self.values, str):
            (other,) = set(HALVES) - {self.values}
            return OpenedMask(_REST, other, _REST)
        values = 255 - self.values
        return OpenedMask(_REST, values, _REST) if values.max() >= WHITE else None

    def over(self, picture: tuple[int, int]) -> np.ndarray:
        """It, over a picture of this width and height: uint8 [H, W] of any size."""
        return half_mask(self.values, picture) if isinstance(self.values, str) else self.values


@dataclasses.dataclass(frozen=True, eq=False)
class PlacedMasks:
    """Where in a frame each speaker is heard.

    Attributes:
        hears: bool [speakers, rows, columns]: which tokens of a latent frame hear whom.
        shares: of the frame that is each speaker's own.
        notes: what is to be told of masks that overlap a little, a sentence each.
    """

    hears: np.ndarray
    shares: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def of_block(self) -> torch.Tensor:
        """Of all tokens of a block, as of `AudioTokens`: float32 [speakers, 3 S, 1]."""
        import torch

        frame = torch.from_numpy(self.hears).flatten(1).float()
        return frame.repeat(1, BLOCK_LATENTS)[..., None]

    @property
    def fingerprint(self) -> str:
        """What tells them from others."""
        shape = "x".join(map(str, self.hears.shape))
        return hashlib.blake2b(shape.encode() + np.packbits(self.hears).tobytes(), digest_size=8).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class PlacedSpeakers:
    """Several speakers in the frame of a video.

    Attributes:
        audio: of each, as read.
        masks: where each is heard.
        reports: of each.
    """

    audio: tuple[AudioClip, ...]
    masks: PlacedMasks
    reports: tuple[SpeakerReport, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedSpeakers:
    """Several speakers as read.

    Attributes:
        each, masks: their sounds and masks, in their order.
    """

    each: tuple[AudioClip, ...]
    masks: tuple[OpenedMask, ...]

    def __len__(self) -> int:
        return len(self.each)

    @functools.cached_property
    def audio(self) -> AudioClip:
        """Their sounds together, for the file; mixed when it is first asked for."""
        voices = [clip for mask, clip in zip(self.masks, self.each, strict=True) if not mask.is_rest]
        return voices[0] if len(voices) == 1 else mix_audio(voices, " + ".join(_short(clip.source) for clip in voices))

    def limited(self, seconds: float) -> OpenedSpeakers:
        """The first seconds of each."""
        return OpenedSpeakers(tuple(clip.limited(seconds) for clip in self.each), self.masks)

    def notes(self) -> tuple[str, ...]:
        """What is to be told of them before a video is made, a sentence each."""
        speak = [(mask, clip) for mask, clip in zip(self.masks, self.each, strict=True) if not mask.is_rest]
        if len(speak) == 1:
            mask, clip = speak[0]
            return *audio_notes(clip), *mask.notes, f"one speaker, at {mask.source}: {_REST} hears silence"
        told = [f"{mask.name}: {note}" for mask, clip in speak for note in (*audio_notes(clip), *mask.notes)]
        ends = [
            f"{mask.name} says nothing from {clip.seconds:.2f} s on"
            for mask, clip in speak
            if self.audio.seconds - clip.seconds > _TOLD_SILENCE
        ]
        return (*told, *ends, *self.audio.notes)

    def check_lengths(self, request: Request) -> None:
        """Make sure that each says long enough what a request will use.

        Raises:
            SpeakerError: one says too little.
        """
        for mask, clip in zip(self.masks, self.each, strict=True):
            with _naming(mask.name):
                sample_count(request, len(clip.samples), clip.rate)

    def placed(self, picture: tuple[int, int], width: int, height: int, fit: Fit) -> PlacedSpeakers:
        """Where in a frame each is heard; as `place_masks`."""
        masks = place_masks(self.masks, picture, width, height, fit)
        each = zip(self.each, self.masks, masks.shares, strict=True)
        reports = (SpeakerReport(clip.source, clip.seconds, mask.source, share) for clip, mask, share in each)
        return PlacedSpeakers(self.each, masks, tuple(reports))


def open_audio(given: GivenAudio | OpenedSpeakers, seconds: float | None = None) -> AudioClip | OpenedSpeakers:
    """Read what a video is spoken by: the clip of one voice, or several speakers.

    Args:
        given: one speaker without a mask is one voice; of one with a mask, a silent one has the rest of the picture.
            Speakers that are read already are not read again.
        seconds: of it that are used; None: all.

    Raises:
        AudioError: of one voice; as `read_audio`.
        SpeakerError: none or too many speakers, one without a mask among several, or a file that cannot be used.
    """
    if isinstance(given, OpenedSpeakers):
        return given if seconds is None else given.limited(seconds)
    speakers = [given] if isinstance(given, Speaker) else given
    if not isinstance(speakers, list | tuple):
        return _clip(speakers, seconds)
    _check_given(speakers)
    if len(speakers) == 1 and speakers[0].mask is None:
        return _clip(speakers[0].audio, seconds)
    clips, masks = [], []
    for number, one in enumerate(speakers, 1):
        name = _name(number, one)
        with _naming(name):
            clips.append(_clip(one.audio, seconds))
        if one.mask is None:
            raise SpeakerError(
                f"{_sentence(name)} has no mask.",
                "Give each of several speakers a mask: a picture that is white where their face is.",
            )
        masks.append(open_mask(name, one.mask))
    return OpenedSpeakers(tuple(clips), tuple(masks)) if len(clips) > 1 else _with_rest(clips[0], masks[0])


def spoken_notes(spoken: AudioClip | OpenedSpeakers) -> tuple[str, ...]:
    """What is to be told of what a video is spoken by."""
    return audio_notes(spoken) if isinstance(spoken, AudioClip) else spoken.notes()


def files_of_audio(given: GivenAudio) -> tuple[Path, ...]:
    """The files that it is read from, which nothing may replace."""
    each = given if isinstance(given, list | tuple) else [given]
    parts = (part for one in each for part in ((one.audio, one.mask) if isinstance(one, Speaker) else (one,)))
    return tuple(Path(part) for part in parts if isinstance(part, str | os.PathLike) and part not in HALVES)


def counted_speakers(count: int) -> str:
    """So many, in words."""
    return "one speaker" if count == 1 else f"{count} speakers"


def open_mask(name: str, given: GivenMask) -> OpenedMask:
    """Read a speaker's mask.

    Args:
        name: of the speaker, for messages.
        given: a file, values, or a half.

    Raises:
        SpeakerError: it cannot be read or used, or is empty.
    """
    if (half := _half(given)) is not None:
        return OpenedMask(name, half, f"the {half} half")
    notes: list[str] = []
    with _naming(f"the mask of {name}"):
        if isinstance(given, np.ndarray):
            values = mask_of(given)
        elif isinstance(given, str | os.PathLike):
            values = read_mask(given, notes)
        else:
            raise ImageError(
                f"A mask of type {type(given).__name__} is not understood.",
                "Give a picture file, or values of shape [height, width] as a NumPy array.",
            )
    if values.max() < WHITE:
        raise SpeakerError(
            f"The mask of {name} is empty: nothing of it is white.",
            "Paint the speaker's face white; of a picture with transparency, what is opaque is the speaker.",
        )
    source = "array" if isinstance(given, np.ndarray) else os.fspath(given)
    return OpenedMask(name, values, source, tuple(f"of the mask, {note}" for note in notes))


def open_masks(given: Sequence[GivenMask | OpenedMask]) -> tuple[OpenedMask, ...]:
    """Read the masks of speakers whose sounds are not known yet.

    Args:
        given: of each of several speakers; none where there is one.

    Raises:
        SpeakerError: one alone, too many, or one that cannot be used.
    """
    if len(given):
        _check_count(len(given))
    if len(given) == 1:
        raise SpeakerError(
            "There is one speaker, and a mask that says where: all of the picture is theirs.",
            "Leave the mask out. To keep another face silent, give it a mask, too, and say nothing there.",
        )
    return tuple(
        one if isinstance(one, OpenedMask) else open_mask(f"speaker {number}", one)
        for number, one in enumerate(given, 1)
    )


def place_masks(
    masks: Sequence[OpenedMask], picture: tuple[int, int], width: int, height: int, fit: Fit
) -> PlacedMasks:
    """Where in a frame each speaker is heard (see `media.masks`).

    Args:
        masks: of two speakers or more.
        picture: width and height of the picture that they lie over.
        width, height, fit: of the frame, as of `fit_image`.

    Raises:
        SpeakerError: one is of another shape than the picture, outside of what is seen of it, or in the same place as
            another one.
    """
    fitted = np.stack([_fitted(mask, picture, width, height, fit) for mask in masks])
    notes = []
    for a, b, share in overlaps(fitted):
        both = f"masks of {masks[a].name} and {masks[b].name} overlap: {share:.0%} of the smaller one is in both"
        if share > MOST_SHARED:
            raise SpeakerError(f"The {both}.", "Give each speaker a part of the picture that is no other's.")
        if share >= _TOLD_OVERLAP:
            notes.append(f"the {both}, and each place is whose mask has more of it")
    owned = owned_tokens(fitted)
    for mask, its in zip(masks, owned, strict=True):
        if not its.any() and not mask.is_rest:
            raise SpeakerError(
                f"The mask of {mask.name} is too small: in a video of {width}x{height}, others have all of it.",
                "Give a larger mask, or make a larger video.",
            )
    shares = tuple(round(float(its.mean()), 4) for its in owned)
    return PlacedMasks(hearing_tokens(owned), shares, tuple(notes))


def _check_given(speakers: Sequence[Speaker]) -> None:
    for one in speakers:
        if not isinstance(one, Speaker):
            raise SpeakerError(f"{shown(one)} is no speaker.", 'Give each as Speaker("voice.wav", "mask.png").')
    _check_count(len(speakers))


def _check_count(count: int) -> None:
    if not 1 <= count <= MAX_SPEAKERS:
        raise SpeakerError(
            f"{count} speakers are not possible.",
            f"Give 1 to {MAX_SPEAKERS}: their faces are to be told apart.",
        )


def _with_rest(clip: AudioClip, mask: OpenedMask) -> AudioClip | OpenedSpeakers:
    """One speaker in a part of the picture, and a silent one in the rest; one voice where there is no rest."""
    if (rest := mask.rest()) is None:
        return clip
    nothing = np.broadcast_to(np.float32(0), (len(clip.samples), clip.channels))
    return OpenedSpeakers((clip, AudioClip(nothing, clip.rate, "silence")), (mask, rest))


def _clip(given: str | os.PathLike[str] | AudioClip, seconds: float | None) -> AudioClip:
    clip = given if isinstance(given, AudioClip) else read_audio(given, seconds)
    return clip if seconds is None else clip.limited(seconds)  # of what came as a clip


def _fitted(mask: OpenedMask, picture: tuple[int, int], width: int, height: int, fit: Fit) -> np.ndarray:
    values = mask.over(picture)
    own_height, own_width = values.shape
    if not same_aspect(values, picture):
        raise SpeakerError(
            f"The mask of {mask.name} is {own_width}x{own_height}, and the picture {picture[0]}x{picture[1]}: it "
            "cannot lie over it.",
            "Turn the mask by 90 degrees: the picture counts as it is shown, upright."
            if same_aspect(values.T, picture)
            else "Draw the mask on the picture itself; any size of the same shape will do.",
        )
    fitted = fit_mask(values, picture, width, height, fit)
    if not fitted.any() and not mask.is_rest:
        raise SpeakerError(
            f"Nothing of the mask of {mask.name} is left where the picture is cut to {width}x{height}.",
            "Ask for a size in the picture's shape, or crop picture and masks yourself.",
        )
    return fitted


def _half(given: GivenMask) -> Half | None:
    return next((half for half in HALVES if half == given), None) if isinstance(given, str) else None


def _name(number: int, speaker: Speaker) -> str:
    given = speaker.audio.source if isinstance(speaker.audio, AudioClip) else speaker.audio
    return f"speaker {number} ({_short(given)})"


def _short(source: object) -> str:
    return Path(source).name if isinstance(source, str | os.PathLike) else shown(source)


def _sentence(name: str) -> str:
    return name[0].upper() + name[1:]


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """What is wrong inside is said of a speaker."""
    try:
        yield
    except RequestError as error:
        raise SpeakerError(f"{_sentence(name)}: {error.what}", error.nearest) from error
