"""Headers of GGUF files: walked once, in linear time, and believed only where they fit the file.

The format is four letters, a version, and two counts; entries of free form (name, type, value); tensors (name, sizes
with the fastest one first, type, place); then their numbers. The reader of the gguf package makes an array of every
word of a vocabulary (9 s and 0.7 GB for that of UMT5-XXL) and follows counts without end: of the package, the tables of
types are used here, and its way to unpack rare ones (see gguf.py).
"""

from __future__ import annotations

import contextlib
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import MissingFilesError, ModelError
from .header import FETCH_AGAIN, Entry, damage, reason, refuse_another_format, shortened

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of values by their numbers, as `struct` has them."""
_STRING, _ARRAY = 8, 9
_LONGEST_NAME, _LONGEST_TEXT = 1024, 64 << 20
_MAX_DIMENSIONS, _MAX_TENSORS, _MAX_VALUES = 8, 1 << 16, 1 << 16
_MAX_ITEMS = 1 << 24
_MAX_ALIGNMENT = 1 << 20


class Array(NamedTuple):
    """An array among the free entries, which is read when it is asked for.

    Attributes:
        kind: of its items.
        length: how many.
        start, end: where they lie in the file.
    """

    kind: int
    length: int
    start: int
    end: int


class GGUFHeader(NamedTuple):
    """The header of a GGUF file.

    Attributes:
        values: its free entries: numbers, texts, and arrays that are not read yet.
        tensors: by name; their types are those of GGML.
    """

    values: dict[str, Any]
    tensors: dict[str, Entry]


def read_gguf_header(path: Path) -> GGUFHeader:
    """The header of a GGUF file.

    Raises:
        MissingFilesError: no such file.
        ModelError: cut off, no GGUF file, or one that says what cannot be.
        AnotherKind: recognised as a file of another format.
    """
    if not path.is_file():
        raise MissingFilesError(f"There is no file {path}.", FETCH_AGAIN)
    try:
        with _mapped(path) as content:
            return _Walk(content, 0).header()
    except OSError as e:
        raise ModelError(f"{path} cannot be read ({e.strerror or e}).", "Check the disk, and who may read it.") from e
    except (ValueError, struct.error, MemoryError) as e:
        refuse_another_format(path, "a GGUF file")
        why = damage(path) or ("it ends within its header" if isinstance(e, struct.error) else reason(e))
        raise ModelError(f"{path} is cut off or no GGUF file ({why}).", FETCH_AGAIN) from e


def read_array(path: Path, array: Array) -> list[Any]:
    """The items of an array: numbers, or texts as bytes.

    Raises:
        ModelError: the file is another one by now.
    """
    try:
        with _mapped(path) as content:
            walk = _Walk(content, array.start)
            if array.kind != _STRING:
                return list(struct.unpack_from(f"<{array.length}{_SCALARS[array.kind]}", content, array.start))
            return [walk.text() for _ in range(array.length)]
    except (OSError, ValueError, struct.error, MemoryError) as e:
        raise ModelError(f"{path} cannot be read any more ({reason(e)}).", FETCH_AGAIN) from e


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


class _Walk:
    """A walk through the bytes of a header; every count is held against what is left of the file."""

    def __init__(self, content: mmap.mmap, at: int):
        self._content, self._at = content, at

    def header(self) -> GGUFHeader:
        if self._content[:4] != MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version = self._number("I")
        if version not in _VERSIONS:
            big = version & 0xFFFF == 0
            raise ValueError("its numbers are of another byte order" if big else f"version {version}")
        tensors, values = self._count(_MAX_TENSORS, 24, "tensors"), self._count(_MAX_VALUES, 13, "entries")
        found: dict[str, Any] = {}
        for _ in range(values):
            name = self._name()
            if name in found:
                raise ValueError(f"{shortened(name)} stands there twice")
            found[name] = self._value(self._number("I"))
        stated = [self._tensor() for _ in range(tensors)]
        alignment = found.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise ValueError("its alignment is no power of two")
        begin = -(-self._at // alignment) * alignment
        return GGUFHeader(found, _placed(stated, begin, alignment, len(self._content)))

    def text(self) -> bytes:
        start = self._after_text()
        return self._content[start : self._at]

    def _after_text(self) -> int:
        """Go behind a text; where it begins."""
        length: int = self._number("Q")
        if length > min(_LONGEST_TEXT, self._left):
            raise ValueError(f"a text of {length} bytes")
        self._at += length
        return self._at - length

    def _name(self) -> str:
        name = self.text()
        if not 0 < len(name) <= _LONGEST_NAME:
            raise ValueError(f"a name of {len(name)} bytes")
        return name.decode()

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self.text().decode(errors="replace")
        if kind != _ARRAY:
            raise ValueError(f"a value of the unknown type {kind}")
        inner = self._number("I")
        if inner not in _SCALARS and inner != _STRING:
            raise ValueError(f"an array of the type {inner}")
        size = struct.calcsize(_SCALARS.get(inner, "Q"))
        count, start = self._count(_MAX_ITEMS, size, "items"), self._at
        if inner == _STRING:
            for _ in range(count):
                self._after_text()
        else:
            self._at += count * size
        return Array(inner, count, start, self._at)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, number of its type, and place behind the header."""
        name, dimensions = self._name(), self._number("I")
        if dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"{shortened(name)} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        return name, shape, self._number("I"), self._number("Q")

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self._content, self._at)
        self._at += struct.calcsize(f"<{form}")
        return value

    def _count(self, most: int, least_bytes: int, what: str) -> int:
        """A count of things that take so many bytes each, at least."""
        count: int = self._number("Q")
        if count > min(most, self._left // least_bytes):
            raise ValueError(f"{count} {what}")
        return count

    @property
    def _left(self) -> int:
        return len(self._content) - self._at


def _placed(
    stated: list[tuple[str, tuple[int, ...], int, int]], begin: int, alignment: int, size: int
) -> dict[str, Entry]:
    """Tensors with their places in the file, which they do not share and which it has."""
    kinds, entries = _kinds(), dict[str, Entry]()
    for name, shape, number, offset in stated:
        if name in entries:
            raise ValueError(f"{shortened(name)} stands there twice")
        if number not in kinds:
            raise ValueError(f"{shortened(name)} is of the unknown type {number}")
        kind, block, nbytes = kinds[number]
        row = shape[-1] if shape else 1
        if row % block:
            raise ValueError(f"{shortened(name)} has rows of {row} numbers, which are no blocks of {block}")
        length = math.prod(shape) // block * nbytes
        if offset % alignment:
            raise ValueError(f"{shortened(name)} does not begin where numbers may")
        if begin + offset + length > size:
            raise ValueError(f"{begin + offset + length - size} bytes are missing of {shortened(name)}")
        entries[name] = Entry(kind, shape, begin + offset, begin + offset + length)
    at = begin
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.start < at:
            raise ValueError(f"{shortened(name)} overlaps another tensor")
        at = entry.end
    return entries


def _kinds() -> Mapping[int, tuple[str, int, int]]:
    """GGML's types by their numbers: name, numbers of a block, and its bytes."""
    gguf = gguf_package()
    sizes = gguf.GGML_QUANT_SIZES
    return {kind.value: (kind.name, *sizes[kind]) for kind in gguf.GGMLQuantizationType if kind in sizes}


def gguf_package() -> Any:
    """The gguf package.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import gguf
    except ImportError as e:
        raise ModelError(
            f"GGUF files need the package gguf ({reason(e)}).", "Install what requirements.txt lists."
        ) from e
    return gguf
