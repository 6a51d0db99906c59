"""Ray as this library uses it: its versions and private names, calls while it runs, and the thread that starts it."""

from __future__ import annotations

import importlib
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import LiveAvatarError, PlanError

OLDEST, TOO_NEW = (2, 52), (3, 0)
REQUIREMENT = "ray>=2.52,<3"
"""The same for pip; the extra `ray` of this package asks for it."""
_INSTALL = f"Install \"{REQUIREMENT}\" with pip (the extra 'ray' of this package), or run in this process."


def import_ray() -> Any:
    """The module, of a version that is supported.

    Raises:
        PlanError: it is not installed, too old or too new.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise PlanError(f"Worker processes need Ray ({REQUIREMENT}), which is not installed.", _INSTALL) from error
    version = str(getattr(ray, "__version__", "unknown"))
    if not OLDEST <= tuple(map(int, re.findall(r"\d+", version)[:2])) < TOO_NEW:
        raise PlanError(f"Worker processes need Ray ({REQUIREMENT}); version {version} is installed.", _INSTALL)
    return ray


_CHECK_SCRIPT = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
"""In a process of its own, because it waits without end where something else than Ray listens."""


def connection_error(head: str, seconds: float) -> str:
    """What Ray prints when it connects to a head and fails; "" where it succeeds.

    Args:
        head: host:port.
        seconds: to wait for an answer.

    Raises:
        TimeoutExpired (of subprocess): there was none.
    """
    command = [sys.executable, "-c", _CHECK_SCRIPT, head]
    ran = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
    return (ran.stderr.strip() or "no reason was given") if ran.returncode else ""


def reload_token() -> None:
    """Have Ray read the cluster's token again, which it may have read already."""
    raylet = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def local_head() -> str:
    """host:port of the head of the cluster that this machine has joined.

    Raises:
        ConnectionError: there is none.
    """
    services = importlib.import_module("ray._private.services")
    return str(services.canonicalize_bootstrap_address_or_die("auto"))


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
