"""Attention backends: kernels by the names that users choose them by, each tried against float32 before it is used.

A kernel is for some devices and shapes, and a package of kernels may be built wrongly for a card: videos then turn
black. So each is run once on its device, in the dtype and head width of the network, and compared with attention in
float32; one that fails or is too far off is not used, and the reason is told.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..attention_choice import (
    HOST,
    PACKAGES,
    PYTORCH,
    AttentionUse,
    KernelPackage,
    check_attention,
    host_kernel,
    installed_backends,
    resolve_attention,
)
from ..errors import ModelError
from .attention import IN_PARTS, SDPA, AttentionKernel, KeyValue, attention, default_kernel

_Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
LARGEST_ERROR = 0.08
"""Distance from float32, relative to its norm, up to which a kernel is used; 8-bit ones are at 0.02 to 0.05."""
_TRIAL_HEADS, _TRIAL_QUERIES, _TRIAL_KEYS = 2, 192, (384, 96)
_tried: dict[tuple[str, Any, torch.device, torch.dtype, int], ChosenAttention] = {}


@dataclasses.dataclass(frozen=True)
class ChosenAttention:
    """A kernel that passed its trial.

    Attributes:
        kernel: it.
        error: its distance from float32, relative to the norm.
        notice: why it is not the one that was asked for; "" where it is.
    """

    kernel: AttentionKernel
    error: float
    notice: str = ""

    def use(self, device: str) -> AttentionUse:
        """What stands in plans and receipts, of a device by its name there."""
        return AttentionUse(device, self.kernel.name, self.kernel.variant, self.error)


def choose_attention(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> ChosenAttention:
    """The kernel for a network's layers on a device, tried there; once per device and dtype, with a wait.

    A backend that fails gives way to PyTorch's own kernels, with a notice.

    Raises:
        ModelError: as `check_attention`; not even PyTorch's own kernel is right on this device.
    """
    check_attention(name)
    backend = resolve_attention(name)
    key = (backend, host_kernel() if backend == HOST else None, device, dtype, head_dim)
    if key not in _tried:
        _tried[key] = _choose(backend, device, dtype, head_dim)
    return _tried[key]


def _choose(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> ChosenAttention:
    if device.type == "meta":
        return ChosenAttention(default_kernel(device), 0.0)
    refused: list[str] = []
    for candidate in (*_kernels_of(backend, device), *(_kernels_of(PYTORCH, device) if backend != PYTORCH else ())):
        error, why = try_kernel(candidate, device, dtype, head_dim)
        if not why:
            return ChosenAttention(candidate, error, _notice(refused, candidate))
        if candidate.name != PYTORCH:
            refused.append(f"{candidate.name} is not used on {device}: {why}")
    raise ModelError(
        f"Attention comes out wrong on {device} in {dtype}, with PyTorch's own kernel, too.",
        "Update PyTorch and the driver, or use another device.",
    )


def _notice(refused: list[str], used: AttentionKernel) -> str:
    return f"{'; '.join(refused)}; attention is done by {used.name}" if refused else ""


def kernels(device: torch.device) -> Iterator[AttentionKernel]:
    """All that can be asked for on a device here, the best of each backend first; none is tried."""
    for backend in (*installed_backends(), *([HOST] if host_kernel() else [])):
        yield from _kernels_of(backend, device)


def _kernels_of(backend: str, device: torch.device) -> Iterator[AttentionKernel]:
    """Of one backend, the best first."""
    if backend == PYTORCH:
        yield from _sdpa(device)
    elif backend == HOST:
        run = host_kernel()
        assert run is not None
        yield AttentionKernel(HOST, _opaque(HOST, run))
    else:
        yield AttentionKernel(backend, _opaque(backend, _of_package(PACKAGES[backend])))


def _sdpa(device: torch.device) -> Iterator[AttentionKernel]:
    """PyTorch's kernels, those first that join attention to parts of the keys: on Hopper and newer cuDNN's."""
    if device.type == "cuda":
        order = ["cuDNN", "flash"]
        if torch.cuda.get_device_capability(device) < (9, 0):
            order.reverse()
        for name in order:
            yield AttentionKernel(PYTORCH, _first(_WITH_LSE[name]), _WITH_LSE[name], f"{name}{IN_PARTS}")
        for name in order:
            yield AttentionKernel(PYTORCH, _only(_SDPA_BACKENDS[name]), variant=name)
    default = default_kernel(device)
    yield default
    if default is not SDPA:
        yield SDPA


def _cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> KeyValue:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return out, lse.reshape(q.shape[:-1])


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> KeyValue:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
    return out, lse


_WITH_LSE = {"cuDNN": _cudnn, "flash": _flash}
_SDPA_BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def _first(with_lse: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], KeyValue]) -> _Run:
    return lambda q, k, v: with_lse(q, k, v)[0]


def _only(backend: SDPBackend) -> _Run:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return run


def _of_package(package: KernelPackage) -> _Run:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        function: Any = getattr(importlib.import_module(package.module), package.function)
        if package.heads_first:
            made = function(q.contiguous(), k.contiguous(), v.contiguous())
        else:
            made = function(*(t.transpose(1, 2).contiguous() for t in (q, k, v)))
        out: torch.Tensor = made[0] if isinstance(made, tuple) else made
        return out if package.heads_first else out.transpose(1, 2)

    return run


_opaque_runs: dict[str, _Run] = {}


@functools.cache
def _opaque_attention() -> Callable[..., torch.Tensor]:
    """An operation that runs a kernel of `_opaque_runs`; it is made at the first use, once for each import of this
    file."""

    @torch.library.custom_op(f"liveavatar::attention_{zlib.crc32(__name__.encode()):08x}", mutates_args=())
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, name: str) -> torch.Tensor:
        return _opaque_runs[name](q, k, v).transpose(1, 2).contiguous()

    @run.register_fake
    def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, name: str) -> torch.Tensor:
        batch, heads, tokens, width = q.shape
        return q.new_empty(batch, tokens, heads, width)

    return run


def _opaque(name: str, run: _Run) -> _Run:
    """A kernel as one operation that compilers do not look into, and that breaks no graph."""
    _opaque_runs[name] = run
    operation = _opaque_attention()
    return lambda q, k, v: operation(q, k, v, name).transpose(1, 2)


def try_kernel(kernel: AttentionKernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[float, str]:
    """The error of a kernel on a device, as layers use it: to keys in two parts; and why it cannot be used, or ""."""
    generator = torch.Generator().manual_seed(0)

    def rows(tokens: int) -> torch.Tensor:
        return torch.randn(tokens, _TRIAL_HEADS, head_dim, generator=generator).to(device, dtype)

    q, kv = rows(_TRIAL_QUERIES), [(rows(tokens), rows(tokens)) for tokens in _TRIAL_KEYS]
    try:
        made = attention(q, kv, kernel).float().unflatten(-1, (_TRIAL_HEADS, head_dim))
        if made.shape != q.shape:
            return float("inf"), f"it gives {list(made.shape)} for {list(q.shape)}"
        k, v = (torch.cat(parts).float() for parts in zip(*kv, strict=True))
        scores = torch.einsum("qhd,khd->hqk", q.float(), k) / head_dim**0.5
        true = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
        error = float((made - true).norm() / true.norm())
    except Exception as failure:  # whatever a package raises says that it is not for this machine
        line = (str(failure).strip().splitlines() or [""])[0][:120].rstrip(".")
        return float("inf"), f"{type(failure).__name__}: {line}".rstrip(": ")
    if not error <= LARGEST_ERROR:  # also where it is not a number
        return error, f"it is off by {error:.2g} of the norm in its trial, {LARGEST_ERROR:g} is allowed"
    return error, ""
