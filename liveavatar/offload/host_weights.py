"""Packed weights in host memory: one copy per machine, shared by the processes that use it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import mmap
import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..private_files import make_private_folder
from ..utils import format_bytes
from .pinned_memory import ALIGNMENT, LockedPages, PinnedBuffer, PinnedPool, private_pages


@dataclasses.dataclass(frozen=True)
class PackedTensor:
    """One tensor in packed bytes, as plain data.

    Attributes:
        name: of the module's entry.
        start: where it begins.
        shape, stride: of it, in numbers.
        dtype: name of it in torch.
        is_parameter: whether it is a parameter.
    """

    name: str
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    is_parameter: bool

    @classmethod
    def at(cls, name: str, start: int, tensor: torch.Tensor) -> PackedTensor:
        """For a tensor that will begin there."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        return cls(name, start, tuple(tensor.shape), tensor.stride(), dtype, isinstance(tensor, nn.Parameter))

    @property
    def span(self) -> int:
        """Bytes from the first number to the last."""
        if not math.prod(self.shape):
            return 0
        steps = zip(self.shape, self.stride, strict=True)
        return (1 + sum((n - 1) * step for n, step in steps)) * self._torch_dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Of its numbers alone."""
        return math.prod(self.shape) * self._torch_dtype.itemsize

    @property
    def end(self) -> int:
        """Where the next one may begin."""
        return self.start + -(-self.span // ALIGNMENT) * ALIGNMENT

    def view_in(self, packed: torch.Tensor) -> torch.Tensor:
        """The tensor that lies in packed bytes."""
        there = packed[self.start : self.start + self.span].view(self._torch_dtype)
        view = torch.as_strided(there, self.shape, self.stride, there.storage_offset())
        return nn.Parameter(view, requires_grad=False) if self.is_parameter else view

    @property
    def _torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


class PackedModule:
    """Parameters and buffers of some modules, packed into one buffer.

    Args:
        modules: each without its children.
        rows: how they are packed, where they are already: they lie in the host's memory, and the modules, which have
            none of them, are to have them from there (see `attach_host_buffer`).

    Attributes:
        rows: of its tensors.
        nbytes: packed, with what lies unused between the tensors.
        tensor_bytes: of the tensors alone.
    """

    def __init__(self, modules: Iterable[nn.Module], rows: Sequence[PackedTensor] | None = None):
        tables: list[dict[str, Any]] = [table for m in modules for table in (m._parameters, m._buffers)]
        self._entries = [(table, name) for table in tables for name, held in table.items() if held is not None]
        self.tensors_packed = tuple(self._packed_tensors() if rows is None else rows)
        if [row.name for row in self.tensors_packed] != [name for _, name in self._entries]:
            raise ValueError("What is packed there are the tensors of other modules.")
        self.nbytes = self.tensors_packed[-1].end if self.tensors_packed else 0
        self.tensor_bytes = sum(row.nbytes for row in self.tensors_packed)
        self._host_views: list[torch.Tensor] = []
        self.packed = torch.empty(0, dtype=torch.uint8)

    def _packed_tensors(self) -> Iterator[PackedTensor]:
        end = 0
        for table, name in self._entries:
            row = PackedTensor.at(name, end, table[name])
            end = row.end
            yield row

    @property
    def is_on_host(self) -> bool:
        """Whether its tensors lie in host memory."""
        return bool(self._host_views)

    def move_to_host(self, packed: torch.Tensor) -> None:
        """Move into host memory of `nbytes`."""
        for (table, name), view in zip(self._entries, self.views(packed), strict=True):
            table[name] = view.copy_(table[name])
        self.attach_host_buffer(packed)

    def attach_host_buffer(self, packed: torch.Tensor) -> None:
        """Let the modules have their tensors from host memory in which they are packed."""
        self.packed, self._host_views = packed, self.views(packed)
        self.assign_host_views()

    def views(self, packed: torch.Tensor) -> list[torch.Tensor]:
        """The tensors as they lie in packed bytes, for `assign`; for autograd they are of the same kind as those.

        Whoever compiles for layers that stay has compiled for those that pass then, too.
        """
        with torch.inference_mode(packed.is_inference()):
            return [row.view_in(packed) for row in self.tensors_packed]

    def assign(self, views: list[torch.Tensor]) -> None:
        """Let the modules work with these tensors."""
        for (table, name), view in zip(self._entries, views, strict=True):
            table[name] = view

    def assign_host_views(self) -> None:
        """Let the modules have their tensors on the host again."""
        self.assign(self._host_views)


_POLL_SECONDS = 0.05
"""Between two looks whether the lock is free: waiting so can be ended at any time, as a lock of the system's cannot."""
_PREFIX = "liveavatar-"


