"""Make a token for a cluster of several machines, start its head, or join it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..errors import RequestError
from .parser import Parser, whole_number
from .terminal import say

_PORT = 6379


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cluster`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND", parser_class=Parser)
    token = actions.add_parser("token", help="make a new token, in a file that only you can read")
    token.add_argument("file", metavar="FILE", help="where it goes; must not be there yet")
    start = actions.add_parser("start", help="be the head, until Ctrl-C")
    start.add_argument(
        "--port", type=whole_number(_PORT), default=_PORT, metavar="N", help=f"of the head (default: {_PORT})"
    )
    join = actions.add_parser("join", help="join a head with this machine, until Ctrl-C")
    join.add_argument("address", metavar="HOST:PORT", help="of the head")
    for action in (start, join):
        action.add_argument(
            "--token-file", metavar="FILE", help="holds the token (default: what LIVEAVATAR_TOKEN_FILE names)"
        )
        action.add_argument("--name", metavar="NAME", help="of this machine, as in NAME/cuda:0 (default: its address)")
        action.add_argument("--ip", metavar="ADDRESS", help="of this machine's networks, where it has several")


def run(arguments: argparse.Namespace) -> int:
    """Make a token; or start or join, and stay until that ends."""
    from ..distributed.cluster_token import TOKEN_VARIABLE, read_token, write_token

    if arguments.action == "token":
        write_token(Path(arguments.file))
        say([f"{arguments.file} holds a new token. Copy it to the other machines by a safe way; only you may read it."])
        return 0
    named = arguments.token_file or os.environ.get(TOKEN_VARIABLE)
    if not named:
        raise RequestError("A cluster needs a token.", "Add --token-file FILE; `cluster token FILE` makes one.")
    token = read_token(Path(named))
    from ..distributed.cluster_node import run_head, run_member

    if arguments.action == "start":
        say([f"Others join by: python -m liveavatar cluster join ADDRESS:{arguments.port} --token-file FILE"])
        run_head(token, arguments.port, arguments.name, arguments.ip)
    else:
        run_member(token, arguments.address, arguments.name, arguments.ip)
    return 0
