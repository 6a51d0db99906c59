"""A websocket that reads, in the standard library alone: enough to listen to a server on this machine."""

from __future__ import annotations

import base64
import os
import socket
import struct
from types import TracebackType

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_CONTINUED = 0x0


class Closed(ConnectionError):
    """The server has gone."""


class Websocket:
    """One connection. `receive` gives whole messages; pings are answered on the way."""

    def __init__(self, host: str, port: int, path: str, timeout: float = 30.0) -> None:
        """Connect and shake hands.

        Raises:
            Closed: the server is there but speaks no websocket.
            OSError: there is no server.
        """
        self._socket = socket.create_connection((host, port), timeout)
        self._pending = b""
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {host}:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        ]
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        while b"\r\n\r\n" not in self._pending:
            self._fill()
        head, self._pending = self._pending.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            raise Closed(f"No websocket at {host}:{port}{path}: {head.decode(errors='replace')}")

    def receive(self, timeout: float) -> str | bytes:
        """The next message: text, or bytes of a binary one.

        Raises:
            TimeoutError: nothing came for `timeout` seconds.
            Closed: the server closed the connection.
        """
        self._socket.settimeout(timeout)
        kind, parts = _CONTINUED, []
        while True:
            last, opcode, payload = self._frame()
            if opcode == CLOSE:
                raise Closed("The server closed the websocket.")
            if opcode == PING:
                self._send(PONG, payload)
            elif opcode != PONG:
                kind = opcode or kind
                parts.append(payload)
                if last:
                    whole = b"".join(parts)
                    return whole.decode() if kind == TEXT else whole

    def close(self) -> None:
        """Close; a server that has gone already does not matter."""
        self._socket.close()

    def __enter__(self) -> Websocket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _frame(self) -> tuple[bool, int, bytes]:
        first, second = self._read(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", self._read(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self._read(8))
        return bool(first & 0x80), first & 0x0F, self._read(size)

    def _send(self, opcode: int, payload: bytes) -> None:
        """One short frame (a pong), masked as a client has to."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._socket.sendall(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)

    def _read(self, count: int) -> bytes:
        while len(self._pending) < count:
            self._fill()
        found, self._pending = self._pending[:count], self._pending[count:]
        return found

    def _fill(self) -> None:
        piece = self._socket.recv(1 << 16)
        if not piece:
            raise Closed("The server has gone.")
        self._pending += piece
