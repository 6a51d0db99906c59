"""The command line: `python -m liveavatar generate | plan | inspect | demo | live | doctor | bench | workers |
cluster | repair | meter`.

Exit codes: 0 the work is complete, 1 it broke off half-way or found something wrong, 2 the request was refused,
130 it was cancelled.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .. import __version__
from ..bench import command as bench
from ..doctor import command as doctor
from ..errors import LiveAvatarError
from ..interrupt import interrupts
from ..meter import command as meter
from ..utils import brief_spinning
from . import cluster, demo, generate, inspect, live, plan, repair, workers
from .parser import Parser
from .terminal import BROKEN_OFF, CANCELLED, REFUSED, forget_output, say_error

COMMANDS = {
    "generate": generate,
    "plan": plan,
    "inspect": inspect,
    "demo": demo,
    "live": live,
    "doctor": doctor,
    "bench": bench,
    "workers": workers,
    "cluster": cluster,
    "repair": repair,
    "meter": meter,
}


def entry() -> NoReturn:
    """The program: from the command line to its exit code."""
    os.environ.update(brief_spinning(os.environ))  # before PyTorch is imported; the library leaves its host alone
    code = main()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # all is said and done, but Python takes a moment to leave
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # not a real stream
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # any file name can be shown
    with interrupts(terminate=True):
        try:
            arguments = _parser().parse_args(argv)
            code: int = COMMANDS[arguments.command].run(arguments)
            sys.stdout.flush()
        except LiveAvatarError as error:
            say_error(error)
            return REFUSED
        except ModuleNotFoundError as error:
            say_error(_missing_package(error))
            return REFUSED
        except KeyboardInterrupt:
            print("Cancelled.", file=sys.stderr)
            return CANCELLED
        except BrokenPipeError:  # whoever read our output has left, as `head` does
            forget_output()
            return BROKEN_OFF
    return code


def _missing_package(error: ModuleNotFoundError) -> LiveAvatarError:
    """What to say where a package that the work needs is not installed; a fault of this library is raised as it is."""
    name = (error.name or "").partition(".")[0]
    if not name or name == __package__.partition(".")[0]:
        raise error
    how = "as https://pytorch.org says" if name == "torch" else "and the others that requirements.txt lists"
    return LiveAvatarError(
        f"The package {name} is not installed for this Python ({sys.executable}).",
        f"Install it {how}, or use the Python that has it: ComfyUI's own, or .venv/bin/python after `make setup`.",
    )


def _parser() -> argparse.ArgumentParser:
    as_module = Path(sys.argv[0]).name == "__main__.py"
    parser = Parser(
        prog="python -m liveavatar" if as_module else "liveavatar",
        description="A portrait, a voice and a prompt become a talking video.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").strip().splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    return parser
