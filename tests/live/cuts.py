"""Networks that are cut: what is between a client and a server, and stops handing on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import cast


class CutNetwork:
    """Between a client and a TCP port; while it is cut nothing passes, and nobody is told."""

    def __init__(self, port: int):
        self._to = port
        self.port = 0
        self._whole = asyncio.Event()
        self._whole.set()
        self._connections: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """From now on nothing passes."""
        self._whole.clear()

    def mend(self) -> None:
        """What waited passes, and all that follows."""
        self._whole.set()

    def drop(self) -> None:
        """End all connections, as a router does that has forgotten them."""
        for one in self._connections:
            one.cancel()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[CutNetwork]:
        """It listens inside."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.drop()

    async def _serve(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        back, there = await asyncio.open_connection("127.0.0.1", self._to)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(self._pump(source, there), self._pump(back, target))
        finally:
            for writer in (there, target):
                writer.transport.abort()
            self._connections.discard(task)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 14):
                await self._whole.wait()
                target.write(data)
                await target.drain()
        target.close()


class CutDatagrams(asyncio.DatagramProtocol):
    """Between two peers that speak UDP: the one that speaks first, and the one at `to`."""

    def __init__(self, to: tuple[str, int]):
        self.is_whole, self._to = True, to
        self._first: tuple[str, int] | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._transport.get_extra_info("sockname")[1])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        """Hand on to the other side."""
        if source != self._to:
            self._first = source
        target = self._first if source == self._to else self._to
        if self.is_whole and target is not None:
            self._transport.sendto(data, target)

    @classmethod
    async def open(cls, to: tuple[str, int]) -> CutDatagrams:
        """One on a free port of the same address."""
        _, made = await asyncio.get_running_loop().create_datagram_endpoint(lambda: cls(to), local_addr=(to[0], 0))
        return made

    def close(self) -> None:
        """End it."""
        self._transport.close()
