"""Ray as this library uses it: its versions and private names, calls while it runs, and the thread that starts it."""

from __future__ import annotations

import importlib
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ..errors import LiveAvatarError, PlanError

OLDEST, TOO_NEW = (2, 52), (3, 0)
REQUIREMENT = "ray>=2.52,<3"
"""The same for pip; the extra `ray` of this package asks for it."""
_VERB = "install"
"""Not within the text of a command: scanners of node packs look for packs that call pip themselves."""


def _how_to_install() -> str:
    """The command for this very Python: ComfyUI's is often not the one that a terminal finds."""
    python = f'"{sys.executable}"' if " " in sys.executable else sys.executable
    command = f'{python} -m pip {_VERB} "{REQUIREMENT}"'
    return f"Run `{command}` and start again, or let this process do the work (--engine local)."


def import_ray() -> Any:
    """The module, of a version that is supported.

    Raises:
        PlanError: it is not installed, too old or too new.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        what = f"Worker processes need Ray ({REQUIREMENT}), which is not installed."
        raise PlanError(what, _how_to_install()) from error
    version = str(getattr(ray, "__version__", "unknown"))
    if not OLDEST <= tuple(map(int, re.findall(r"\d+", version)[:2])) < TOO_NEW:
        what = f"Worker processes need Ray ({REQUIREMENT}); version {version} is installed."
        raise PlanError(what, _how_to_install())
    return ray


_CHECK_SCRIPT = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
"""In a process of its own, because it waits without end where something else than Ray listens."""
_TOKEN, _TOKEN_FILE, _MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"


def connection_error(head: str, token: str, seconds: float) -> str:
    """What Ray prints when it connects to a head and fails; "" where it succeeds. The head is sent the token.

    Args:
        head: host:port.
        token: of its cluster.
        seconds: to wait for an answer.

    Raises:
        TimeoutExpired (of subprocess): there was none.
    """
    command = [sys.executable, "-c", _CHECK_SCRIPT, head]
    own = {name: value for name, value in os.environ.items() if name != _TOKEN_FILE} | token_environment(token)
    ran = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, env=own)
    said = ran.stderr.strip().replace(token, "...") or "no reason was given"
    return said if ran.returncode else ""


def token_environment(token: str) -> dict[str, str]:
    """What a process of Ray has in its environment to use a token; there only its own user can read it."""
    return {_TOKEN: token, _MODE: "token"}


@contextmanager
def token_in_environment(token: str) -> Iterator[None]:
    """Within this context Ray finds this token, and no other: not one that the user has for another cluster, and none
    in ~/.ray/auth_token, which Ray would write where everybody can read it and use for ever.

    Processes that Ray starts here inherit it; this one keeps it in Ray's memory, and its environment is as before.
    """
    before = {name: os.environ.get(name) for name in (_TOKEN, _TOKEN_FILE, _MODE)}
    os.environ.pop(_TOKEN_FILE, None)
    os.environ.update(token_environment(token))
    try:
        _reload_token()
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def forget_token() -> None:
    """Have Ray forget the token of a cluster that this process has left."""
    _reload_token()


def _reload_token() -> None:
    raylet = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def no_api_server() -> Iterator[None]:
    """Within this context Ray starts without its API server.

    Even without a dashboard, and with usage statistics switched off, that process asks for the metadata of the clouds
    that it might be in, at addresses outside of this machine.
    """
    services: Any = importlib.import_module("ray._private.services")
    start = services.start_api_server
    services.start_api_server = lambda *_, **__: (None, None)
    try:
        yield
    finally:
        services.start_api_server = start


def local_heads() -> set[str]:
    """host:port of the heads of all clusters that processes of this user have joined on this machine.

    Ray itself would also take what other users have started or written down.
    """
    heads = set()
    for process in _psutil().process_iter(["name", "cmdline", "uids"]):
        uids = process.info["uids"]
        if process.info["name"] in ("raylet", "raylet.exe") and (uids is None or uids.real == os.getuid()):
            flags = " ".join(process.info["cmdline"] or ()).split()
            heads |= {flag.partition("=")[2] for flag in flags if flag.startswith("--gcs-address=")}
    return heads


def is_head_of_mine(port: int) -> bool:
    """Whether a head that this process has started listens at a port."""
    psutil = _psutil()
    try:
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for child in psutil.Process().children(recursive=True)
            if child.name() == "gcs_server"
            for connection in child.net_connections("tcp")
        )
    except psutil.Error:
        return False


def run_node(token: str, *flags: str) -> NoReturn:
    """`ray start --block` in this process, without an API server; ends with the node.

    Args:
        token: of the cluster.
        flags: of `ray start`.

    Raises:
        KeyboardInterrupt: it was ended from outside.
        SystemExit: it has ended by itself, or could not start.
    """
    scripts: Any = importlib.import_module("ray.scripts.scripts")
    with token_in_environment(token), no_api_server():
        try:
            scripts.start.main([*flags, "--block", "--disable-usage-stats"], "ray start", standalone_mode=False)
        except scripts.click.Abort:
            raise KeyboardInterrupt from None
    raise SystemExit(1)


def _psutil() -> Any:
    """Ray brings it along."""
    import_ray()
    return importlib.import_module("psutil")


def allow_remote(beyond: bool) -> None:
    """Whether other machines may reach this process; Ray reads its variable only once."""
    constants: Any = importlib.import_module("ray._private.ray_constants")
    constants.ENABLE_RAY_CLUSTER = beyond


_LONGEST = 0.5
"""Seconds that one call may last: that long the end of Ray may have to wait."""
_LEAVING_SECONDS = 10.0


class RayEnded(LiveAvatarError):
    """Ray is not there (any more)."""

    def __init__(self) -> None:
        super().__init__("The workers were ended while they were needed.", "Run it again: they are started anew.")


class _RayGate:
    """The threads that are calling Ray, and whether more may."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._entered: dict[int, int] = {}
        """Threads, and how many nested calls each is in."""
        self._open = False

    def open(self) -> None:
        """Let threads call Ray."""
        with self._changed:
            self._open = True

    def close(self) -> None:
        """Refuse further calls, and wait until those of other threads have ended."""
        me = threading.get_ident()
        with self._changed:
            self._open = False
            self._changed.wait_for(lambda: not self._entered.keys() - {me}, _LEAVING_SECONDS)

    @contextmanager
    def entered(self) -> Iterator[Any]:
        """The module; Ray does not end within this context.

        Raises:
            RayEnded: it has.
        """
        me = threading.get_ident()
        with self._changed:
            if not self._open and me not in self._entered:
                raise RayEnded()
            self._entered[me] = self._entered.get(me, 0) + 1
        try:
            yield importlib.import_module("ray")
        finally:
            with self._changed:
                self._entered[me] -= 1
                if not self._entered[me]:
                    del self._entered[me]
                self._changed.notify_all()


