"""What the nodes' schemas share: own socket types, inputs that repeat, and keys that older cores do not know."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from comfy_api.v0_0_2 import io

from ..liveavatar.errors import LiveAvatarError
from ..liveavatar.request import DEFAULT_PROMPT, MAX_SEED, MAX_STEPS, parse_size
from ..liveavatar.timed_changes import parse_timeline

CATEGORY = "Live Avatar"

BackendSocket = io.Custom("LIVEAVATAR_BACKEND")
ModelSocket = io.Custom("LIVEAVATAR_MODEL")
AudioSocket = io.Custom("LIVEAVATAR_AUDIO")
LatentsSocket = io.Custom("LIVEAVATAR_LATENTS")
LoRAsSocket = io.Custom("LIVEAVATAR_LORAS")
StateSocket = io.Custom("LIVEAVATAR_STATE")

SINKS = ("drawn from the seed", "fixed")

_KNOWN = {field.name for field in dataclasses.fields(io.Schema)}


def supported(**keys: Any) -> dict[str, Any]:
    """Those schema keys that this core knows."""
    return {name: value for name, value in keys.items() if name in _KNOWN}


def advanced(given: Any) -> Any:
    """Mark an input as rarely used, in a way that every core understands."""
    given.extra_dict = {**(given.extra_dict or {}), "advanced": True}
    return given


def replacing(given: Any, choices: Mapping[str, str]) -> Any:
    """Mark an input that was of another type: what graphs of older versions say there (as JSON has it) -> what it means
    now. The page shows it so; the node has to understand both."""
    given.extra_dict = {**(given.extra_dict or {}), "replaces": dict(choices)}
    return given


def pose_input() -> Any:
    """A body whose movements are followed."""
    return io.MultiType.Input(
        "pose",
        types=[io.Image, io.Video],
        optional=True,
        tooltip="A body whose movements are followed, as DWPose draws it: a VIDEO, or an IMAGE batch of 25 pictures a "
        "second. It is read beside the blocks.",
    )


def mask_input() -> Any:
    """Where the portrait is transparent."""
    return io.Mask.Input(
        "mask",
        optional=True,
        tooltip="The mask of core Load Image: where the portrait is transparent, it becomes white. Without it, the "
        "colour shows that the file hides there.",
    )


def size_input() -> Any:
    """The asked size."""
    return io.String.Input(
        "size",
        default="704x384",
        tooltip="Width x height, understood as an area: the picture's aspect decides the real size, a multiple of 64. "
        "The Plan node says which. The miniature is made for 128x128.",
    )


def size_fault(size: str | None) -> bool | str:
    """True where a size can be read (or comes over a link), else what is wrong with it."""
    try:
        if size is not None:
            parse_size(size)
    except LiveAvatarError as error:
        return str(error)
    return True


def steps_input() -> Any:
    """Denoising steps."""
    return io.Int.Input(
        "steps", default=4, min=1, max=MAX_STEPS, tooltip="Denoising steps per block. The model is made for 4."
    )


def seed_input() -> Any:
    """The seed."""
    return io.Int.Input(
        "seed",
        default=420,
        min=0,
        max=MAX_SEED,
        control_after_generate=True,
        tooltip="The same seed gives the same video on any number of devices.",
    )


def clip_input() -> Any:
    """Core's text encoder."""
    return io.Clip.Input(
        "clip",
        optional=True,
        tooltip="A CLIP of the type wan from core's Load CLIP (UMT5-XXL), to read the prompt in place of the model's "
        "own text encoder.",
    )


def prompt_input() -> Any:
    """What the video shows."""
    return io.String.Input(
        "prompt",
        default=DEFAULT_PROMPT,
        multiline=True,
        dynamic_prompts=True,
        tooltip="What the video shows, in words: the person, the mood, the surroundings.",
    )


def timeline_input() -> Any:
    """Prompts by time."""
    return advanced(
        io.String.Input(
            "timeline",
            default="",
            multiline=True,
            optional=True,
            tooltip="Prompts that follow, a line each, with the time from which it holds: 12.5: She laughs. Or "
            "1:05: ... Empty: the prompt holds to the end.",
        )
    )


def timeline_fault(timeline: str | None) -> bool | str:
    """True where a timeline can be read (or comes over a link), else what is wrong with it."""
    try:
        parse_timeline(timeline or "")
    except LiveAvatarError as error:
        return str(error)
    return True


def seconds_input() -> Any:
    """How much of the audio is used."""
    return io.Float.Input(
        "seconds",
        default=0.0,
        min=0.0,
        max=360_000.0,
        step=0.5,
        tooltip="Stop after so much sound. 0 uses all of it; there is no upper limit to its length.",
    )
