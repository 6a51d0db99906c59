"""Small helpers that every layer may use: bytes in words, names of input files, the lack of open files, a busy machine,
copies to a busy device."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import LiveAvatarError, RequestError

if TYPE_CHECKING:
    import torch

_UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0}


def format_bytes(nbytes: float, spec: str = ".1f", unit: str = "GB") -> str:
    """An amount of bytes for people: "12.3 GB".

    Args:
        nbytes: how many.
        spec: format of the number.
        unit: "GB", "MB", "kB" (powers of 1000), or "largest": the largest of them that fits, whole bytes below.
    """
    if unit == "largest":
        unit = next(name for name, scale in _UNITS.items() if nbytes >= scale or name == "B")
    return f"{nbytes} B" if unit == "B" else f"{nbytes / _UNITS[unit]:{spec}} {unit}"


OUT_OF_FILES_NEAREST = "Raise the limit with `ulimit -n 8192` before the program starts, or end what holds files open."
"""What to do about "too many open files"."""


def is_out_of_files(error: BaseException) -> bool:
    """Whether an error, or its cause, is that the process or the machine may not open more files or connections."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    if "too many open files" in str(error).lower():
        return True
    return error.__cause__ is not None and is_out_of_files(error.__cause__)


def open_files_limit() -> float:
    """How many files this process may have open; infinite where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


_WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""By any of which a user says how threads wait."""


_BRIEF = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
"""Rounds, and milliseconds. Beside the default, a video of the miniature took 1.02 times as long on two idle cores, and
0.56 times beside four busy programs; never spinning took a sixth more time on idle ones."""


def brief_spinning(environment: Mapping[str, str]) -> dict[str, str]:
    """What the environment of our own processes has in addition, so that CPU threads soon sleep when they wait.

    By default they spin long, and where more threads want to run than there are cores, they spin in the place of those
    that they wait for: videos then took ten times as long. OpenMP (GNU's, with PyTorch on Linux, and LLVM's) reads it
    when PyTorch is imported. Empty where the user has said how to wait.
    """
    return {} if any(name in environment for name in _WAIT_VARIABLES) else dict(_BRIEF)


_MOST_LOAD = 1.5
"""Processes that want to run, per core; a video alone brings it to one."""


def load_average() -> float | None:
    """Processes that wanted to run at a time, on average over the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows
        return None


def is_overloaded(load: float | None, cores: int | None = None) -> bool:
    """Whether so many processes want to run that all of them wait; of this machine, where no cores are told."""
    return load is not None and load > _MOST_LOAD * (cores or os.cpu_count() or 1)


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Inside, modules are made on the meta device, and no numbers are drawn for them.

    To draw normal ones there PyTorch imports its compiler, which takes longer than all else that is imported.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class WithoutInit(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(function, "__module__", "") == "torch.nn.init":
                return args[0] if args else kwargs["tensor"]
            return function(*args, **(kwargs or {}))

    with torch.device("meta"), WithoutInit():
        yield


_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Of x86 and of ARM, as Linux calls them."""


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether the processor has instructions for products in bfloat16; None where the system does not tell.

    Without, products in bfloat16 took 1.5 to 3 times as long as in float32 with AVX-512, and 40 to 100 times with AVX2.
    """
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, flags = line.partition(":")
            if name.strip().lower() in ("flags", "features"):
                return not _BFLOAT16.isdisjoint(flags.split())
    return None


def cgroup_memory(name: str) -> int | None:
    """A number of the container that this process is in: "memory.max", "memory.current"; None where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii"))
    return None


def to_device_async(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """An asynchronous copy on another device, without waiting for what that device has still to do.

    A GPU takes what it is sent in order, and from pageable memory the host would wait for its turn. Pinned memory comes
    from PyTorch's own store, which gives it to nobody else before the copy is done.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def check_path(path: str | os.PathLike[str], what: str, error: type[LiveAvatarError]) -> None:
    """Refuse what no file can be called; whether something is there is not asked.

    Args:
        path: as given.
        what: the file's content, for messages: "model".
        error: raised.

    Raises:
        LiveAvatarError: no path, or one that no file can have.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise error(f"The {what} is given as {type(path).__name__}.", f"Give the path of a {what} file.")
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except (OSError, ValueError) as e:  # ValueError: a null character
        raise _cannot_be_opened(path, what, error, e) from None


def check_input_file(path: str | os.PathLike[str], what: str, error: type[RequestError]) -> Path:
    """The path of an input, which is there and is a file. It is not opened: a pipe would wait for whoever writes to it.

    Args:
        path: as given.
        what: the file's content, for messages: "picture", "sound".
        error: raised.

    Raises:
        RequestError: no path, too long a name, nothing there, a folder, a pipe or a device.
    """
    check_path(path, what, error)
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"There is no {what} at {path}.", "Check the path.") from None
    except OSError as e:
        raise _cannot_be_opened(path, what, error, e) from None
    if not stat.S_ISREG(mode):
        kind = "is not a file" if stat.S_ISDIR(mode) else "is a pipe or a device, and not a file"
        nearest = "not its folder" if stat.S_ISDIR(mode) else "saved as a file"
        raise error(f"{path} {kind}.", f"Give the {what} itself, {nearest}.")
    return Path(path)


def _cannot_be_opened(
    path: str | os.PathLike[str], what: str, kind: type[LiveAvatarError], error: Exception
) -> LiveAvatarError:
    reason, name = getattr(error, "strerror", None) or str(error), os.fspath(path)
    name = name if len(name) < 200 else f"{name[:60]}...{name[-60:]}"
    return kind(f"The {what} {name!r} cannot be opened ({reason}).", "Check the path.")
