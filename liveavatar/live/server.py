"""The server of `liveavatar live`: one page, and one WebSocket whose contract stands in `contract`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import json
import logging
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import FPS
from ..errors import LiveAvatarError, RequestError
from ..media.fragments import MIME
from ..media.image import read_image
from ..pipeline import LiveAvatarPipeline
from ..request import Request
from . import voices
from .audio_feed import OUTPUT_RATE
from .contract import MAX_PICTURE, MAX_SAID, VERSION, Message, error_message, parse, samples_of
from .pace import LOOKAHEAD_SECONDS
from .session import LiveSession
from .talk import Talk

if TYPE_CHECKING:
    from aiohttp import web

RESUME_SECONDS = 10.0
"""How long a talk outlives its connection."""
IDLE_SECONDS = 900.0
"""Without anything from the client, a talk ends."""
_PAGE = Path(__file__).with_name("page")
_FILES = {
    "index.html": "text/html",
    "live.js": "text/javascript",
    "player.js": "text/javascript",
    "words.js": "text/javascript",
    "microphone.js": "text/javascript",
    "live.css": "text/css",
}
_SLOW = {"start", "say", "prompt"}
"""Messages whose work takes long."""
_log = logging.getLogger(__name__)


class LiveServer:
    """Serves talks with one pipeline, one at a time; others wait and are told.

    Args:
        pipeline: makes the video.
        image, request: portrait and request where a client names none.
        token: that a client has to know; "" where none is needed.
        origins: pages that may connect besides the server's own, such as "https://example.org".
    """

    def __init__(
        self,
        pipeline: LiveAvatarPipeline,
        image: np.ndarray,
        request: Request,
        token: str = "",
        origins: tuple[str, ...] = (),
        idle_seconds: float = IDLE_SECONDS,
    ):
        self.pipeline, self.image, self.request, self.token, self.origins = pipeline, image, request, token, origins
        self.idle_seconds = idle_seconds
        self.latency_ms: float | None = None
        """From a sample of sound to its picture: as foreseen, then as measured; None: neither is known."""
        self.turn = asyncio.Lock()
        """Held from the first moment of a talk to its last."""
        self.waiting = 0
        self.talk: Talk | None = None
        self.watcher: Connection | None = None
        """The client of the talk, as long as it is there."""
        self._timers: set[asyncio.Task[None]] = set()

    def application(self) -> web.Application:
        """The aiohttp application."""
        from aiohttp import web

        app = web.Application()
        app.router.add_get("/", self._page)
        app.router.add_get("/live", self._socket)
        app.router.add_get("/{name}", self._file)
        app.on_shutdown.append(self._shut_down)
        return app

    async def _shut_down(self, _: web.Application) -> None:
        if self.talk is not None:
            await asyncio.to_thread(self.talk.close)

    def ended(self, error: BaseException | None) -> None:
        """The talk is over: its client is told, and the next one may begin."""
        watcher, self.watcher, self.talk = self.watcher, None, None
        self.turn.release()
        if watcher is not None:
            watcher.say_ended(error)

    def close_unless_resumed(self, talk: Talk) -> None:
        """The client has gone; its talk waits a moment for it."""

        async def close() -> None:
            await asyncio.sleep(RESUME_SECONDS)
            if talk is self.talk and self.watcher is None:
                await asyncio.to_thread(talk.close)

        task = asyncio.ensure_future(close())
        self._timers.add(task)
        task.add_done_callback(self._timers.discard)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return _answer("index.html")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        name = request.match_info["name"]
        if name not in _FILES:
            raise web.HTTPNotFound
        return _answer(name)

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        if not self._may_connect(request):
            raise web.HTTPForbidden(text="This page may not talk to the live server: --origin allows another.")
        socket = web.WebSocketResponse(max_msg_size=MAX_PICTURE, heartbeat=10.0)
        await socket.prepare(request)
        await Connection(self, socket).serve()
        return socket

    def _may_connect(self, request: web.Request) -> bool:
        """Only pages of this server, and programs, which send no origin."""
        origin = request.headers.get("Origin")
        return origin is None or origin.partition("://")[2] == request.host or origin in self.origins


class Connection:
    """One client, from its first message to its last.

    Args:
        server: see there.
        socket: of the client.
    """

    def __init__(self, server: LiveServer, socket: web.WebSocketResponse):
        self.server, self.socket = server, socket
        self._loop = asyncio.get_running_loop()
        self._out: asyncio.Queue[bytes | str | None] = asyncio.Queue()
        self._out_bytes = 0
        self._greeted = self._leaving = self._picture_follows = False
        self._portrait: np.ndarray | None = None
        """Of the talk to come."""
        self._format: tuple[int, Any] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._slow: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Answer messages until the client leaves."""
        from aiohttp import WSMsgType

        sender, ticker = self._begin(self._send_all()), self._begin(self._tick())
        try:
            async for message in self.socket:
                if message.type == WSMsgType.TEXT:
                    await self._read(message.data)
                elif message.type == WSMsgType.BINARY:
                    await self._answer(self._took(message.data))
                if self._leaving:
                    break
        finally:
            for task in (ticker, *self._slow):
                task.cancel()
            await asyncio.gather(*self._slow, return_exceptions=True)
            await self._leave()
            self._out.put_nowait(None)
            await sender

    async def _read(self, text: str) -> None:
        """Do what a text message asks; what takes long is done beside the messages that follow."""
        try:
            message = parse(text)
        except LiveAvatarError as error:
            self._tell(error_message(error))
            return
        work = self._answer(self._said(message))
        if message.type in _SLOW:
            self._slow.add(task := self._begin(work))
            task.add_done_callback(self._slow.discard)
        else:
            await work

    async def _answer(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what a message asks; what is wrong with it is told, and the connection goes on."""
        try:
            await work
        except LiveAvatarError as error:
            self._tell(error_message(error))
        except Exception:
            _log.exception("A message could not be answered.")
            self._tell({"type": "error", "code": "Error", "what": "Something went wrong.", "nearest": "See the log."})

    async def _said(self, message: Message) -> None:
        if not self._greeted and message.type != "hello":
            raise RequestError("The first message is hello.", f'Send {{"type": "hello", "version": {VERSION}}}.')
        if self._talk is not None:
            self._talk.last_heard = time.monotonic()
        await getattr(self, f"_on_{message.type}")(**message.fields)

    async def _took(self, data: bytes) -> None:
        """A binary message: a picture where one was announced, else sound."""
        if self._picture_follows:
            self._picture_follows = False
            await self._use_portrait(await asyncio.to_thread(_picture, data))
        else:
            self._hear(data)

    async def _use_portrait(self, picture: np.ndarray) -> None:
        if self._talk is None:
            self._portrait = picture
        else:
            await asyncio.to_thread(self._talk.session.set_portrait, picture)

    def _hear(self, data: bytes) -> None:
        if self._format is None:
            raise RequestError("The format of the sound is not known.", "Send an audio message with its rate first.")
        rate, encoding = self._format
        talk = self._open_talk()
        talk.last_heard = time.monotonic()
        talk.push(samples_of(data, encoding), rate)

    # -- messages, by their type --

    async def _on_hello(self, version: int, token: str = "", resume: str = "") -> None:
        if version != VERSION:
            raise RequestError(f"The client speaks version {version}.", f"This server speaks version {VERSION}.")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._leaving = True
            raise RequestError("The token is not right.", "The server printed it when it started.")
        self._greeted = True
        talk = self.server.talk
        resumed = talk is not None and bool(resume) and hmac.compare_digest(resume.encode(), talk.token.encode())
        self._tell(
            {
                "type": "ready",
                "version": VERSION,
                "fps": FPS,
                "sample_rate": OUTPUT_RATE,
                "mime": MIME,
                "model": self.server.pipeline.components.name,
                "voice": voices.available(),
                "resumed": resumed,
                "latency_ms": None if self.server.latency_ms is None else round(self.server.latency_ms),
            }
        )
        if talk is not None and resumed:
            if self.server.watcher is not None:
                self.server.watcher.say_ended(None)  # the same talk in another tab
            self._watch(talk)

    async def _on_start(self, lookahead: float = LOOKAHEAD_SECONDS, **options: Any) -> None:
        if self._talk is not None:
            raise RequestError("The talk has begun already.", "Send bye to end it.")
        server, loop = self.server, self._loop
        picture = server.image if self._portrait is None else self._portrait
        await self._take_turn()
        opening = asyncio.ensure_future(asyncio.to_thread(self._open_session, picture, lookahead, options))
        try:
            session = await asyncio.shield(opening)
        except BaseException:
            opening.add_done_callback(self._give_back)
            raise
        server.talk = Talk(session, lambda error: _call(loop, server.ended, error))
        self._watch(server.talk)

    async def _on_audio(self, rate: int, encoding: Any) -> None:
        samples_of(b"", encoding)
        self._format = rate, encoding

    async def _on_say(self, text: str, voice: str = "en-us") -> None:
        if len(text) > MAX_SAID:
            raise RequestError(f"The text has {len(text)} letters.", f"The most are {MAX_SAID}.")
        talk = self._open_talk()
        samples, rate = await asyncio.to_thread(voices.speak, text, voice)
        talk.push(samples, rate)
        talk.session.end_of_speech()

    async def _on_prompt(self, text: str) -> None:
        await asyncio.to_thread(self._open_talk().session.set_prompt, text)

    async def _on_portrait(self) -> None:
        self._picture_follows = True

    async def _on_end_of_speech(self) -> None:
        self._open_talk().session.end_of_speech()

    async def _on_interrupt(self) -> None:
        self._open_talk().session.interrupt()

    async def _on_pause(self) -> None:
        self._open_talk().pause()

    async def _on_resume(self) -> None:
        self._open_talk().resume()

    async def _on_bye(self) -> None:
        self._leaving = True

    # -- turns --

    @property
    def _talk(self) -> Talk | None:
        return self.server.talk if self.server.watcher is self else None

    def _open_talk(self) -> Talk:
        if self._talk is None:
            raise RequestError("There is no talk.", "Send start first.")
        return self._talk

    async def _take_turn(self) -> None:
        server = self.server
        if server.turn.locked():
            self._tell({"type": "waiting", "ahead": server.waiting + 1})
        server.waiting += 1
        try:
            await server.turn.acquire()
        finally:
            server.waiting -= 1

    def _open_session(self, picture: np.ndarray, lookahead: float, options: dict[str, Any]) -> LiveSession:
        request = dataclasses.replace(self.server.request, **options)
        return LiveSession(self.server.pipeline, picture, request, lookahead)

    def _give_back(self, opening: asyncio.Future[LiveSession]) -> None:
        """A session that could not be opened, or that nobody wants any more."""
        if not opening.cancelled() and opening.exception() is None:
            opening.result().close()
        self.server.turn.release()

    def _watch(self, talk: Talk) -> None:
        loop, self.server.watcher = self._loop, self
        talk.watch(lambda data: _call(loop, self._put, data), lambda: self._out_bytes)
        e = talk.session.resolved
        self._tell({"type": "started", "width": e.width, "height": e.height, "seed": e.seed, "resume": talk.token})

    def say_ended(self, error: BaseException | None) -> None:
        """Tell that the talk is over, and why if something broke it off."""
        if isinstance(error, LiveAvatarError):
            self._tell(error_message(error))
        elif error is not None:
            _log.error("The talk broke off.", exc_info=error)
            self._tell({"type": "error", "code": type(error).__name__, "what": "The talk broke off.", "nearest": ""})
        self._tell({"type": "bye"})

    async def _leave(self) -> None:
        """The client has gone: its talk waits a moment for it to come back, unless it said good-bye."""
        talk = self._talk
        if talk is None:
            return
        talk.watch(None)
        if self._leaving:
            await asyncio.to_thread(talk.close)
        else:
            self.server.watcher = None
            self.server.close_unless_resumed(talk)

    # -- what goes out --

    def _tell(self, message: dict[str, Any]) -> None:
        self._put(json.dumps(message, ensure_ascii=False))

    def _put(self, item: bytes | str) -> None:
        self._out_bytes += len(item)
        self._out.put_nowait(item)

    async def _send_all(self) -> None:
        while (item := await self._out.get()) is not None:
            with contextlib.suppress(ConnectionError, RuntimeError):
                await (self.socket.send_str(item) if isinstance(item, str) else self.socket.send_bytes(item))
            self._out_bytes -= len(item)
        with contextlib.suppress(ConnectionError, RuntimeError):
            await self.socket.close()

    async def _tick(self) -> None:
        """Tells how it goes every second, and ends a talk that nobody uses."""
        while True:
            await asyncio.sleep(1.0)
            if (talk := self._talk) is None:
                continue
            stats = talk.session.stats
            self.server.latency_ms = stats.lag_ms or self.server.latency_ms
            self._tell(
                {
                    "type": "stats",
                    "state": "paused" if talk.paused else stats.state,
                    "block": stats.block,
                    "lag_ms": stats.lag_ms,
                    "fps": stats.fps,
                    "queued_s": round(stats.queued_seconds, 2),
                    "late_blocks": stats.late_blocks,
                    "skipped_blocks": talk.skipped_blocks,
                }
            )
            if time.monotonic() - talk.last_heard > self.server.idle_seconds:
                self._leaving = True
                await self.socket.close(message=b"idle")

    def _begin(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *given: Any) -> None:
    """Call something in the server's thread from another one; after the server's end, nothing happens."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *given)


def _answer(name: str) -> web.Response:
    from aiohttp import web

    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    text = (_PAGE / name).read_text(encoding="utf-8")
    return web.Response(text=text, content_type=_FILES[name], headers=headers)


def _picture(content: bytes) -> np.ndarray:
    """A picture that a client sent; the file it is read from is private and gone at once."""
    with tempfile.TemporaryDirectory(prefix="liveavatar-portrait-") as folder:  # private to this user
        file = Path(folder) / "portrait"
        file.write_bytes(content)
        return read_image(file)
