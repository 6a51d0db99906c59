"""The command line: `python -m liveavatar generate | plan | inspect | demo`.

Exit codes: 0 the work is complete, 1 it broke off half-way, 2 the request was refused, 130 it was cancelled.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import LiveAvatarError
from . import demo, generate, inspect, plan
from .terminal import CANCELLED, REFUSED, say_error

COMMANDS = {"generate": generate, "plan": plan, "inspect": inspect, "demo": demo}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code: int = COMMANDS[arguments.command].run(arguments)
    except LiveAvatarError as error:
        say_error(error)
        return REFUSED
    except KeyboardInterrupt:
        print("Cancelled.", file=sys.stderr)
        return CANCELLED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="liveavatar", description="A portrait, a voice and a prompt become a talking video."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").strip().splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    return parser
