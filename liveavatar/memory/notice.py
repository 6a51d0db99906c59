"""Memory that processes of one machine share, and the file by which they find it.

The memory is a file without a name, which is gone with the last process that has it open, however that ends. Others
reach it through the system's list of open files of any process that holds it. Who that is stands in a notice: a small
file, locked while somebody looks at it, and while the first one fills the memory. A notice is written only when the
memory is whole, so what a process leaves half done is never found. What it says is checked: a process that has ended,
or whose number belongs to another one now, has no open file of the memory's name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from .host import own_pages

_LOOK_SECONDS = 0.05
"""Between two looks whether the lock is free: waiting so can be ended at any time, as a lock of the system's cannot."""
_PREFIX = "liveavatar-"


def can_share() -> bool:
    """Whether this system has memory that processes can share so; only Linux has."""
    return hasattr(os, "memfd_create")


@dataclasses.dataclass(frozen=True, eq=False)
class SharedPages:
    """Memory that other processes can find, for as long as its file is open.

    Attributes:
        name: no other has it.
        file: the open one; who has these pages closes it.
        pages: the memory, which stays as long as they are in use.
    """

    name: str
    file: int
    pages: mmap.mmap

    @classmethod
    def new(cls, nbytes: int) -> SharedPages:
        """All zeros.

        Raises:
            HostMemoryError: the host has not that much.
            OSError: it does not let processes share memory.
        """
        import fcntl

        own_pages(nbytes).close()  # which is refused where there is too little; files without a name never are
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
    def of_process(cls, name: str, nbytes: int, pid: int, file: int) -> SharedPages:
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
class Shared:
    """What a notice says of a memory.

    Attributes:
        name: of the memory.
        nbytes: it has.
        content: what lies in it, as JSON can say it.
    """

    name: str
    nbytes: int
    content: object


class Notice:
    """A notice that this process has locked; given back by `with`.

    Args:
        path: where it is; made where it is not there.
        patience: seconds to wait while another one has it.

    Raises:
        TimeoutError: another one had it all the time.
        OSError: no file can be there.
    """

    def __init__(self, path: Path, patience: float):
        self.path = path
        until = time.monotonic() + patience
        while True:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                while not _lock(self._file):
                    if time.monotonic() >= until:
                        raise TimeoutError(f"{path} is in use")
                    time.sleep(_LOOK_SECONDS)
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_ino == os.fstat(self._file).st_ino:
                        return
            except BaseException:
                os.close(self._file)
                raise
            os.close(self._file)  # it was taken away before we had it

    def __enter__(self) -> Notice:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def find(self) -> tuple[Shared, SharedPages] | None:
        """The memory, from any process that has it; None where none has.

        Raises:
            PermissionError: a process has it, and does not let us have it.
        """
        said, refused = self._said(), None
        for pid, file in self._holders():
            try:
                return said, SharedPages.of_process(said.name, said.nbytes, pid, file)
            except OSError as error:
                if isinstance(error, PermissionError) and _is_ours(pid):
                    refused = error
        if refused:
            raise refused
        return None

    def publish(self, said: Shared, pages: SharedPages) -> None:
        """Say that this process has a memory, whole."""
        os.truncate(self._file, 0)
        self._append(json.dumps(dataclasses.asdict(said)))
        self.join(pages)

    def join(self, pages: SharedPages) -> None:
        """Say that this process has the memory, too."""
        self._append(f"{os.getpid()} {pages.file}")

    def remove_if_left(self) -> None:
        """Take it away when no process has the memory."""
        name = self._said().name
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

    def _said(self) -> Shared:
        """What it says; nothing that exists, where it says nothing."""
        with contextlib.suppress(IndexError, TypeError, ValueError):
            return Shared(**json.loads(self._lines()[0]))
        return Shared("", 0, None)

    def _holders(self) -> Iterator[tuple[int, int]]:
        """Process and file, the latest first."""
        for line in reversed(self._lines()[1:]):
            pid, _, file = line.partition(" ")
            if pid.isdecimal() and file.isdecimal():
                yield int(pid), int(file)


def clear(folder: Path) -> None:
    """Remove a folder of notices, with those of memory that no process has any more.

    Raises:
        OSError: there is none, or others remain in it.
    """
    for path in list(folder.iterdir()):
        with contextlib.suppress(TimeoutError), Notice(path, 0) as notice:
            notice.remove_if_left()
    folder.rmdir()


def _is_ours(pid: int) -> bool:
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
