"""One machine's part of a cluster: its head, or a machine that joins, as a process that stays until Ctrl-C."""

from __future__ import annotations

import contextlib
import hmac
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from ..errors import PlanError
from ..private_files import make_private_folder
from . import ray_compat
from .cluster import check_address, is_listening, ray_module, short_folder
from .cluster_token import HeadProof, proof_port, proved_head

_PACK = Path(__file__).parents[2]
"""The folder that holds `liveavatar`."""


def run_head(token: str, port: int, name: str | None = None, ip: str | None = None) -> NoReturn:
    """The head of a cluster, and beside it the service that proves that it knows the token.

    Args:
        token: of the cluster.
        port: where machines join; the one beside it is for proofs.
        name: of this machine in the cluster; None: its address.
        ip: the address of this machine that the others use; None: the one Ray chooses.

    Raises:
        PlanError: a port is taken, or the folder cannot be used.
        SystemExit: the head has ended.
    """
    if not 0 < port < 65535:
        raise PlanError(f"{port} is no port for a head.", "Use one from 1 to 65534, for example 6379.")
    for taken in (port, proof_port(port)):
        if is_listening("127.0.0.1", taken):
            raise PlanError(
                f"Port {taken} of this machine is taken.", "Choose another with --port, or stop what has it."
            )
    try:
        proof = HeadProof(token, port, lambda: ray_compat.is_head_of_mine(port))
    except OSError as error:
        raise PlanError(
            f"Port {proof_port(port)} cannot be used ({error.strerror}).", "Choose another --port."
        ) from None
    with contextlib.closing(proof), _ray_folder(token) as folder:
        ray_compat.run_node(
            token, "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}", *_flags(name, ip)
        )


def run_member(token: str, address: str, name: str | None = None, ip: str | None = None) -> NoReturn:
    """This machine as one of a cluster, whose head has proved that it knows the token.

    Args:
        token: of the cluster.
        address: host:port of its head.
        name, ip: see `run_head`.

    Raises:
        PlanError: the head does not answer, or gives no proof; the folder cannot be used.
        SystemExit: this machine has left.
    """
    check_address(address)
    if ":" not in address:
        raise PlanError(f"{address!r} names no head.", "Give HOST:PORT, as `cluster start` says it.")
    head = proved_head(address, token)
    with _ray_folder(token) as folder:
        ray_compat.run_node(token, f"--address={head}", f"--temp-dir={folder}", *_flags(name, ip))


def _flags(name: str | None, ip: str | None) -> list[str]:
    return [f"{flag}={value}" for flag, value in (("--node-name", name), ("--node-ip-address", ip)) if value]


@contextlib.contextmanager
def _ray_folder(token: str) -> Iterator[Path]:
    """Ray's folder on this machine, in a private one; in the environment, what its workers need.

    Older versions of Ray use the head's folder on all machines, so it has the same name everywhere, and a name that
    nobody can foresee who does not know the token.
    """
    ray_module()
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_PACK), os.environ.get("PYTHONPATH"))))
    ray_compat.allow_remote(True)
    private = short_folder() / f"lac-{hmac.new(token.encode(), b'liveavatar folder', 'sha256').hexdigest()[:12]}"
    is_new = not private.exists()
    try:
        make_private_folder(private)
    except OSError as error:
        raise PlanError(f"The folder {private} cannot be used ({error}).", "Remove it, or make a new token.") from None
    try:
        yield private / "ray"
    finally:
        if is_new:
            shutil.rmtree(private, ignore_errors=True)
