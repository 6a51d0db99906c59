"""Attention backends: kernels by the names that users choose them by, each tried against float32 before it is used.

A kernel is for some devices and shapes, and a package of kernels may be built wrongly for a card: videos then turn
black. So each is run once on its device, in the dtype and head width of the network, and compared with attention in
float32; one that fails or is too far off is not used, and the reason is told.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import ModelError
from ..storage import ATTENTION_BACKENDS
from .attention import SDPA, AttentionKernel, KeyValue, attention, default_kernel

AUTO, HOST = "auto", "comfyui"
"""Names of two backends; what the program around this library has chosen, it says by `set_host_kernel`."""
_Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class _Package:
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


_PACKAGES: Mapping[str, _Package] = {
    "flash3": _Package("flash_attn_interface", "flash_attn_func", "FlashAttention 3", heads_first=False),
    "sage": _Package("sageattention", "sageattn", "sageattention", heads_first=True),
    "comfy-kitchen": _Package("comfy_kitchen", "int8_attention", "comfy-kitchen", heads_first=True),
}
LARGEST_ERROR = 0.08
"""Distance from float32, relative to its norm, up to which a kernel is used; 8-bit ones are at 0.02 to 0.05."""
_TRIAL_HEADS, _TRIAL_QUERIES, _TRIAL_KEYS = 2, 192, (384, 96)
_host_kernel: list[tuple[_Run, bool]] = []
_tried: dict[tuple[str, torch.device, torch.dtype, int], ChosenAttention] = {}


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


def set_host_kernel(run: _Run | None, chosen: bool = True) -> None:
    """Make known what the program around the library attends with; None: nothing.

    Args:
        run: q, k, v [batch, heads, tokens, head_dim] -> the same of the queries.
        chosen: whether its user has chosen it, so that it is used where nothing else is asked for.
    """
    _host_kernel[:] = [] if run is None else [(run, chosen)]
    _tried.clear()


def check_attention(name: str) -> None:
    """Refuse a backend that is not known, or whose package is not installed; nothing is imported for it.

    Raises:
        ModelError: with the nearest that works.
    """
    if name not in ATTENTION_BACKENDS:
        raise ModelError(f"The attention {name!r} is not known.", f"Use {', '.join(ATTENTION_BACKENDS)}.")
    if name == HOST and not _host_kernel:
        raise ModelError("Attention as ComfyUI has chosen it is there inside ComfyUI alone.", "Use --attention auto.")
    package = _PACKAGES.get(name)
    if package is not None and not _is_installed(package):
        raise ModelError(
            f"--attention {name} needs the package {package.install}, which is not installed.",
            f"Install it, or use --attention {_installed()[-1]}.",
        )


def choose_attention(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> ChosenAttention:
    """The kernel for a network's layers on a device, tried there; once per device and dtype, with a wait.

    A backend that fails gives way to PyTorch's own kernels, with a notice.

    Raises:
        ModelError: as `check_attention`; not even PyTorch's own kernel is right on this device.
    """
    check_attention(name)
    key = (name, device, dtype, head_dim)
    if key not in _tried:
        _tried[key] = _choose(name, device, dtype, head_dim)
    return _tried[key]


def _choose(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> ChosenAttention:
    if device.type == "meta":
        return ChosenAttention(default_kernel(device), 0.0)
    refused: list[str] = []
    for candidate in _candidates(name, device):
        error, why = _trial(candidate, device, dtype, head_dim)
        if not why:
            return ChosenAttention(candidate, error, _notice(refused, candidate))
        if candidate.name != "sdpa":
            refused.append(f"{candidate.name} is not used on {device}: {why}")
    raise ModelError(
        f"Attention comes out wrong on {device} in {dtype}, with PyTorch's own kernel, too.",
        "Update PyTorch and the driver, or use another device.",
    )


def _notice(refused: list[str], used: AttentionKernel) -> str:
    return f"{'; '.join(refused)}; attention is done by {used.name}" if refused else ""


def _candidates(name: str, device: torch.device) -> Iterator[AttentionKernel]:
    """Those that may be meant, the best first, and PyTorch's own after them."""
    for run, chosen in _host_kernel:
        if name == HOST or (name == AUTO and chosen):
            yield AttentionKernel(HOST, _opaque(HOST, run))
    if name in _PACKAGES:
        yield AttentionKernel(name, _opaque(name, _of_package(_PACKAGES[name])))
    yield from _sdpa(device)


def _sdpa(device: torch.device) -> Iterator[AttentionKernel]:
    """PyTorch's kernels, those first that join attention to parts of the keys: on Hopper and newer cuDNN's."""
    if device.type == "cuda":
        order = [_cudnn, _flash] if torch.cuda.get_device_capability(device) >= (9, 0) else [_flash, _cudnn]
        backends = {_cudnn: SDPBackend.CUDNN_ATTENTION, _flash: SDPBackend.FLASH_ATTENTION}
        for with_lse in order:
            yield AttentionKernel("sdpa", _first(with_lse), with_lse)
        for with_lse in order:
            yield AttentionKernel("sdpa", _only(backends[with_lse]))
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


def _first(with_lse: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], KeyValue]) -> _Run:
    return lambda q, k, v: with_lse(q, k, v)[0]


def _only(backend: SDPBackend) -> _Run:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return run


def _of_package(package: _Package) -> _Run:
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


def _trial(kernel: AttentionKernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[float, str]:
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


def _is_installed(package: _Package) -> bool:
    return importlib.util.find_spec(package.module) is not None


def _installed() -> list[str]:
    """Backends that can be asked for here: PyTorch's own, then packages."""
    return ["sdpa", *(name for name, package in _PACKAGES.items() if _is_installed(package))]
