"""Copies of small tensors from the host to a busy device."""

from __future__ import annotations

import torch


def to_device_async(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """An asynchronous copy on another device, without waiting for what that device has still to do.

    A GPU takes what it is sent in order, and from pageable memory the host would wait for its turn. Pinned memory comes
    from PyTorch's own store, which gives it to nobody else before the copy is done.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
