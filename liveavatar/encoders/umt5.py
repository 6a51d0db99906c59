"""The encoder of UMT5 (Chung et al. 2023), with the names that its weights have in transformers.

transformers has the same network as `UMT5EncoderModel`; to import it takes seconds. Both can be given to
`liveavatar.encoders.text.encode_text`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import nn

_GATED = ("gated-gelu", "gated-gelu_new")
_LARGEST_HALF = 64_504.0
"""Of float16, less what keeps sums finite."""


@dataclasses.dataclass(frozen=True)
class UMT5Config:
    """Dimensions, by their names in config.json; the defaults are those of UMT5-XXL.

    Attributes:
        vocab_size: pieces of the tokenizer.
        d_model, d_kv, d_ff: width of a token, of a head, of the feed-forward.
        num_heads, num_layers: of the encoder.
        relative_attention_num_buckets, relative_attention_max_distance: of the distances that heads tell apart.
        layer_norm_epsilon: of all norms.
        feed_forward_proj: the one kind of feed-forward that there is here.
    """

    vocab_size: int = 256_384
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10_240
    num_heads: int = 64
    num_layers: int = 24
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "gated-gelu"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> UMT5Config:
        """From a config.json, which holds more.

        Raises:
            ValueError: another kind of network.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        config = cls(**{name: value for name, value in settings.items() if name in known})
        if config.feed_forward_proj not in _GATED:
            raise ValueError(f"feed_forward_proj is {config.feed_forward_proj!r:.40}, not {_GATED[0]!r}")
        return config


class EncodedText(NamedTuple):
    """What comes out: `last_hidden_state` [b, tokens, d_model]."""

    last_hidden_state: torch.Tensor


class _Norm(nn.Module):
    """Root-mean-square norm, measured in float32."""

    def __init__(self, config: UMT5Config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.eps = config.layer_norm_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled = x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(self.weight.dtype)


class _Attention(nn.Module):
    """Self-attention with a learned bias for every distance, and without a scale."""

    def __init__(self, config: UMT5Config):
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.config = config
        self.q, self.k, self.v = (nn.Linear(config.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (rearrange(w(x), "b n (h d) -> b h n d", h=self.config.num_heads) for w in (self.q, self.k, self.v))
        bias = rearrange(self.relative_attention_bias(self._buckets(x.shape[1], x.device)), "q k h -> 1 h q k")
        weights = (q @ k.transpose(2, 3) + bias + mask).softmax(-1)
        return self.o(rearrange(weights @ v, "b h n d -> b n (h d)"))

    def _buckets(self, tokens: int, device: torch.device) -> torch.Tensor:
        """[queries, keys]: of half of the buckets on each side half are for single distances, the rest for ever longer
        ones."""
        place = torch.arange(tokens, device=device)
        distance = place[None] - place[:, None]
        side = self.config.relative_attention_num_buckets // 2
        exact = side // 2
        far = torch.log(distance.abs().float() / exact) / math.log(self.config.relative_attention_max_distance / exact)
        far = (exact + (far * (side - exact)).long()).clamp(max=side - 1)
        return (distance > 0).long() * side + torch.where(distance.abs() < exact, distance.abs(), far)


class _FeedForward(nn.Module):
    """Gated by the tanh form of GELU, step by step as it was trained: short numbers are rounded at every step."""

    def __init__(self, config: UMT5Config):
        super().__init__()
        self.wi_0, self.wi_1 = (nn.Linear(config.d_model, config.d_ff, bias=False) for _ in range(2))
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.wi_0(x)
        gate = 0.5 * gate * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (gate + 0.044715 * gate.pow(3.0))))
        return self.wo(gate * self.wi_1(x))


class _SelfAttention(nn.Module):
    def __init__(self, config: UMT5Config):
        super().__init__()
        self.SelfAttention, self.layer_norm = _Attention(config), _Norm(config)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return _finite(x + self.SelfAttention(self.layer_norm(x), mask))


class _FeedForwardLayer(nn.Module):
    def __init__(self, config: UMT5Config):
        super().__init__()
        self.DenseReluDense, self.layer_norm = _FeedForward(config), _Norm(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _finite(x + self.DenseReluDense(self.layer_norm(x)))


class _Block(nn.Module):
    def __init__(self, config: UMT5Config):
        super().__init__()
        self.layer = nn.ModuleList([_SelfAttention(config), _FeedForwardLayer(config)])

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layer[1](self.layer[0](x, mask))


class _Stack(nn.Module):
    def __init__(self, config: UMT5Config, embed_tokens: nn.Embedding):
        super().__init__()
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList([_Block(config) for _ in range(config.num_layers)])
        self.final_layer_norm = _Norm(config)


class UMT5EncoderModel(nn.Module):
    """Token ids to features."""

    def __init__(self, config: UMT5Config):
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = _Stack(config, self.shared)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncodedText:
        """Token ids and mask (1 for real tokens) [b, tokens] -> `EncodedText`."""
        x = self.shared(input_ids)
        nowhere = torch.finfo(x.dtype).min
        mask = torch.zeros(attention_mask.shape, dtype=x.dtype, device=x.device)
        mask = mask.masked_fill(attention_mask == 0, nowhere)[:, None, None]
        for block in self.encoder.block:
            x = block(x, mask)
        return EncodedText(self.encoder.final_layer_norm(x))


def _finite(x: torch.Tensor) -> torch.Tensor:
    """float16 does not reach as far as this network was trained with."""
    return x.clamp(-_LARGEST_HALF, _LARGEST_HALF) if x.dtype == torch.float16 else x
