"""How the tensors of a flow travel over a link, once its header has said what comes: through CPU memory or by NCCL."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, Protocol

import torch

Form = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a tensor that comes."""
FOREVER = datetime.timedelta(days=30)
"""A neighbour may wait as long as the consumer likes; whether it still lives is watched from outside."""
SENDER, RECEIVER = range(2)
"""The members of a link."""


class Payload(Protocol):
    """One end of what carries tensors. Used by one thread, but for `give_up`."""

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """Returns when they may be changed or freed."""
        ...

    def receive(self, forms: Sequence[Form]) -> list[torch.Tensor]:
        """Returns when they are whole."""
        ...

    def give_up(self) -> None:
        """Break off what is on its way, which then raises, and let go; from any thread, any number of times."""
        ...


class ThroughCpu:
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

    def receive(self, forms: Sequence[Form]) -> list[torch.Tensor]:
        """Into CPU memory."""
        tensors = [torch.empty(shape, dtype=dtype) for shape, dtype in forms]
        for tag, tensor in enumerate(tensors, self._tag):
            self._group.recv([tensor], SENDER, tag).wait(FOREVER)
        return tensors

    def give_up(self) -> None:
        """Nothing hangs here."""


class ByNccl:
    """From card to card, by an NCCL communicator of the link's own, on a stream of its own.

    Written against the interface of PyTorch 2.13 and not run yet, because NCCL wants two cards that differ.

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

    def receive(self, forms: Sequence[Form]) -> list[torch.Tensor]:
        """Into memory of the card."""
        with torch.cuda.stream(self._stream):
            tensors = [torch.empty(shape, dtype=dtype, device=self._device) for shape, dtype in forms]
        self._transfer(tensors, sends=False)
        for tensor in tensors:  # the stage frees it while its own stream may still read it
            tensor.record_stream(torch.cuda.default_stream(self._device))
        return tensors

    def give_up(self) -> None:
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
