"""Where tensors come from: files opened by name, one tensor at a time, nothing held that was not asked for."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from ..errors import MissingFilesError, ModelError

_FETCH_AGAIN = "Download the file again; `hf download` resumes and repairs."
T = TypeVar("T")
_shared: contextvars.ContextVar[dict[Path, Any] | None] = contextvars.ContextVar("files of one model", default=None)


@contextlib.contextmanager
def opening_files_once() -> Iterator[None]:
    """A context in which each file's header, or the whole of a `.pth`, is read once, whoever opens the file.

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


def _read_once(path: Path, read: Callable[[Path], T]) -> T:
    shared = _shared.get()
    if shared is None:
        return read(path)
    key = path.absolute()
    if key not in shared:
        shared[key] = read(path)
    found: T = shared[key]
    return found


@dataclasses.dataclass(frozen=True)
class _Header:
    """The header of a safetensors file.

    Attributes:
        entries: name -> shape and type of a tensor.
        metadata: its free text entries.
    """

    entries: dict[str, tuple[tuple[int, ...], str]]
    metadata: dict[str, str]


class TensorSource(Protocol):
    """Named tensors that can be read one by one.

    Shapes are known without reading. A tensor that was read may be a view of the file: copy it to keep it.
    """

    def keys(self) -> frozenset[str]: ...

    def shape(self, key: str) -> tuple[int, ...]: ...

    def read(self, key: str) -> torch.Tensor: ...

    def describe(self) -> str: ...


class SafetensorsSource:
    """One `.safetensors` file, one `.safetensors.index.json` with its shards, or a folder that holds either.

    The files are mapped only while a tensor is read, so that memory never holds more than that tensor.

    Raises:
        MissingFilesError: no such file, no weights in the folder, or a shard of the index is not there.
        ModelError: not a safetensors file, cut off, an unreadable index, or one that names tensors its shards lack.
    """

    def __init__(self, path: str | Path):
        self.path = _weights_in(Path(path))
        self._headers: dict[Path, _Header] = {}
        """Of the shards that were opened."""
        if self.path.name.endswith(".index.json"):
            self._shard_of = _read_index(self.path)
        else:
            self._shard_of = dict.fromkeys(self._header(self.path).entries, self.path)

    def keys(self) -> frozenset[str]:
        return frozenset(self._shard_of)

    def shards(self) -> list[Path]:
        """The files, each once, in order of name."""
        return sorted(set(self._shard_of.values()))

    def shape(self, key: str) -> tuple[int, ...]:
        return self._entry(key)[0]

    def dtype(self, key: str) -> str:
        """The format's own name of the numbers: "F32", "BF16", "F8_E4M3", "U8"..."""
        return self._entry(key)[1]

    def read(self, key: str) -> torch.Tensor:
        self._entry(key)
        with _open(self._shard(key)) as f:
            tensor: torch.Tensor = f.get_tensor(key)
            return tensor

    def metadata(self) -> dict[str, str]:
        """The free text entries of the (first) file's header; none where there is no tensor."""
        return next((dict(self._header(shard).metadata) for shard in self.shards()), {})

    def describe(self) -> str:
        return str(self.path)

    def _header(self, shard: Path) -> _Header:
        if shard not in self._headers:
            self._headers[shard] = _read_once(shard, _read_header)
        return self._headers[shard]

    def _entry(self, key: str) -> tuple[tuple[int, ...], str]:
        """Shape and type of a tensor, as the header of its shard has them."""
        shard = self._shard(key)
        if key not in (entries := self._header(shard).entries):
            raise ModelError(f"{self.path} says that {shard.name} holds {key}, but it does not.", _FETCH_AGAIN)
        return entries[key]

    def _shard(self, key: str) -> Path:
        if key not in self._shard_of:
            raise MissingFilesError(f"{self.path} holds no tensor {key}.")
        return self._shard_of[key]


class TorchSource:
    """A `.pth` file: a flat dictionary of tensors, read without running any code it may carry.

    Raises:
        MissingFilesError: no such file.
        ModelError: not such a file, cut off, or it carries code.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise MissingFilesError(f"There is no file {self.path}.")
        content = _read_once(self.path, _load_pickle)
        if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
            raise ModelError(f"{self.path} is not a flat list of named tensors.", "Use the published file.")
        self._tensors: dict[str, torch.Tensor] = content

    def keys(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def read(self, key: str) -> torch.Tensor:
        return self._tensors[key]

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


def _weights_in(path: Path) -> Path:
    """The index or the single file that `path` means."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise MissingFilesError(f"There is no file or folder {path}.")
    for pattern in ("*.safetensors.index.json", "*.safetensors"):
        found = sorted(path.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(f.name for f in found[:4])
            raise ModelError(f"{path} holds several sets of weights ({names}).", "Give the path of the one to use.")
    raise MissingFilesError(f"{path} holds no .safetensors file.")


def _read_index(path: Path) -> dict[str, Path]:
    """Tensor name -> shard; all shards are there."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shard_of = {str(key): path.parent / str(name) for key, name in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ModelError(f"{path} is not an index of safetensors shards.", _FETCH_AGAIN) from e
    if any(shard.parent != path.parent for shard in shard_of.values()):
        raise ModelError(f"{path} names shards outside its own folder.", _FETCH_AGAIN)
    missing = sorted({shard.name for shard in shard_of.values() if not shard.is_file()})
    if missing:
        raise MissingFilesError(f"{path.parent} lacks {', '.join(missing)}, named in {path.name}.", _FETCH_AGAIN)
    return shard_of


def _read_header(path: Path) -> _Header:
    with _open(path) as f:
        slices = {key: f.get_slice(key) for key in f.keys()}  # noqa: SIM118 (not a mapping)
        entries = {key: (tuple(part.get_shape()), str(part.get_dtype())) for key, part in slices.items()}
        return _Header(entries, dict(f.metadata() or {}))


def _open(path: Path) -> Any:
    """A safetensors file, checked for being whole."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingFilesError(f"There is no file {path}.", _FETCH_AGAIN)
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, RuntimeError) as e:
        raise ModelError(f"{path} is cut off or no safetensors file ({_first_line(e)}).", _FETCH_AGAIN) from e


def _load_pickle(path: Path) -> Any:
    """The content of a `.pth`, mapped where the format allows it (archives), copied where not."""
    try:
        if zipfile.is_zipfile(path):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as f, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the pickle's age, where an error says more
            return torch.load(f, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise ModelError(
            f"{path} carries more than tensors, or none: files that run code are refused ({_first_line(e)}).",
            "Use the published file.",
        ) from e
    except Exception as e:  # what damaged bytes make the parser raise has no common base
        raise ModelError(f"{path} is cut off or no PyTorch file ({_first_line(e)}).", _FETCH_AGAIN) from e


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
