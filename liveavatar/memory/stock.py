"""What layers keep on the host, once for all that use it: nets of one process, and processes of one machine."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from .. import __version__
from .host import HostMemory
from .load import Load, Row
from .notice import Notice, Shared, SharedPages, can_share

_log = logging.getLogger("liveavatar")
_NOT_SHARED = "Layers on the host are not shared with other processes: %s"
PATIENCE_SECONDS = 900.0
"""How long is waited for another process that reads the same weights, before they are read here, too."""

_LET_GO_SECONDS = 2.0
"""A look takes a moment; what another process does there for longer needs the notice."""


Packed = tuple[tuple[Row, ...], torch.Tensor]
"""The rows of a load, and the bytes in which they lie."""


@dataclasses.dataclass(frozen=True, eq=False)
class Copy:
    """Packed loads in the host's memory. Once they are there nobody writes to it.

    Attributes:
        memory: that holds them, one after the other.
        rows: of each load.
        name: of the memory, where other processes can find it; else "".
    """

    memory: HostMemory
    rows: tuple[tuple[Row, ...], ...]
    name: str = ""

    def parts(self) -> Iterator[Packed]:
        """Each load."""
        start = 0
        for rows in self.rows:
            end = start + rows[-1].end
            yield rows, self.memory.bytes[start:end]
            start = end

    @property
    def nbytes(self) -> int:
        """Of all."""
        return self.memory.bytes.nbytes


Read = Callable[[], Sequence[Load]]
"""Reads what is to be copied."""


class Stock:
    """The copies that this process has, each for as long as anybody uses it.

    Args:
        folder: where processes of this machine, of this user, tell each other which copies they have; None: every
            process has its own, and so it is where the system cannot share memory.
        model: what the copies are of; processes share those of one model alone.
    """

    def __init__(self, folder: Path | None = None, model: str = ""):
        self._folder, self._model = folder if can_share() else None, model
        self._held: weakref.WeakValueDictionary[str, Copy] = weakref.WeakValueDictionary()

    def copy(self, name: str, device: torch.device, read: Read) -> Copy:
        """A copy for a device; what was read before, here or in another process, is not read again.

        Args:
            name: of what is copied, within the model; says all that its bytes depend on.
            device: where it will be brought to.
            read: called where there is no copy yet.

        Raises:
            HostMemoryError: the host's memory cannot hold it, or may not be locked.
            Whatever `read` raises.
        """
        held = self._held.get(name) or self._of_machine(name, read) or _own(read())
        self._held[name] = held
        held.memory.serve(device)
        return held

    def forget(self) -> None:
        """Give nobody the copies that are in use now: what is asked for next may be of another model."""
        self._held.clear()

    def _of_machine(self, name: str, read: Read) -> Copy | None:
        """The copy of this machine, found or made; None where there can be none."""
        if self._folder is None:
            return None
        whole = "\0".join((__version__, torch.__version__, self._model, name))
        path = self._folder / hashlib.sha256(whole.encode()).hexdigest()[:32]
        try:
            _make_private(self._folder)
            notice = Notice(path, PATIENCE_SECONDS)
        except OSError as error:
            _log.warning(_NOT_SHARED, error)
            return None
        with notice:
            try:
                found = notice.find()
            except PermissionError as error:
                _log.warning(_NOT_SHARED, error)
                return None
            return _joined(notice, *found) if found else _published(notice, read())


def _joined(notice: Notice, said: Shared, pages: SharedPages) -> Copy:
    """What another process has."""
    rows = tuple(tuple(_row(*fields) for fields in load) for load in _lists(said.content))
    copy = _listed(Copy(HostMemory(said.nbytes, pages=pages.pages), rows, pages.name), notice, pages)
    with contextlib.suppress(OSError):  # the disk is full: it is not found here, but with others
        notice.join(pages)
    _log.info("%.2f GB of layers on the host are shared with other processes", said.nbytes / 1e9)
    return copy


def _published(notice: Notice, loads: Sequence[Load]) -> Copy:
    """What this process has read, for others as well."""
    nbytes = sum(load.nbytes for load in loads)
    try:
        pages = SharedPages.new(nbytes)
    except OSError as error:
        _log.warning(_NOT_SHARED, error)
        return _own(loads)
    rows = tuple(load.rows for load in loads)
    copy = _listed(Copy(HostMemory(nbytes, pages=pages.pages), rows, pages.name), notice, pages)
    _settle(loads, copy)
    content = [[dataclasses.astuple(row) for row in rows] for rows in copy.rows]
    try:
        notice.publish(Shared(pages.name, nbytes, content), pages)
    except OSError as error:
        _log.warning(_NOT_SHARED, error)
        return dataclasses.replace(copy, name="")
    return copy


def _own(loads: Sequence[Load]) -> Copy:
    """What this process has read, for itself."""
    copy = Copy(HostMemory(sum(load.nbytes for load in loads)), tuple(load.rows for load in loads))
    _settle(loads, copy)
    return copy


def _settle(loads: Sequence[Load], copy: Copy) -> None:
    for load, (_, packed) in zip(loads, copy.parts(), strict=True):
        load.settle(packed)


def _listed(copy: Copy, notice: Notice, pages: SharedPages) -> Copy:
    """The same; when nobody here uses it any more, nobody finds it here."""
    weakref.finalize(copy, _let_go, pages.file, notice.path)
    return copy


def _let_go(file: int, path: Path) -> None:
    os.close(file)
    with contextlib.suppress(OSError), Notice(path, _LET_GO_SECONDS) as notice:  # else it is filled anew, or gone
        notice.remove_if_left()


def _row(name: str, start: int, shape: list[int], stride: list[int], dtype: str, learned: bool) -> Row:
    return Row(name, start, tuple(shape), tuple(stride), dtype, learned)


def _lists(content: object) -> list[list[list]]:
    if not isinstance(content, list):
        raise TypeError(f"{content!r} is no list of loads")
    return content


def _make_private(folder: Path) -> None:
    """Make sure that it is there, and that nobody else can put anything into it.

    Raises:
        OSError: it belongs to somebody else.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not folder.is_dir() or folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a private folder of this user")
