"""What an exception in a worker means to its caller, in plain words."""

from __future__ import annotations

import errno

from ....errors import LiveAvatarError
from ..plain import OUT_OF_MEMORY_NEAREST, Fault

_OUT_OF_MEMORY = ("outofmemory", "out of memory", "allocate memory", "bad_alloc", "alloc_failed")
"""How libraries say it that have no class for it: CUDA, the CPU's allocator, C++, cuBLAS."""


def fault_of(error: BaseException) -> Fault:
    """The fault that an exception is."""
    lacking = out_of_memory(error)
    if lacking is not None:
        return Fault("failed", f"out of memory ({_told(lacking)})", OUT_OF_MEMORY_NEAREST)
    if isinstance(error, LiveAvatarError):
        return Fault("refused", error.what, error.nearest)
    return Fault("failed", _told(error), "Run it again; if it repeats, look at its log.")


def out_of_memory(error: BaseException) -> BaseException | None:
    """What says that memory of the machine or of a device was asked for and not there: the error, or what caused it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return error
    if not isinstance(error, LiveAvatarError):  # whose words may speak of memory for other reasons
        said = f"{type(error).__name__} {error}".lower()
        if any(words in said for words in _OUT_OF_MEMORY):
            return error
    return None if error.__cause__ is None else out_of_memory(error.__cause__)


def first_line(error: BaseException) -> str:
    """Of what it says, at most 300 letters."""
    return (str(error).strip().splitlines() or [""])[0][:300]


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}".rstrip(". ")
