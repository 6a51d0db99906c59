"""Options that were mistyped are refused like any other request: one sentence, and the nearest that works."""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import RequestError, shown


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that raises instead of printing its usage, and never guesses at half a name.

    Raises:
        RequestError: from `parse_args`.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(**{"allow_abbrev": False, **options})  # type: ignore[arg-type]
        self._command: str | None = None
        """That was given, once arguments are parsed."""

    def parse_known_args(self, *given: Any, **named: Any) -> Any:
        """See `argparse.ArgumentParser`."""
        parsed, rest = super().parse_known_args(*given, **named)
        self._command = getattr(parsed, "command", None)
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        """Called by argparse with what it found wrong."""
        start, _, given = message.partition(": ")
        if start == "unrecognized arguments":
            known = [name for action in self._all_actions() for name in action.option_strings]
            first = next(iter(given.split()), "")
            near = difflib.get_close_matches(first.split("=")[0], known, 1)
            meant = f"Did you mean {near[0]}? " if near else "A value with spaces needs quotes. "
            raise RequestError(
                f"{given if first else shown(given)} is not understood.", f"{meant}All options: {self.prog} --help."
            )
        start = start.removeprefix("argument ")
        if start == "COMMAND":
            raise self._no_such_command(given)
        sentence = f"{start}: {given.rstrip('.')}." if given else f"{message.rstrip('.')}."
        raise RequestError(sentence[0].upper() + sentence[1:], f"See {self.prog} --help.")

    def _no_such_command(self, complaint: str) -> RequestError:
        """`complaint` quotes what was given, and then names the commands."""
        names = [name for action in self._actions for name in action.choices or ()]
        given = complaint.split("'")[1] if "'" in complaint else ""
        near = difflib.get_close_matches(given, names, 1)
        return RequestError(
            f"There is no command {given!r}.", f"Did you mean {near[0]}?" if near else f"Use {', '.join(names)}."
        )

    def _all_actions(self) -> list[argparse.Action]:
        """Its own, and those of the command that was given: unknown options are found out by the outermost parser."""
        found = list(self._actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers = [parser for name, parser in action.choices.items() if self._command in (None, name)]
                found += [a for parser in parsers for a in parser._all_actions()]
        return found


def whole_number(example: int) -> Callable[[str], int]:
    """A `type` for options that take a whole number."""

    def read(text: str) -> int:
        try:
            return int(text)
        except ValueError:
            if text.strip().lstrip("+-").isdecimal():  # Python reads 4300 digits
                raise argparse.ArgumentTypeError(f"{text[:20]}... has {len(text)} digits, which is too many") from None
            near = _nearest_whole(text, example)
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number; write {near}, for example") from None

    return read


def number(example: float) -> Callable[[str], float]:
    """A `type` for options that take a number."""

    def read(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number; write {example:g}, for example") from None

    return read


def _nearest_whole(text: str, example: int) -> int:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return example
    return round(value) if math.isfinite(value) else example