def supports_shared_memory() -> bool:
    """Whether this system has memory that processes can share so; only Linux has."""
    return hasattr(os, "memfd_create")


@dataclasses.dataclass(frozen=True, eq=False)
class SharedMemory:
    """Shared memory that other processes can attach to, for as long as its file is open.

    Attributes:
        name: no other has it.
        file: the open one; who has these pages closes it.
        pages: the memory, which stays as long as they are in use.
    """

    name: str
    file: int
    pages: mmap.mmap

    @classmethod
    def create(cls, nbytes: int) -> SharedMemory:
        """All zeros.

        Raises:
            HostMemoryError: the host has not that much.
            OSError: it does not let processes share memory.
        """
        import fcntl

        private_pages(nbytes).close()  # which is refused where there is too little; files without a name never are
        name = _PREFIX + secrets.token_hex(8)
        file = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(file, nbytes)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            return cls(name, file, mmap.mmap(file, nbytes))
        except BaseException:
            os.close(file)
            raise

    @classmethod
    def attach(cls, name: str, nbytes: int, pid: int, file: int) -> SharedMemory:
        """That which another process has open.

        Raises:
            OSError: it has not, or does not let us have it.
        """
        _check_open(name, pid, file)  # before, because opening may do something to another kind of file
        found = os.open(f"/proc/{pid}/fd/{file}", os.O_RDWR | os.O_CLOEXEC)
        try:
            _check_open(name, os.getpid(), found)
            if os.fstat(found).st_size != nbytes:
                raise FileNotFoundError(name)
            return cls(name, found, mmap.mmap(found, nbytes))
        except BaseException:
            os.close(found)
            raise


@dataclasses.dataclass(frozen=True)
class SharedMemoryEntry:
    """An entry of a shared file: one shared memory.

    Attributes:
        name: of the memory.
        nbytes: it has.
        content: what lies in it, as JSON can say it.
    """

    name: str
    nbytes: int
    content: object


class SharedMemoryFile:
    """A locked file that lists shared memory for processes of this machine; unlocked by `with`.

    Args:
        path: where it is; made where it is not there.
        timeout: seconds to wait while another one has it.

    Raises:
        TimeoutError: another one had it all the time.
        OSError: no file can be there.
    """

    def __init__(self, path: Path, timeout: float):
        self.path = path
        until = time.monotonic() + timeout
        while True:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                while not _lock(self._file):
                    if time.monotonic() >= until:
                        raise TimeoutError(f"{path} is in use")
                    time.sleep(_POLL_SECONDS)
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_ino == os.fstat(self._file).st_ino:
                        return
            except BaseException:
                os.close(self._file)
                raise
            os.close(self._file)  # it was taken away before we had it

    def __enter__(self) -> SharedMemoryFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def find(self) -> tuple[SharedMemoryEntry, SharedMemory] | None:
        """The memory, from any process that has it; None where none has.

        Raises:
            PermissionError: a process has it, and does not let us have it.
        """
        said, refused = self._entry(), None
        for pid, file in self._holders():
            try:
                return said, SharedMemory.attach(said.name, said.nbytes, pid, file)
            except OSError as error:
                if isinstance(error, PermissionError) and _is_own_process(pid):
                    refused = error
        if refused:
            raise refused
        return None

    def publish(self, entry: SharedMemoryEntry, pages: SharedMemory) -> None:
        """Say that this process has a memory, whole."""
        os.truncate(self._file, 0)
        self._append(json.dumps(dataclasses.asdict(entry)))
        self.add_holder(pages)

    def add_holder(self, pages: SharedMemory) -> None:
        """Say that this process has the memory, too."""
        self._append(f"{os.getpid()} {pages.file}")

    def remove_if_unused(self) -> None:
        """Take it away when no process has the memory."""
        name = self._entry().name
        if not any(_is_open(name, pid, file) for pid, file in self._holders()):
            self.path.unlink()

    def _append(self, line: str) -> None:
        with os.fdopen(self._file, "r+b", closefd=False) as file:
            file.seek(0, os.SEEK_END)
            file.write(line.encode() + b"\n")

    def _lines(self) -> list[str]:
        """Those that were written to their end."""
        with os.fdopen(self._file, "r+b", closefd=False) as file:
            file.seek(0)
            return file.read().decode(errors="replace").split("\n")[:-1]

    def _entry(self) -> SharedMemoryEntry:
        """What it says; nothing that exists, where it says nothing."""
        with contextlib.suppress(IndexError, TypeError, ValueError):
            return SharedMemoryEntry(**json.loads(self._lines()[0]))
        return SharedMemoryEntry("", 0, None)

    def _holders(self) -> Iterator[tuple[int, int]]:
        """Process and file, the latest first."""
        for line in reversed(self._lines()[1:]):
            pid, _, file = line.partition(" ")
            if pid.isdecimal() and file.isdecimal():
                yield int(pid), int(file)


