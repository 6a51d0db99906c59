"""A talk inside another program that has a server of its own, such as a node of a graph."""

from __future__ import annotations

import asyncio
import math
import secrets
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from .connection import call_in
from .network import NetworkOutput, OutputStatus
from .room import Room
from .scene import WantedScene
from .talk import Talk

if TYPE_CHECKING:
    from .connection import Connection


PAGE_SECONDS = 30.0
"""How long a talk waits for its page to come back: a host's page may take long to load."""


class HostedRoom(Room):
    """A room whose talk the host begins and ends. One page, which was given the token, watches, speaks and may stop it.

    A page that comes back, or another one with the token, takes the place of the one before. What is not said
    otherwise is called in the host's own thread.

    Args:
        model: see `Room`.
        loop: of the server, in another thread.
        details: that a page is told when it says hello.
        needs_page: whether the talk ends when its page has been gone for a while.
    """

    def __init__(self, model: str, loop: asyncio.AbstractEventLoop, details: dict[str, Any], needs_page: bool):
        super().__init__(model, secrets.token_urlsafe(24), math.inf)
        self.details, self.needs_page, self.resume_seconds = details, needs_page, PAGE_SECONDS
        self._loop = loop
        self._own: Talk | None = None
        self._network: NetworkOutput | None = None
        self.answered = threading.Event()
        """A page is there, or was."""
        self.stopped = threading.Event()
        """The page wants the talk to end."""
        self.over = threading.Event()
        """The talk has ended."""
        self.error: BaseException | None = None
        """What broke it off."""

    def begin(
        self,
        make: Callable[[Callable[[BaseException | None], None]], Talk],
        network: NetworkOutput | None = None,
    ) -> None:
        """Begin the talk: `make` is given what is to be called at its end; its page is told how the network goes."""
        self._network = network
        self._own = make(self._on_end)
        call_in(self._loop, self._present, self._own)

    def close(self) -> None:
        """End the talk, if it has begun, and let the page go. May be called again."""
        if self._own is not None:
            self._own.close()
        self.over.set()
        call_in(self._loop, self.ended, None)

    @property
    def outputs(self) -> tuple[OutputStatus, ...]:
        """See `Room`."""
        return () if self._network is None else (self._network.status,)

    # -- in the thread of the server --

    async def start(self, client: Connection, wanted: WantedScene, lookahead: float, options: dict[str, Any]) -> None:
        """Refused."""
        raise RequestError("The graph begins this talk, not its page.", "Queue the graph.")

    def admit(self, client: Connection, resume: str) -> Callable[[], None] | None:
        """The token is enough to come back."""
        before, self.watcher = self.watcher, client
        self.answered.set()
        if before is not None and before is not client:
            before.say_ended(None)
            before.hang_up()
        talk = self.talk
        return None if talk is None else lambda: client.watch(talk)

    async def leave(self, client: Connection, for_good: bool) -> None:
        """As `Room`; good-bye while it loads counts, too."""
        if for_good and self.watcher is client:
            self.stopped.set()
        await super().leave(client, for_good)

    def ended(self, error: BaseException | None) -> None:
        """The page is told and let go."""
        watcher = self.watcher
        super().ended(error)
        if watcher is not None:
            watcher.hang_up()

    def close_unless_resumed(self, talk: Talk) -> None:
        """Where nobody has to be there, the talk goes on."""
        if self.needs_page:
            super().close_unless_resumed(talk)

    def _present(self, talk: Talk) -> None:
        if self.over.is_set():
            return
        self.talk = talk
        if self.watcher is not None:
            self.watcher.watch(talk)
        else:
            self.close_unless_resumed(talk)

    def _on_end(self, error: BaseException | None) -> None:
        self.error = error
        self.over.set()
        call_in(self._loop, self.ended, error)
