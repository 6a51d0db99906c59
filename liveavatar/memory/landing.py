"""Results on their way from a device to the host, and work that a device does beside its main line of work."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import torch

from .copies import Mark


@dataclasses.dataclass(frozen=True)
class Landing:
    """A tensor on its way to the host: sent, but not waited for.

    Attributes:
        held: where it lands, page-locked on CUDA; not to be read before `wait`.
        mark: what passes when it is there; None where it is there already.
    """

    held: torch.Tensor
    mark: Mark

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Landing:
        """Send a tensor, in the stream that its device works in here."""
        if tensor.device.type != "cuda":
            return cls(tensor.cpu(), None)
        held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        held.copy_(tensor, non_blocking=True)
        mark = torch.cuda.Event(blocking=True)  # the thread that waits leaves its core to others
        mark.record(torch.cuda.current_stream(tensor.device))
        return cls(held, mark)

    def wait(self) -> torch.Tensor:
        """The tensor, once it is there; what the device was given after it is not waited for.

        It comes in ordinary memory: page-locked memory is scarce, and the result may be kept for long.
        """
        if self.mark is None:
            return self.held
        self.mark.synchronize()
        return self.held.clone()


class Aside:
    """Work beside the main line of a device: on CUDA in another stream, elsewhere it is work like any other.

    It begins when the device has done what this thread's present stream was given until now. Its memory is taken and
    given back in that stream, so results must be waited for (see `Landing`) before other streams read them.

    Args:
        device: which.
    """

    def __init__(self, device: torch.device):
        self._stream = None
        if device.type == "cuda":
            self._stream = _side_stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def working(self) -> contextlib.AbstractContextManager[Any]:
        """What is inside is such work."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all such work of a device, because memory that a stream has used is kept for that stream."""
    return torch.cuda.Stream(device)
