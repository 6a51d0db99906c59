"""Flows between stages, point to point: a header of numbers on the CPU, then tensors of the shapes it names.

Every directed link is a communicator of its own with two members, so that neither two directions nor two neighbours
can block each other. In a run each link carries any number of flows and then one END or ABORT; after that nothing is
on its way, and the link is ready for the next run. Headers and words always travel on the CPU, so that no card waits
for control and tensors are waited for only when they are announced; tensors travel as `payloads` says.
"""

from __future__ import annotations

import datetime
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from ....pipeline import Denoise, Prefill, Task
from ....stage import Flow
from .payloads import FOREVER, RECEIVER, SENDER, ByNccl, Form, Payload, ThroughCpu

FLOW, END, ABORT = range(3)
"""First number of a header: what it announces."""
_CONNECT = datetime.timedelta(seconds=30)
_STUCK_SECONDS = 10.0
"""How long a stopped run waits for tensors on their way; a healthy link needs milliseconds."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_HEADER = 5 + 5 + 3
"""What and the task (5), dtype and shape of the latent (5), dtype and shape of the tokens (3)."""
_HEAD, _TENSORS = range(2)
"""Tags."""


class Link:
    """One end of a directed link.

    Args:
        control: a `torch.distributed.ProcessGroupGloo` of two, for headers and words.
        payload: carries the tensors.
    """

    def __init__(self, control: Any, payload: Payload):
        self._control, self._payload = control, payload
        self._since = 0.0
        """When the tensors that are on their way set out; 0 while there are none."""

    @classmethod
    def meet(cls, store: Any, name: str, sends: bool, host: str, card: torch.device | None = None) -> Link:
        """Meet the other end.

        Args:
            store: where both meet, a `torch.distributed.Store`.
            name: the same at both ends.
            sends: which end this is.
            host: the address to listen on.
            card: from or to which tensors travel by NCCL; None: through CPU memory.

        Raises:
            RuntimeError: the other end did not come.
        """
        import torch.distributed as dist

        gloo: Any = dist.ProcessGroupGloo
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=host)]
        options._threads, options._timeout = 1, _CONNECT
        rank = SENDER if sends else RECEIVER
        control = gloo(dist.PrefixStore(name, store), rank, 2, options)
        return cls(control, ThroughCpu(control, _TENSORS) if card is None else ByNccl(store, name, rank, card))

    def send(self, task: Task, flow: Flow) -> None:
        """Hand a flow to the task that takes it up. Returns when the other end has it.

        Raises:
            RuntimeError: the other end is gone.
        """
        self._say(header_of(task, flow.latent, flow.tokens))
        self._since = time.monotonic()
        self._payload.send([flow.latent] if flow.tokens is None else [flow.latent, flow.tokens])
        self._since = 0.0

    def finish(self, word: int) -> None:
        """Say that nothing more comes in this run: END or ABORT."""
        self._say(torch.tensor([word] + [0] * (_HEADER - 1)))

    def receive(self) -> tuple[Task, Flow] | int:
        """The next flow with the task that takes it up, or END, or ABORT.

        Raises:
            RuntimeError: the other end is gone.
        """
        header = torch.empty(_HEADER, dtype=torch.int64)
        self._control.recv([header], SENDER, _HEAD).wait(FOREVER)
        numbers = header.tolist()
        if numbers[0] != FLOW:
            return int(numbers[0])
        self._since = time.monotonic()
        tensors = self._payload.receive(forms_in(numbers))
        self._since = 0.0
        return task_in(numbers), Flow(*tensors)

    def free(self) -> None:
        """Break off what has been on its way for too long, because the other end is gone."""
        if self._since and time.monotonic() - self._since > _STUCK_SECONDS:
            self._payload.give_up()

    def close(self) -> None:
        """Let go; the other end may be gone."""
        self._payload.give_up()

    def _say(self, numbers: torch.Tensor) -> None:
        self._control.send([numbers], RECEIVER, _HEAD).wait(FOREVER)


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


def forms_in(numbers: list[int]) -> list[Form]:
    """The tensors that a header announces: the latent, and the tokens if there are any."""
    latent = tuple(numbers[6:10]), _DTYPES[numbers[5]]
    return [latent] if numbers[10] < 0 else [latent, (tuple(numbers[11:13]), _DTYPES[numbers[10]])]


class Outgoing:
    """A link's sending end in one run: a thread that sends, so that the stage computes on meanwhile."""

    def __init__(self, link: Link, on_loss: Callable[[BaseException], None]):
        self._on_loss = on_loss
        self._waiting: queue.SimpleQueue[tuple[Task, Flow] | int] = queue.SimpleQueue()
        self._aborted = False
        self.link = link
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
                        return self.link.finish(item)
                    if not self._aborted:
                        self.link.send(*item)
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
        self._on_flow, self._on_abort, self._on_loss = on_flow, on_abort, on_loss
        self.link = link
        self.thread = threading.Thread(target=self._work, name="liveavatar-receive", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                while not isinstance(got := self.link.receive(), int):
                    self._on_flow(*got)
            if got == ABORT:
                self._on_abort()
        except BaseException as error:
            self._on_loss(error)
