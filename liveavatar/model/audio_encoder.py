"""From audio features of a block to the audio tokens of its latent frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..config import ModelConfig


class _Conv(nn.Module):
    """Causal convolution over time, kernel 3; the first row is repeated to the left."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.conv = nn.Conv1d(channels, out, 3, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, time, channels] -> [batch, ceil(time / stride), out], float32 whatever the stored dtype."""
        padded = F.pad(rearrange(x, "b t c -> b c t"), (2, 0), mode="replicate")
        weight, bias = self.conv.weight.float(), None if self.conv.bias is None else self.conv.bias.float()
        return rearrange(F.conv1d(padded, weight, bias, self.conv.stride), "b c t -> b t c")


class _Encoder(nn.Module):
    """The convolution stack: one path for num_audio_token local tokens, one for the global vector."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        dim, eps = config.dim, config.eps
        self.num_tokens, self.eps = config.num_audio_token, eps
        self.conv1_local = _Conv(config.audio_dim, dim // 4 * self.num_tokens, 1)
        self.conv1_global = _Conv(config.audio_dim, dim // 4, 1)
        self.conv2 = _Conv(dim // 4, dim // 2, 2)
        self.conv3 = _Conv(dim // 2, dim, 2)
        self.final_linear = nn.Linear(dim, dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[batch, 1 + 4 n, audio_dim] -> global [batch, 1 + n, dim], local [batch, 1 + n, tokens + 1, dim]"""
        batch = x.shape[0]
        local = rearrange(self.conv1_local(x), "b t (n c) -> (b n) t c", n=self.num_tokens)
        local = rearrange(self._narrow(local), "(b n) t c -> b t n c", b=batch)
        padding = self.padding_tokens.float().expand(batch, local.shape[1], -1, -1)
        whole = F.linear(
            self._narrow(self.conv1_global(x)), self.final_linear.weight.float(), self.final_linear.bias.float()
        )
        return whole, torch.cat((local, padding), 2)

    def _narrow(self, x: torch.Tensor) -> torch.Tensor:
        """The two strided convolutions both paths share, with the norms around them."""
        return self._act(self.conv3(self._act(self.conv2(self._act(x)))))

    def _act(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(F.layer_norm(x, x.shape[-1:], eps=self.eps))


class CausalAudioEncoder(nn.Module):
    """Mixes the hidden states of the audio model and encodes them per latent frame (`casual_audio_encoder`).

    A block sees its own audio only: its first row is repeated to the left. One repetition gives the same rows as the
    73 of the published implementation, because the repeated region is constant.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(1, config.audio_layers, 1, 1))
        self.encoder = _Encoder(config)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Audio tokens of three latent frames.

        Args:
            features: [actors, audio_layers, audio_dim, 12]

        Returns:
            One vector per frame [actors, 3, dim] and its tokens [actors, 3, tokens + 1, dim], float32.
        """
        weights = F.silu(self.weights)
        mixed = (features.to(weights.dtype) * weights).float().sum(1) / weights.float().sum()
        rows = rearrange(mixed, "actors c t -> actors t c")
        whole, local = self.encoder(torch.cat((rows[:, :1], rows), 1))
        return whole[:, 1:], local[:, 1:]
