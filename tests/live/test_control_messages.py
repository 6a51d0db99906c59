"""A hundred random messages, good and bad, with reconnections between: every answer is typed, the server lives on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from live.conftest import REQUEST
from live.test_server import PICTURE, SOUND, aiohttp, serving

from liveavatar import LiveAvatarPipeline, errors
from liveavatar.live import room as live_room
from liveavatar.live.contract import MESSAGES

STATES = {"idle", "speaking", "starved", "interrupted", "paused", "closed"}
KINDS = {"ready", "waiting", "started", "answer", "stats", "error", "bye"}
CODES = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
"""Of errors that are typed: "Error", something unforeseen, is none of them."""
SECONDS = 60
JSON = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)


class Host:
    """A server in a thread of its own, for as long as the tests of this file run."""

    def __init__(self, pipeline: LiveAvatarPipeline, image: np.ndarray):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._stack = contextlib.AsyncExitStack()
        self.run(self._begin(pipeline, image))

    async def _begin(self, pipeline: LiveAvatarPipeline, image: np.ndarray) -> None:
        self.server, self.url = await self._stack.enter_async_context(serving(pipeline, image))
        self.http = await self._stack.enter_async_context(aiohttp.ClientSession())

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    def close(self) -> None:
        self.run(self._stack.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


HOST: list[Host] = []
"""The one that runs."""


@pytest.fixture(scope="module", autouse=True)
def host(pipeline: LiveAvatarPipeline, image: np.ndarray) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live_room, "RESUME_SECONDS", 0.3)
        HOST.append(Host(pipeline, image))
        yield
        HOST.pop().close()


class Visitor:
    """A client that sends anything, and checks all that it is told."""

    def __init__(self) -> None:
        self.host = HOST[0]
        self.resume, self.syncs = "", 0
        self.connect()

    def connect(self) -> None:
        """A new connection; what it was told before is forgotten."""
        self.told: list[dict[str, Any]] = []
        self.socket = self.host.run(self.host.http.ws_connect(f"{self.host.url}/live", max_msg_size=0))
        self.open = True

    def text(self, text: str) -> None:
        with contextlib.suppress(ConnectionError):
            self.host.run(self.socket.send_str(text))

    def send(self, kind: str, **fields: Any) -> None:
        self.text(json.dumps({"type": kind, **fields}))

    def binary(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self.host.run(self.socket.send_bytes(data))

    def settle(self) -> None:
        """Wait until all that was sent is read: the answer to a message of an unknown type tells."""
        self.syncs += 1
        mark = f"mark-{self.syncs}"
        self.send(mark)
        self.until(lambda message: mark in message.get("what", ""))

    def until(self, found: Any) -> dict[str, Any] | None:
        """The first message like that; None where the connection was closed before."""
        return self.host.run(self._until(found))

    async def _until(self, found: Any) -> dict[str, Any] | None:
        async with asyncio.timeout(SECONDS):
            while True:
                message = await self.socket.receive()
                if message.type == aiohttp.WSMsgType.BINARY:
                    continue
                if message.type != aiohttp.WSMsgType.TEXT:
                    self.open = False
                    return None
                self.told.append(told := json.loads(message.data))
                self.check(told)
                if told["type"] == "started":
                    self.resume = told["resume"]
                if found(told):
                    return told

    def check(self, told: dict[str, Any]) -> None:
        """Every message is one of the contract."""
        assert told["type"] in KINDS, told
        if told["type"] == "error":
            assert told["code"] in CODES and told["what"], told
        if told["type"] == "stats":
            assert told["state"] in STATES, told

    def close(self) -> None:
        self.host.run(self.socket.close())
        self.open = False


there = precondition(lambda self: self.visitor.open)


class Talks(RuleBasedStateMachine):
    """One client that does all it can, and a second one that looks in."""

    visitor: Visitor

    @initialize(greets=st.sampled_from([True, True, True, False]))
    def come(self, greets: bool) -> None:
        self.visitor = Visitor()
        if greets:
            self.visitor.send("hello", version=1)
            self.start_well()

    @there
    @rule(kind=st.sampled_from(sorted(MESSAGES)), fields=st.dictionaries(st.sampled_from(["text", "sdp", "x"]), JSON))
    def say_anything(self, kind: str, fields: dict[str, Any]) -> None:
        self.visitor.send(kind, **fields)

    @there
    @rule(text=st.text(max_size=20) | JSON.map(json.dumps) | st.just("[" * 9_000) | st.just("x" * 70_000))
    def say_nonsense(self, text: str) -> None:
        self.visitor.text(text)

    @there
    @rule(version=st.sampled_from([1, 1, 1, 0, -7, 10**30]), resume=st.booleans())
    def greet(self, version: int, resume: bool) -> None:
        self.visitor.send("hello", version=version, **({"resume": self.visitor.resume} if resume else {}))

    @there
    @rule(
        size=st.sampled_from(["64x64", "64x64", "1x1", "huge", ""]),
        seed=st.sampled_from([1, -1, 2**70]),
        lookahead=st.sampled_from([0, 0.16, 9, -1]),
        speakers=st.sampled_from([{}, {"areas": ["left", "right"]}, {"areas": ["left"]}, {"speakers": 2}]),
    )
    def start(self, size: str, seed: int, lookahead: float, speakers: dict[str, Any]) -> None:
        self.visitor.send("start", size=size, seed=seed, lookahead=lookahead, **speakers)

    @there
    @rule()
    def start_well(self) -> None:
        self.visitor.send("start")
        self.visitor.until(lambda told: told["type"] in ("started", "waiting", "error"))

    @there
    @rule(
        rate=st.sampled_from([16_000, 48_000, 44_100, 0, -1, 10**9]),
        encoding=st.sampled_from(["s16le", "f32le"]),
        speaker=st.sampled_from([None, 1, 2, 0, 10**30]),
    )
    def state_format(self, rate: int, encoding: str, speaker: int | None) -> None:
        self.visitor.send("audio", rate=rate, encoding=encoding, speaker=speaker)

    @there
    @rule(data=st.binary(max_size=64) | st.sampled_from([SOUND, PICTURE, b"", SOUND[:-1], b"\xff" * 400]))
    def send_bytes(self, data: bytes) -> None:
        self.visitor.binary(data)

    @there
    @rule(text=st.sampled_from(["Hello.", "", "x" * 3000]), voice=st.sampled_from(["en-us", "no such voice"]))
    def have_said(self, text: str, voice: str) -> None:
        self.visitor.send("say", text=text, voice=voice)

    @there
    @rule(kind=st.sampled_from(["end_of_speech", "interrupt", "pause", "resume", "portrait", "hang_up"]))
    def press(self, kind: str) -> None:
        self.visitor.send(kind)

    @there
    @rule(
        kind=st.sampled_from(["end_of_speech", "interrupt", "mask"]),
        speaker=st.sampled_from([1, 2, 9, -1, 10**30]),
    )
    def name_a_speaker(self, kind: str, speaker: int) -> None:
        self.visitor.send(kind, speaker=speaker)

    @there
    @rule(prompt=st.sampled_from(["A person smiles.", "", "word " * 2000]))
    def change_prompt(self, prompt: str) -> None:
        self.visitor.send("prompt", text=prompt)

    @rule(greets=st.booleans(), resume=st.booleans(), first=st.booleans())
    def come_back(self, greets: bool, resume: bool, first: bool) -> None:
        """On a new connection, before the old one has gone or behind it."""
        visitor, old = self.visitor, self.visitor.socket
        if first:
            visitor.close()
        visitor.connect()
        if greets:
            visitor.send("hello", version=1, **({"resume": visitor.resume} if resume else {}))
        visitor.settle()
        visitor.host.run(old.close())

    @rule()
    def look_in(self) -> None:
        """Somebody else is greeted at any time."""
        other = Visitor()
        other.send("hello", version=1)
        assert other.until(lambda told: told["type"] == "ready")
        other.close()

    @precondition(lambda self: not self.visitor.open)
    @rule(resume=st.booleans())
    def come_anew(self, resume: bool) -> None:
        self.visitor.connect()
        self.visitor.send("hello", version=1, **({"resume": self.visitor.resume} if resume else {}))
        self.start_well()

    @invariant()
    def every_answer_is_typed_and_there_is_one_talk_at_most(self) -> None:
        if self.visitor.open:
            self.visitor.settle()
        talk = HOST[0].server.room.talk
        talking = [thread for thread in threading.enumerate() if thread.name == "liveavatar-talk"]
        assert len(talking) <= 2, "one that ends, and one that begins"
        assert talk is None or talk.session.stats.state in STATES

    def teardown(self) -> None:
        """Whatever was said, the next client gets its talk."""
        if not hasattr(self, "visitor"):
            return
        if self.visitor.open:
            self.visitor.settle()
            self.visitor.close()
        last = Visitor()
        last.send("hello", version=1)
        last.send("start", size="x".join(str(REQUEST.size).split("x")))
        assert last.until(lambda told: told["type"] == "started"), last.told
        assert last.until(lambda told: told["type"] == "stats")["state"] in STATES
        last.send("bye")
        assert last.until(lambda told: False) is None
        assert not any(told["type"] == "error" for told in last.told), last.told


Talks.TestCase.settings = settings(
    max_examples=4,
    stateful_step_count=100,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # making a failure smaller takes many talks
)
TestTalks = Talks.TestCase
