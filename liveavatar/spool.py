"""Rows that may become more than memory should hold: few stay in memory, many go to a temporary file."""

from __future__ import annotations

import tempfile
import threading
from typing import IO

import numpy as np

from .errors import OutputError

MEMORY_BYTES = 32 * 2**20
"""Rows up to this many bytes are kept in memory."""


class Spool:
    """A growing float32 table [rows, width].

    The file has no name (or is deleted by the system on the last close), so nothing is left behind however the
    process ends. Reading is safe from several threads; appending is for one.

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
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()
        self._rows = 0
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
            self._rows += len(rows)
            if self._file is None and 4 * self.width * self._rows > self._memory_bytes:
                self._move_to_disk()
            if self._file is None:
                self._chunks.append(rows.copy())
            else:
                _write(self._file, rows)

    def read(self, start: int, stop: int) -> np.ndarray:
        """A copy of rows [start, stop) as float32 [stop - start, width]."""
        if not 0 <= start <= stop <= self._rows:
            raise IndexError(f"rows {start} to {stop} of {self._rows}")
        with self._lock:
            self._check_open()
            if self._file is None:
                return self._in_memory()[start:stop].copy()
            self._file.seek(4 * self.width * start)
            data = self._file.read(4 * self.width * (stop - start))
        return np.frombuffer(bytearray(data), dtype=np.float32).reshape(-1, self.width)

    def array(self) -> np.ndarray:
        """All rows as one read-only float32 array; a memory map of the file, which lives as long as the array does."""
        with self._lock:
            self._check_open()
            if self._file is None:
                whole = self._in_memory()
                whole.flags.writeable = False
                return whole
            self._file.flush()
            return np.memmap(self._file, dtype=np.float32, mode="r", shape=(self._rows, self.width))

    def close(self) -> None:
        """Let the rows go. Arrays handed out by `array` stay valid."""
        with self._lock:
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
        try:
            self._file = tempfile.TemporaryFile(prefix="liveavatar-")  # noqa: SIM115 (lives as long as the spool)
        except OSError as e:
            raise _no_room(e) from e
        for chunk in self._chunks:
            _write(self._file, chunk)
        self._chunks = []


def _write(file: IO[bytes], rows: np.ndarray) -> None:
    try:
        file.seek(0, 2)
        file.write(rows.data)
        file.flush()  # a full disk is reported here, not when the rows are read
    except OSError as e:
        raise _no_room(e) from e


def _no_room(e: OSError) -> OutputError:
    return OutputError(
        f"The temporary folder {tempfile.gettempdir()} cannot take the working data ({e.strerror or e}).",
        "Free some space there, or point the environment variable TMPDIR at a folder with more.",
    )
