"""Fused projections: one matrix product for q, k and v, whose matrices lie below one another.

A checkpoint has q, k and v by themselves, and so have networks that are trained. Networks that are made to be filled
(see `empty_transformer`) have one module in their place; it is filled from the tensors of its parts, and a state dict
shows those again, as views, under their own names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .pointwise import is_traced


class FusedRows(nn.Module):
    """What modules share whose tensors may be made of the rows of several modules of the checkpoint.

    Attributes:
        fused_from: names of those modules, which stand beside this one, in the order of their rows; all have as many.
            Empty where the module is one of the checkpoint itself.
    """

    fused_from: tuple[str, ...] = ()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if not self.fused_from:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        paths = checkpoint_paths(prefix.removesuffix("."), self)
        for slot, tensor in self._parameters.items():
            if tensor is not None:
                views = (tensor if keep_vars else tensor.detach()).unflatten(0, (len(paths), -1)).unbind()
                for path, rows in zip(paths, views, strict=True):
                    # One number for a matrix has no dimension where the matrix stands alone.
                    destination[f"{path}.{slot}"] = rows[0] if tensor.numel() == len(views) else rows


class FusedLinear(FusedRows, nn.Linear):
    """A Linear of a network that is not trained; it may stand for several of the same input."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, fused_from: tuple[str, ...] = ()):
        super().__init__(in_features, out_features, bias)
        self.fused_from = fused_from

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


class FeedForward(nn.Sequential):
    """A Linear, GELU approximated by tanh, and a Linear (`0`, `1` and `2`)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, _, last = self
        if not isinstance(first, FusedLinear):
            made: torch.Tensor = super().forward(x)
            return made
        hidden: torch.Tensor = last(linear(x, first.weight, first.bias, gelu=True))
        return hidden


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False) -> torch.Tensor:
    """x [..., in] @ weight [out, in]^T + bias, and GELU of it where that is asked for.

    In float32 on a CPU by oneDNN, whose products took 0.74 to 0.86 times as long as PyTorch's default there (1024 to
    3072 wide, 96 and 384 rows, AVX-512 and AVX2), and as long where they are small. It computes GELU as it writes.
    """
    if x.dtype == torch.float32 and x.device.type == "cpu" and _ONEDNN and not is_traced(x, weight):
        after: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
        made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, *after)
        return made
    made = F.linear(x, weight, bias)
    return F.gelu(made, approximate="tanh") if gelu else made


_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def untrained_linears(module: nn.Module) -> None:
    """Put `FusedLinear` in the place of every plain Linear inside, on the meta device."""
    found = [(parent, name, m) for parent in module.modules() for name, m in parent.named_children()]
    for parent, name, plain in found:
        if type(plain) is nn.Linear:
            with plain.weight.device:
                parent.add_module(name, FusedLinear(plain.in_features, plain.out_features, plain.bias is not None))


def checkpoint_paths(path: str, module: nn.Module) -> tuple[str, ...]:
    """The modules of a checkpoint that a module stands for, by their paths: itself, or those it is fused from."""
    parts = module.fused_from if isinstance(module, FusedRows) else ()
    beside = path[: path.rfind(".") + 1]
    return tuple(beside + part for part in parts) or (path,)


def fuse_linears(module: nn.Module, parts: Iterable[str]) -> None:
    """Put one Linear in the place of some of a module's, under their names written together ("qkv").

    Args:
        module: of Linear layers of equal shape, on the meta device: none has values yet.
        parts: names of the layers.
    """
    names = tuple(parts)
    first, *others = (module.get_submodule(name) for name in names)
    assert isinstance(first, nn.Linear) and all(isinstance(other, nn.Linear) for other in others)
    with first.weight.device:
        fused = FusedLinear(first.in_features, len(names) * first.out_features, first.bias is not None, names)
    for name in names:
        delattr(module, name)
    module.add_module("".join(names), fused)


def linears(module: nn.Module, parts: tuple[str, ...], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What some of a module's Linear layers make of one input: in one product where they are fused.

    Args:
        module: with the layers, or with their fused form.
        parts: names of the layers, in the order in which they would be fused.
        x: [..., in_features]

    Returns:
        [..., out_features] each; views of one tensor where it was one product.
    """
    fused = module._modules.get("".join(parts))
    if fused is None:
        return tuple(module.get_submodule(name)(x) for name in parts)
    made: torch.Tensor = fused(x)
    return made.chunk(len(parts), -1)
