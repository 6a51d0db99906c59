"""Links between stages, point to point: a header of numbers on the CPU, then tensors, through CPU memory or by NCCL."""

from __future__ import annotations

import datetime
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from ..stage import StageInput
from ..task_graph import Denoise, Prefill, Task

TensorShape = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a tensor that comes."""
FOREVER = datetime.timedelta(days=30)
"""A neighbour may wait as long as the consumer likes; whether it still lives is watched from outside."""
SENDER, RECEIVER = range(2)
"""The two ranks of a link."""


class Payload(Protocol):
    """One end of what carries tensors. Used by one thread, but for `abort`."""

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """Returns when they may be changed or freed."""
        ...

    def receive(self, forms: Sequence[TensorShape]) -> list[torch.Tensor]:
        """Returns when they are whole."""
        ...

    def abort(self) -> None:
        """Abort a transfer, which then raises, and close; from any thread, any number of times."""
        ...


class GlooPayload:
    """Over the link's own gloo group; a neighbour that is gone is noticed by itself.

    Args:
        group: a `torch.distributed.ProcessGroupGloo` of two.
        tag: of the first tensor; the others follow.
    """

    def __init__(self, group: Any, tag: int):
        self._group, self._tag = group, tag

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """From the memory where they lie, which the CPU can read only after its copy."""
        for tag, tensor in enumerate(tensors, self._tag):
            self._group.send([tensor.cpu().contiguous()], RECEIVER, tag).wait(FOREVER)

    def receive(self, forms: Sequence[TensorShape]) -> list[torch.Tensor]:
        """Into CPU memory."""
        tensors = [torch.empty(shape, dtype=dtype) for shape, dtype in forms]
        for tag, tensor in enumerate(tensors, self._tag):
            self._group.recv([tensor], SENDER, tag).wait(FOREVER)
        return tensors

    def abort(self) -> None:
        """Nothing hangs here."""


class NcclPayload:
    """From GPU to GPU, by an NCCL communicator of the link's own, on a stream of its own.

    Written against the interface of PyTorch 2.13 and not run yet, because NCCL wants two devices that differ.

    Args:
        store: where both ends meet.
        name: the same at both ends.
        rank: SENDER or RECEIVER.
        device: this end's card.
    """

    def __init__(self, store: Any, name: str, rank: int, device: torch.device):
        import torch.distributed as dist

        nccl: Any = dist.ProcessGroupNCCL
        options = nccl.Options()
        options._timeout = FOREVER
        self._device, self._given_up = device, False
        self._stream = torch.cuda.Stream(device)
        self._group = nccl(dist.PrefixStore(f"{name}/nccl", store), rank, 2, options)
        # The communicator is made by the first transfer: here, where waiting for the other end has a limit.
        first = torch.zeros(1, device=device)
        torch.cuda.synchronize(device)
        self._transfer([first], sends=rank == SENDER)

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """They must be whole: the stage has waited for its task."""
        with torch.cuda.stream(self._stream):
            ready = [tensor.to(self._device).contiguous() for tensor in tensors]
        self._transfer(ready, sends=True)

    def receive(self, forms: Sequence[TensorShape]) -> list[torch.Tensor]:
        """Into memory of the device."""
        with torch.cuda.stream(self._stream):
            tensors = [torch.empty(shape, dtype=dtype, device=self._device) for shape, dtype in forms]
        self._transfer(tensors, sends=False)
        for tensor in tensors:  # the stage frees it while its own stream may still read it
            tensor.record_stream(torch.cuda.default_stream(self._device))
        return tensors

    def abort(self) -> None:
        """Abort the communicator."""
        if not self._given_up:
            self._given_up = True
            self._group.abort()

    def _transfer(self, tensors: Sequence[torch.Tensor], sends: bool) -> None:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            for tensor in tensors:
                work = self._group.send([tensor], RECEIVER, 0) if sends else self._group.recv([tensor], SENDER, 0)
                work.wait()  # of the stream, not of the thread
            self._stream.synchronize()
        if self._given_up:
            raise RuntimeError("the transfer was given up")


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
        control: a `torch.distributed.ProcessGroupGloo` of two, for headers.
        payload: carries the tensors.
    """

    def __init__(self, control: Any, payload: Payload):
        self._control, self._payload = control, payload
        self._since = 0.0
        """When the present transfer of tensors began; 0 while there is none."""

    @classmethod
    def connect(cls, store: Any, name: str, sends: bool, host: str, device: torch.device | None = None) -> Link:
        """Connect the two ends.

        Args:
            store: where both meet, a `torch.distributed.Store`.
            name: the same at both ends.
            sends: which end this is.
            host: the address to listen on.
            device: from or to which tensors travel by NCCL; None: through CPU memory.

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
        return cls(
            control, GlooPayload(control, _TENSORS) if device is None else NcclPayload(store, name, rank, device)
        )

    def send(self, task: Task, inputs: StageInput) -> None:
        """Send a task's input. Returns when the other end has it.

        Raises:
            RuntimeError: the other end is gone.
        """
        self._send_header(header_of(task, inputs.latent, inputs.tokens))
        self._since = time.monotonic()
        self._payload.send([inputs.latent] if inputs.tokens is None else [inputs.latent, inputs.tokens])
        self._since = 0.0

    def finish(self, word: int) -> None:
        """Send END or ABORT: nothing follows in this run."""
        self._send_header(torch.tensor([word] + [0] * (_HEADER - 1)))

    def receive(self) -> tuple[Task, StageInput] | int:
        """The next task with its input, or END, or ABORT.

        Raises:
            RuntimeError: the other end is gone.
        """
        header = torch.empty(_HEADER, dtype=torch.int64)
        self._control.recv([header], SENDER, _HEAD).wait(FOREVER)
        numbers = header.tolist()
        if numbers[0] != FLOW:
            return int(numbers[0])
        self._since = time.monotonic()
        tensors = self._payload.receive(announced_shapes(numbers))
        self._since = 0.0
        return task_in(numbers), StageInput(*tensors)

    def break_off(self) -> None:
        """Abort a transfer that has taken too long, because the other end is gone."""
        if self._since and time.monotonic() - self._since > _STUCK_SECONDS:
            self._payload.abort()

    def close(self) -> None:
        """Close this end; the other end may be gone."""
        self._payload.abort()

    def _send_header(self, numbers: torch.Tensor) -> None:
        self._control.send([numbers], RECEIVER, _HEAD).wait(FOREVER)


def header_of(task: Task, latent: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
    """[_HEADER] int64"""
    prefill = isinstance(task, Prefill)
    first, second = (task.version, task.group) if isinstance(task, Prefill) else (task.block, task.step)
    payload = [_DTYPES.index(latent.dtype), *latent.shape]
    payload += [-1, 0, 0] if tokens is None else [_DTYPES.index(tokens.dtype), *tokens.shape]
    return torch.tensor([FLOW, int(prefill), first, second, task.shard, *payload], dtype=torch.int64)


def task_in(numbers: list[int]) -> Task:
    """The task that a header names."""
    _, prefill, first, second, part = numbers[:5]
    return Prefill(first, second, part) if prefill else Denoise(first, second, part)


def announced_shapes(numbers: list[int]) -> list[TensorShape]:
    """The tensors that a header announces: the latent, and the tokens if there are any."""
    latent = tuple(numbers[6:10]), _DTYPES[numbers[5]]
    return [latent] if numbers[10] < 0 else [latent, (tuple(numbers[11:13]), _DTYPES[numbers[10]])]


class SendThread:
    """A link's sending end in one run: a thread that sends, so that the stage computes on meanwhile."""

    def __init__(self, link: Link, on_loss: Callable[[BaseException], None]):
        self._on_loss = on_loss
        self._waiting: queue.SimpleQueue[tuple[Task, StageInput] | int] = queue.SimpleQueue()
        self._aborted = False
        self.link = link
        self.thread = threading.Thread(target=self._work, name="liveavatar-send", daemon=True)
        self.thread.start()

    def put(self, task: Task, stage_input: StageInput) -> None:
        """Send it soon."""
        self._waiting.put((task, stage_input))

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


class ReceiveThread:
    """A link's receiving end in one run: a thread that receives, ahead of the stage."""

    def __init__(
        self,
        link: Link,
        on_flow: Callable[[Task, StageInput], None],
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
