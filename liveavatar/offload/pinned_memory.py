"""Page-locked memory of the host, from and to which devices copy beside their work; and its pool, in which it stays
locked from one video to the next."""

from __future__ import annotations

import contextlib
import gc
import math
import mmap
import weakref

import torch

from ..errors import HostMemoryError
from ..utils import format_bytes

_PORTABLE = 1
"""Flag of cudaHostRegister: the memory is page-locked for every device of the process."""
_OWN: dict[str, int] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""Pages that no other process sees; the only kind where there is no such flag."""
ALIGNMENT = 256
"""Tensors begin at multiples of this many bytes."""
_LEAST_USE = 0.5
"""Of kept memory that something must fill to get it: what is larger is given back instead."""


class LockedPages:
    """Pages in the host's memory that can be page-locked for CUDA devices.

    They are registered with the device rather than taken from torch's pinned allocator, which rounds every allocation
    up to a power of two: 21 GB would take 32. The memory stays locked for as long as this object lives.

    Args:
        nbytes: how many bytes, at least 1.
        pages: those that hold them; None: pages that no other process sees.

    Raises:
        HostMemoryError: the host has not that much memory.
    """

    def __init__(self, nbytes: int, pages: mmap.mmap | None = None):
        self.pages = private_pages(nbytes) if pages is None else pages
        self.bytes = torch.frombuffer(self.pages, dtype=torch.uint8)
        self._registered: list[torch.device] = []

    def register_device(self, device: torch.device) -> None:
        """See `PinnedBuffer.register_device`."""
        if device.type != "cuda" or device in self._registered:
            return
        if not self._registered:
            _page_lock(self.bytes, device)
            # At the end of the process the pages go with it, and the device may be gone already.
            weakref.finalize(self, _unlock, self.bytes, self._registered).atexit = False
        self._registered.append(device)

    def synchronize(self) -> None:
        """Wait until no device copies from or to them any more."""
        for device in self._registered:
            torch.cuda.synchronize(device)


class PinnedBuffer:
    """A buffer in the host's memory, page-locked for CUDA devices, in which tensors are allocated.

    Args:
        nbytes: how many, at least 1.
        device: what copies from and to them; None: see `register_device`.
        pages: that hold them, at least so many; None: pages that no other process sees.

    Raises:
        HostMemoryError: the host has not that much memory, or may not lock it.
    """

    def __init__(self, nbytes: int, device: torch.device | None = None, pages: LockedPages | None = None):
        self._pages = LockedPages(nbytes) if pages is None else pages
        self.view = memoryview(self._pages.pages)[:nbytes]
        """Stays as long as any tensor that was allocated here."""
        self.bytes = torch.frombuffer(self.view, dtype=torch.uint8)
        self._allocated = 0
        if device is not None:
            self.register_device(device)

    def register_device(self, device: torch.device) -> None:
        """Let a device copy from and to the bytes, beside those that do already.

        All pages are there from then on: lock what is filled from memory that is given back meanwhile only when it is
        full, or both are there at once.

        Raises:
            HostMemoryError: the host may not lock the memory.
        """
        self._pages.register_device(device)

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor in the next bytes that are free; its values are not set. This object must outlive its use."""
        start, nbytes = self._allocated, math.prod(shape) * dtype.itemsize
        self._allocated += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return self.bytes[start : start + nbytes].view(dtype).view(shape)


class PinnedPool:
    """A pool of page-locked memory: what a video has used stays locked for the next one.

    To lock 40 GB takes 10 to 25 s (estimated), before every first frame of a card whose KV cache lies on the host.
    Memory that nobody uses is given back before more is made, so there is never more of it than was in use at once.

    Attributes:
        allocations: how often memory was made, and locked where a device copies from it.
    """

    def __init__(self) -> None:
        self.allocations = 0
        self._idle: list[LockedPages] = []
        self._taken = 0
        self._epoch = 0
        """Rises when all is given back; buffers of before then are not kept."""

    @property
    def idle_bytes(self) -> int:
        """Bytes that nobody uses now."""
        return sum(pages.bytes.nbytes for pages in self._idle)

    def take(self, nbytes: int, device: torch.device | None = None) -> PinnedBuffer:
        """A buffer, with what others have left in it; it comes back by itself when neither it nor a tensor that was
        allocated in it is held any more.

        Args:
            nbytes, device: see `PinnedBuffer`.

        Raises:
            HostMemoryError: as of `PinnedBuffer`.
        """
        pages = self._take_idle(nbytes)
        if pages is None and self._taken:
            gc.collect()  # caches of the video before are a cycle, and their memory may be what is wanted
            pages = self._take_idle(nbytes)
        if pages is None:
            self._idle.clear()
            pages = LockedPages(nbytes)
            self.allocations += 1
        else:
            pages.synchronize()  # its last user may still have been copied from
        buffer = PinnedBuffer(nbytes, device, pages)
        self._taken += 1
        weakref.finalize(buffer.view, self._put_back, pages, self._epoch).atexit = False
        return buffer

    def clear(self) -> None:
        """Give back what is idle now, and what is in use as soon as it is not."""
        self._epoch += 1
        self._idle.clear()

    def _take_idle(self, nbytes: int) -> LockedPages | None:
        """The smallest that is large enough, and not far too large."""
        for pages in sorted(self._idle, key=lambda pages: pages.bytes.nbytes):
            if _LEAST_USE * pages.bytes.nbytes <= nbytes <= pages.bytes.nbytes:
                with contextlib.suppress(ValueError):  # another thread has just taken it
                    self._idle.remove(pages)
                    return pages
        return None

    def _put_back(self, pages: LockedPages, epoch: int) -> None:
        self._taken -= 1
        if epoch == self._epoch:
            self._idle.append(pages)


def private_pages(nbytes: int) -> mmap.mmap:
    """Pages of this process alone.

    Raises:
        HostMemoryError: the host has not that many.
    """
    try:
        return mmap.mmap(-1, nbytes, **_OWN)
    except (OSError, OverflowError) as e:
        raise _host_memory_error(nbytes, "has not that much free") from e


def _page_lock(memory: torch.Tensor, device: torch.device) -> None:
    with torch.cuda.device(device):
        cuda = torch.cuda.cudart()
        refused = int(cuda.cudaHostRegister(memory.data_ptr(), memory.nbytes, _PORTABLE))
        if refused:
            # CUDA reports an error again at the next kernel; this one is reported here, in our words.
            with contextlib.suppress(RuntimeError):
                torch.zeros(1, device=device)
            raise _host_memory_error(memory.nbytes, f"does not let the device lock them (CUDA error {refused})")


def _unlock(memory: torch.Tensor, devices: list[torch.device]) -> None:
    for device in devices:
        torch.cuda.synchronize(device)
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())


def _host_memory_error(nbytes: int, why: str) -> HostMemoryError:
    return HostMemoryError(
        f"{format_bytes(nbytes)} of pinned host memory are needed, and the host {why}.",
        "Free memory, raise the limit of locked memory, or keep more on the device.",
    )
