"""What self-attention is done with: backends by the names that users choose, what the program around the library has
chosen, and what was found of a kernel on a device.

Nothing is run here, and PyTorch is not needed: `model/attention_backends.py` has the kernels and their trial.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, Literal

from .errors import ModelError

AUTO, PYTORCH, HOST = "auto", "sdpa", "comfyui"
ATTENTION_BACKENDS = (AUTO, PYTORCH, "flash3", "sage", "comfy-kitchen", HOST)
"""By the names that users choose: PyTorch's own kernels, those of packages, and what ComfyUI has chosen.
auto: ComfyUI's choice inside it, else PyTorch's own."""


@dataclasses.dataclass(frozen=True)
class KernelPackage:
    """A package with a kernel.

    Attributes:
        module, function: of the kernel.
        install: what people install.
        heads_first: whether it takes [batch, heads, tokens, head_dim]; else [batch, tokens, heads, head_dim].
    """

    module: str
    function: str
    install: str
    heads_first: bool

    @property
    def is_installed(self) -> bool:
        """Whether it could be imported; it is not."""
        return importlib.util.find_spec(self.module) is not None


PACKAGES: Mapping[str, KernelPackage] = {
    "flash3": KernelPackage("flash_attn_interface", "flash_attn_func", "FlashAttention 3", heads_first=False),
    "sage": KernelPackage("sageattention", "sageattn", "sageattention", heads_first=True),
    "comfy-kitchen": KernelPackage("comfy_kitchen", "int8_attention", "comfy-kitchen", heads_first=True),
}


@dataclasses.dataclass(frozen=True)
class AttentionUse:
    """What self-attention is done with on a device, or will be.

    Attributes:
        device: which.
        backend: of `ATTENTION_BACKENDS`, never auto.
        kernel: which of the backend's kernels; "" where it has only one, or chooses by itself, or none was tried.
        error: its distance from attention in float32 in its trial on the device, relative to the norm; None: it is
            tried when the network is loaded.
        tflops: 10^12 operations a second that the forecast of a plan rests on; None where there is none.
        source: whether they were measured there or are assumed; "" likewise.
    """

    device: str
    backend: str
    kernel: str = ""
    error: float | None = None
    tflops: float | None = None
    source: Literal["", "measured", "assumed"] = ""

    @property
    def name(self) -> str:
        """Backend and kernel: "sdpa (cuDNN)"."""
        return f"{self.backend} ({self.kernel})" if self.kernel else self.backend


class _HostChoice:
    """What the program around the library attends with."""

    kernel: Callable[[Any, Any, Any], Any] | None = None
    chosen = False


def set_host_kernel(run: Callable[[Any, Any, Any], Any] | None, chosen: bool = True) -> None:
    """Make known what the program around the library attends with; None: nothing.

    Args:
        run: q, k, v [batch, heads, tokens, head_dim] -> the same of the queries.
        chosen: whether its user has chosen it, so that it is used where nothing else is asked for.
    """
    _HostChoice.kernel, _HostChoice.chosen = run, chosen and run is not None


def host_kernel() -> Callable[[Any, Any, Any], Any] | None:
    """As `set_host_kernel` was told."""
    return _HostChoice.kernel


def installed_backends() -> tuple[str, ...]:
    """Those that can be asked for here by name: PyTorch's own, then packages."""
    return (PYTORCH, *(name for name, package in PACKAGES.items() if package.is_installed))


def resolve_attention(name: str) -> str:
    """The backend that a name stands for, auto among them."""
    if name != AUTO:
        return name
    return HOST if _HostChoice.chosen else PYTORCH


def check_attention(name: str) -> None:
    """Refuse a backend that is not known, or whose package is not installed; nothing is imported for it.

    Raises:
        ModelError: with the nearest that works.
    """
    if name not in ATTENTION_BACKENDS:
        raise ModelError(f"The attention {name!r} is not known.", f"Use {', '.join(ATTENTION_BACKENDS)}.")
    if name == HOST and host_kernel() is None:
        raise ModelError("Attention as ComfyUI has chosen it is there inside ComfyUI alone.", "Use --attention auto.")
    package = PACKAGES.get(name)
    if package is not None and not package.is_installed:
        raise ModelError(
            f"--attention {name} needs the package {package.install}, which is not installed.",
            f"Install it, or use --attention {installed_backends()[-1]}.",
        )
