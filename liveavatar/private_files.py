"""Files and folders that no other user of the machine can read, write or put in place.

Folders of worker processes lie in the system's temporary folder, where everybody may make names. So a folder is used
only when it is this user's and closed to others, a new file is made only where nothing is, and no link is followed.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

_OTHERS, _OTHERS_WRITE = 0o077, 0o022
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_KNOWS_USERS = hasattr(os, "getuid")
"""Windows does not: there the temporary folder is each user's own."""


def make_private_folder(folder: Path) -> None:
    """Make sure that a folder is there, and that nobody else can read it or put anything into it.

    Raises:
        PermissionError: it belongs to somebody else, or is open to others.
        OSError: it cannot be made.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    if not is_private_folder(folder):
        raise PermissionError(f"{folder} is not a private folder of this user")


def is_private_folder(folder: Path) -> bool:
    """Whether a folder is there, is this user's, is closed to others, and is no link to one."""
    return _is_own_folder(folder, _OTHERS)


def is_own_folder(folder: Path) -> bool:
    """Whether a folder is there and is this user's, and is no link to one; others may be able to read it."""
    return _is_own_folder(folder, 0)


def open_private(path: Path) -> BinaryIO:
    """A file of this user that nobody else can have written, opened for reading.

    Raises:
        PermissionError: it is another user's, others may write it, or it is no plain file.
        OSError: it is not there, or is a symbolic link.
    """
    # Without O_NONBLOCK, a named pipe would be waited for.
    descriptor = os.open(path, os.O_RDONLY | _NO_LINK | getattr(os, "O_NONBLOCK", 0))
    found = os.fstat(descriptor)
    own = not _KNOWS_USERS or (found.st_uid == os.getuid() and not found.st_mode & _OTHERS_WRITE)
    if not (own and stat.S_ISREG(found.st_mode)):
        os.close(descriptor)
        raise PermissionError(f"{path} can have been written by others")
    return os.fdopen(descriptor, "rb")


def create_private(path: Path) -> BinaryIO:
    """A new file that only this user can read, opened for writing.

    Raises:
        FileExistsError: something is there already, be it a link.
        OSError: it cannot be made.
    """
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o600), "wb")


def replace_private(path: Path, text: str) -> None:
    """Write a private file in one step; what was there is replaced, never written through.

    Raises:
        OSError: it cannot be written.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    beside.unlink(missing_ok=True)  # of a process of this number that was killed
    with create_private(beside) as file:
        file.write(text.encode())
    beside.replace(path)


def is_secret(found: os.stat_result) -> bool:
    """Whether a file can be read and written by this user alone (or where users are not known)."""
    return not _KNOWS_USERS or (found.st_uid == os.getuid() and not found.st_mode & _OTHERS)


def _is_own_folder(folder: Path, closed: int) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    own = not _KNOWS_USERS or (found.st_uid == os.getuid() and not found.st_mode & closed)
    return own and stat.S_ISDIR(found.st_mode)
