"""One of the two processes of a handshake: the first opens the place where both meet, and sends; the second checks."""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from ..config import BLOCK_LATENTS
from .child import answer
from .serve import in_one_line

_LOOPBACK = "127.0.0.1"
_MEET = datetime.timedelta(seconds=30)
_SHAPE = (BLOCK_LATENTS * 1056, 5120)
"""Hidden states of one block of the 14B model at 704x384."""
_ROUNDS = 4


def main(backend: str, rank: str) -> None:
    """Say {"port": ...} (the first), wait for it (the second); at the end the second says how it went."""
    try:
        answered = _gloo(rank) if backend == "gloo" else _nccl(rank)
    except Exception as error:
        answered = {"error": in_one_line(error)}
    if answered:
        answer(answered)


def _meeting_point(rank: str) -> Any:
    import torch.distributed as dist

    if rank == "0":
        store = dist.TCPStore(_LOOPBACK, 0, is_master=True, wait_for_workers=False, timeout=_MEET)
        answer({"port": store.port})
        return store
    port = json.loads(sys.stdin.readline())
    return dist.TCPStore(_LOOPBACK, port, is_master=False, wait_for_workers=False, timeout=_MEET)


def _gloo(rank: str) -> dict[str, Any] | None:
    """Over the same links that worker processes use."""
    from ..distributed.links import Link
    from ..stage import StageInput
    from ..task_graph import Denoise

    sent = _message("cpu")
    latent = torch.zeros(16, BLOCK_LATENTS, 2, 2)
    store = _meeting_point(rank)
    start = time.perf_counter()
    link = Link.connect(store, "handshake", sends=rank == "0", host=_LOOPBACK)
    if rank == "0":
        for step in range(_ROUNDS):
            link.send(Denoise(0, step, 0), StageInput(latent, sent))
        _stay(store)
        return None

    def receive() -> torch.Tensor | None:
        got = link.receive()
        return None if isinstance(got, int) else got[1].tokens

    return _judge(store, start, sent, receive)


def _nccl(rank: str) -> dict[str, Any] | None:
    import torch.distributed as dist

    device = torch.device("cuda", int(rank))
    torch.cuda.set_device(device)
    sent = _message("cuda")
    store = _meeting_point(rank)
    start = time.perf_counter()
    dist.init_process_group("nccl", store=store, rank=int(rank), world_size=2, timeout=_MEET)
    if rank == "0":
        for _ in range(_ROUNDS):
            dist.send(sent, 1)
        torch.cuda.synchronize(device)
        _stay(store)
        return None
    room = torch.empty_like(sent)

    def receive() -> torch.Tensor:
        dist.recv(room, 0)
        torch.cuda.synchronize(device)
        return room

    return _judge(store, start, sent, receive)


def _message(device: str) -> torch.Tensor:
    """What both ends know, so that the second can tell whether it arrived."""
    rows = torch.arange(_SHAPE[0], device=device, dtype=torch.float32)
    return (rows[:, None] + torch.arange(_SHAPE[1], device=device) % 7).to(torch.bfloat16)


def _judge(store: Any, start: float, sent: torch.Tensor, receive: Callable[[], torch.Tensor | None]) -> dict[str, Any]:
    """The second's verdict: the first message is the meeting, the others are timed."""
    whole = True
    met = began = 0.0
    for number in range(_ROUNDS):
        got = receive()
        if not number:
            met, began = time.perf_counter() - start, time.perf_counter()
        whole = whole and got is not None and torch.equal(got, sent)
    seconds = max(time.perf_counter() - began, 1e-9)
    store.set("done", "1")
    if not whole:
        return {"error": "what was sent did not arrive whole"}
    return {"seconds": met, "speed": (_ROUNDS - 1) * sent.nbytes / seconds / 1e9}


def _stay(store: Any) -> None:
    """The meeting point is in this process: it stays until the other one needs it no more."""
    store.wait(["done"], _MEET)
