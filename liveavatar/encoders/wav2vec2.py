"""wav2vec 2.0 (Baevski et al. 2020), with the names that its weights have in transformers.

transformers has the same network as `Wav2Vec2Model`; to import it takes seconds. Both can be given to
`liveavatar.encoders.audio.encode_audio`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
    """Dimensions, by their names in config.json; the defaults are those of the base model.

    Attributes:
        hidden_size, intermediate_size: width of a feature, of the feed-forward.
        num_hidden_layers, num_attention_heads: of the transformer.
        conv_dim, conv_kernel, conv_stride, conv_bias: of the convolutions over samples.
        feat_extract_norm: "layer" after every one of them, or "group" after the first.
        do_stable_layer_norm: whether layers are normalised before what they do, not after it.
        num_conv_pos_embeddings, num_conv_pos_embedding_groups: width and groups of the convolution that tells places.
        layer_norm_eps: of the norms of features.
        hidden_act, feat_extract_activation: the one activation that there is here.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    feat_extract_norm: str = "group"
    do_stable_layer_norm: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu"
    feat_extract_activation: str = "gelu"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Wav2Vec2Config:
        """From a config.json, which holds more.

        Raises:
            ValueError: another kind of network.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        config = cls(**{name: value for name, value in settings.items() if name in known})
        for name, possible in (
            ("hidden_act", ("gelu",)),
            ("feat_extract_activation", ("gelu",)),
            ("feat_extract_norm", ("layer", "group")),
        ):
            if getattr(config, name) not in possible:
                raise ValueError(f"{name} is {getattr(config, name)!r:.40}, not {' or '.join(possible)}")
        if not len(config.conv_dim) == len(config.conv_kernel) == len(config.conv_stride) > 0:
            raise ValueError("conv_dim, conv_kernel and conv_stride are not of one length")
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(f"{config.num_attention_heads} heads do not share {config.hidden_size} numbers")
        return config


class EncodedAudio(NamedTuple):
    """What comes out.

    Attributes:
        last_hidden_state: [b, features, hidden_size]; normalised where layers normalise before what they do.
        hidden_states: the input of every layer, and what the last one made.
    """

    last_hidden_state: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...]


class _Convolution(nn.Module):
    """Samples or channels to channels, perhaps normalised."""

    def __init__(self, config: Wav2Vec2Config, number: int):
        super().__init__()
        channels, out = (1, *config.conv_dim)[number], config.conv_dim[number]
        kernel, stride = config.conv_kernel[number], config.conv_stride[number]
        self.conv = nn.Conv1d(channels, out, kernel, stride, bias=config.conv_bias)
        self.layer_norm: nn.Module | None = None
        if config.feat_extract_norm == "layer":
            self.layer_norm = nn.LayerNorm(out)
        elif number == 0:
            self.layer_norm = nn.GroupNorm(out, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if isinstance(self.layer_norm, nn.LayerNorm):
            x = self.layer_norm(x.transpose(-2, -1)).transpose(-2, -1)
        elif self.layer_norm is not None:
            x = self.layer_norm(x)
        return F.gelu(x)


class _FeatureExtractor(nn.Module):
    def __init__(self, config: Wav2Vec2Config):
        super().__init__()
        self.conv_layers = nn.ModuleList([_Convolution(config, i) for i in range(len(config.conv_dim))])


class _FeatureProjection(nn.Module):
    def __init__(self, config: Wav2Vec2Config):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)


class _NormedWeight(nn.Module):
    """A weight kept as lengths and directions, under the names that PyTorch's own weight norm has for them.

    That one measures the weight it is given, which takes PyTorch's compiler where the weight has no memory yet.
    """

    def __init__(self, *shape: int):
        super().__init__()
        self.original0, self.original1 = nn.Parameter(torch.ones(1, 1, shape[2])), nn.Parameter(torch.ones(shape))

    def forward(self) -> torch.Tensor:
        return torch._weight_norm(self.original1, self.original0, 2)


class _NormedConv(nn.Module):
    """A convolution [b, width, n] -> [b, width, n or one more], whose weight is normed along its kernel."""

    def __init__(self, width: int, kernel: int, groups: int):
        super().__init__()
        self.padding, self.groups = kernel // 2, groups
        self.bias = nn.Parameter(torch.zeros(width))
        self.parametrizations = nn.ModuleDict({"weight": _NormedWeight(width, width // groups, kernel)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.parametrizations["weight"]()
        return F.conv1d(x, weight, self.bias, padding=self.padding, groups=self.groups)


class _Places(nn.Module):
    """A wide convolution that tells features where they stand."""

    def __init__(self, config: Wav2Vec2Config):
        super().__init__()
        width = config.num_conv_pos_embeddings
        self.conv = _NormedConv(config.hidden_size, width, config.num_conv_pos_embedding_groups)
        self.surplus = 1 - width % 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        placed = self.conv(x.transpose(1, 2))
        return F.gelu(placed[:, :, : placed.shape[2] - self.surplus]).transpose(1, 2)


class _Attention(nn.Module):
    def __init__(self, config: Wav2Vec2Config):
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            rearrange(project(x), "b n (h d) -> b h n d", h=self.heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class _FeedForward(nn.Module):
    def __init__(self, config: Wav2Vec2Config):
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output_dense(F.gelu(self.intermediate_dense(x)))


class _Layer(nn.Module):
    """A layer; `stable` ones are normalised before what they do."""

    def __init__(self, config: Wav2Vec2Config):
        super().__init__()
        self.stable = config.do_stable_layer_norm
        self.attention = _Attention(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.feed_forward = _FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stable:
            x = x + self.attention(self.layer_norm(x))
            return x + self.feed_forward(self.final_layer_norm(x))
        x = self.layer_norm(x + self.attention(x))
        return self.final_layer_norm(x + self.feed_forward(x))


class _Encoder(nn.Module):
    def __init__(self, config: Wav2Vec2Config):
        super().__init__()
        self.pos_conv_embed = _Places(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layers = nn.ModuleList([_Layer(config) for _ in range(config.num_hidden_layers)])


class Wav2Vec2Model(nn.Module):
    """Samples to features, 50 a second."""

    def __init__(self, config: Wav2Vec2Config):
        super().__init__()
        self.config = config
        self.feature_extractor = _FeatureExtractor(config)
        self.feature_projection = _FeatureProjection(config)
        self.encoder = _Encoder(config)

    def forward(self, input_values: torch.Tensor, output_hidden_states: bool = True) -> EncodedAudio:
        """Normalised 16 kHz samples [b, n] -> `EncodedAudio`; the hidden states are always there."""
        x = input_values[:, None]
        for layer in self.feature_extractor.conv_layers:
            x = layer(x)
        projection, encoder = self.feature_projection, self.encoder
        x = projection.projection(projection.layer_norm(x.transpose(1, 2)))
        x = x + encoder.pos_conv_embed(x)
        if not self.config.do_stable_layer_norm:
            x = encoder.layer_norm(x)
        states = [x]
        for layer in encoder.layers:
            states.append(layer(states[-1]))
        last = encoder.layer_norm(states[-1]) if self.config.do_stable_layer_norm else states[-1]
        return EncodedAudio(last, tuple(states))
