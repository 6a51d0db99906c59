"""Attention of the network: normalised projections, and the one place where a kernel is chosen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Full attention, no mask, scale 1/sqrt(head_dim). The only call of an attention kernel in the library.

    Args:
        q: [..., queries, heads, head_dim]
        k, v: [..., keys, heads, head_dim]

    Returns:
        [..., queries, heads * head_dim]
    """
    batched = q.dim() == 4
    q, k, v = (rearrange(t if batched else t[None], "b n heads d -> b heads n d") for t in (q, k, v))
    out = rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)")
    return out if batched else out[0]


def layer_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise over the last dimension without affine; computed and returned in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the whole width, before heads are split."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return scaled.to(x.dtype) * self.weight


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

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """[..., tokens, dim] -> [..., tokens, heads, head_dim]"""
        return self._heads(self.norm_q(self.q(x)))

    def keys_values(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[..., tokens, dim] -> two of [..., tokens, heads, head_dim]"""
        return self._heads(self.norm_k(self.k(x))), self._heads(self.v(x))

    def output(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attend and project: [..., queries, dim]"""
        return self.o(attention(q, k, v))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return rearrange(x, "... (heads d) -> ... heads d", heads=self.num_heads)
