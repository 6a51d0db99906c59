"""Headers of safetensors files: read once, in linear time, and believed only where they fit the file.

The format is eight bytes with the header's length, the header as JSON, then the numbers of all tensors without gaps.
Nothing in a header is trusted: a file of a stranger is refused before a tensor of it is made.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import MissingFilesError, ModelError

FETCH_AGAIN = "Download the file again; `hf download` resumes and repairs."
_MAX_HEADER = 100 << 20
"""Bytes; the format's own limit."""
_MAX_JSON = 64 << 20
"""Bytes of an index of shards; the settings of a model are smaller by far."""
_MAX_SETTINGS = 1 << 20
_MAX_DIMENSIONS = 16
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
}
_OTHER_FORMATS = (
    (b"GGUF", "a GGUF file by another name (theirs end in .gguf)"),
    (b"PK\x03\x04", "a PyTorch archive (.pt, .pth or .bin) by another name"),
    (b"\x80\x02", "a PyTorch pickle (.pt, .pth or .bin) by another name"),
)
"""How files begin that may be whole, and are of another format."""
_NO_FILES = (
    (b"version https://git-lfs", "a pointer of Git LFS in place of the file"),
    (b"<!doctype html", "a web page that was saved in place of the file"),
    (b"<html", "a web page that was saved in place of the file"),
)
"""How files begin that came instead of the file."""


class AnotherKind(ModelError):
    """A file may be whole, but is not what it was given as, or not in a form that can be read."""


class Entry(NamedTuple):
    """One tensor of a safetensors file.

    Attributes:
        dtype: the format's own name of the numbers: "F32", "BF16", "F8_E4M3", "U8"...
        shape: of the tensor.
        start, end: where its bytes lie in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Header(NamedTuple):
    """The header of a safetensors file.

    Attributes:
        entries: its tensors by name.
        metadata: its free text entries.
    """

    entries: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file, whose tensors fill the file exactly.

    Raises:
        MissingFilesError: no such file.
        ModelError: cut off, or no safetensors file.
        AnotherKind: recognised as a file of another format.
    """
    if not path.is_file():
        raise MissingFilesError(f"There is no file {path}.", FETCH_AGAIN)
    try:
        with path.open("rb") as file:
            return _parse(file)
    except OSError as e:
        raise ModelError(f"{path} cannot be read ({e.strerror or e}).", "Check the disk, and who may read it.") from e
    except (ValueError, RecursionError, MemoryError) as e:
        refuse_another_format(path, "a safetensors file")
        why = damage(path) or reason(e)
        raise ModelError(f"{path} is cut off or no safetensors file ({why}).", FETCH_AGAIN) from e


def refuse_another_format(path: Path, wanted: str) -> None:
    """Name the format of a file that could not be read, if it shows.

    Raises:
        AnotherKind: it does.
    """
    for begins, words in _OTHER_FORMATS:
        own = any(name in words and name in wanted for name in ("PyTorch", "GGUF"))
        if _first_bytes(path).startswith(begins) and not own:
            raise AnotherKind(f"{path} is {words}, not {wanted}.", FETCH_AGAIN)


def damage(path: Path) -> str:
    """What came in place of a file, in words; "" where its first bytes do not tell."""
    first = _first_bytes(path)
    if not any(first):
        return "it begins with zeros, as a download does that has not arrived" if first else "it is empty"
    return next((f"it is {words}" for begins, words in _NO_FILES if first.lower().startswith(begins)), "")


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError:
        return b"?"


def read_json(path: Path, limit: int = _MAX_JSON) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        limit: bytes it may have.

    Raises:
        ModelError: not readable, too long, not JSON, nested without end, or with one name twice in an object.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            raise ValueError(f"{found.st_size} bytes, where {limit} are plenty" if found.st_size else "no plain file")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError, MemoryError) as e:
        raise ModelError(f"{path} cannot be read as JSON ({reason(e)}).", "Restore the published file.") from e


def read_settings(path: Path) -> dict[str, Any]:
    """The object in a config.json.

    Raises:
        ModelError: as `read_json`, or something else than an object.
    """
    values = read_json(path, _MAX_SETTINGS)
    if not isinstance(values, dict):
        raise ModelError(f"{path} is not a JSON object.", "Restore the published config.json.")
    return values


def reason(error: BaseException) -> str:
    """Why something failed, in the first line of its error."""
    if isinstance(error, RecursionError):
        return "nested without end"
    lines = str(error).strip().splitlines()
    return shortened(lines[0], 160) if lines else type(error).__name__


def shortened(name: str, most: int = 100) -> str:
    """A name that fits a sentence, whoever wrote it."""
    shown = name if name.isprintable() else ascii(name)[1:-1]
    return shown if len(shown) <= most else f"{shown[: most // 2]}...{shown[-most // 3 :]}"


def _parse(file: BinaryIO) -> Header:
    size = os.fstat(file.fileno()).st_size
    begins = file.read(8)
    length = int.from_bytes(begins, "little")
    if len(begins) < 8 or length > size - 8:
        raise ValueError(f"{size} bytes, too few for its header")
    if length > _MAX_HEADER:
        raise ValueError(f"a header of {length} bytes")
    content = json.loads(file.read(length), object_pairs_hook=_unique)
    if not isinstance(content, dict):
        raise ValueError("the header is no JSON object")
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its free text entries are no texts")
    offset = 8 + length
    entries = {name: _entry(name, stated, offset) for name, stated in content.items()}
    _check_order(entries, offset, size)
    return Header(entries, metadata)


def _entry(name: str, stated: Any, offset: int) -> Entry:
    """One tensor as the header states it, with its place in the file."""
    try:
        dtype, shape, (start, end) = stated["dtype"], stated["shape"], stated["data_offsets"]
        whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in (*shape, start, end))
        whole = whole and isinstance(dtype, str) and dtype in _BITS
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"the entry of {shortened(name)} is damaged")
    if len(shape) > _MAX_DIMENSIONS or _bits(shape, _BITS[dtype], 8 * (end - start)) != 8 * (end - start):
        raise ValueError(f"{shortened(name)} does not have as many bytes as its shape says")
    return Entry(dtype, tuple(shape), offset + start, offset + end)


def _bits(shape: Iterable[int], each: int, enough: int) -> int:
    """Bits of a tensor; no more is multiplied than is needed to see that it is more than enough."""
    if 0 in shape:
        return 0
    for n in shape:
        each *= n
        if each > enough:
            break
    return each


def _check_order(entries: dict[str, Entry], begins: int, size: int) -> None:
    """Tensors follow one another without gaps or overlaps, up to the end of the file."""
    at = begins
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.start != at:
            how = "overlaps another tensor" if entry.start < at else "leaves a gap before it"
            raise ValueError(f"{shortened(name)} {how}")
        at = entry.end
    if at != size:
        raise ValueError(f"{size - at} bytes too many" if at < size else f"{at - size} bytes are missing")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose names are all different."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shortened(twice)} stands there twice")
    return found
