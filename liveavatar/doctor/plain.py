"""Dataclasses to what JSON has and back, by their annotations."""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from ..errors import LiveAvatarError


def plain(value: Any) -> Any:
    """The value in types that JSON has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def from_plain(kind: Any, value: Any) -> Any:
    """The inverse of `plain`.

    Args:
        kind: the type wanted, such as `Report` or `tuple[Peer, ...]`.

    Raises:
        LiveAvatarError: the value is of another kind.
    """
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else from_plain(inside[0], value)
    if origin is Literal and value in inside:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(from_plain(inside[0], item) for item in value)
    if origin is collections.abc.Mapping and isinstance(value, dict):
        return {str(key): from_plain(inside[1], item) for key, item in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        if value.keys() == hints.keys():
            make: Any = kind
            return make(**{name: from_plain(hints[name], item) for name, item in value.items()})
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind in (str, int, bool) and type(value) is kind:
        return value
    raise LiveAvatarError(f"This is no {getattr(kind, '__name__', kind)} as this version writes it.")
