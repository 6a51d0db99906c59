"""Results on their way from a device to the host."""

from __future__ import annotations

import dataclasses

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
