"""The sentencepiece model of a text encoder, put together from the vocabulary in its GGUF file."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ModelError
from .gguf import GGUFSource

_KIND = "tokenizer.ggml.model"
_T5 = "t5"
_BYTE, _ALL_BYTES = 6, 256
"""Pieces that stand for a byte; where there are all of them, what no other piece has is written in these."""
_UNIGRAM = 1
_NEAREST = "Use another GGUF of this encoder, or give the tokenizer folder google/umt5-xxl of Wan-AI/Wan2.2-S2V-14B."


def carries_vocabulary(source: GGUFSource) -> bool:
    """Whether a file holds the pieces of a tokenizer of the T5 kind; a look at its header."""
    return source.metadata().get(_KIND) == _T5


def sentencepiece_model(source: GGUFSource) -> bytes:
    """A serialised sentencepiece model, as its library reads it.

    Raises:
        ModelError: the vocabulary is damaged.
    """
    tokens, scores, kinds = (source.value(f"tokenizer.ggml.{name}") for name in ("tokens", "scores", "token_type"))
    whole = all(isinstance(found, list) for found in (tokens, scores, kinds))
    if not whole or not len(tokens) == len(scores) == len(kinds) or not all(isinstance(t, bytes) for t in tokens):
        raise ModelError(f"The tokenizer in {source.path} is damaged.", _NEAREST)
    try:
        pieces = b"".join(
            _field(1, _text(1, token) + _number(2, float(score)) + _whole(3, int(kind)))
            for token, score, kind in zip(tokens, scores, kinds, strict=True)
        )
        trainer = _trainer(source, len(tokens), kinds)
        return pieces + _field(2, trainer) + _field(3, _normaliser(source))
    except (TypeError, ValueError, OverflowError, struct.error) as e:
        raise ModelError(f"The tokenizer in {source.path} is damaged.", _NEAREST) from e


def _trainer(source: GGUFSource, count: int, kinds: Iterable[int]) -> bytes:
    """What the library must know of how the pieces were found, and the ids of the special ones."""
    ids: Mapping[int, tuple[str, int]] = {
        40: ("unknown", 2),
        41: ("bos", -1),
        42: ("eos", 1),
        43: ("padding", 0),
    }
    in_bytes = sum(kind == _BYTE for kind in kinds) == _ALL_BYTES
    made = _whole(3, _UNIGRAM) + _whole(4, count) + _whole(35, in_bytes)
    for field, (name, default) in ids.items():
        said = None if name == "bos" else source.value(f"tokenizer.ggml.{name}_token_id")
        made += _whole(field, default if said is None else int(said))
    return made


def _normaliser(source: GGUFSource) -> bytes:
    """How a text is brought into the letters of the pieces."""
    table: Any = source.value("tokenizer.ggml.precompiled_charsmap")
    made = _text(2, bytes(n & 255 for n in table)) if isinstance(table, list) else b""
    for field, name in ((3, "add_space_prefix"), (4, "remove_extra_whitespaces")):
        said = source.value(f"tokenizer.ggml.{name}")
        made += _whole(field, True if said is None else bool(said))
    return made + _whole(5, True)


def _whole(field: int, value: int) -> bytes:
    """A whole number as protocol buffers write it."""
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def _number(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _text(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


_field = _text
"""A message within a message is written like a text."""


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    return bytes(made)