def remove_unused(folder: Path) -> None:
    """Remove a folder of notices, with those of memory that no process has any more.

    Raises:
        OSError: there is none, or others remain in it.
    """
    for path in list(folder.iterdir()):
        with contextlib.suppress(TimeoutError), SharedMemoryFile(path, 0) as notice:
            notice.remove_if_unused()
    folder.rmdir()


def _is_own_process(pid: int) -> bool:
    """Whether it is a process of this user; those of others have nothing of ours, whatever they do not show."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}").stat().st_uid == os.getuid()
    return False


def _check_open(name: str, pid: int, file: int) -> None:
    """Make sure that a process has the memory of this name open there.

    Raises:
        OSError: it has not, or does not let us know.
    """
    if str(Path(f"/proc/{pid}/fd/{file}").readlink()) != f"/memfd:{name} (deleted)":
        raise FileNotFoundError(name)


def _is_open(name: str, pid: int, file: int) -> bool:
    with contextlib.suppress(OSError):
        _check_open(name, pid, file)
        return True
    return False


def _lock(file: int) -> bool:
    """Whether it is ours now."""
    import fcntl

    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


_log = logging.getLogger("liveavatar")
_NOT_SHARED = "Layers on the host are not shared with other processes: %s"
LOCK_TIMEOUT_SECONDS = 900.0
"""How long is waited for another process that reads the same weights, before they are read here, too."""

_RELEASE_TIMEOUT_SECONDS = 2.0
"""A look takes a moment; what another process does there for longer needs the notice."""


PackedBytes = tuple[tuple[PackedTensor, ...], torch.Tensor]
"""The rows of a load, and the bytes in which they lie."""


@dataclasses.dataclass(frozen=True, eq=False)
class HostWeights:
    """Packed modules in host memory; read-only once filled.

    Attributes:
        buffer: that holds them, one after the other.
        packed_tensors: of each load.
        name: of the memory, where other processes can find it; else "".
    """

    buffer: PinnedBuffer
    packed_tensors: tuple[tuple[PackedTensor, ...], ...]
    name: str = ""

    def modules(self) -> Iterator[PackedBytes]:
        """Each load."""
        start = 0
        for rows in self.packed_tensors:
            end = start + rows[-1].end
            yield rows, self.buffer.bytes[start:end]
            start = end

    @property
    def nbytes(self) -> int:
        """Of all."""
        return self.buffer.bytes.nbytes


PackModules = Callable[[], Sequence[PackedModule]]
"""Reads what is to be copied."""


class HostWeightCache:
    """The host weights of this process, each kept for as long as anybody uses it.

    Args:
        folder: where processes of this machine, of this user, list the copies they have for each other; None: every
            process has its own, and so it is where the system cannot share memory.
        model: what the copies are of; processes share those of one model alone.
        pinned: page-locked memory for what is not shared; None: a pool of its own.
    """

    def __init__(self, folder: Path | None = None, model: str = "", pinned: PinnedPool | None = None):
        self.pinned = pinned or PinnedPool()
        self._folder, self._model = folder if supports_shared_memory() else None, model
        self._weights: weakref.WeakValueDictionary[str, HostWeights] = weakref.WeakValueDictionary()

    def get(self, name: str, device: torch.device, read: PackModules) -> HostWeights:
        """A copy for a device; what was read before, here or in another process, is not read again.

        Args:
            name: of what is copied, within the model; says all that its bytes depend on.
            device: where it will be brought to.
            read: called where there is no copy yet.

        Raises:
            HostMemoryError: the host's memory cannot hold it, or may not be locked.
            Whatever `read` raises.
        """
        weights = self._weights.get(name) or self._from_machine(name, read) or _private(read(), self.pinned)
        self._weights[name] = weights
        weights.buffer.register_device(device)
        return weights

    def clear(self) -> None:
        """Give nobody the copies that are in use now: what is asked for next may be of another model."""
        self._weights.clear()

    def _from_machine(self, name: str, read: PackModules) -> HostWeights | None:
        """The copy of this machine, found or made; None where there can be none."""
        if self._folder is None:
            return None
        whole = "\0".join((__version__, torch.__version__, self._model, name))
        path = self._folder / hashlib.sha256(whole.encode()).hexdigest()[:32]
        try:
            make_private_folder(self._folder)
            file = SharedMemoryFile(path, LOCK_TIMEOUT_SECONDS)
        except OSError as error:
            _log.warning(_NOT_SHARED, error)
            return None
        with file:
            try:
                found = file.find()
            except PermissionError as error:
                _log.warning(_NOT_SHARED, error)
                return None
            return _attach(file, *found) if found else _publish(file, read(), self.pinned)


def _attach(file: SharedMemoryFile, entry: SharedMemoryEntry, pages: SharedMemory) -> HostWeights:
    """What another process has."""
    rows = tuple(tuple(_packed_tensor(*fields) for fields in load) for load in _lists(entry.content))
    weights = _with_finalizer(HostWeights(_shared(pages, entry.nbytes), rows, pages.name), file, pages)
    with contextlib.suppress(OSError):  # the disk is full: it is not found here, but with others
        file.add_holder(pages)
    _log.info("%s of layers on the host are shared with other processes", format_bytes(entry.nbytes, ".2f"))
    return weights


def _publish(file: SharedMemoryFile, modules: Sequence[PackedModule], pinned: PinnedPool) -> HostWeights:
    """What this process has read, for others as well."""
    nbytes = sum(load.nbytes for load in modules)
    try:
        pages = SharedMemory.create(nbytes)
    except OSError as error:
        _log.warning(_NOT_SHARED, error)
        return _private(modules, pinned)
    rows = tuple(load.tensors_packed for load in modules)
    weights = _with_finalizer(HostWeights(_shared(pages, nbytes), rows, pages.name), file, pages)
    _move_to_buffer(modules, weights)
    content = [[dataclasses.astuple(row) for row in rows] for rows in weights.packed_tensors]
    try:
        file.publish(SharedMemoryEntry(pages.name, nbytes, content), pages)
    except OSError as error:
        _log.warning(_NOT_SHARED, error)
        return dataclasses.replace(weights, name="")
    return weights


def _private(modules: Sequence[PackedModule], pinned: PinnedPool) -> HostWeights:
    """What this process has read, for itself."""
    buffer = pinned.take(sum(load.nbytes for load in modules))
    weights = HostWeights(buffer, tuple(load.tensors_packed for load in modules))
    _move_to_buffer(modules, weights)
    return weights


def _shared(memory: SharedMemory, nbytes: int) -> PinnedBuffer:
    return PinnedBuffer(nbytes, pages=LockedPages(nbytes, memory.pages))


def _move_to_buffer(modules: Sequence[PackedModule], weights: HostWeights) -> None:
    for module, (_, packed) in zip(modules, weights.modules(), strict=True):
        module.move_to_host(packed)


def _with_finalizer(weights: HostWeights, file: SharedMemoryFile, pages: SharedMemory) -> HostWeights:
    """The same; when nobody here uses it any more, nobody finds it here."""
    weakref.finalize(weights, _release_file, pages.file, file.path)
    return weights


def _release_file(file: int, path: Path) -> None:
    os.close(file)
    with (
        contextlib.suppress(OSError),
        SharedMemoryFile(path, _RELEASE_TIMEOUT_SECONDS) as shared,
    ):  # else it is filled anew, or gone
        shared.remove_if_unused()


def _packed_tensor(
    name: str, start: int, shape: list[int], stride: list[int], dtype: str, learned: bool
) -> PackedTensor:
    return PackedTensor(name, start, tuple(shape), tuple(stride), dtype, learned)


def _lists(content: object) -> list[list[list]]:
    if not isinstance(content, list):
        raise TypeError(f"{content!r} is no list of loads")
    return content
