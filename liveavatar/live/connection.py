"""One client of a live talk, whose contract stands in `contract`."""

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
from . import voices, webrtc
from .audio_feed import OUTPUT_RATE
from .contract import MAX_SAID, VERSION, Message, error_message, parse, samples_of
from .pace import LOOKAHEAD_SECONDS
from .talk import Talk
from .viewers import FragmentViewer

if TYPE_CHECKING:
    from aiohttp import web

    from .room import Room

_SLOW = {"start", "say", "prompt", "offer"}
"""Messages whose work takes long."""
_log = logging.getLogger(__name__)


class Connection:
    """One client, from its first message to its last.

    Args:
        room: where its talk is.
        socket: of the client.
    """

    def __init__(self, room: Room, socket: web.WebSocketResponse):
        self.room, self.socket = room, socket
        self._loop = asyncio.get_running_loop()
        self._out: asyncio.Queue[bytes | str | None] = asyncio.Queue()
        self._out_bytes = 0
        self._greeted = self._leaving = self._picture_follows = False
        self._portrait: np.ndarray | None = None
        """Of the talk to come."""
        self._format: tuple[int, Any] | None = None
        self._viewer: FragmentViewer | None = None
        self._peer: webrtc.WebRtcPeer | None = None
        """Whoever watches over WebRTC."""
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
                    await self._answer(self._took, message.data)
                if self._leaving:
                    break
        finally:
            for task in (ticker, *self._slow):
                task.cancel()
            await asyncio.gather(*self._slow, return_exceptions=True)
            await self.room.leave(self, self._leaving)
            await self._close_peer()
            self._out.put_nowait(None)
            await sender

    async def _read(self, text: str) -> None:
        """Do what a text message asks; what takes long is done beside the messages that follow."""
        try:
            message = parse(text)
        except LiveAvatarError as error:
            self.tell(error_message(error))
            return
        work = self._answer(self._said, message)
        if message.type in _SLOW:
            self._slow.add(task := self._begin(work))
            task.add_done_callback(self._slow.discard)
        else:
            await work

    async def _answer(self, work: Callable[[Any], Coroutine[Any, Any, None]], asked: Any) -> None:
        """Do what a message asks; what is wrong with it is told, and the connection goes on."""
        try:
            await work(asked)
        except LiveAvatarError as error:
            self.tell(error_message(error))
        except Exception:
            _log.exception("A message could not be answered.")
            self.tell({"type": "error", "code": "Error", "what": "Something went wrong.", "nearest": "See the log."})

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
        if not hmac.compare_digest(token.encode(), self.room.token.encode()):
            self._leaving = True
            raise RequestError("The token is not right.", "The server printed it when it started.")
        self._greeted = True
        watch = self.room.admit(self, resume)
        self.tell(
            {
                "type": "ready",
                "version": VERSION,
                "fps": FPS,
                "sample_rate": OUTPUT_RATE,
                "mime": MIME,
                "model": self.room.model,
                "voice": voices.available(),
                "webrtc": webrtc.available(),
                "resumed": watch is not None,
                "latency_ms": None if self.room.latency_ms is None else round(self.room.latency_ms),
                **self.room.details,
            }
        )
        if watch is not None:
            watch()

    async def _on_start(self, lookahead: float = LOOKAHEAD_SECONDS, **options: Any) -> None:
        await self.room.start(self, self._portrait, lookahead, options)

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

    async def _on_offer(self, sdp: str) -> None:
        talk = self._open_talk()
        await self._on_hang_up()
        self._peer = peer = webrtc.WebRtcPeer(lambda connected: self._peer_changed(peer, talk, connected))
        self.tell({"type": "answer", "sdp": await peer.answer(sdp)})

    async def _on_hang_up(self) -> None:
        if self._peer is not None:
            await self._close_peer()
            self._show_fragments(self._open_talk())

    async def _on_end_of_speech(self) -> None:
        self._open_talk().session.end_of_speech()

    async def _on_interrupt(self) -> None:
        self._open_talk().interrupt()

    async def _on_pause(self) -> None:
        self._open_talk().pause()

    async def _on_resume(self) -> None:
        self._open_talk().resume()

    async def _on_bye(self) -> None:
        self._leaving = True

    # -- its talk --

    @property
    def _talk(self) -> Talk | None:
        return self.room.talk if self.room.watcher is self else None

    def _open_talk(self) -> Talk:
        if self._talk is None:
            raise RequestError("There is no talk.", "Send start first.")
        return self._talk

    def watch(self, talk: Talk) -> None:
        """Send the talk's video from its next block on."""
        self._show_fragments(talk)
        e = talk.session.resolved
        self.tell({"type": "started", "width": e.width, "height": e.height, "seed": e.seed, "resume": talk.token})

    def _show_fragments(self, talk: Talk) -> None:
        self._viewer = FragmentViewer(lambda data: call_in(self._loop, self._put, data), lambda: self._out_bytes)
        talk.watch(self._viewer.show)

    def _peer_changed(self, peer: webrtc.WebRtcPeer, talk: Talk, connected: bool) -> None:
        """WebRTC takes the place of the fragments as long as it is connected."""
        if peer is not self._peer or talk is not self._talk:
            return
        if connected:
            talk.watch(lambda block: call_in(self._loop, peer.put, block))
        else:
            self._show_fragments(talk)

    async def _close_peer(self) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            await peer.close()

    def say_ended(self, error: BaseException | None) -> None:
        """Tell that the talk is over, and why if something broke it off."""
        if isinstance(error, LiveAvatarError):
            self.tell(error_message(error))
        elif error is not None:
            _log.error("The talk broke off.", exc_info=error)
            self.tell({"type": "error", "code": type(error).__name__, "what": "The talk broke off.", "nearest": ""})
        self.tell({"type": "bye"})
        self._begin(self._close_peer())

    def hang_up(self) -> None:
        """Close the connection when all that was told is sent."""
        self._out.put_nowait(None)

    # -- what goes out --

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message."""
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
            self.room.latency_ms = stats.lag_ms or self.room.latency_ms
            self.tell(
                {
                    "type": "stats",
                    "state": "paused" if talk.paused else stats.state,
                    "block": stats.block,
                    "lag_ms": stats.lag_ms,
                    "fps": stats.fps,
                    "queued_s": round(stats.queued_seconds, 2),
                    "listening": talk.sounds.over,
                    "late_blocks": stats.late_blocks,
                    "skipped_blocks": self._skipped_blocks,
                    "playout_ms": 0 if self._peer is None else round(1000 * self._peer.waiting_seconds),
                    "outputs": [dataclasses.asdict(status) for status in self.room.outputs],
                }
            )
            if time.monotonic() - talk.last_heard > self.room.idle_seconds:
                self._leaving = True
                await self.socket.close(message=b"idle")

    @property
    def _skipped_blocks(self) -> int:
        fragments = 0 if self._viewer is None else self._viewer.skipped_blocks
        return fragments + (0 if self._peer is None else self._peer.playout.skipped_blocks)

    def _begin(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def call_in(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *given: Any) -> None:
    """Call something in the server's thread from another one; after the server's end, nothing happens."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *given)


def _picture(content: bytes) -> np.ndarray:
    """A picture that a client sent; the file it is read from is private and gone at once."""
    with tempfile.TemporaryDirectory(prefix="liveavatar-portrait-") as folder:  # private to this user
        file = Path(folder) / "portrait"
        file.write_bytes(content)
        return read_image(file)
