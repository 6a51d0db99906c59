"""The host's side of every copy: memory that a device reads and writes by itself."""

from __future__ import annotations

import contextlib
import math
import mmap
import weakref

import torch

from ..errors import HostMemoryError

_PORTABLE = 1
"""Flag of cudaHostRegister: the memory is page-locked for every device of the process."""
_OWN: dict[str, int] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""Pages that no other process sees; the only kind where there is no such flag."""
ALIGNED = 256
"""Tensors begin at multiples of this many bytes."""


class HostMemory:
    """Bytes on pages of their own in the host's memory, page-locked for a CUDA device.

    They are registered with the device rather than taken from torch's pinned allocator, which rounds every allocation
    up to a power of two: 21 GB would take 32. The memory stays locked for as long as this object lives.

    Args:
        nbytes: how many, at least 1.
        device: what copies from and to them; None: see `serve`.
        pages: those that hold them; None: pages that no other process sees.

    Raises:
        HostMemoryError: the host has not that much memory, or may not lock it.
    """

    def __init__(self, nbytes: int, device: torch.device | None = None, pages: mmap.mmap | None = None):
        self.bytes = torch.frombuffer(own_pages(nbytes) if pages is None else pages, dtype=torch.uint8)
        self._taken = 0
        self._served: list[torch.device] = []
        if device is not None:
            self.serve(device)

    def serve(self, device: torch.device) -> None:
        """Let a device copy from and to the bytes, beside those that do already.

        All pages are there from then on: lock what is filled from memory that is given back meanwhile only when it is
        full, or both are there at once.

        Raises:
            HostMemoryError: the host may not lock the memory.
        """
        if device.type != "cuda" or device in self._served:
            return
        if not self._served:
            _page_lock(self.bytes, device)
            # At the end of the process the pages go with it, and the device may be gone already.
            weakref.finalize(self, _unlock, self.bytes, self._served).atexit = False
        self._served.append(device)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor in the next bytes that are free; its values are not set. This object must outlive its use."""
        start, nbytes = self._taken, math.prod(shape) * dtype.itemsize
        self._taken += -(-nbytes // ALIGNED) * ALIGNED
        return self.bytes[start : start + nbytes].view(dtype).view(shape)


def own_pages(nbytes: int) -> mmap.mmap:
    """Pages of this process alone.

    Raises:
        HostMemoryError: the host has not that many.
    """
    try:
        return mmap.mmap(-1, nbytes, **_OWN)
    except (OSError, OverflowError) as e:
        raise _refusal(nbytes, "has not that much free") from e


def _page_lock(memory: torch.Tensor, device: torch.device) -> None:
    with torch.cuda.device(device):
        cuda = torch.cuda.cudart()
        refused = int(cuda.cudaHostRegister(memory.data_ptr(), memory.nbytes, _PORTABLE))
        if refused:
            # CUDA reports an error again at the next kernel; this one is reported here, in our words.
            with contextlib.suppress(RuntimeError):
                torch.zeros(1, device=device)
            raise _refusal(memory.nbytes, f"does not let the device lock them (CUDA error {refused})")


def _unlock(memory: torch.Tensor, devices: list[torch.device]) -> None:
    for device in devices:
        torch.cuda.synchronize(device)
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())


def _refusal(nbytes: int, why: str) -> HostMemoryError:
    return HostMemoryError(
        f"{nbytes / 1e9:.1f} GB of pinned host memory are needed, and the host {why}.",
        "Free memory, raise the limit of locked memory, or keep more on the device.",
    )
