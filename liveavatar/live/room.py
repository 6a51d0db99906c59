"""Where a talk goes on: who watches it, who may come back to it, and who waits for the next one."""

from __future__ import annotations

import abc
import asyncio
import dataclasses
import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from ..pipeline import LiveAvatarPipeline
from ..request import Request
from .connection import call_in
from .network import OutputStatus
from .outputs import Outputs, TalkOutputs
from .scene import Scene, WantedScene
from .session import LiveSession
from .talk import Talk

if TYPE_CHECKING:
    from .connection import Connection

RESUME_SECONDS = 10.0
"""How long a talk outlives its connection."""
IDLE_SECONDS = 900.0
"""Without anything from the client, a talk ends."""


class Room(abc.ABC):
    """One talk at a time and its one watcher. All is called in the thread of the server's event loop.

    Args:
        model: whose name clients are told.
        token: that a client has to know; "" where none is needed.
        idle_seconds: see `IDLE_SECONDS`.
    """

    def __init__(self, model: str, token: str = "", idle_seconds: float = IDLE_SECONDS):
        self.model, self.token, self.idle_seconds = model, token, idle_seconds
        self.resume_seconds = RESUME_SECONDS
        self.speaker_count = 1
        """How many speak where a client wants nothing else."""
        self.details: dict[str, Any] = {}
        """What else a client is told that says hello."""
        self.latency_ms: float | None = None
        """From a sample of sound to its picture: as foreseen, then as measured; None: neither is known."""
        self.talk: Talk | None = None
        self.watcher: Connection | None = None
        """The client of the talk, as long as it is there."""
        self._timers: set[asyncio.Task[None]] = set()

    @abc.abstractmethod
    async def start(self, client: Connection, wanted: WantedScene, lookahead: float, options: dict[str, Any]) -> None:
        """A client asks for a talk.

        Args:
            client: who asks.
            wanted: whom it wants to see.
            lookahead: seconds.
            options: fields of the request.

        Raises:
            LiveAvatarError: it cannot begin.
        """

    def admit(self, client: Connection, resume: str) -> Callable[[], None] | None:
        """A client has said hello: what lets it watch the talk that it came back to, or None where it is new."""
        talk = self.talk
        if talk is None or not resume or not hmac.compare_digest(resume.encode(), talk.token.encode()):
            return None
        return lambda: self.watch(client, talk)

    def watch(self, client: Connection, talk: Talk) -> None:
        """From now on this client watches the talk; one that did before is told that it is over."""
        if self.watcher is not None and self.watcher is not client:
            self.watcher.say_ended(None)  # the same talk in another tab
        self.watcher = client
        client.watch(talk)

    async def leave(self, client: Connection, for_good: bool) -> None:
        """A client has gone: its talk waits a moment for it to come back, unless it said good-bye."""
        if self.watcher is not client:
            return
        talk = self.talk
        if talk is not None:
            talk.watch(None)
        if for_good and talk is not None:
            await asyncio.to_thread(talk.close)
        else:
            self.watcher = None
            if talk is not None:
                self.close_unless_resumed(talk)

    def ended(self, error: BaseException | None) -> None:
        """The talk is over: its client is told."""
        watcher, self.watcher, self.talk = self.watcher, None, None
        for timer in self._timers:
            timer.cancel()
        if watcher is not None:
            watcher.say_ended(error)

    @property
    def outputs(self) -> tuple[OutputStatus, ...]:
        """How what the talk is sent and written to goes, besides its watcher."""
        return ()

    def close_unless_resumed(self, talk: Talk) -> None:
        """The client has gone; its talk waits a moment for it."""

        async def close() -> None:
            await asyncio.sleep(self.resume_seconds)
            if talk is self.talk and self.watcher is None:
                await asyncio.to_thread(talk.close)

        task = asyncio.ensure_future(close())
        self._timers.add(task)
        task.add_done_callback(self._timers.discard)


class WaitingRoom(Room):
    """A room whose clients begin talks themselves, with one pipeline, one after the other; who waits is told.

    Args:
        pipeline: makes the video.
        scene, request: where a client names none.
        token, idle_seconds: see `Room`.
        outputs: where every talk goes besides its watcher.
    """

    def __init__(
        self,
        pipeline: LiveAvatarPipeline,
        scene: Scene,
        request: Request,
        token: str = "",
        idle_seconds: float = IDLE_SECONDS,
        outputs: Outputs | None = None,
    ):
        super().__init__(pipeline.components.name, token, idle_seconds)
        self.pipeline, self.scene, self.request = pipeline, scene, request
        self.speaker_count = scene.speaker_count
        self._all_outputs = outputs or Outputs()
        self._outputs: TalkOutputs | None = None
        self._turn = asyncio.Lock()
        """Held from the first moment of a talk to its last."""
        self._waiting = 0

    async def start(self, client: Connection, wanted: WantedScene, lookahead: float, options: dict[str, Any]) -> None:
        """Wait until it is the client's turn, and begin."""
        if self.watcher is client:
            raise RequestError("The talk has begun already.", "Send bye to end it.")
        scene = wanted.over(self.scene)
        loop = asyncio.get_running_loop()
        await self._take_turn(client)
        opening = asyncio.ensure_future(asyncio.to_thread(self._open, scene, lookahead, options))
        try:
            session = await asyncio.shield(opening)
        except BaseException:
            opening.add_done_callback(self._give_back)
            raise
        self._outputs = outputs = self._all_outputs.begin(session)

        def on_end(error: BaseException | None) -> None:
            outputs.close()
            call_in(loop, self.ended, error)

        self.talk = Talk(session, on_end, outputs.write)
        self.watch(client, self.talk)

    @property
    def outputs(self) -> tuple[OutputStatus, ...]:
        """See `Room`."""
        return () if self._outputs is None else self._outputs.statuses

    def ended(self, error: BaseException | None) -> None:
        """The next one may begin, too."""
        self._turn.release()
        super().ended(error)

    async def _take_turn(self, client: Connection) -> None:
        if self._turn.locked():
            client.tell({"type": "waiting", "ahead": self._waiting + 1})
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1

    def _open(self, scene: Scene, lookahead: float, options: dict[str, Any]) -> LiveSession:
        request = dataclasses.replace(self.request, **options)
        return LiveSession(self.pipeline, scene.image, request, lookahead, speakers=scene.masks)

    def _give_back(self, opening: asyncio.Future[LiveSession]) -> None:
        """A session that could not be opened, or that nobody wants any more."""
        if not opening.cancelled() and opening.exception() is None:
            opening.result().close()
        self._turn.release()
