"""Several speakers in one picture: a sound and a mask of each."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from comfy_api.v0_0_2 import io

from ..liveavatar.errors import AudioError, LiveAvatarError, SpeakerError
from ..liveavatar.media.audio import AudioClip
from ..liveavatar.speakers import MAX_SPEAKERS, OpenedSpeakers, Speaker, open_audio
from . import convert
from .schema import CATEGORY, SpeakersSocket, growing_input, supported

_SOCKET = re.compile(r"(audio|mask)\.\1_([1-9]\d?)")
_PAINT = "a MASK that is white where this speaker is: paint it in the Mask Editor of core Load Image"


class Speakers(io.ComfyNode):
    """Pairs of AUDIO and MASK, to connect wherever one AUDIO goes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets, of which another one appears when the last one is taken."""
        return io.Schema(
            node_id="LiveAvatarSpeakers",
            display_name="Speakers (Live Avatar)",
            category=CATEGORY,
            description="Lets several people in one picture speak, each with a sound of their own, heard where their "
            "mask is. Connect it in place of one voice. All begin together; who has a shorter sound listens then.",
            inputs=[
                *growing_input(
                    "audio",
                    io.Audio,
                    MAX_SPEAKERS,
                    "The sound of one speaker: any rate, mono or stereo, silence where the speaker waits. Core Empty "
                    "Audio makes one who only listens.",
                ),
                *growing_input(
                    "mask",
                    io.Mask,
                    MAX_SPEAKERS,
                    "Where in the picture the speaker of the same number is: white, as painted in the Mask Editor of "
                    "core Load Image. Of any size in the picture's shape. One speaker alone needs none.",
                ),
            ],
            outputs=[
                SpeakersSocket.Output(
                    display_name="speakers", tooltip="For the audio input of Live Avatar, Audio Features, Plan or Live."
                )
            ],
            **supported(search_aliases=["several speakers", "two people", "multi person", "multitalk", "dialogue"]),
        )

    @classmethod
    def validate_inputs(
        cls, audio: Mapping[str, Any] | None = None, mask: Mapping[str, Any] | None = None, **single: Any
    ) -> bool | str:
        """Whether each speaker has what is needed, said before anything runs."""
        try:
            _check_wires(*_by_number(audio, mask, single))
        except LiveAvatarError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, audio: Mapping[str, Any] | None = None, mask: Mapping[str, Any] | None = None, **single: Any
    ) -> io.NodeOutput:
        """The speakers as read. Cores that know sockets that grow give them by name, others one by one."""
        sounds, masks = _by_number(audio, mask, single)
        _check_wires(sounds, masks)
        return io.NodeOutput(_opened(sounds, masks))


def _by_number(
    audio: Mapping[str, Any] | None, mask: Mapping[str, Any] | None, single: Mapping[str, Any]
) -> tuple[dict[int, Any], dict[int, Any]]:
    """What is connected to the sockets, by the number in their names.

    Raises:
        SpeakerError: something is connected to a socket that there is not.
    """
    found: dict[str, dict[int, Any]] = {"audio": {}, "mask": {}}
    groups = {"audio": audio or {}, "mask": mask or {}}
    whole = {f"{group}.{name}": value for group, given in groups.items() for name, value in given.items()}
    for name, value in (whole | dict(single)).items():
        if not (match := _SOCKET.fullmatch(name)):
            raise SpeakerError(f"Speakers has no input {name}.", "Use audio.audio_1, mask.mask_1 and so on.")
        found[match[1]][int(match[2])] = value
    return dict(sorted(found["audio"].items())), dict(sorted(found["mask"].items()))


def _check_wires(sounds: Mapping[int, Any], masks: Mapping[int, Any]) -> None:
    """Make sure that whoever has a mask has a sound, and among several the other way round, too.

    Raises:
        SpeakerError: somebody lacks one.
    """
    if not sounds and not masks:
        raise SpeakerError("No speaker is connected.", "Connect a sound to audio_1, and of each further speaker one.")
    for number in sorted(masks.keys() - sounds.keys()):
        raise SpeakerError(
            f"mask_{number} is connected, but audio_{number} is not.",
            f"Connect that speaker's sound to audio_{number}; core Empty Audio makes one who only listens.",
        )
    for number in sorted(sounds.keys() - masks.keys()) if len(sounds) > 1 else ():
        raise SpeakerError(f"audio_{number} is connected, but mask_{number} is not.", f"Connect {_PAINT}.")


def _opened(sounds: Mapping[int, Any], masks: Mapping[int, Any]) -> AudioClip | OpenedSpeakers:
    """Speakers that are named after their sockets.

    Raises:
        SpeakerError: as `open_audio`.
    """
    given = []
    for number, audio in sounds.items():
        clip = _clip(audio, f"audio_{number}")
        if number not in masks:
            given.append(Speaker(clip))
            continue
        mask = convert.speaker_mask(masks[number], f"mask_{number}")
        notes = (*clip.notes, *convert.mask_notes(masks[number]))
        given.append(Speaker(dataclasses.replace(clip, notes=notes), mask))
    opened = open_audio(given)
    if isinstance(opened, AudioClip):
        return opened
    named = [dataclasses.replace(one, source=f"mask_{n}") for one, n in zip(opened.masks, masks, strict=False)]
    return OpenedSpeakers(opened.each, (*named, *opened.masks[len(named) :]))  # of one alone, the rest has none


def _clip(audio: Any, socket: str) -> AudioClip:
    try:
        return dataclasses.replace(convert.audio_clip(audio), source=socket)
    except AudioError as error:
        raise SpeakerError(f"{socket}: {error.what}", error.nearest) from error
