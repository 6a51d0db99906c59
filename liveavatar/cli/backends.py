"""Options of worker processes, and the backend that a command runs on."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RequestError
from .options import placement_of
from .parser import whole_number

if TYPE_CHECKING:
    from ..engine.backend import Backend


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of worker processes."""
    workers = parser.add_argument_group("worker processes (with --engine ray)")
    workers.add_argument(
        "--restarts",
        type=whole_number(2),
        metavar="N",
        help="lost worker processes that may be replaced before the video is given up (default: 2)",
    )
    workers.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="head of the cluster that this machine has joined, or auto; devices are named MACHINE/DEVICE then",
    )
    workers.add_argument(
        "--token-file",
        metavar="FILE",
        help="holds the token of the cluster, readable by you alone (default: what LIVEAVATAR_TOKEN_FILE names)",
    )


def check_worker_options(arguments: argparse.Namespace) -> None:
    """Refuse options of worker processes that nobody would heed.

    Raises:
        RequestError: naming the option that is missing.
    """
    if arguments.restarts is not None and arguments.engine != "ray":
        raise RequestError("--restarts is for worker processes.", "Add --engine ray, or leave it out.")
    if arguments.restarts is not None and arguments.restarts < 0:
        raise RequestError(f"--restarts {arguments.restarts} is not possible.", "Use 0 for never, or more.")
    if arguments.address and arguments.engine != "ray":
        raise RequestError(f"The address {arguments.address} is for worker processes.", "Add --engine ray.")
    if arguments.token_file and not arguments.address:
        raise RequestError("A token file is for the cluster at an address.", "Add --address HOST:PORT, or auto.")


@contextlib.contextmanager
def backend_of(arguments: argparse.Namespace) -> Iterator[Backend]:
    """Who runs the stages; worker processes are ended at the end."""
    if arguments.engine == "local":
        from ..engine.backend import LocalBackend

        yield LocalBackend(placement_of(arguments))
        return
    from ..distributed import RayBackend, read_token
    from ..distributed.backend import RESTARTS

    token = read_token(Path(arguments.token_file)) if arguments.token_file else None
    restarts = RESTARTS if arguments.restarts is None else arguments.restarts
    backend = RayBackend(placement_of(arguments), arguments.address or "local", restarts=restarts, token=token)
    try:
        yield backend
    finally:
        backend.release()
