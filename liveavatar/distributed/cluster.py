"""The Ray cluster: started or joined for the first backend that needs it, stopped or left with the last one."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from ..device_names import Machine
from ..errors import LiveAvatarError, PlanError
from ..private_files import is_own_folder
from ..utils import OUT_OF_FILES_NEAREST, is_out_of_files, open_files_limit
from . import ray_compat
from .cluster_token import (
    ADDRESS_VARIABLE,
    checked_token,
    new_token,
    owners_address,
    owners_token,
    proof_port,
    proved_head,
)
from .ray_compat import RayThread, ray_gate
from .reaper import OrphanReaper

LOCAL = "local"
PROBE_SECONDS = 2.0
"""A machine that does not take a connection within this time is not there."""
_CHECK_SECONDS = 10.0
_JOIN = "python -m liveavatar cluster join HEAD:PORT"
_START = f"start it there with `python -m liveavatar cluster start`, join with `{_JOIN}` on every other machine"


def check_address(address: str) -> None:
    """Refuse what is no address of a cluster.

    Args:
        address: "local", "auto" or "host:port".

    Raises:
        PlanError: saying what is.
    """
    if address.startswith("ray://"):
        raise PlanError(
            f"Ray's client ({address}) cannot be used: frames would pass through a proxy.",
            f"Join this machine with `python -m liveavatar cluster join {_host_of(address)}:6379` and say 'auto'.",
        )
    host, _, port = address.rpartition(":")
    if address not in (LOCAL, "auto") and not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise PlanError(f"The address {address!r} is not understood.", "Use 'local', 'auto' or HOST:PORT of the head.")


def join(ray: Any, address: str, token: str | None = None) -> None:
    """Connect this process to a cluster whose head has proved that it knows the token.

    Args:
        token: None: that of the owner of this process.

    Raises:
        PlanError: it cannot be reached, gives no proof, or refuses this process; there is no token.
    """
    head = _head(address)
    token = owners_token(address) if token is None else checked_token(token.strip(), "The token")
    head = proved_head(head, token)
    _check_head(head, address, token)
    try:
        with ray_compat.token_in_environment(token):
            ray.init(address=head, log_to_driver=False, configure_logging=False)
    except Exception as error:
        raise PlanError(
            f"The Ray cluster at {address} could not be joined ({_first_line(error).replace(token, '...')}).",
            f"Join this machine first, with `{_JOIN}` and the same versions of Python and Ray.",
        ) from None


def is_listening(host: str, port: int, seconds: float = PROBE_SECONDS) -> bool:
    """Whether something listens there.

    Raises:
        PlanError: this process may not open more connections.
    """
    try:
        socket.create_connection((host, port), seconds).close()
    except OSError as error:
        if is_out_of_files(error):
            raise start_error(error) from error
        return False
    return True


def cluster_machines(ray: Any) -> list[Machine]:
    """Those that are in the cluster now."""
    return [
        Machine(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            host=node["NodeManagerHostname"],
            name=node.get("NodeName", ""),
            gpus=int(node["Resources"].get("GPU", 0)),
            port=int(node["NodeManagerPort"]),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _head(address: str) -> str:
    """host:port of a head that listens."""
    head = (owners_address() or _found_head()) if address == "auto" else address
    check_address(head)
    host, _, port = head.rpartition(":")
    # Ray itself would wait for minutes.
    if not is_listening(host.strip("[]"), int(port)):
        raise PlanError(f"No Ray cluster answers at {head}.", f"If it is not running, {_START}; or use 'local'.")
    return head


def _found_head() -> str:
    """That of the only cluster of this user here whose head gives proofs; clusters of one process give none."""
    found = []
    for head in sorted(ray_compat.local_heads()):
        host, _, port = head.rpartition(":")
        if is_listening(host.strip("[]"), proof_port(int(port))):
            found.append(head)
    if len(found) == 1:
        return found[0]
    if found:
        raise PlanError(
            f"This user has joined several Ray clusters on this machine: {', '.join(found)}.",
            f"Name one in {ADDRESS_VARIABLE}.",
        )
    raise PlanError("No Ray cluster was found on this machine that this user has joined.", f"To have one, {_START}.")


def _check_head(head: str, address: str, token: str) -> None:
    """Find out whether Ray answers.

    Raises:
        PlanError: it does not.
    """
    try:
        error = ray_compat.connection_error(head, token, _CHECK_SECONDS)
    except subprocess.TimeoutExpired:
        raise PlanError(f"What listens at {head} does not answer as Ray does.", f"For a cluster, {_START}.") from None
    if error:
        reason = error.splitlines()[-1][:300]
        raise PlanError(f"The Ray cluster at {address} does not answer ({reason}).", f"For a cluster, {_START}.")


def _host_of(address: str) -> str:
    return address.removeprefix("ray://").split("/")[0].rsplit(":", 1)[0] or "HEAD"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


_STORE_BYTES = 200 * 2**20
_FEWEST_FILES, _SCARCE_FILES = 64, 1024
"""Limits of open files with which Ray does not start, and with which it may well run out of them."""
_FOLDER = re.compile(r"la-(\d+)-\w+")
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Despite its name, on Linux too: "0" means one machine alone, with everything on loopback.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray makes its workers nicer than everybody else (15), so that a busy machine would starve the devices they feed.
    "RAY_worker_niceness": "0",
    # No task events: they are not used, and cost each process up to 30 MB and a call a third of its time.
    "RAY_task_events_report_interval_ms": "0",
}
"""What Ray reads from the environment when it is imported; what the user has set stays."""
_SEVERAL = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Despite its name, on Linux too: "0" means one machine alone, with everything on loopback."""
_lock = threading.RLock()  # a backend may be collected while another starts
_users = 0
_folder: Path | None = None
_ours = False
_address = LOCAL
_keeper: RayThread | None = None
_reaper: OrphanReaper | None = None


