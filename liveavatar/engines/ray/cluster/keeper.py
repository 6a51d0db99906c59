"""The thread that starts Ray, and stays for as long as Ray does.

Linux ends Ray's processes together with the thread that started them, and callers may come in threads that end soon.
Ray also leaves the host's signals alone when it is started in any thread but the first.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable


class Keeper:
    """One such thread.

    Args:
        start: starts Ray.

    Raises:
        Whatever `start` raises.
    """

    def __init__(self, start: Callable[[], object]):
        self._started, self._over = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        threading.Thread(target=self._work, args=(start,), name="liveavatar-ray", daemon=True).start()
        self._started.wait()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Ray has ended."""
        self._over.set()

    def _work(self, start: Callable[[], object]) -> None:
        log = logging.getLogger("ray._private.worker")
        log.addFilter(_is_news)
        try:
            start()
        except BaseException as error:
            self._error = error
            return
        finally:
            log.removeFilter(_is_news)
            self._started.set()
        self._over.wait()


def _is_news(record: logging.LogRecord) -> bool:
    """That signals are left alone is what is wanted."""
    return "SIGTERM handler" not in record.getMessage()
