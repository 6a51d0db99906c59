"""Where tensors come from: files opened by name, one tensor at a time, nothing held that was not asked for."""

from __future__ import annotations

import contextlib
import contextvars
import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar, runtime_checkable

import numpy as np

from ..errors import MissingFilesError, ModelError
from .header import FETCH_AGAIN, AnotherKind, Entry, Header, read_header, read_json, reason, shortened
from .pickles import read_tensors

if TYPE_CHECKING:
    import torch

    from .block_types import PackedFormat

T = TypeVar("T")
_shared: contextvars.ContextVar[dict[Hashable, Any] | None] = contextvars.ContextVar("files of one model", default=None)
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "uint8",  # exponents alone; what they scale says what they mean
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""PyTorch's name of every type that can be read, by the format's own."""
WHOLE_NUMBERS = ("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "BOOL")
"""Types that no weights of these networks have, unless they are quantised."""
_NAMES = {name: short for short, name in _DTYPES.items()}
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_SAMPLE, _MATRIX = 64, 256
"""Bytes that are looked at to see whether a tensor may be all zeros, and numbers from which on that is told."""


@contextlib.contextmanager
def opening_files_once() -> Iterator[None]:
    """A context in which each file's header, or the whole of a `.pth`, is read and checked once, whoever opens it.

    For opening one model, whose files are found, checked and opened by different functions; the outermost context
    counts. What was read is forgotten at its end, but by the sources that were made in it.
    """
    if _shared.get() is not None:
        yield
        return
    token = _shared.set({})
    try:
        yield
    finally:
        _shared.reset(token)


def read_once(what: Hashable, read: Callable[[], T]) -> T:
    """What `read` gives; in the context of `opening_files_once` what it gave before for the same thing."""
    shared = _shared.get()
    if shared is None:
        return read()
    if what not in shared:
        shared[what] = read()
    found: T = shared[what]
    return found


class TensorSource(Protocol):
    """Named tensors that can be read one by one.

    Shapes are known without reading. A tensor that was read may be a view of the file: copy it to keep it.
    """

    def keys(self) -> frozenset[str]: ...

    def shape(self, key: str) -> tuple[int, ...]: ...

    def read(self, key: str) -> torch.Tensor: ...

    def describe(self) -> str: ...


class FileSource(TensorSource, Protocol):
    """The tensors of a file, or of the shards of one, as they are stored."""

    def dtype(self, key: str) -> str:
        """The name that safetensors has for the numbers: "F32", "BF16", "F8_E4M3", "U8"..."""

    def metadata(self) -> dict[str, str]:
        """The free text entries of the (first) file."""

    def zeros(self, keys: Iterable[str]) -> Iterator[str]:
        """Those of these that are matrices of zeros; a few bytes of each are read, and all of those found."""


@runtime_checkable
class PackedFile(Protocol):
    """Tensors some of whose matrices can be read as they are packed."""

    def packed_format(self, key: str) -> PackedFormat | None:
        """How a matrix lies in bytes; None where it is read as numbers only."""

    def read_packed(self, key: str, place: torch.Tensor) -> None:
        """Bring a matrix to a place as it is: uint8, as many bytes as its format says."""


class SafetensorsSource:
    """One `.safetensors` file, one `.safetensors.index.json` with its shards, the shards without it, or a folder.

    The files are mapped only while a tensor is read, so that memory never holds more than that tensor.

    Raises:
        MissingFilesError: no such file, no weights in the folder, or a shard is not there.
        ModelError: not a safetensors file, cut off, an unreadable index, one that names tensors its shards lack, or
            shards that hold a tensor twice.
    """

    def __init__(self, path: str | Path):
        self.path = _weights_in(Path(path))
        self._headers: dict[Path, Header] = {}
        """Of the shards that were opened."""
        if self.path.name.endswith(".index.json"):
            self._shard_of = read_once(self.path.absolute(), lambda: _read_index(self.path))
        else:
            self._shard_of = self._by_shards(shards_of(self.path))

    def keys(self) -> frozenset[str]:
        return frozenset(self._shard_of)

    def shards(self) -> list[Path]:
        """The files, each once, in order of name."""
        return sorted(set(self._shard_of.values()))

    def shape(self, key: str) -> tuple[int, ...]:
        return self._entry(key).shape

    def dtype(self, key: str) -> str:
        return self._entry(key).dtype

    def read(self, key: str) -> torch.Tensor:
        entry, shard = self._entry(key), self._shard(key)
        if entry.dtype not in _DTYPES:
            raise AnotherKind(f"{shard} stores {shortened(key)} in {entry.dtype}, which cannot be read.", FETCH_AGAIN)
        import torch

        dtype: torch.dtype = getattr(torch, _DTYPES[entry.dtype])
        if entry.start == entry.end:
            return torch.empty(entry.shape, dtype=dtype)
        stored = torch.from_numpy(self._mapped(key))
        if entry.start % dtype.itemsize:
            stored = stored.clone()
        return stored.view(dtype).view(entry.shape)

    def metadata(self) -> dict[str, str]:
        return next((dict(self._header(shard).metadata) for shard in self.shards()), {})

    def zeros(self, keys: Iterable[str]) -> Iterator[str]:
        by_shard: dict[Path, list[str]] = {}
        for key in keys:
            by_shard.setdefault(self._shard(key), []).append(key)
        suspects = [key for shard, names in by_shard.items() for key in self._suspects(shard, names)]
        return (key for key in sorted(suspects) if not self._mapped(key).any())

    def describe(self) -> str:
        return str(self.path)

    def _mapped(self, key: str) -> np.ndarray:
        """The bytes of a tensor that has some: in private pages that may be written, as PyTorch knows no others."""
        entry, shard = self._entry(key), self._shard(key)
        try:
            return np.memmap(shard, mode="c", offset=entry.start, shape=(entry.end - entry.start,))
        except (OSError, ValueError) as e:
            raise ModelError(f"{shard} cannot be read any more ({reason(e)}).", FETCH_AGAIN) from e

    def _suspects(self, shard: Path, keys: Iterable[str]) -> Iterator[str]:
        """Matrices of a shard that are zero in the middle."""
        with shard.open("rb") as file:
            for key in keys:
                entry = self._entry(key)
                if is_matrix(entry.shape) and entry.dtype in _DTYPES and is_sample_zero(file, entry):
                    yield key

    def _by_shards(self, shards: Iterable[Path]) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for shard in shards:
            for key in self._header(shard).entries:
                if key in found:
                    raise ModelError(f"{shard} holds {shortened(key)}, and so does {found[key].name}.", FETCH_AGAIN)
                found[key] = shard
        return found

    def _header(self, shard: Path) -> Header:
        if shard not in self._headers:
            self._headers[shard] = read_once(shard.absolute(), lambda: read_header(shard))
        return self._headers[shard]

    def _entry(self, key: str) -> Entry:
        """A tensor as the header of its shard has it."""
        shard = self._shard(key)
        if key not in (entries := self._header(shard).entries):
            raise ModelError(
                f"{self.path} says that {shard.name} holds {shortened(key)}, but it does not.", FETCH_AGAIN
            )
        return entries[key]

    def _shard(self, key: str) -> Path:
        if key not in self._shard_of:
            raise MissingFilesError(f"{self.path} holds no tensor {shortened(key)}.")
        return self._shard_of[key]


class TorchSource:
    """A `.pth` file: a flat dictionary of tensors, read without running any code it may carry.

    Raises:
        MissingFilesError: no such file.
        ModelError: not such a file, cut off, or it carries code.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._tensors = read_once(self.path.absolute(), lambda: read_tensors(self.path))

    def keys(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def dtype(self, key: str) -> str:
        name = str(self._tensors[key].dtype).removeprefix("torch.")
        return _NAMES.get(name, name)

    def read(self, key: str) -> torch.Tensor:
        return self._tensors[key]

    def metadata(self) -> dict[str, str]:
        return {}

    def zeros(self, keys: Iterable[str]) -> Iterator[str]:
        matrices = {key: self._tensors[key] for key in keys if is_matrix(self.shape(key))}
        suspects = {key: t for key, t in matrices.items() if not t[len(t) // 2].flatten()[:_SAMPLE].bool().any()}
        return (key for key, tensor in sorted(suspects.items()) if not tensor.bool().any())

    def describe(self) -> str:
        return str(self.path)


class DictSource:
    """Tensors already in memory."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], name: str = "tensors in memory"):
        self._tensors = dict(tensors)
        self._name = name

    def keys(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def read(self, key: str) -> torch.Tensor:
        return self._tensors[key]

    def describe(self) -> str:
        return self._name


class RenamedSource:
    """Another source under other names.

    Args:
        source: the tensors.
        rename: from the source's name to the new one; None leaves the tensor out.

    Raises:
        ModelError: two tensors get one name.
    """

    def __init__(self, source: TensorSource, rename: Callable[[str], str | None]):
        self._source = source
        self._old: dict[str, str] = {}
        for old in sorted(source.keys()):
            new = rename(old)
            if new is None:
                continue
            if new in self._old:
                raise ModelError(f"{source.describe()} holds {new} twice, as {self._old[new]} and as {old}.")
            self._old[new] = old

    def keys(self) -> frozenset[str]:
        return frozenset(self._old)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._source.shape(self._old[key])

    def read(self, key: str) -> torch.Tensor:
        return self._source.read(self._old[key])

    def describe(self) -> str:
        return self._source.describe()


def open_weights(path: Path) -> FileSource:
    """A file of tensors of any kind, an index of shards, or a folder that holds either.

    Raises:
        MissingFilesError, ModelError: as `SafetensorsSource`, `TorchSource` and `GGUFSource`.
    """
    if path.suffix == GGUF:
        from .gguf import GGUFSource

        return GGUFSource(path)
    return TorchSource(path) if path.suffix in PICKLED and path.is_file() else SafetensorsSource(path)


PICKLED = (".pth", ".pt", ".bin", ".ckpt")
"""What the names of PyTorch's own files end in."""
GGUF = ".gguf"
"""What the names of GGUF files end in."""


def shards_of(path: Path) -> list[Path]:
    """A safetensors file with all others of its numbered set; the file alone where it is none of a set.

    Raises:
        MissingFilesError: others of the set are not there.
    """
    if not (named := _SHARD.fullmatch(path.name)):
        return [path]
    count = min(int(named["count"]), 9999)
    shards = [path.with_name(f"{named['stem']}-{i:05d}-of-{named['count']}.safetensors") for i in range(1, count + 1)]
    _refuse_missing(shards, path.parent, "which belong to its shards")
    return shards


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether a tensor is large enough that no trained network has it all zeros by chance."""
    return len(shape) > 1 and math.prod(shape) >= _MATRIX


def is_sample_zero(file: BinaryIO, entry: Entry) -> bool:
    """Whether a few bytes in the middle of a tensor are zeros."""
    file.seek((entry.start + entry.end) // 2)
    return not any(file.read(min(_SAMPLE, (entry.end - entry.start) // 2)))


def _weights_in(path: Path) -> Path:
    """The index, the single file, or the first of several shards, that `path` means."""
    if path.is_file():
        shard = _SHARD.fullmatch(path.name)
        index = path.with_name(f"{shard['stem']}.safetensors.index.json") if shard else path
        return index if index.is_file() else path
    if not path.is_dir():
        raise MissingFilesError(f"There is no file or folder {path}.")
    for pattern in ("*.safetensors.index.json", "*.safetensors"):
        found = sorted(path.glob(pattern))
        shard = _SHARD.fullmatch(found[0].name) if found else None
        if len(found) == 1 or (shard and all(f.name.startswith(f"{shard['stem']}-") for f in found)):
            return found[0]
        if found:
            names = ", ".join(f.name for f in found[:4])
            raise ModelError(f"{path} holds several sets of weights ({names}).", "Give the path of the one to use.")
    raise MissingFilesError(f"{path} holds no .safetensors file.")


def _read_index(path: Path) -> dict[str, Path]:
    """Tensor name -> shard; all shards are there."""
    content = read_json(path)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{path} is not an index of safetensors shards.", FETCH_AGAIN)
    shards = {name: path.parent / name for name in set(names.values())}
    if any(shard.parent != path.parent or shard.suffix != ".safetensors" for shard in shards.values()):
        raise ModelError(f"{path} names shards outside its own folder.", FETCH_AGAIN)
    _refuse_missing(shards.values(), path.parent, f"named in {path.name}")
    return {key: shards[name] for key, name in names.items()}


def _refuse_missing(shards: Iterable[Path], folder: Path, why: str) -> None:
    if missing := sorted(shard.name for shard in shards if not shard.is_file()):
        listed = ", ".join(map(shortened, missing[:4])) + (f" and {len(missing) - 4} more" if missing[4:] else "")
        raise MissingFilesError(f"{folder} lacks {listed}, {why}.", FETCH_AGAIN)