def ray_module() -> Any:
    """The module.

    Raises:
        PlanError: it is not installed, or of a version that is not supported.
    """
    if "ray" not in sys.modules:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    return ray_compat.import_ray()


def acquire_ray(address: str = LOCAL, token: str | None = None) -> Path:
    """Make sure that Ray runs; the private folder where workers of this machine may write their logs.

    Args:
        address, token: see `RayBackend`.

    Raises:
        PlanError: the cluster cannot be joined; this process is in another one.
    """
    global _users, _folder, _ours, _address, _keeper, _reaper
    ray = ray_module()
    with _lock:
        if _users and ray.is_initialized() and address != _address:
            raise PlanError(
                f"Workers at {address!r} are not possible while others work at {_address!r}.",
                "Release those first; a process is in one cluster at a time.",
            )
        if not _users or not ray.is_initialized():
            remove_leftovers()
            _ours = not ray.is_initialized()
            folder = _new_folder()
            try:
                if _ours:
                    _keeper = RayThread(lambda: _start(ray, folder) if address == LOCAL else _join(ray, address, token))
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            _folder, _address = folder, address
            if _ours and address == LOCAL:
                _reaper = OrphanReaper(folder)
            ray_gate.open()
        _users += 1
        if _folder is None:
            raise RuntimeError("Ray runs without a folder")
        return _folder


class NodeLostError(LiveAvatarError):
    """Ray's process on this machine (raylet) has ended, and with it all workers of this machine."""

    def __init__(self) -> None:
        super().__init__(
            "Ray's own process on this machine (raylet) has ended: killed from outside, or out of host memory.",
            f"Run it again, which starts it anew; of several machines, join again with `{_JOIN}`.",
        )


def machines() -> tuple[list[Machine], Machine]:
    """Those that can work now, and this one.

    Raises:
        NodeLostError: this one cannot, as far as is known by now; Ray notices it after some ten seconds.
    """
    with ray_gate.entered() as ray:
        there, own = cluster_machines(ray), ray.get_runtime_context().get_node_id()
    here = next((m for m in there if m.id == own), None)
    if here is None:
        raise NodeLostError()
    return there, here


def release_ray(lost: bool = False) -> None:
    """The counterpart of `acquire_ray`. The last one ends or leaves Ray, unless somebody else in this process uses
    it.

    Args:
        lost: whether Ray is of no use any more, so that it is ended for all: whoever comes next starts it anew.
    """
    global _users, _folder, _reaper
    with _lock:
        _users -= 1
        if _users and not lost:
            return
        if _ours:
            ray_gate.close()
            ray_compat.end_ray()
            ray_compat.forget_token()
        if _keeper is not None:
            _keeper.stop()
        if _reaper is not None:
            _reaper.stop()
            _reaper = None
        if _folder is not None:
            shutil.rmtree(_folder, ignore_errors=True)
            _folder = None


def _start(ray: Any, folder: Path) -> None:
    """A cluster of this machine alone, on free ports and loopback, with a token of its own, that ends with this
    process."""
    ray_compat.allow_remote(os.environ.setdefault(_SEVERAL, "0") != "0")
    if open_files_limit() < _FEWEST_FILES:  # Ray would wait for half a minute
        raise start_error(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    try:
        with ray_compat.token_in_environment(new_token()), ray_compat.no_api_server():
            ray.init(
                address="local",
                # Workers ask for no CPU of Ray's, so that any number starts; more would only be started in advance.
                num_cpus=1,
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                log_to_driver=False,
                configure_logging=False,
                # Ray opens the folders it makes to everybody; ours, around them, is closed.
                _temp_dir=str(folder / "ray"),
            )
    except Exception as error:
        raise start_error(error) from error


def start_error(error: BaseException) -> PlanError:
    """Why Ray cannot be started or reached, where it is not known better."""
    limit = open_files_limit()
    if is_out_of_files(error) or limit < _SCARCE_FILES:
        what = f"Ray cannot work here: this process may have {limit} files open ({_first_line(error)})."
        return PlanError(what, OUT_OF_FILES_NEAREST)
    return PlanError(
        f"Ray could not be started here ({_first_line(error)}).", "Run it in this process: --engine local."
    )


def _join(ray: Any, address: str, token: str | None) -> None:
    """A cluster of several machines. It is not ours: it goes on when we leave."""
    if os.environ.get(_SEVERAL) == "0":
        del os.environ[_SEVERAL]
    ray_compat.allow_remote(True)
    join(ray, address, token)


def _new_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=f"la-{os.getpid()}-", dir=short_folder()))
    except OSError as error:
        raise start_error(error) from error


def short_folder() -> Path:
    """Where Ray's folder lies: a short path, because names of sockets may have 107 bytes."""
    short = Path("/tmp")
    return short if os.name == "posix" and os.access(short, os.W_OK) else Path(tempfile.gettempdir())


def remove_leftovers() -> None:
    """Remove what processes of this user that were killed have left."""
    for old in short_folder().glob("la-*"):
        driver = driver_pid(old)
        if driver is not None and not process_exists(driver) and is_own_folder(old):
            shutil.rmtree(old, ignore_errors=True)


def driver_pid(folder: Path) -> int | None:
    """The process whose workers write there, by the name of the folder; None for any other folder."""
    named = _FOLDER.fullmatch(folder.name)
    return int(named[1]) if named else None


def process_exists(pid: int) -> bool:
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
