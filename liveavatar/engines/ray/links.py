"""Flows between stages, point to point: a header of numbers on the CPU, then tensors of the shapes it names.

Every directed link is a communicator of its own with two members, so that neither two directions nor two neighbours
can block each other. In a run each link carries any number of flows and then one END or ABORT; after that nothing is
on its way, and the link is ready for the next run.
"""

from __future__ import annotations

import datetime
import queue
import threading
from collections.abc import Callable
from typing import Any

import torch

from ...pipeline import Denoise, Prefill, Task
from ...stage import Flow

FLOW, END, ABORT = range(3)
"""First number of a header: what it announces."""
_CONNECT = datetime.timedelta(seconds=30)
_FOREVER = datetime.timedelta(days=30)
"""A neighbour may wait as long as the consumer likes; whether it still lives is watched from outside."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_HEADER = 5 + 5 + 3
"""What and the task (5), dtype and shape of the latent (5), dtype and shape of the tokens (3)."""
_HEAD, _LATENT, _TOKENS = range(3)
"""Tags."""
_SENDER, _RECEIVER = range(2)


class Link:
    """One end of a directed link.

    Args:
        store: where both ends meet, a `torch.distributed.Store`.
        name: the same at both ends.
        sends: which end this is.
        host: the address to listen on.
    """

    def __init__(self, store: Any, name: str, sends: bool, host: str):
        import torch.distributed as dist

        gloo: Any = dist.ProcessGroupGloo
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=host)]
        options._threads, options._timeout = 1, _CONNECT
        rank = _SENDER if sends else _RECEIVER
        self._group = gloo(dist.PrefixStore(name, store), rank, 2, options)

    def send(self, task: Task, flow: Flow) -> None:
        """Hand a flow to the task that takes it up. Returns when the other end has it.

        Raises:
            RuntimeError: the other end is gone.
        """
        latent = flow.latent.cpu().contiguous()
        tokens = None if flow.tokens is None else flow.tokens.cpu().contiguous()
        self._send(header_of(task, latent, tokens), _HEAD)
        self._send(latent, _LATENT)
        if tokens is not None:
            self._send(tokens, _TOKENS)

    def finish(self, word: int) -> None:
        """Say that nothing more comes in this run: END or ABORT."""
        self._send(torch.tensor([word] + [0] * (_HEADER - 1)), _HEAD)

    def receive(self) -> tuple[Task, Flow] | int:
        """The next flow with the task that takes it up, or END, or ABORT.

        Raises:
            RuntimeError: the other end is gone.
        """
        numbers = self._receive(torch.empty(_HEADER, dtype=torch.int64), _HEAD).tolist()
        if numbers[0] != FLOW:
            return int(numbers[0])
        latent = self._receive(torch.empty(numbers[6:10], dtype=_DTYPES[numbers[5]]), _LATENT)
        tokens = None
        if numbers[10] >= 0:
            tokens = self._receive(torch.empty(numbers[11:13], dtype=_DTYPES[numbers[10]]), _TOKENS)
        return task_in(numbers), Flow(latent, tokens)

    def _send(self, tensor: torch.Tensor, tag: int) -> None:
        self._group.send([tensor], _RECEIVER, tag).wait(_FOREVER)

    def _receive(self, tensor: torch.Tensor, tag: int) -> torch.Tensor:
        self._group.recv([tensor], _SENDER, tag).wait(_FOREVER)
        return tensor


def header_of(task: Task, latent: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
    """[_HEADER] int64"""
    prefill = isinstance(task, Prefill)
    first, second = (task.version, task.group) if isinstance(task, Prefill) else (task.block, task.step)
    payload = [_DTYPES.index(latent.dtype), *latent.shape]
    payload += [-1, 0, 0] if tokens is None else [_DTYPES.index(tokens.dtype), *tokens.shape]
    return torch.tensor([FLOW, int(prefill), first, second, task.part, *payload], dtype=torch.int64)


def task_in(numbers: list[int]) -> Task:
    """The task that a header names."""
    _, prefill, first, second, part = numbers[:5]
    return Prefill(first, second, part) if prefill else Denoise(first, second, part)


class Outgoing:
    """A link's sending end in one run: a thread that sends, so that the stage computes on meanwhile."""

    def __init__(self, link: Link, on_loss: Callable[[BaseException], None]):
        self._link, self._on_loss = link, on_loss
        self._waiting: queue.SimpleQueue[tuple[Task, Flow] | int] = queue.SimpleQueue()
        self._aborted = False
        self.thread = threading.Thread(target=self._work, name="liveavatar-send", daemon=True)
        self.thread.start()

    def put(self, task: Task, flow: Flow) -> None:
        """Send it soon."""
        self._waiting.put((task, flow))

    def finish(self, word: int) -> None:
        """END: after what is waiting. ABORT: instead of it."""
        self._aborted = self._aborted or word == ABORT
        self._waiting.put(word)

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                while True:
                    item = self._waiting.get()
                    if isinstance(item, int):
                        return self._link.finish(item)
                    if not self._aborted:
                        self._link.send(*item)
        except BaseException as error:
            self._on_loss(error)


class Incoming:
    """A link's receiving end in one run: a thread that receives, ahead of the stage."""

    def __init__(
        self,
        link: Link,
        on_flow: Callable[[Task, Flow], None],
        on_abort: Callable[[], None],
        on_loss: Callable[[BaseException], None],
    ):
        self._link, self._on_flow, self._on_abort, self._on_loss = link, on_flow, on_abort, on_loss
        self.thread = threading.Thread(target=self._work, name="liveavatar-receive", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                while not isinstance(got := self._link.receive(), int):
                    self._on_flow(*got)
            if got == ABORT:
                self._on_abort()
        except BaseException as error:
            self._on_loss(error)
