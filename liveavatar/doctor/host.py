"""Probes of the computer: processor, memory, disks, libraries, model files."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import time
from pathlib import Path

from .. import __version__
from ..utils import cgroup_memory, load_average
from .report import Disk, Host, Model, Versions

_PACK = Path(__file__).parents[2]
_DISTRIBUTION = "live-avatar"
_ALSO = ("torch", "torchvision", "torchaudio", "numpy", "ray")
"""Libraries whose version explains much, and that the requirements leave to others."""
_RAY = "2.52"
"""The lowest version that worker processes were tried with; nothing else needs it."""
_METER = ("dlib", "dlib-bin")
"""Either brings the module dlib, which the meter needs."""
_CHUNK = 4 * 2**20


def host() -> Host:
    """Processor and memory."""
    ram, free = _memory()
    limit = cgroup_memory("memory.max")
    if limit is not None and ram is not None and limit < ram:
        left = max(0, limit - (cgroup_memory("memory.current") or 0))
        ram, free = limit, min(left, free) if free is not None else left
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    release = platform.release()
    return Host(
        system=platform.system(),
        release=release,
        wsl="microsoft" in release.lower(),
        cpu=_processor(),
        cores=os.cpu_count() or 1,
        usable_cores=usable,
        ram=ram,
        ram_free=free,
        pinnable=_lockable(),
        load=load_average(),
    )


def disks(quick: bool) -> tuple[Disk, ...]:
    """The temporary folder, measured, and the current one."""
    size = (16 if quick else 128) * 2**20
    return disk("temporary", Path(tempfile.gettempdir()), size), disk("current", Path.cwd(), 0)


def disk(name: str, folder: Path, size: int) -> Disk:
    """One folder; a file of at most `size` bytes is written, read back and removed, for two seconds at most."""
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:  # gone with its process, however that ends
            if not size:
                return Disk(name, free, bool(file.write(b"\0")))  # a full disk makes files, but takes no bytes
            write, read = _file_speeds(file.fileno(), min(size, free // 4))
            return Disk(name, free, True, "", write, read)
    except OSError as error:
        return Disk(name, None, False, error.strerror or str(error))


def versions() -> Versions:
    """Libraries that are installed, against those that are asked for."""
    wanted = requirements() | {"ray": _RAY}
    names = dict.fromkeys([*_ALSO, *wanted])
    found = {name: _installed(name) for name in names}
    found["dlib"] = next(filter(None, map(_installed, _METER)), None)
    return Versions(__version__, platform.python_version(), found, wanted)


def requirements() -> dict[str, str]:
    """The lowest version of each library that is asked for, "" for any: from the pack's file, or the installation."""
    file = _PACK / "requirements.txt"
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
    else:
        try:
            lines = [r for r in importlib.metadata.requires(_DISTRIBUTION) or [] if "extra ==" not in r]
        except importlib.metadata.PackageNotFoundError:
            lines = []
    parts = [re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:>=\s*([\w.]+))?", line) for line in lines]
    return {found[1].lower(): found[2] or "" for found in parts if found}


def model(path: str) -> Model:
    """Whether a model folder is complete; no weights are read."""
    from ..weights.folder import inspect_model

    items = inspect_model(path).items
    return Model(
        complete=all(item.usable for item in items),
        parts={item.name: f"{item.note}. {item.nearest}".strip(". ") for item in items},
        wrong=tuple(item.name for item in items if not item.usable),
    )


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _file_speeds(file: int, size: int) -> tuple[float | None, float | None]:
    """GB/s of writing until the disk has it, and of reading it back past the cache where the system lets go of it."""
    block, written, start = os.urandom(_CHUNK), 0, time.perf_counter()
    while written < size and time.perf_counter() - start < 2:
        written += os.write(file, block)
    os.fsync(file)
    write = written / max(time.perf_counter() - start, 1e-9) / 1e9
    if not hasattr(os, "posix_fadvise"):
        return (write or None), None
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(file, 0, os.SEEK_SET)
    start = time.perf_counter()
    got = sum(map(len, iter(functools.partial(os.read, file, _CHUNK), b"")))
    return (write or None), (got / max(time.perf_counter() - start, 1e-9) / 1e9 or None)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def _memory() -> tuple[int | None, int | None]:
    """Bytes of RAM, and those that can be had."""
    with contextlib.suppress(OSError, KeyError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        known = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return known["MemTotal"], known["MemAvailable"]
    with contextlib.suppress(ImportError):  # not Linux; ComfyUI brings psutil
        import psutil

        now = psutil.virtual_memory()
        return now.total, now.available
    return None, None


def _lockable() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return None if limit == resource.RLIM_INFINITY else limit
