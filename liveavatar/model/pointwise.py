"""Norms, modulation and residuals: what a layer does with single numbers, in as few passes over memory as it takes.

A pass costs a GPU more than what is computed in it, so products are rounded as they are written and not in a pass of
their own, and nothing is copied to float32 that a kernel computes in float32 anyway. The rounding points in 16 bits are
those of the published implementation without compilation. Where gradients are wanted, or a compiler will fuse the
passes by itself, the same is written without places to write to.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F


def layer_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise over the last dimension without affine; computed in float32, rounded to x's dtype."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / root mean square over the last dimension, rounded to x's dtype, then times a weight."""
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square()
    scaled = _rounded(x.dtype, torch.mul, x, torch.rsqrt(square / x.shape[-1] + eps))
    return scaled * weight if is_traced(scaled, weight) else scaled.mul_(weight)


def modulated_norm(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm of x, rounded to its dtype, then times scale plus shift (float32, [dim] each), in x's dtype."""
    if x.dtype == shift.dtype:  # nothing is rounded in between
        return F.layer_norm(x, x.shape[-1:], scale, shift, eps)
    return _rounded(x.dtype, torch.addcmul, shift, layer_norm(x, eps), scale)


def gated_sum(x: torch.Tensor, change: torch.Tensor, gate: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x + change * gate (float32, [dim]), computed in float32."""
    return _rounded(dtype, torch.addcmul, x, change, gate)


def modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x * scale + shift, computed in the widest of their dtypes."""
    return _rounded(dtype, torch.addcmul, shift, x, scale)


def add_to(total: torch.Tensor, summand: torch.Tensor) -> torch.Tensor:
    """total + summand in total's dtype; total's memory is used for it where that may be."""
    return total + summand if is_traced(total, summand) else total.add_(summand)


def _rounded(dtype: torch.dtype, function: Callable[..., torch.Tensor], *operands: torch.Tensor) -> torch.Tensor:
    """The result of a pointwise function in a dtype, computed in the operands' widest dtype: one pass."""
    if is_traced(*operands):
        return function(*operands).to(dtype)
    shape = np.broadcast_shapes(*(operand.shape for operand in operands))  # PyTorch's imports its compiler
    out = torch.empty(shape, dtype=dtype, device=operands[0].device)
    return function(*operands, out=out)


def is_traced(*operands: torch.Tensor) -> bool:
    """Whether what happens is recorded: for gradients, or by a compiler."""
    if torch.compiler.is_compiling():
        return True
    return torch.is_grad_enabled() and any(operand.requires_grad for operand in operands)