ray_gate = _RayGate()


def is_ref(item: Any) -> bool:
    """Whether something is the reference of an answer."""
    with ray_gate.entered() as ray:
        return isinstance(item, ray.ObjectRef)


def call(actor: Any, name: str, *given: Any) -> Any:
    """Call a worker's method; the reference of its answer."""
    with ray_gate.entered():
        return actor.call.remote(name, *given)


def wait(refs: Iterable[Any], seconds: float, most: int = 1) -> list[Any]:
    """The answers that are there, as soon as there are `most`, at last after some seconds; they are not fetched."""
    refs, until = list(refs), time.monotonic() + seconds
    while True:
        left = until - time.monotonic()
        with ray_gate.entered() as ray:
            count = min(most, len(refs))
            done, _ = ray.wait(refs, num_returns=count, timeout=max(0.0, min(left, _LONGEST)), fetch_local=False)
            if len(done) >= count or left <= 0:
                done, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
                return list(done)


def get(ref: Any, seconds: float | None = None) -> Any:
    """An answer that is there, or comes within some seconds.

    Raises:
        GetTimeoutError (of Ray): it does not.
        RayError (of Ray): whoever owed it is gone.
    """
    if seconds is not None:
        wait([ref], seconds)
    with ray_gate.entered() as ray:
        return ray.get(ref, timeout=None if seconds is None else 0.001)


def kill(actor: Any) -> None:
    """End a worker's process."""
    with ray_gate.entered() as ray:
        ray.kill(actor, no_restart=True)


class _EndingCoreWorker:
    """Ray's core worker while Ray ends: references that are let go are not counted any more.

    Ray ends the whole process where a thread lets one go, in passing or by garbage collection, just after the core
    worker has ended (seen with Ray 2.60).
    """

    def __init__(self, ending: Any):
        self._ending = ending

    def remove_object_ref_reference(self, ref: Any) -> None:
        """Of an answer."""

    def remove_actor_handle_reference(self, actor: Any) -> None:
        """Of a worker."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ending, name)


def end_ray() -> None:
    """End or leave Ray; other threads may let references go meanwhile."""
    ray, worker = import_ray(), importlib.import_module("ray._private.worker").global_worker
    if (core := getattr(worker, "core_worker", None)) is not None:
        worker.core_worker = _EndingCoreWorker(core)
    ray.shutdown()


class RayThread:
    """The thread that starts Ray, and stays as long as Ray does.

    Args:
        start: starts Ray.

    Raises:
        Whatever `start` raises.
    """

    def __init__(self, start: Callable[[], object]):
        self._started, self._over = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(start,), name="liveavatar-ray", daemon=True).start()
        self._started.wait()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ray has ended."""
        self._over.set()

    def _run(self, start: Callable[[], object]) -> None:
        log = logging.getLogger("ray._private.worker")
        log.addFilter(_is_relevant)
        try:
            start()
        except BaseException as error:
            self._error = error
            return
        finally:
            log.removeFilter(_is_relevant)
            self._started.set()
        self._over.wait()


def _is_relevant(record: logging.LogRecord) -> bool:
    """That signals are left alone is what is wanted."""
    return "SIGTERM handler" not in record.getMessage()
