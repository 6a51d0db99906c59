"""Working data that may become more than memory should hold: a temporary file, and a table that moves into one."""

from __future__ import annotations

import dataclasses
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import OutputError

MEMORY_BYTES = 32 * 2**20
"""Rows up to this many bytes are kept in memory."""


class TemporaryFile:
    """An unnamed file that grows at its end. The system removes it with its last handle, however the process ends.

    Not thread-safe.

    Args:
        refused: makes the error of what could not be done ("opened", "written" or "read") and why.
        folder: where its bytes lie; None: the system's folder for temporary files.

    Raises:
        OutputError: what `refused` makes; of every method, too.
    """

    def __init__(self, refused: Callable[[str, OSError], OutputError], folder: Path | None = None):
        self._refused = refused
        try:
            # Unbuffered: a full disk shows at the write that meets it, not at some later one.
            self._file = tempfile.TemporaryFile(buffering=0, prefix="liveavatar-", dir=folder)  # noqa: SIM115
        except OSError as error:
            raise refused("opened", error) from error

    def write(self, start: int, values: np.ndarray) -> None:
        """Write the bytes of a contiguous array from byte `start` on."""
        data = values.reshape(-1).view(np.uint8).data
        try:
            self._file.seek(start)
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise self._refused("written", error) from error

    def read_into(self, start: int, values: np.ndarray) -> None:
        """Fill a contiguous array with the bytes from `start` on."""
        data = values.reshape(-1).view(np.uint8).data
        try:
            self._file.seek(start)
            while data:
                count = self._file.readinto(data)
                if not count:
                    raise OSError("the file is shorter than it was")
                data = data[count:]
        except OSError as error:
            raise self._refused("read", error) from error

    def close(self) -> None:
        """Remove the file. May be called again."""
        self._file.close()


class Spool:
    """A growing float32 table [rows, width]: few rows stay in memory, many go to a temporary file.

    Reading is safe from several threads; appending is for one.

    Args:
        width: values per row.
        memory_bytes: the size from which rows go to the temporary folder.

    Raises:
        OutputError: the temporary folder cannot take the rows.
    """

    def __init__(self, width: int, memory_bytes: int = MEMORY_BYTES):
        self.width = width
        self._memory_bytes = memory_bytes
        self._chunks: list[np.ndarray] = []
        self._file: TemporaryFile | None = None
        self._lock = threading.Lock()
        self._rows = 0
        self._holders = 1
        self._closed = False

    def __len__(self) -> int:
        return self._rows

    @property
    def on_disk(self) -> bool:
        """Whether the rows have left memory."""
        return self._file is not None

    def append(self, rows: np.ndarray) -> None:
        """Add rows [n, width]; they are copied."""
        rows = np.ascontiguousarray(rows, dtype=np.float32).reshape(-1, self.width)
        with self._lock:
            self._check_open()
            before, self._rows = self._rows, self._rows + len(rows)
            if self._file is None and 4 * self.width * self._rows > self._memory_bytes:
                self._move_to_disk()
            if self._file is None:
                self._chunks.append(rows.copy())
            else:
                self._file.write(4 * self.width * before, rows)

    def read(self, start: int, stop: int) -> np.ndarray:
        """A copy of rows [start, stop) as float32 [stop - start, width]."""
        if not 0 <= start <= stop <= self._rows:
            raise IndexError(f"rows {start} to {stop} of {self._rows}")
        with self._lock:
            self._check_open()
            if self._file is None:
                return self._in_memory()[start:stop].copy()
            rows = np.empty((stop - start, self.width), np.float32)
            self._file.read_into(4 * self.width * start, rows)
            return rows

    def rows(self, flat: bool = False) -> np.ndarray | Rows:
        """All rows, read-only: an array while they are in memory, `Rows` once they lie in a file.

        Args:
            flat: [rows] instead of [rows, width], for a width of 1.
        """
        tail = () if flat else (self.width,)
        with self._lock:
            self._check_open()
            if self._file is not None:
                return Rows(self, 0, self._rows, tail)
            whole = self._in_memory().reshape(self._rows, *tail)
            whole.flags.writeable = False
            return whole

    def share(self) -> Spool:
        """This spool, for one more holder: it stays until each of them has closed it."""
        with self._lock:
            self._check_open()
            self._holders += 1
        return self

    def close(self) -> None:
        """Let the rows go, also for `Rows` that were handed out. Happens by itself when nobody holds them any more."""
        with self._lock:
            self._holders -= 1
            if self._holders <= 0:
                self._release()

    def __del__(self) -> None:
        self._release()

    def _release(self) -> None:
        self._closed = True
        self._chunks = []
        if self._file is not None:
            self._file.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the spool is closed")

    def _in_memory(self) -> np.ndarray:
        if len(self._chunks) != 1:
            self._chunks = [np.concatenate([np.empty((0, self.width), np.float32), *self._chunks])]
        return self._chunks[0]

    def _move_to_disk(self) -> None:
        self._file = TemporaryFile(_no_room)
        self._file.write(0, self._in_memory())
        self._chunks = []


class SlotFile:
    """Equally shaped float32 arrays by number, in an unnamed file that uses the room of forgotten ones again.

    Not thread-safe.

    Raises:
        OutputError: the temporary folder cannot take them; of `put`, too.
    """

    def __init__(self) -> None:
        self._file = TemporaryFile(_no_room)
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        self._shape: tuple[int, ...] = ()
        self.nbytes = 0
        """Of the file."""

    def __len__(self) -> int:
        return len(self._slots)

    def put(self, number: int, values: np.ndarray) -> None:
        """Keep an array."""
        self._shape = values.shape
        slot = self._free.pop() if self._free else len(self._slots)
        self._file.write(slot * values.nbytes, np.ascontiguousarray(values, np.float32))
        self.nbytes = max(self.nbytes, (slot + 1) * values.nbytes)
        self._slots[number] = slot

    def get(self, number: int) -> np.ndarray:
        """An array that is kept.

        Raises:
            KeyError: it is not.
        """
        values = np.empty(self._shape, np.float32)
        self._file.read_into(self._slots[number] * values.nbytes, values)
        return values

    def forget(self, before: int) -> None:
        """Let go of the arrays of smaller numbers."""
        self._free += [self._slots.pop(number) for number in [n for n in self._slots if n < before]]

    def close(self) -> None:
        """Remove the file. May be called again."""
        self._file.close()


@dataclasses.dataclass(frozen=True)
class Rows:
    """A stretch of a spool that lies in a file. Slicing reads nothing; `numpy.asarray` of a slice reads it.

    A memory map would offer the same, but every page that was touched counts as resident memory of the process.

    Attributes:
        spool: what it is a stretch of; lives as long as this does.
        start, stop: its rows.
        tail: shape of one row.
    """

    spool: Spool
    start: int
    stop: int
    tail: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array it would be."""
        return self.stop - self.start, *self.tail

    @property
    def ndim(self) -> int:
        """How many dimensions that has."""
        return 1 + len(self.tail)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, part: slice) -> Rows:
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise IndexError("rows of a file are read in order and without gaps")
        return Rows(self.spool, self.start + start, self.start + max(start, stop), self.tail)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows of a file cannot be had without a copy")
        return self.spool.read(self.start, self.stop).reshape(self.shape).astype(dtype or np.float32, copy=False)


def _no_room(_: str, error: OSError) -> OutputError:
    return OutputError(
        f"The temporary folder {tempfile.gettempdir()} cannot take the working data ({error.strerror or error}).",
        "Free some space there, or point the environment variable TMPDIR at a folder with more.",
    )
