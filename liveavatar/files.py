"""Files of the user that are written: what may be replaced, in one step, and by one process at a time.

A file is never opened for writing under its own name: a new one is written beside it and takes its place when it is
whole. So a device, which a rename would turn into an ordinary file, has to be told from a file first.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from .errors import OutputError, shown

STDOUT = Path("-")
"""The name that stands for the standard output."""
_SUFFIX = ".liveavatar"
"""Ends the names of files that will take the place of others."""
_EXAMPLES = {
    "The video": "video.mp4",
    "The receipt": "receipt.json",
    "The report": "report.json",
    "The doctor's report": "doctor.json",
}
_NAME_BYTES = 100
"""Of a file's name that the name beside it repeats: both have to fit into 255."""
_LARGEST_JSON = 64 * 2**20
_LOCKED_BYTE = 1 << 62
"""Windows keeps others from reading what is locked, so that lies far behind the end."""


def path_of(given: object, what: str) -> Path:
    """A path that somebody gave.

    Raises:
        OutputError: of another type, or no path at all.
    """
    if not isinstance(given, str | os.PathLike) or not isinstance(os.fspath(given), str):
        raise OutputError(f"{what} is {shown(given)}, which is no path.", "Give a text or a pathlib.Path.")
    text = os.fspath(given)
    if not text or "\0" in text:
        raise OutputError(f"{what} would be called {shown(text)}, which no file can be.", "Choose another name.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OutputError(f"The path {text!a} holds bytes that are no text.", "Choose a name in UTF-8.") from error
    return Path(text)


def is_stream(path: Path) -> bool:
    """Whether a name is written through, not replaced: the standard output or error, by any name, or a device."""
    return _standard_stream(path) is not None or _is_device(path)


def _standard_stream(path: Path) -> TextIO | None:
    """The standard stream that a name stands for, also where it goes to a file: replacing that would lose the rest."""
    if path == STDOUT:
        return sys.stdout
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        with contextlib.suppress(OSError, ValueError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return stream
    return None


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def _write_through(path: Path, data: bytes) -> None:
    if (stream := _standard_stream(path)) is None:
        with os.fdopen(os.open(path, os.O_WRONLY | getattr(os, "O_NOCTTY", 0)), "wb") as device:
            device.write(data)
        return
    stream.flush()
    if (binary := getattr(stream, "buffer", None)) is None:
        stream.write(data.decode())
    else:
        binary.write(data)
    stream.flush()


def target_of(path: Path, what: str) -> Path:
    """The file that a name stands for, behind symbolic links: absent, or a regular file of this user.

    Args:
        path: as given.
        what: of the sentence that refuses it: "The video".

    Raises:
        OutputError: a folder, a device, a pipe or a socket; a file of another user, or one that must not be written; a
            missing folder; a name that is too long, or that leads nowhere.
    """
    try:
        target = Path(os.path.realpath(path))
        there = target.stat()
    except (FileNotFoundError, NotADirectoryError):
        if not target.parent.is_dir():
            raise OutputError(
                f"The folder {target.parent} does not exist.", "Create it, or choose one that exists."
            ) from None
        return target
    except OSError as error:
        raise refusal(path, error) from error
    if stat.S_ISDIR(there.st_mode):
        raise OutputError(f"{what} {path} is a folder.", f"Name a file in it: {path / _EXAMPLES.get(what, 'file')}.")
    if not stat.S_ISREG(there.st_mode):
        raise OutputError(f"{what} {path} is {_kind(there.st_mode)}, which no file may replace.", "Name a file.")
    if os.name == "posix" and os.geteuid() not in (0, there.st_uid):
        raise OutputError(f"{what} {path} belongs to another user.", "Choose another name.")
    if not os.access(target, os.W_OK):
        raise refusal(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    return target


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a device", stat.S_IFCHR: "a device"}
    return kinds.get(stat.S_IFMT(mode), "no regular file")


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two names are one file: by path, symbolic or hard link, or in upper and lower case."""
    with contextlib.suppress(OSError, ValueError):
        if one.exists() and other.exists():
            return one.samefile(other)
    return _comparable(one) == _comparable(other)


def _comparable(path: Path) -> str:
    real = path if "\0" in str(path) else os.path.realpath(path)  # no file can be called so
    return unicodedata.normalize("NFC", str(real)).casefold()


def first_same(path: Path, inputs: Iterable[Path]) -> Path | None:
    """The input that a file is; None where it is none of them."""
    return next((given for given in inputs if is_same_file(path, given)), None)


class OutputClaim:
    """A file that one process alone may write, until `release` or until that process has ended, however it does.

    The claim lies on the file itself, not on a second one, so nothing is left behind; readers are not hindered. A file
    that is not there yet cannot be claimed: whoever puts it there first has it. Where the file system knows no locks,
    every claim is granted.

    Args:
        path: see `target_of`.
        what: as there.

    Attributes:
        path: as given.
        target: the file behind symbolic links.

    Raises:
        OutputError: see `target_of`; or another process, or another run in this one, is writing the file.
    """

    def __init__(self, path: Path, what: str = "The file"):
        self.path, self.target = path, target_of(path, what)
        self._descriptor: int | None = None
        self._take(self.target)

    @property
    def identity(self) -> tuple[int, int, int] | None:
        """Device, number and size of the claimed file; None while there is none."""
        if self._descriptor is None:
            return None
        there = os.fstat(self._descriptor)
        return there.st_dev, there.st_ino, there.st_size

    @property
    def is_there(self) -> bool:
        """Whether the name still leads to the claimed file."""
        try:
            return self._descriptor is not None and os.path.samestat(self.target.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def move(self, temporary: Path) -> None:
        """Let a whole file beside the target take its place; it is claimed before it can be seen.

        Raises:
            OutputError: somebody else has put a file there since the claim was made.
            OSError: it cannot be moved.
        """
        if self.target.exists() and not self.is_there:
            raise OutputError(f"Something else was written to {self.path} meanwhile.", "Choose another name.")
        held, self._descriptor = self._descriptor, None
        if os.name == "nt":  # which moves nothing that is open
            _close(held)
            try:
                _put(temporary, self.target, held is None)
            finally:
                self._take(self.target)
            return
        try:
            self._take(temporary)
            _put(temporary, self.target, held is None)
        except BaseException:
            _close(self._descriptor)
            self._descriptor = held
            raise
        _close(held)

    def release(self) -> None:
        """Let others write the file. May be called again."""
        _close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> OutputClaim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _take(self, path: Path) -> None:
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
            except FileNotFoundError:
                return
            except OSError as error:
                raise refusal(self.path, error) from error
            if not _lock(descriptor):
                os.close(descriptor)
                raise OutputError(f"{self.path} is being written by another run.", "Wait for it, or choose a name.")
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    self._descriptor = descriptor
                    return
            os.close(descriptor)  # it was replaced between the two calls


def _lock(descriptor: int) -> bool:
    """Lock an open file for this process; whether nobody else has."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _put(temporary: Path, target: Path, is_new: bool) -> None:
    """Move a file; where nothing was to be replaced, nothing is, also if it has come in this very moment."""
    if is_new:
        try:
            target.hardlink_to(temporary)
        except FileExistsError:
            raise OutputError(f"Something else was written to {target} meanwhile.", "Choose another name.") from None
        except (OSError, NotImplementedError):  # a file system without links
            temporary.replace(target)
        else:
            temporary.unlink()
    else:
        temporary.replace(target)


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def create_beside(target: Path) -> tuple[Path, BinaryIO]:
    """A new file that will take the place of another: made exclusively, in its folder and with its rights.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        path = target.with_name(f"{_beside(target)}{secrets.token_hex(4)}{_SUFFIX}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, flags, 0o666)
            break
    with contextlib.suppress(OSError):
        path.chmod(stat.S_IMODE(target.stat().st_mode))
    return path, os.fdopen(descriptor, "r+b", buffering=0)


@contextlib.contextmanager
def replacement(claim: OutputClaim) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside a claimed one, open for writing inside, which takes its place when all went well.

    Raises:
        OSError: it cannot be made or moved; the claimed file is as it was.
        OutputError: see `OutputClaim.move`.
    """
    temporary, file = create_beside(claim.target)
    try:
        with file:
            yield temporary, file
        claim.move(temporary)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(target: Path) -> None:
    """Remove what runs that were killed have left beside a file."""
    with contextlib.suppress(OSError):
        for path in list(target.parent.iterdir()):
            if path.name.startswith(_beside(target)) and path.name.endswith(_SUFFIX) and path.is_file():
                with contextlib.suppress(OSError, OutputError), OutputClaim(path):
                    path.unlink()


def _beside(target: Path) -> str:
    return f".{os.fsencode(target.name)[:_NAME_BYTES].decode(errors='ignore')}."


def write_file(path: Path, data: bytes, what: str = "The file", claim: OutputClaim | None = None) -> None:
    """Write or replace a file in one step: a reader sees the old one or the new one, whole.

    Devices and the standard output are written through.

    Args:
        path: where to.
        data: all of it.
        what: see `target_of`.
        claim: on the file, where one is held.

    Raises:
        OutputError: it cannot be written; an older file is still there.
    """
    try:
        if is_stream(path):
            return _write_through(path, data)
        with contextlib.nullcontext(claim) if claim else OutputClaim(path, what) as own:
            _replace(own, data)
    except OSError as error:
        raise OutputError(
            f"{what} {path} cannot be written ({error.strerror or error}).", "Choose another file or free space."
        ) from error


def _replace(claim: OutputClaim, data: bytes) -> None:
    with replacement(claim) as (_, file):
        write_all(file, data)
        os.fsync(file.fileno())


def write_all(file: BinaryIO, data: bytes | bytearray | memoryview) -> None:
    """Write all of it to an unbuffered file, which may take less at a time."""
    with memoryview(data) as left:
        done = 0
        while done < len(left):
            done += file.write(left[done:])


def refuse_foreign_json(path: Path, what: str, is_own: Callable[[dict[str, Any]], bool]) -> None:
    """Make sure that a JSON file may be replaced: it is absent, empty or one of the kind that is to be written.

    Args:
        path: of the file, or of a device, which nothing is asked of.
        what: of the sentence that refuses it: "The report".
        is_own: whether an object is of that kind.

    Raises:
        OutputError: it is another file, or none that may be replaced (see `target_of`).
    """
    if is_stream(path):
        return
    target = target_of(path, what)
    with contextlib.suppress(FileNotFoundError):
        size = target.stat().st_size
        if size and not (size < _LARGEST_JSON and _holds(target, is_own)):
            raise OutputError(
                f"{path} is there already, and {what.lower()} would replace what it holds.",
                f"Choose another name, such as {path.with_suffix('.liveavatar.json').name}.",
            )


def _holds(path: Path, is_own: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and is_own(content)


def refusal(path: Path, error: Exception) -> OutputError:
    """What to say of a file that cannot be written."""
    code, why = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(
            f"There is no room left to write {path} ({why}).",
            "Free some space (about 0.5 GB per hour of video at 704x384), or write to another disk.",
        )
    if code == errno.ENAMETOOLONG:
        return OutputError(f"{_shortened(path)} is too long a name.", "Give a name of at most 255 bytes.")
    return OutputError(f"{path} cannot be written ({why}).", "Check the permissions, or choose another folder.")


def _shortened(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 2 * _NAME_BYTES else f"{text[:_NAME_BYTES]}...{text[-_NAME_BYTES // 2 :]}"
