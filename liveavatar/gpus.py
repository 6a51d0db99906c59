"""How many GPUs there are, found out without PyTorch where no driver of one is installed.

To import PyTorch takes longer than all that most commands do.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_DRIVERS = (
    "/proc/driver/nvidia",
    "/dev/nvidiactl",
    "/dev/nvidia0",
    "/dev/nvhost-ctrl",
    "/dev/nvmap",
    "/dev/kfd",
    "/dev/dxg",
)
"""What the drivers of NVIDIA, of its small boards, of AMD and of WSL show on Linux, in containers too."""
_WINDOWS_DRIVERS = ("nvcuda.dll", "amdhip64*.dll")
"""In the system's folder of libraries."""


def gpu_count() -> int:
    """GPUs that PyTorch can use; it is imported only where there may be one, or where it is there already."""
    if sys.modules.get("torch") is None and not has_gpu_driver():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def has_gpu_driver(system: str = sys.platform) -> bool:
    """Whether the driver of a GPU that PyTorch might use is installed; also where the system does not tell."""
    if system == "darwin":
        return False  # no GPU of a Mac is called "cuda"
    if system == "linux":
        return any(map(os.path.exists, _DRIVERS))
    if system == "win32":
        libraries = Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32")
        return any(next(libraries.glob(name), None) for name in _WINDOWS_DRIVERS)
    return True
