"""Ray itself: started for the first backend that needs it, ended with the last one."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from ...errors import PlanError

_STORE_BYTES = 200 * 2**20
_FOLDER = re.compile(r"la-(\d+)-\w+")
_WAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Its default; said aloud, it needs no warning.
    "RAY_AUTH_MODE": "token",
    # Whatever its name says: no clusters of several machines, so that everything listens on loopback only.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray makes its workers nicer than everybody else (15), so that a busy machine would starve the devices they feed.
    "RAY_worker_niceness": "0",
    # No diary of calls: nobody reads it, and it costs each process up to 30 MB and a call a third of its time.
    "RAY_task_events_report_interval_ms": "0",
}
"""What Ray reads from the environment when it is imported; what the user has set stays."""
_lock = threading.RLock()  # a backend may be collected while another starts
_users = 0
_folder: Path | None = None
_ours = False


def the_ray() -> Any:
    """The module.

    Raises:
        PlanError: it is not installed.
    """
    if "ray" not in sys.modules:
        for name, value in _WAYS.items():
            os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise PlanError(
            "Worker processes need Ray, which is not installed.",
            "Install the extra 'ray' of this package (ray>=2.40), or run in this process.",
        ) from error


def enter() -> Path:
    """Make sure that Ray runs; the folder where workers may write their logs."""
    global _users, _folder, _ours
    ray = the_ray()
    with _lock:
        if not _users or not ray.is_initialized():
            sweep()
            _folder = Path(tempfile.mkdtemp(prefix=f"la-{os.getpid()}-", dir=short_folder()))
            _ours = not ray.is_initialized()
            if _ours:
                _start(ray, _folder)
        _users += 1
        return _folder or Path(tempfile.gettempdir())


def leave() -> None:
    """The counterpart of `enter`. The last one ends Ray, unless somebody else had started it."""
    global _users, _folder
    with _lock:
        _users -= 1
        if _users:
            return
        if _ours:
            the_ray().shutdown()
        if _folder is not None:
            shutil.rmtree(_folder, ignore_errors=True)
            _folder = None


def _start(ray: Any, folder: Path) -> None:
    """A cluster of this machine alone, on free ports and loopback, that ends with this process."""
    ray.init(
        address="local",
        # Workers ask for no CPU of Ray's, so that any number of them starts; more would only be started in advance.
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=_STORE_BYTES,
        log_to_driver=False,
        configure_logging=False,
        _temp_dir=str(folder),
    )


def short_folder() -> Path:
    """Where Ray's folder lies: a short path, because names of sockets may have 107 bytes."""
    short = Path("/tmp")
    return short if os.name == "posix" and os.access(short, os.W_OK) else Path(tempfile.gettempdir())


def sweep() -> None:
    """Remove what processes that were killed have left."""
    for old in short_folder().glob("la-*"):
        driver = driver_of(old)
        if driver is not None and not lives(driver):
            shutil.rmtree(old, ignore_errors=True)


def driver_of(folder: Path) -> int | None:
    """The process whose workers write there, by the name of the folder; None for any other folder."""
    named = _FOLDER.fullmatch(folder.name)
    return int(named[1]) if named else None


def lives(pid: int) -> bool:
    """Whether there is a process of this number; where that cannot be asked, yes."""
    if os.name != "posix":  # asking elsewhere would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
