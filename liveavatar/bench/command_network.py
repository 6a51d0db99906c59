"""Measure a step of the network on the CPU beside the published one, and beside its own products and attention."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..cli.parser import whole_number
from ..cli.terminal import say
from ..errors import RequestError

_ROUNDS = 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench network`."""
    parser.add_argument("--original", metavar="DIR", help="a checkout of the published code (default: ours alone)")
    parser.add_argument("--threads", type=whole_number(1), default=1, metavar="N", help="CPU threads (default: 1)")
    parser.add_argument(
        "--rounds", type=whole_number(1), default=_ROUNDS, metavar="N", help=f"alternated rounds (default: {_ROUNDS})"
    )


def run(arguments: argparse.Namespace) -> int:
    """A line per size of the work, as it is measured."""
    original = Path(arguments.original).expanduser() if arguments.original else None
    if original is not None and not original.is_dir():
        raise RequestError(f"There is no folder {original}.", "Give the checkout of the published code.")
    from .network_floor import SIZES, measure_network

    for size in SIZES:
        say([str(measure_network(size, original, arguments.threads, arguments.rounds))])
    return 0
