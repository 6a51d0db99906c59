"""What client and server of a live session say to each other: JSON text both ways, sound up and video down as binary.

Client to server: `hello` first, then `start`; binary messages are sound, in the format and of the speaker of the latest
`audio` message, but for the one after `portrait` or `mask`, which is the file of a picture. Speakers are numbered from
1; without a number, the first one is meant by what is said, and all by what ends.
Server to client: `ready`, `started`, `stats` every second, `answer` to an offer of WebRTC, `error` and `bye`; binary
messages are a fragmented MP4, which pauses while WebRTC is connected.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from typing import Any, Literal

import numpy as np

from ..errors import LiveAvatarError, RequestError, shown
from ..media.masks import HALVES

VERSION = 1
MAX_TEXT = 1 << 16
"""Letters of a JSON message."""
MAX_SOUND = 4 << 20
"""Bytes of sound in a binary message."""
MAX_PICTURE = 12 << 20
"""Bytes of a picture."""
MAX_SAID = 2000
"""Letters of a text that is to be said."""
Encoding = Literal["s16le", "f32le"]


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a message.

    Attributes:
        kind: of its value in JSON; a float may be written as a whole number.
        required: whether it may not be left out.
        choices: values it may have, or of a list, its items; empty: all of that kind.
    """

    kind: type
    required: bool = False
    choices: tuple[str, ...] = ()


MESSAGES: dict[str, dict[str, Field]] = {
    "hello": {"version": Field(int, True), "token": Field(str), "resume": Field(str)},
    "start": {
        "prompt": Field(str),
        "seed": Field(int),
        "size": Field(str),
        "steps": Field(int),
        "lookahead": Field(float),
        "speakers": Field(int),
        "areas": Field(list, choices=HALVES),
    },
    "audio": {"rate": Field(int, True), "encoding": Field(str, True, ("s16le", "f32le")), "speaker": Field(int)},
    "say": {"text": Field(str, True), "voice": Field(str), "speaker": Field(int)},
    "prompt": {"text": Field(str, True)},
    "portrait": {},
    "mask": {"speaker": Field(int, True)},
    "offer": {"sdp": Field(str, True)},
    "hang_up": {},
    "end_of_speech": {"speaker": Field(int)},
    "interrupt": {"speaker": Field(int)},
    "pause": {},
    "resume": {},
    "bye": {},
}
"""Messages of a client, with their fields besides "type"."""


@dataclasses.dataclass(frozen=True)
class Message:
    """A message of a client that is understood.

    Attributes:
        type: one of `MESSAGES`.
        fields: those that were given.
    """

    type: str
    fields: dict[str, Any]


def parse(text: str) -> Message:
    """Read a message.

    Raises:
        RequestError: not JSON, no such type, a field that is missing, unknown or of another kind.
    """
    if len(text) > MAX_TEXT:
        raise RequestError(f"A message has {len(text):,} letters.", f"The most are {MAX_TEXT:,}.")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError("A message is no JSON.", 'Send an object with a "type".') from error
    if not isinstance(found, dict) or not isinstance(kind := found.pop("type", None), str):
        raise RequestError('A message is no object with a "type".', f"Types are {', '.join(MESSAGES)}.")
    if kind not in MESSAGES:
        near = difflib.get_close_matches(kind, MESSAGES, 1)
        raise RequestError(
            f"There is no message of type {shown(kind)}.",
            f"Did you mean {near[0]}?" if near else f"Types are {', '.join(MESSAGES)}.",
        )
    fields = MESSAGES[kind]
    for name in found:
        if name not in fields:
            known = ", ".join(fields) or "no field"
            raise RequestError(f"The message {kind} has no field {shown(name)}.", f"It has {known}.")
    for name, field in fields.items():
        _check(kind, name, field, found)
    return Message(kind, {name: value for name, value in found.items() if value is not None})


def _check(kind: str, name: str, field: Field, found: dict[str, Any]) -> None:
    value = found.get(name)
    if value is None:
        if field.required:
            raise RequestError(f"The message {kind} lacks its field {name}.", f"Give a {_WORDS[field.kind]}.")
        return
    allowed = (int, float) if field.kind is float else (field.kind,)
    if not isinstance(value, allowed) or isinstance(value, bool):
        raise RequestError(f"{kind}.{name} is {shown(value)}.", f"Give a {_WORDS[field.kind]}.")
    for item in value if isinstance(value, list) else [value]:
        if field.choices and item not in field.choices:
            where = f"{kind}.{name} is" if item is value else f"{kind}.{name} holds"
            raise RequestError(f"{where} {shown(item)}.", f"Use {' or '.join(field.choices)}.")


_WORDS = {int: "whole number", float: "number", str: "text", list: "list of texts"}


def samples_of(data: bytes, encoding: Encoding) -> np.ndarray:
    """The sound of a binary message: int16 or float32 [n].

    Raises:
        RequestError: too much at once, or a part of a sample.
    """
    if len(data) > MAX_SOUND:
        raise RequestError(f"A message holds {len(data):,} bytes of sound.", f"The most are {MAX_SOUND:,}.")
    dtype = np.dtype("<i2" if encoding == "s16le" else "<f4")
    if len(data) % dtype.itemsize:
        raise RequestError(
            f"{len(data)} bytes are no whole samples of {encoding}.", f"A sample has {dtype.itemsize} bytes."
        )
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))


def error_message(error: LiveAvatarError) -> dict[str, str]:
    """What a client is told of an error: a code, what is wrong, and the nearest that works."""
    return {"type": "error", "code": type(error).__name__, "what": error.what, "nearest": error.nearest}
