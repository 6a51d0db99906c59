"""A talk on its way to an address on the network: sent by a process of its own, never waited for."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import BinaryIO, Literal, cast

from ..files import write_all
from .addresses import OutputAddress
from .audio_feed import OUTPUT_RATE
from .block import PIECES, LivePiece
from .sender import Order, start

WAITING_BLOCKS = 4
"""Blocks that wait to be sent; with more, as much as a block is left out of the oldest, picture and sound."""
PATIENCE_SECONDS = 10.0
"""A server that takes so long to let us in, or to take a block, is lost."""
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""Before each further attempt; the last one for all that follow."""
_FAREWELL_SECONDS = 3.0
_POLL_SECONDS = 0.2
NetworkState = Literal["connecting", "sending", "lost", "closed"]


@dataclasses.dataclass(frozen=True)
class OutputStatus:
    """How one output of a talk goes, for people and clients.

    Attributes:
        to: where, without secrets.
        state: "connecting", "sending", "lost" (another attempt follows), "closed"; of a file: "recording", "failed".
        what: what is wrong, a sentence, or "".
        skipped_blocks: that were left out.
    """

    to: str
    state: str
    what: str = ""
    skipped_blocks: int = 0


class _Lost(Exception):
    """The server is out of reach; says why."""


class NetworkOutput:
    """Sends pieces of video to an address, for as long as it lives: a server that is lost is tried again and again.

    Args:
        address: where to.
        width, height: pixels of the images, even.
        on_change: called with every new state, in the output's own thread.
        patience, retries: see `PATIENCE_SECONDS` and `RETRY_SECONDS`.
    """

    def __init__(
        self,
        address: OutputAddress,
        width: int,
        height: int,
        on_change: Callable[[OutputStatus], None] = lambda status: None,
        patience: float = PATIENCE_SECONDS,
        retries: tuple[float, ...] = RETRY_SECONDS,
    ):
        self.address, self._on_change, self._patience, self._retries = address, on_change, patience, retries
        self._order = _order(address, width, height)
        self._waiting: deque[LivePiece] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._child: subprocess.Popen[bytes] | None = None
        self._busy_since: float | None = None
        """Since when the server is waited for."""
        self.status = OutputStatus(address.shown, "connecting")
        self._thread = threading.Thread(target=self._run, name="liveavatar-network", daemon=True)
        self._thread.start()

    def put(self, piece: LivePiece) -> None:
        """Send a piece; never waits."""
        with self._changed:
            if len(self._waiting) == WAITING_BLOCKS * PIECES:
                for _ in range(PIECES):
                    self._waiting.popleft()
                self.status = dataclasses.replace(self.status, skipped_blocks=self.status.skipped_blocks + 1)
            self._waiting.append(piece)
            self._changed.notify()
        since = self._busy_since
        if since is not None and time.monotonic() - since > self._patience:
            self._kill()

    def close(self) -> None:
        """Send what waits, if the server takes it, and end. May be called again."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_FAREWELL_SECONDS)
        while self._thread.is_alive():
            self._kill()
            self._thread.join(_POLL_SECONDS)

    def _run(self) -> None:
        failures = 0
        while not self._closing:
            self._set("connecting", self.status.what)
            try:
                self._send_all()
            except (_Lost, OSError, ValueError) as error:
                failures = 1 if self.status.state == "sending" else failures + 1
                why = str(error) if isinstance(error, _Lost) else "the connection was closed"
                self._wait_to_retry(why, self._retries[min(failures, len(self._retries)) - 1])
        self._set("closed")

    def _send_all(self) -> None:
        """One connection, until all is over.

        Raises:
            _Lost: the server does not let us in, or is lost.
        """
        with start() as self._child:
            try:
                self._write(json.dumps(dataclasses.asdict(self._order)).encode() + b"\n")
                self._hear_of(self._child)
                self._forget_waiting()
                self._set("sending")
                while (piece := self._next()) is not None:
                    self._write(piece.images.tobytes() + piece.audio.tobytes())
                self._child.communicate(timeout=_FAREWELL_SECONDS)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise _Lost(self._last_words(error)) from error
            finally:
                self._busy_since = None
                self._kill()

    def _write(self, data: bytes) -> None:
        assert self._child is not None and self._child.stdin is not None
        self._busy_since = time.monotonic()
        write_all(cast(BinaryIO, self._child.stdin), data)
        self._busy_since = None

    def _hear_of(self, child: subprocess.Popen[bytes]) -> None:
        """Wait until the server has let the child in; how long the child takes to start says nothing of the server."""
        self._expect(child, "connecting")
        self._busy_since = time.monotonic()
        self._expect(child, "sending")
        self._busy_since = None

    def _expect(self, child: subprocess.Popen[bytes], state: str) -> None:
        assert child.stdout is not None
        answer = json.loads(child.stdout.readline() or b"{}")
        if answer.get("state") != state:
            raise _Lost(answer.get("error") or self._silence)

    def _last_words(self, error: Exception) -> str:
        """What the child said before it went."""
        child = self._child
        if isinstance(error, BrokenPipeError) and child is not None and child.stdout is not None:
            with contextlib.suppress(ValueError):
                if answer := json.loads(child.stdout.readline() or b"{}"):
                    return str(answer.get("error"))
        return self._silence

    @property
    def _silence(self) -> str:
        return f"it did not answer within {self._patience:g} s"

    def _next(self) -> LivePiece | None:
        """The next piece; None when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return self._waiting.popleft() if self._waiting else None

    def _forget_waiting(self) -> None:
        """What was said while nobody could hear it would only come late."""
        with self._changed:
            self._waiting.clear()

    def _wait_to_retry(self, why: str, seconds: float) -> None:
        self._set("lost", f"{self.address.shown}: {why}. The talk goes on; another attempt follows in {seconds:g} s.")
        with self._changed:
            self._changed.wait_for(lambda: self._closing, seconds)

    def _set(self, state: NetworkState, what: str = "") -> None:
        with self._changed:
            self.status = dataclasses.replace(self.status, state=state, what=what)
        self._on_change(self.status)

    def _kill(self) -> None:
        if (child := self._child) is not None:
            child.kill()


def _order(address: OutputAddress, width: int, height: int) -> Order:
    return Order(
        url=address.url,
        host=address.host,
        format=address.protocol.format,
        options=dict(address.options),
        needs_program=address.needs_program,
        width=width,
        height=height,
        rate=OUTPUT_RATE,
    )
