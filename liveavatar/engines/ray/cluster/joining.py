"""Joining a Ray cluster that somebody else has started: what is found out before, so that nothing hangs."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from ....errors import PlanError
from ....machines import Machine

LOCAL = "local"
PROBE_SECONDS = 2.0
"""A machine that does not take a connection within this time is not there."""
_GREET_SECONDS = 10.0
_TOKEN, _TOKEN_FILE, _MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"
_GREETING = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
"""In a process of its own, because it waits without end where something else than Ray listens."""
_START = "start it there with `ray start --head`, join with `ray start --address=HEAD:PORT` on every machine"
_GIVE = "Give the token that the head was started with: RAY_AUTH_TOKEN, or a file of it."


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
            f"Join this machine with `ray start --address={_host_of(address)}:6379` and give the address 'auto'.",
        )
    host, _, port = address.rpartition(":")
    if address not in (LOCAL, "auto") and not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise PlanError(f"The address {address!r} is not understood.", "Use 'local', 'auto' or HOST:PORT of the head.")


def keep_token(token: str | None) -> None:
    """Let Ray have a token, in this process and nowhere else; None: what it finds by itself.

    Raises:
        PlanError: it is empty.
    """
    if token is None:
        return
    if not token.strip():
        raise PlanError("The token is empty.", _GIVE)
    os.environ[_TOKEN], os.environ[_MODE] = token.strip(), "token"


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        PlanError: it cannot be read, or holds none.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"The token file {path} cannot be read ({error}).", _GIVE) from error
    if not token:
        raise PlanError(f"The token file {path} is empty.", _GIVE)
    return token


def token_is_known() -> bool:
    """Whether Ray would find a token: it ends the process where it wants one and finds none."""
    return bool(os.environ.get(_TOKEN) or os.environ.get(_TOKEN_FILE)) or (Path.home() / ".ray/auth_token").exists()


def join(ray: Any, address: str) -> None:
    """Connect this process to a cluster.

    Raises:
        PlanError: it cannot be reached, or does not want us.
    """
    head = _head(address)
    _greet(head, address)
    raylet = importlib.import_module("ray._raylet")
    with contextlib.suppress(AttributeError):  # an older Ray has no tokens; this one may have read them already
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
    try:
        ray.init(address=head, log_to_driver=False, configure_logging=False)
    except Exception as error:
        raise PlanError(
            f"The Ray cluster at {address} could not be joined ({_first_line(error)}).",
            "Join this machine first, with `ray start --address=HEAD:PORT` and the same versions of Python and Ray.",
        ) from error


def answers(host: str, port: int, seconds: float = PROBE_SECONDS) -> bool:
    """Whether something listens there."""
    try:
        socket.create_connection((host, port), seconds).close()
    except OSError:
        return False
    return True


def machines_of(ray: Any) -> list[Machine]:
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
    head = address
    if address == "auto":
        services = importlib.import_module("ray._private.services")
        try:
            head = services.canonicalize_bootstrap_address_or_die("auto")
        except Exception as error:
            raise PlanError("No Ray cluster was found on this machine.", f"To have one, {_START}.") from error
    host, _, port = head.rpartition(":")
    # Ray itself would wait for minutes.
    if not answers(host.strip("[]"), int(port)):
        raise PlanError(f"No Ray cluster answers at {head}.", f"If it is not running, {_START}; or use 'local'.")
    return head


def _greet(head: str, address: str) -> None:
    """Find out whether Ray answers, and accepts the token.

    Raises:
        PlanError: it does not.
    """
    if os.environ.get(_MODE, "").lower() == "token" and not token_is_known():
        raise PlanError(f"The Ray cluster at {address} wants a token and none is known here.", _GIVE)
    asked = [sys.executable, "-c", _GREETING, head]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, errors="replace", timeout=_GREET_SECONDS)
    except subprocess.TimeoutExpired:
        raise PlanError(f"What listens at {head} does not answer as Ray does.", f"For a cluster, {_START}.") from None
    if said.returncode:
        if "authenticat" in said.stderr.lower():
            raise PlanError(f"The Ray cluster at {address} does not accept the token of this machine.", _GIVE)
        reason = (said.stderr.strip().splitlines() or ["no reason was given"])[-1][:300]
        raise PlanError(f"The Ray cluster at {address} does not answer ({reason}).", f"For a cluster, {_START}.")


def _host_of(address: str) -> str:
    return address.removeprefix("ray://").split("/")[0].rsplit(":", 1)[0] or "HEAD"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
