"""Probes of what worker processes need: a port on loopback, and two processes that really meet."""

from __future__ import annotations

import os
import socket
import time

from .child import Child, ChildLost, entry
from .report import Handshake, Network

LOOPBACK = "127.0.0.1"
_ASTRAY = (
    "GLOO_SOCKET_IFNAME",
    "NCCL_SOCKET_IFNAME",
    "NCCL_P2P_DISABLE",
    "TP_SOCKET_IFNAME",
    "CUDA_VISIBLE_DEVICES",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "GRPC_PROXY",
)
_HANDSHAKE_SECONDS = 45.0
"""Two processes load PyTorch in it, which takes long from a cold disk."""


def network() -> Network:
    """Whether a free port of loopback takes a connection; which variables could lead one astray."""
    present = {name.upper() for name, value in os.environ.items() if value}
    variables = tuple(name for name in _ASTRAY if name in present)
    try:
        with socket.create_server((LOOPBACK, 0)) as server:
            server.settimeout(5)
            with socket.create_connection(server.getsockname(), timeout=5) as caller:
                called, _ = server.accept()
                with called:
                    caller.sendall(b"hello")
                    called.settimeout(5)
                    received = called.recv(5)
    except OSError as error:
        return Network(False, error.strerror or str(error), variables)
    return Network(received == b"hello", "" if received == b"hello" else "what was sent did not arrive", variables)


def handshake(backend: str) -> Handshake:
    """Two short-lived processes meet as workers do and exchange tensors."""
    first, second = (Child(entry("partner", backend, rank)) for rank in ("0", "1"))
    return meet(backend, first, second, _HANDSHAKE_SECONDS)


def meet(backend: str, first: Child, second: Child, seconds: float) -> Handshake:
    """Introduce two processes that run `partner.main`, and say how it went; both are ended.

    Args:
        seconds: after which a partner that says nothing has failed.
    """
    deadline = time.monotonic() + seconds
    try:
        ready = first.receive(deadline - time.monotonic())
        if "port" in ready:
            second.send(ready["port"])
            ready = second.receive(deadline - time.monotonic())
    except ChildLost as error:
        return Handshake(backend, False, error.what.rstrip("."))
    finally:
        for end in (first, second):
            end.end()
    if "error" in ready:
        return Handshake(backend, False, ready["error"])
    return Handshake(backend, True, "", ready["seconds"], ready["speed"])
