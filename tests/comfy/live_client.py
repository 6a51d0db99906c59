"""A client of a running ComfyUI: queues prompts, listens until they end, and says what happened."""

from __future__ import annotations

import dataclasses
import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from live_socket import Websocket

Prompt = Mapping[str, Mapping[str, Any]]
"""A graph in API format: node id -> class_type and inputs."""

PROGRESS = "liveavatar.progress"
_PREVIEW, _PREVIEW_WITH_METADATA = 1, 4


class Refused(Exception):
    """The server did not queue the prompt.

    Attributes:
        error: what is wrong with the prompt as a whole.
        nodes: what is wrong with which node: id -> {"errors": [{"message", "details", ...}]}.
    """

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self.error = answer.get("error") or {}
        self.nodes = answer.get("node_errors") or {}
        super().__init__(json.dumps(answer, ensure_ascii=False))


@dataclasses.dataclass(frozen=True)
class Event:
    """One message of the server. `at` is in seconds of the monotonic clock."""

    kind: str
    data: Mapping[str, Any]
    at: float


@dataclasses.dataclass
class Run:
    """All that a prompt said until it ended. `previews` are JPEG or PNG files."""

    prompt_id: str
    events: list[Event] = dataclasses.field(default_factory=list)
    previews: list[bytes] = dataclasses.field(default_factory=list)

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """The data of all messages of a kind, in order."""
        return [event.data for event in self.events if event.kind == kind]

    @property
    def outcome(self) -> str:
        """success, error or interrupted."""
        ends = [event.kind for event in self.events if event.kind in _OUTCOMES]
        return _OUTCOMES[ends[-1]] if ends else "unknown"

    @property
    def cached(self) -> set[str]:
        """Nodes whose outputs were taken from the cache."""
        return {node for data in self.of("execution_cached") for node in data["nodes"]}

    @property
    def executed(self) -> set[str]:
        """Nodes that ran."""
        return {data["node"] for data in self.of("executing") if data["node"] is not None} - self.cached

    @property
    def shown(self) -> dict[str, Mapping[str, Any]]:
        """What each node showed (its ui outputs), also from the cache."""
        return {data["node"]: data["output"] for data in self.of("executed") if data["output"] is not None}

    @property
    def error(self) -> Mapping[str, Any]:
        """node_id, exception_message and so on, of the node that failed; empty where none did."""
        return next(iter(self.of("execution_error")), {})

    @property
    def progress(self) -> list[Mapping[str, Any]]:
        """The pack's own progress messages."""
        return self.of(PROGRESS)

    @property
    def seconds(self) -> float:
        """Wall time from the first message to the last."""
        return self.events[-1].at - self.events[0].at if self.events else 0.0


_OUTCOMES = {"execution_success": "success", "execution_error": "error", "execution_interrupted": "interrupted"}


@dataclasses.dataclass(frozen=True)
class Client:
    """Speaks to the server at host:port."""

    host: str
    port: int

    def get(self, path: str) -> Any:
        """A JSON answer.

        Raises:
            urllib.error.HTTPError: the server has no such page.
        """
        return json.loads(self.fetch(path))

    def fetch(self, path: str) -> bytes:
        """The bytes of a page."""
        with urllib.request.urlopen(self._url(path), timeout=60) as answer:
            return answer.read()

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send JSON; the JSON answer, or None where there is none."""
        request = urllib.request.Request(
            self._url(path), json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def view(self, shown: Mapping[str, str]) -> bytes:
        """The file that a node showed: {"filename", "subfolder", "type"}."""
        return self.fetch("/view?" + urllib.parse.urlencode({k: shown[k] for k in ("filename", "subfolder", "type")}))

    def interrupt(self) -> None:
        """The Cancel button."""
        self.post("/interrupt", {})

    def free(self) -> None:
        """The Unload Models and Free Memory buttons; whatever is queued after this finds everything given back.

        ComfyUI takes such a wish up after a prompt or when it has nothing to do, so a prompt of nothing follows it.
        """
        self.post("/free", {"unload_models": True, "free_memory": True})
        self.run({"nothing": {"class_type": "PreviewAny", "inputs": {"source": "nothing"}}})

    def run(
        self, prompt: Prompt, on_event: Callable[[Event], None] = lambda event: None, timeout: float = 280.0
    ) -> Run:
        """Queue a prompt and listen until it has ended.

        Args:
            on_event: called with each event as it comes.
            timeout: seconds for the whole run.

        Raises:
            Refused: it was not queued.
            TimeoutError: it did not end in time; what was heard is in the message.
        """
        name = uuid.uuid4().hex
        with Websocket(self.host, self.port, f"/ws?clientId={name}") as socket:
            try:
                run = Run(self.post("/prompt", {"prompt": prompt, "client_id": name})["prompt_id"])
            except urllib.error.HTTPError as refusal:
                raise Refused(json.loads(refusal.read())) from None
            for message in _messages(socket, time.monotonic() + timeout, run):
                if isinstance(message, bytes):
                    run.previews.append(message)
                    continue
                run.events.append(message)
                on_event(message)
                if message.kind == "executing" and message.data["node"] is None:
                    return run
        raise AssertionError("a socket without end")

    def _url(self, path: str) -> str:
        return f"http://{self.host}:{self.port}{path}"


def _messages(socket: Websocket, until: float, run: Run) -> Iterator[Event | bytes]:
    """Events of this run, and the pictures of previews."""
    while True:
        try:
            message = socket.receive(max(until - time.monotonic(), 0.01))
        except TimeoutError:
            heard = ", ".join(event.kind for event in run.events[-20:])
            raise TimeoutError(f"Prompt {run.prompt_id} did not end in time; the last it said: {heard}") from None
        if isinstance(message, bytes):
            picture = _preview(message)
            if picture:
                yield picture
            continue
        decoded = json.loads(message)
        data = decoded["data"]
        if data.get("prompt_id", run.prompt_id) == run.prompt_id:
            yield Event(decoded["type"], data, time.monotonic())


def _preview(message: bytes) -> bytes | None:
    """The picture file in a binary message, if that is what it holds."""
    (kind,) = struct.unpack(">I", message[:4])
    if kind == _PREVIEW:
        return message[8:]
    if kind == _PREVIEW_WITH_METADATA:
        (size,) = struct.unpack(">I", message[4:8])
        return message[8 + size :]
    return None
