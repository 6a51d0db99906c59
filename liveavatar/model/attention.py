"""Attention of the network: its projections, and the one place where a kernel is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .fused import fuse_linears, linears
from .pointwise import rms_norm

KeyValue = tuple[torch.Tensor, torch.Tensor]
"""Keys and values, each [..., keys, heads, head_dim]."""


@dataclasses.dataclass(frozen=True)
class AttentionKernel:
    """A kernel of full attention without a mask, scale 1 / sqrt(head_dim).

    Attributes:
        name: of its backend (see `liveavatar.attention_choice`).
        attend: q, k, v [batch, heads, tokens, head_dim], of any strides -> [batch, heads, queries, head_dim].
        attend_with_lse: the same, and the logarithm of each query's sum of exponentials [batch, heads, queries] in
            float32, with which attention to parts of the keys is joined; None where the kernel does not tell it.
        variant: which of the backend's kernels it is, for people; "" where it has only one, or chooses by itself.
    """

    name: str
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    attend_with_lse: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], KeyValue] | None = None
    variant: str = ""


def _cpu_with_lse(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> KeyValue:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, lse


IN_PARTS = ", in parts"
"""Ends the variants that attend to window and sink one by one and join them, so that neither is copied."""
SDPA = AttentionKernel("sdpa", F.scaled_dot_product_attention)
"""PyTorch's own choice, on any device."""
SDPA_ON_CPU = AttentionKernel("sdpa", F.scaled_dot_product_attention, _cpu_with_lse, f"flash{IN_PARTS}")
"""The kernel that PyTorch chooses on a CPU. Tensors without numbers ("meta") pass it, too."""


def default_kernel(device: torch.device) -> AttentionKernel:
    """What is used where nothing else is asked for."""
    return SDPA_ON_CPU if device.type in ("cpu", "meta") else SDPA


def attention(q: torch.Tensor, kv: Sequence[KeyValue], kernel: AttentionKernel | None = None) -> torch.Tensor:
    """Full attention, no mask, scale 1/sqrt(head_dim). The only call of an attention kernel in the library.

    Args:
        q: [..., queries, heads, head_dim]
        kv: keys and values in one or more parts, each [..., keys, heads, head_dim]; all of them are attended to.
        kernel: by default `default_kernel`.

    Returns:
        [..., queries, heads * head_dim]
    """
    kernel = kernel or default_kernel(q.device)
    batched = q.dim() == 4
    if len(kv) > 1 and kernel.attend_with_lse is None:
        kv = [(torch.cat([k for k, _ in kv], -3), torch.cat([v for _, v in kv], -3))]
    q = _heads_first(q, batched)
    parts = [(_heads_first(k, batched), _heads_first(v, batched)) for k, v in kv]
    if kernel.attend_with_lse is None or len(parts) == 1:
        out = kernel.attend(q, *parts[0])
    else:
        out = _joined([kernel.attend_with_lse(q, *part) for part in parts])
    out = rearrange(out, "b heads n d -> b n (heads d)")
    return out if batched else out[0]


def _heads_first(x: torch.Tensor, batched: bool) -> torch.Tensor:
    return (x if batched else x[None]).transpose(1, 2)


def _joined(parts: Sequence[KeyValue]) -> torch.Tensor:
    """Attention to all keys, of what was attended to in parts (outputs, logarithms of their sums).

    Each is weighted with its share of the sum (Dao 2023, "FlashAttention-2", section 2.3), so no keys or values are
    copied to lie side by side.
    """
    (out, lse), *others = parts
    for another, its in others:
        share = torch.sigmoid(its - lse).to(out.dtype).unsqueeze(-1)
        out, lse = torch.lerp(out, another, share), torch.logaddexp(lse, its)
    return out


class RMSNorm(nn.Module):
    """Root-mean-square norm over the whole width, before heads are split."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """The projections of one attention: q, k, v with normalised q and k, and the output.

    Self-attention, text and Audio cross-attention share this shape; what they attend to is the caller's business.
    """

    def __init__(self, dim: int, num_heads: int, eps: float):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def fuse(self, parts: str) -> None:
        """Let one matrix product make several of q, k and v; before the layers have values (see `fuse_linears`)."""
        fuse_linears(self, parts)

    def queries_keys_values(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[..., tokens, dim] -> three of [..., tokens, heads, head_dim]"""
        q, k, v = linears(self, ("q", "k", "v"), x)
        return self._heads(self.norm_q(q)), self._heads(self.norm_k(k)), self._heads(v)

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """[..., tokens, dim] -> [..., tokens, heads, head_dim]"""
        return self._heads(self.norm_q(self.q(x)))

    def keys_values(self, x: torch.Tensor) -> KeyValue:
        """[..., tokens, dim] -> two of [..., tokens, heads, head_dim]"""
        k, v = linears(self, ("k", "v"), x)
        return self._heads(self.norm_k(k)), self._heads(v)

    @property
    def key_value_modules(self) -> tuple[nn.Module, ...]:
        """The modules that make keys and values, and nothing else, where q is not fused with them."""
        projections = [self._modules[name] for name in ("k", "v", "kv") if name in self._modules]
        return (*(m for m in projections if m is not None), self.norm_k)

    def output(self, q: torch.Tensor, kv: Sequence[KeyValue], kernel: AttentionKernel | None = None) -> torch.Tensor:
        """Attend and project: [..., queries, dim]"""
        return self.o(attention(q, kv, kernel))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return rearrange(x, "... (heads d) -> ... heads d", heads=self.num_heads)
