"""How much of a GPU this process may take."""

from __future__ import annotations

import torch

_caps: dict[str, int] = {}
"""In force, by device: a setting of the whole process."""


def hold_to(device: str, cap: int) -> None:
    """Let the tensors of this process take so many bytes of a GPU at most; nothing happens on the CPU.

    Args:
        device: its name.
        cap: bytes; 0 takes an earlier cap away and leaves alone what others set.
    """
    if torch.device(device).type != "cuda" or _caps.get(device, 0) == cap:
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total) if cap else 1.0, device)
    _caps[device] = cap
