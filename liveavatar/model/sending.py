"""Small things on their way from the host to a device that is at work."""

from __future__ import annotations

import torch


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The same on another device, without waiting for what the device has still to do.

    A GPU takes what it is sent in order, and from pageable memory the host would wait for its turn. Pinned memory comes
    from PyTorch's own store, which gives it to nobody else before the copy is done.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
