"""What a report must not say, because people paste it where everybody reads: who and where its writer is."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
import socket
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_NOBODY = {"cpu", "cuda", "gloo", "nccl", "temporary", "current", "linux", "windows", "darwin", "root", "localhost"}
"""Names that identify nobody, and that reports need."""
_PATH = re.compile(r"(?<![\w.~:/\\])(?:[A-Za-z]:[\\/]|\\\\|/)(?:[^\s\"'<>|:;,()\\/]+[\\/])+(?=[^\s\\/])")
"""All but the last name of an absolute path."""


def clean(value: Any, names: Iterable[str], folders: Iterable[str]) -> Any:
    """The same plain data with no such name and no place in it.

    Args:
        value: what `plain` makes; keys are this library's own and stay.
        names: of people and computers; they become "(name)" where they stand as a word.
        folders: absolute paths, whose names may hold spaces; they and all other folders become "...".
    """
    whole = sorted({f.rstrip("\\/") for f in folders if len(f.rstrip("\\/")) > 1}, key=len, reverse=True)
    words = sorted({n for n in names if len(n) > 1 and n.lower() not in _NOBODY}, key=len, reverse=True)
    named = re.compile("|".join(rf"(?<![A-Za-z0-9]){re.escape(w)}(?![A-Za-z0-9])" for w in words) or "(?!)", re.I)

    def tidy(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: tidy(inner) for key, inner in item.items()}
        if isinstance(item, list):
            return [tidy(inner) for inner in item]
        if not isinstance(item, str):
            return item
        for folder in whole:
            item = item.replace(folder, "...")
        return named.sub("(name)", _PATH.sub(".../", item))

    return tidy(value)


def names_here() -> list[str]:
    """The names of this user and this computer."""
    found = [platform.node(), socket.gethostname(), *map(os.environ.get, ("USER", "LOGNAME", "USERNAME"))]
    with contextlib.suppress(OSError, KeyError, ImportError):  # a user without a name, as in containers
        found.append(getpass.getuser())
    return [name for full in found if full for name in (full, full.split(".")[0])]


def folders_here() -> list[str]:
    """The folders of this user, as they may appear in messages."""
    own = [Path.home(), Path.cwd(), Path(tempfile.gettempdir()), Path(sys.prefix), Path(__file__).parents[2]]
    return [str(form) for folder in own for form in (folder, folder.resolve())]
