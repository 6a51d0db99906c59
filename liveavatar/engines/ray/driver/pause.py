"""A video at rest between two of its blocks."""

from __future__ import annotations

import time

from ....session import OnNotice
from .turns import NOTICE_SECONDS


class Pause:
    """Whether new blocks must wait. Set and read from any thread; what has begun goes on.

    Attributes:
        on: whether they must.
    """

    def __init__(self) -> None:
        self.on = False
        self._said = float("-inf")

    def mention(self, on_notice: OnNotice) -> None:
        """Say so, unless that was said less than a second ago; what `on_notice` raises passes through."""
        now = time.monotonic()
        if now - self._said >= NOTICE_SECONDS:
            self._said = now
            on_notice("Paused.")
