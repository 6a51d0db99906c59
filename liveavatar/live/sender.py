"""The process that encodes a talk and sends it to an address.

It is one of its own because FFmpeg holds Python's lock while it connects and while it says good-bye: a server that does
not answer would stop everything in the same process. It can also be ended at any moment.

Its standard input is a line of JSON (`Order`), then piece after piece as raw bytes: images, then sound. It answers with
lines of JSON: {"state": "connecting"} when it has started, {"state": "sending"} when the server has let it in, and
{"error": why} when it is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import numpy as np

from ..config import FPS
from ..media.block_encoder import BlockEncoder
from .addresses import WHIP
from .block import PIECE_FRAMES

_PACK = Path(__file__).parents[2]
"""The folder that holds `liveavatar`."""
_START = "import sys; sys.path.insert(0, sys.argv[1]); from liveavatar.live.sender import main; main()"
_PROGRAM_SECONDS = 3.0
_CHECK_SECONDS = 3.0
_PIPE = "matroska"
"""To the program ffmpeg: its header names the streams, so that nothing has to be waited for."""
_PIPE_OPTIONS = {"live": "1", "cluster_time_limit": "40", "flush_packets": "1"}


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be sent where.

    Attributes:
        url, host, format, options, needs_program: see `OutputAddress` and `Protocol`.
        width, height: pixels.
        rate: samples of sound a second.
    """

    url: str
    host: str
    format: str
    options: dict[str, str]
    needs_program: bool
    width: int
    height: int
    rate: int

    @property
    def images_bytes(self) -> int:
        """Bytes of a piece's images."""
        return PIECE_FRAMES * self.height * self.width * 3

    @property
    def audio_bytes(self) -> int:
        """Bytes of a piece's sound, float32."""
        return self.rate * PIECE_FRAMES // FPS * 4

    @property
    def is_encrypted(self) -> bool:
        """Whether FFmpeg speaks TLS with the server."""
        return self.url.lower().startswith("rtmps:")


class Refused(Exception):
    """The server says no, or something that cannot be understood; says what."""


def start() -> subprocess.Popen[bytes]:
    """A new process; inside ComfyUI it finds the library, which is not importable under its own name there."""
    return subprocess.Popen(
        [sys.executable, "-c", _START, str(_PACK)],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def main() -> None:
    """Send until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    source = sys.stdin.buffer
    order = Order(**json.loads(source.readline()))
    try:
        _send(order, source)
    except Exception as error:
        _answer({"error": _certificate_fault(order) or _reason(error)})
        raise SystemExit(1) from None


def _send(order: Order, source: BinaryIO) -> None:
    with contextlib.suppress(ImportError):  # that it lacks is said where it is needed
        importlib.import_module("aiortc" if order.format == WHIP else "av")  # takes seconds on a busy machine
    _answer({"state": "connecting"})
    socket.getaddrinfo(order.host, None)
    if order.format == WHIP:
        from . import whip

        asyncio.run(whip.send(order.url, order.options, _pieces(order, source), _say_sending))
        return
    with _container(order) as container:
        encoder = BlockEncoder(container, order.width, order.height, order.rate, order.is_encrypted)
        if not order.needs_program:  # which hears of the server only when it has something to send
            container.start_encoding()
        _say_sending()
        for images, audio in _pieces(order, source):
            encoder.write(images, audio)
        encoder.close()


@contextlib.contextmanager
def _container(order: Order) -> Iterator[Any]:
    import av

    if order.is_encrypted:
        yield av.open(_checking_certificates(order), "w", format="tee")
        return
    if not order.needs_program:
        yield av.open(order.url, "w", format=order.format, options=order.options)
        return
    arguments = ["-f", _PIPE, "-i", "pipe:0", "-c", "copy", "-flush_packets", "1", "-f", order.format, order.url]
    with subprocess.Popen(
        ["ffmpeg", "-nostdin", "-loglevel", "fatal", "-analyzeduration", "0", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as program:
        try:
            yield av.open(program.stdin, "w", format=_PIPE, options=_PIPE_OPTIONS)
            assert program.stdin is not None
            program.stdin.close()
            program.wait(_PROGRAM_SECONDS)
        finally:
            program.kill()


def _checking_certificates(order: Order) -> str:
    """The address for FFmpeg's "tee", which hands options on to TLS; without them FFmpeg believes any server."""
    options = {"f": order.format, **order.options, "tls_verify": "1"}
    if authorities := ssl.get_default_verify_paths().cafile:
        options["ca_file"] = authorities
    listed = ":".join(f"{name}={_escaped(value)}" for name, value in options.items())
    return _escaped(f"[{listed}]{order.url}")


def _escaped(text: str) -> str:
    return re.sub(r"([\\':|\]\s])", r"\\\1", text)


def _certificate_fault(order: Order) -> str:
    """What is wrong with the server's certificate, which FFmpeg does not say; "" where nothing is."""
    if not order.is_encrypted:
        return ""
    try:
        with socket.create_connection((order.host, urlsplit(order.url).port or 443), _CHECK_SECONDS) as plain:
            ssl.create_default_context().wrap_socket(plain, server_hostname=order.host).close()
    except ssl.SSLCertVerificationError as error:
        return _reason(error)
    except OSError:
        pass
    return ""


def _pieces(order: Order, source: BinaryIO) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    size = order.images_bytes + order.audio_bytes
    while len(data := source.read(size)) == size:
        images = np.frombuffer(data, np.uint8, order.images_bytes)
        audio = np.frombuffer(data, np.float32, offset=order.images_bytes)
        yield images.reshape(PIECE_FRAMES, order.height, order.width, 3), audio


def _reason(error: Exception) -> str:
    """Why it is over, without the address that FFmpeg's own messages repeat."""
    if isinstance(error, socket.gaierror):
        return "its host is not known"
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        why = f"its certificate is not trusted ({error.verify_message.rstrip('.')})"
        return f"{why}; the environment variable SSL_CERT_FILE may name a file of those that are"
    if isinstance(error, BrokenPipeError | ConnectionResetError):
        return "the connection was closed"
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return "it did not answer in time"
    return getattr(error, "strerror", None) or type(error).__name__


def _say_sending() -> None:
    _answer({"state": "sending"})


def _answer(data: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()
