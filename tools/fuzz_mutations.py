"""Mutations for `tools.fuzz`: of bytes, of JSON, and the values that nobody means."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

_ODD_BYTES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\x01")
_BEGIN = 256
"""Bytes in which most formats say what comes; half of all changes fall there."""

ODD_NUMBERS: tuple[Any, ...] = (0, -1, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400)
ODD_NUMBERS += (0.5, -0.0, 1e-320, 1e308, float("inf"), float("-inf"), float("nan"))
_SHORT = ("", " ", "0", "-1", "none", "None", "auto", "all", "\0", "a\0b", "\ud800", "\n", "ü", "说", "../..", "/")
_LONG = ("9" * 5000, "a" * 300, "a" * 100_000)
_WORDS = ("-", "%s%n", "{}", "[]", "1e308", "nan", "1_0", "٣", "0x10", "1,5")
ODD_TEXTS: tuple[str, ...] = (*_SHORT, *_LONG, *_WORDS)


def mutated_bytes(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A file with up to eight changes: bits, numbers, pieces cut off, left out, doubled, or from another file."""
    changed = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 1, 2, 3, 8))):
        _change(rng, changed, rng.choice(others))
    return bytes(changed)


def _change(rng: random.Random, data: bytearray, other: bytes) -> None:
    at = rng.randrange(min(len(data), _BEGIN) if rng.random() < 0.5 else len(data)) if data else 0
    count = min(rng.choice((1, 2, 4, 8, 64, 1024)), len(data) - at)
    match rng.randrange(8):
        case 0 if data:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            data[at : at + count] = rng.choice(_ODD_BYTES) * count
        case 2:
            data[at : at + count] = rng.randbytes(count)
        case 3:
            del data[at : at + count]
        case 4:
            data[at:at] = data[at : at + count] * rng.choice((1, 2, 50))
        case 5:
            del data[rng.randrange(len(data) + 1) :]
        case 6:
            begin = rng.randrange(len(other) + 1)
            data[at:] = other[begin:]
        case _:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice((0, 1, 2**31 - 1, 2**31, 2**63, 2**64 - 1, rng.getrandbits(64))) % 256**size
            data[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))


def mutated_json(rng: random.Random, content: Any) -> bytes:
    """JSON with up to four values or names replaced, left out, or nested without end; sometimes bytes changed, too."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 4))):
        content = _with_change(rng, content)
    text = json.dumps(content).encode()
    if rng.random() < 0.03:
        text = b"[" * 200_000 + text
    return mutated_bytes(rng, text, [text]) if rng.random() < 0.2 else text


def _with_change(rng: random.Random, content: Any) -> Any:
    places = [(None, None), *_places(content)]
    inside, key = rng.choice(places)
    if inside is None:
        return odd_json(rng) if rng.random() < 0.1 else content
    match rng.randrange(4):
        case 0:
            del inside[key]
        case 1 if isinstance(inside, dict):
            inside[rng.choice([*inside, *filter(str.isprintable, ODD_TEXTS)])] = inside.pop(key)
        case _:
            inside[key] = odd_json(rng)
    return content


def _places(content: Any) -> list[tuple[Any, Any]]:
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    found = [(content, key) for key in keys]
    return found + [place for key in keys for place in _places(content[key])]


def odd_json(rng: random.Random) -> Any:
    """A value that JSON can hold and nobody means."""
    texts = [text for text in ODD_TEXTS if len(text) <= 5000]
    simple: Any = rng.choice((None, True, False, [], {}, *(n for n in ODD_NUMBERS if n != 10**400), *texts))
    return rng.choice((simple, simple, simple, [simple], [simple] * 20, {"a": simple}))
