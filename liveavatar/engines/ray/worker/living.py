"""What every worker process can do, whatever it works at."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..cluster import service
from ..cluster.processes import last_lines
from ..plain import Greeting, plain


class Living:
    """A worker process.

    Args:
        log: the file that gets all it says.
    """

    def __init__(self, log: str) -> None:
        self._log = Path(log)

    def greet(self) -> tuple[Any, ...]:
        """See `Greeting`. Removes what workers that were killed have left on this machine."""
        service.sweep()
        return plain(Greeting.own())

    def last_lines(self) -> list[str]:
        """The end of its log."""
        return last_lines(self._log)

    def tidy(self) -> None:
        """Remove its log, with the folder that was made for it; called before the worker is ended."""
        shutil.rmtree(self._log.parent, ignore_errors=True)
