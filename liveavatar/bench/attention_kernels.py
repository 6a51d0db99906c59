"""Attention kernels of this machine, one by one: how fast each is in the network's shape, and how far from float32."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..doctor.devices import attention_shape, median_seconds

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""q, k, v [1, heads, tokens, head_dim] -> [1, heads, queries, head_dim], no mask, scale 1 / sqrt(head_dim)."""

DEFAULT = "SDPA default"
"""What the network uses: PyTorch's own choice."""
_SDPA = {
    "SDPA flash": "FLASH_ATTENTION",
    "SDPA cuDNN": "CUDNN_ATTENTION",
    "SDPA efficient": "EFFICIENT_ATTENTION",
    "SDPA math": "MATH",
}
"""PyTorch's backends, by their names in `torch.nn.attention.SDPBackend`."""
_PACKAGES = {
    "FlashAttention 3": ("flash_attn_interface", "flash_attn_func", True),
    "FlashAttention 2": ("flash_attn", "flash_attn_func", True),
    "SageAttention": ("sageattention", "sageattn", False),
    "comfy-kitchen int8": ("comfy_kitchen", "int8_attention", False),
}
"""Package, function, and whether it takes [1, tokens, heads, head_dim]."""
_REFERENCE_HEADS, _REFERENCE_QUERIES = 2, 256
"""Of the outputs that are compared with float32; all keys take part."""


@dataclasses.dataclass(frozen=True)
class KernelTime:
    """One kernel.

    Attributes:
        name: see `kernels`.
        tflops: 10^12 operations a second; None where it does not work here.
        error: distance from attention in float32, relative to its norm; None likewise.
        why_not: one line, where it does not work.
    """

    name: str
    tflops: float | None
    error: float | None
    why_not: str = ""


def kernels() -> dict[str, Kernel]:
    """PyTorch's own kernels, and those of packages that are installed, by name."""
    found: dict[str, Kernel] = {DEFAULT: F.scaled_dot_product_attention}
    for name, backend in _SDPA.items():
        if hasattr(SDPBackend, backend):
            found[name] = functools.partial(_with_backend, getattr(SDPBackend, backend))
    for name, (package, function, tokens_first) in _PACKAGES.items():
        if importlib.util.find_spec(package) is not None:
            found[name] = functools.partial(_of_package, package, function, tokens_first)
    return found


def time_kernels(device: torch.device, dtype: torch.dtype, seconds: float = 0.1) -> Iterator[KernelTime]:
    """Each kernel in the shape of one task of the 14B model at 704x384; on a CPU with a twelfth of the tokens.

    Args:
        device: where.
        dtype: of queries, keys and values.
        seconds: that each is repeated for, about.
    """
    heads, queries, keys, width = attention_shape(device.type)
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, tokens, width, generator=generator, device=device).to(dtype)
        for tokens in (queries, keys, keys)
    )
    part = slice(0, _REFERENCE_HEADS), slice(0, _REFERENCE_QUERIES)
    true = _in_float32(q[0, part[0], part[1]], k[0, part[0]], v[0, part[0]])
    work = 4 * heads * queries * keys * width / 1e12
    for name, kernel in kernels().items():
        try:
            made = kernel(q, k, v)[0, part[0], part[1]].float()
            error = float((made - true).norm() / true.norm())
            taken = median_seconds(functools.partial(kernel, q, k, v), str(device), seconds)
        except Exception as failure:  # whatever a package raises says that it is not for this machine
            why = (str(failure).strip().splitlines() or [""])[0].split(". ")[0][:120]
            yield KernelTime(name, None, None, f"{type(failure).__name__}: {why}".rstrip(": "))
            continue
        yield KernelTime(name, work / taken, error)


def _with_backend(backend: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


def _of_package(
    package: str, function: str, tokens_first: bool, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    attend = getattr(importlib.import_module(package), function)
    if tokens_first:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    made = attend(q, k, v)
    out: torch.Tensor = made[0] if isinstance(made, tuple) else made
    return out.transpose(1, 2) if tokens_first else out


def _in_float32(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(head_dim)) v of [heads, tokens, head_dim]."""
    scores = q.float() @ k.float().transpose(1, 2) / q.shape[-1] ** 0.5
    return scores.softmax(-1) @ v.float()
