"""Ray itself: started or joined for the first backend that needs it, ended or left with the last one."""

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

from ....errors import PlanError
from ....machines import Machine
from .calls import gate
from .joining import LOCAL, join, machines_of, token_is_known
from .keeper import Keeper

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
_SEVERAL = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Whatever its name says: "0" means no clusters of several machines, so that everything listens on loopback only."""
_lock = threading.RLock()  # a backend may be collected while another starts
_users = 0
_folder: Path | None = None
_ours = False
_address = LOCAL
_keeper: Keeper | None = None


def the_ray(address: str = LOCAL) -> Any:
    """The module.

    Args:
        address: where it will be used first.

    Raises:
        PlanError: it is not installed.
    """
    if "ray" not in sys.modules:
        for name, value in _WAYS.items():
            # Where a token is wanted and not found, Ray ends the process; for a cluster of its own it makes one.
            if name != "RAY_AUTH_MODE" or address == LOCAL or token_is_known():
                os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise PlanError(
            "Worker processes need Ray, which is not installed.",
            "Install the extra 'ray' of this package (ray>=2.40), or run in this process.",
        ) from error


def enter(address: str = LOCAL) -> Path:
    """Make sure that Ray runs; the folder where workers of this machine may write their logs.

    Args:
        address: see `RayBackend`.

    Raises:
        PlanError: the cluster cannot be joined; this process is in another one.
    """
    global _users, _folder, _ours, _address, _keeper
    ray = the_ray(address)
    with _lock:
        if _users and ray.is_initialized() and address != _address:
            raise PlanError(
                f"Workers at {address!r} are not possible while others work at {_address!r}.",
                "Release those first; a process is in one cluster at a time.",
            )
        if not _users or not ray.is_initialized():
            sweep()
            _ours = not ray.is_initialized()
            folder = Path(tempfile.mkdtemp(prefix=f"la-{os.getpid()}-", dir=short_folder()))
            try:
                if _ours:
                    _keeper = Keeper(lambda: _start(ray, folder) if address == LOCAL else _join(ray, address))
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            _folder, _address = folder, address
            gate.open()
        _users += 1
        return _folder or Path(tempfile.gettempdir())


def machines() -> tuple[list[Machine], Machine]:
    """Those that can work now, and this one."""
    with gate.through() as ray:
        there, own = machines_of(ray), ray.get_runtime_context().get_node_id()
    return there, next(m for m in there if m.id == own)


def leave() -> None:
    """The counterpart of `enter`. The last one ends or leaves Ray, unless somebody else in this process uses it."""
    global _users, _folder
    with _lock:
        _users -= 1
        if _users:
            return
        if _ours:
            gate.shut()
            the_ray().shutdown()
        if _keeper is not None:
            _keeper.end()
        if _folder is not None:
            shutil.rmtree(_folder, ignore_errors=True)
            _folder = None


def _start(ray: Any, folder: Path) -> None:
    """A cluster of this machine alone, on free ports and loopback, that ends with this process."""
    _listen(os.environ.setdefault(_SEVERAL, "0") != "0")
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


def _join(ray: Any, address: str) -> None:
    """A cluster of several machines. It is not ours: it goes on when we leave."""
    if os.environ.get(_SEVERAL) == "0":
        del os.environ[_SEVERAL]
    _listen(True)
    join(ray, address)


def _listen(beyond: bool) -> None:
    """Whether others may reach us; Ray reads its variable only once."""
    constants: Any = importlib.import_module("ray._private.ray_constants")
    constants.ENABLE_RAY_CLUSTER = beyond


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
