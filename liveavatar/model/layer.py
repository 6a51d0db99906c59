"""One transformer layer, and the injector of its audio cross-attention."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..config import BLOCK_LATENTS, ModelConfig
from ..utils import to_device_async
from .attention import Attention, AttentionKernel, KeyValue
from .fused import FeedForward
from .pointwise import add_to, gated_sum, modulated, modulated_norm
from .rope import Rope, apply_rope

_INJECTOR_EPS = 1e-5


class KVCache(Protocol):
    """The KV cache of one layer as self-attention uses it (see kv_cache.py)."""

    def update(self, k: torch.Tensor, v: torch.Tensor, rope: Rope) -> Sequence[KeyValue]: ...

    def release(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class TextKV:
    """Keys and values of the prompt in one layer, each [text_len, heads, head_dim]; constant for a session."""

    k: torch.Tensor
    v: torch.Tensor


@dataclasses.dataclass(frozen=True)
class AudioTokens:
    """Audio tokens of a block.

    Attributes:
        frame: [actors, 3, dim], one vector per latent frame.
        tokens: [actors, 3, num_audio_token + 1, dim], the last one learned padding.
        mask: [actors, 3 * S, 1] share of each actor in each token of the image, or None for a single speaker.
    """

    frame: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor | None = None

    def to(self, device: torch.device) -> AudioTokens:
        """On another device, without waiting for it."""
        mask = None if self.mask is None else to_device_async(self.mask, device)
        return AudioTokens(to_device_async(self.frame, device), to_device_async(self.tokens, device), mask)


class Layer(nn.Module):
    """Self-attention, text cross-attention and feed-forward, modulated by the timestep (`blocks.{i}`).

    The residual stream enters and leaves in the working dtype and is float32 in between; in bf16 the rounding points
    are those of the published implementation without compilation.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.zeros(1, 6, config.dim))
        self.self_attn = Attention(config.dim, config.num_heads, config.eps)
        self.norm3 = nn.LayerNorm(config.dim, config.eps)
        self.cross_attn = Attention(config.dim, config.num_heads, config.eps)
        self.ffn = FeedForward(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, config.dim)
        )

    def forward(
        self,
        x: torch.Tensor,
        modulation: torch.Tensor,
        rope: Rope,
        text: TextKV,
        kv_cache: KVCache,
        ops: LayerOps | None = None,
    ) -> torch.Tensor:
        """x [tokens, dim], modulation [6, dim] (see `modulation_of`) -> [tokens, dim]; `ops` says how, by default as it
        is written."""
        ops = ops or EAGER
        q, k, v = ops.pre_attention(self, x, modulation, rope)
        kv = kv_cache.update(k, v, rope)
        del k, v
        x = ops.post_attention(self, x, modulation, q, kv, text)
        kv_cache.release()
        return x

    def pre_attention(
        self, x: torch.Tensor, modulation: torch.Tensor, rope: Rope
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Before the KV cache: queries (rotated), keys (not rotated) and values [tokens, heads, head_dim]."""
        shift, scale = modulation[0], modulation[1]
        q, k, v = self.self_attn.queries_keys_values(modulated_norm(x, shift, scale, self.eps))
        return apply_rope(q, rope), k, v

    def post_attention(
        self,
        x: torch.Tensor,
        modulation: torch.Tensor,
        q: torch.Tensor,
        kv: Sequence[KeyValue],
        text: TextKV,
        kernel: AttentionKernel | None = None,
    ) -> torch.Tensor:
        """After the KV cache: attention, cross-attention to the prompt, feed-forward.

        Args:
            x, modulation: as in `forward`.
            q: from `pre_attention`.
            kv: all that is attended to, in parts [keys, heads, head_dim].
            text: of the prompt.
            kernel: of self-attention.
        """
        dtype = x.dtype
        gate, shift_ffn, scale_ffn, gate_ffn = modulation[2:].unbind()
        residual = gated_sum(x, self.self_attn.output(q, kv, kernel), gate, torch.float32)
        residual = add_to(residual, self.cross_attend(residual.to(dtype), text))
        x_norm = F.layer_norm(residual, residual.shape[-1:], scale_ffn, shift_ffn, self.eps).to(dtype)
        return gated_sum(residual, self.ffn(x_norm), gate_ffn, dtype)

    def modulation_of(self, time: torch.Tensor) -> torch.Tensor:
        """Embedded timesteps [..., 6, dim] -> [..., 6, dim] float32 where they are: shift, 1 + scale and gate of
        attention, then of the feed-forward."""
        modulation = self.modulation[0].to(time.device).float() + time
        modulation[..., 1::3, :] += 1
        return modulation

    def text_kv(self, text: torch.Tensor) -> TextKV:
        """Keys and values of the embedded prompt [text_len, dim]."""
        k, v = self.cross_attn.keys_values(text)
        return TextKV(k, v.contiguous())  # not a view of what made both, which would stay with it

    @property
    def text_kv_modules(self) -> tuple[nn.Module, ...]:
        """The modules that `text_kv` needs and nothing else does."""
        return self.cross_attn.key_value_modules

    def cross_attend(self, x: torch.Tensor, text: TextKV) -> torch.Tensor:
        return self.cross_attn.output(self.cross_attn.queries(self.norm3(x)), ((text.k, text.v),))


class AudioAdaLN(nn.Module):
    """Shift and scale of an injector's norm (`audio_injector.injector_adain_layers.{j}`)."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, x: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
        """x [3, S, dim], frame [actors, 3, dim] -> [actors, 3, S, dim]; shift comes before scale."""
        shift, scale = self.linear(F.silu(frame)).unsqueeze(2).chunk(2, -1)
        normed = F.layer_norm(x.float(), x.shape[-1:], eps=_INJECTOR_EPS)
        return modulated(normed, shift, 1 + scale, x.dtype)


class AudioInjector(nn.Module):
    """Audio cross-attention after some layers (`audio_injector`); every latent frame attends to its own tokens.

    Args:
        config: dimensions.
        layers: the layers whose injectors are held; keys keep the number j of the injector in the whole network.
    """

    def __init__(self, config: ModelConfig, layers: range):
        super().__init__()
        self._number = {layer: str(j) for j, layer in enumerate(config.audio_inject_layers) if layer in layers}
        owned = self._number.values()
        self.injector = nn.ModuleDict({j: Attention(config.dim, config.num_heads, config.eps) for j in owned})
        self.injector_adain_layers = nn.ModuleDict({j: AudioAdaLN(config.dim) for j in owned})

    def forward(self, layer: int, x: torch.Tensor, audio: AudioTokens, ops: LayerOps | None = None) -> torch.Tensor:
        """x [3 S, dim] after `layer` -> the same, with audio injected; layers without an injector pass it on."""
        j = self._number.get(layer)
        if j is None:
            return x
        attend, norm = cast(Attention, self.injector[j]), cast(AudioAdaLN, self.injector_adain_layers[j])
        return (ops or EAGER).inject_audio(attend, norm, x, audio)


def inject_audio(attend: Attention, norm: AudioAdaLN, x: torch.Tensor, audio: AudioTokens) -> torch.Tensor:
    """x [3 S, dim] -> the same with what each actor's sound adds, through one injector."""
    frames = rearrange(x, "(f s) dim -> f s dim", f=BLOCK_LATENTS)
    q, k, v = (
        rearrange(t, "actors f n heads d -> (actors f) n heads d")
        for t in (attend.queries(norm(frames, audio.frame)), *attend.keys_values(audio.tokens))
    )
    audio_out = rearrange(attend.output(q, ((k, v),)), "(actors f) s dim -> actors (f s) dim", f=BLOCK_LATENTS)
    if audio.mask is not None:
        audio_out = audio_out * audio.mask.to(audio_out.dtype)
    return x + (audio_out[0] if len(audio_out) == 1 else audio_out.sum(0))


@dataclasses.dataclass(frozen=True)
class LayerOps:
    """The functions that a layer consists of, eager or compiled. KV caches are not part of it: they move bytes.

    Attributes:
        pre_attention, post_attention: see `Layer`, which comes first.
        inject_audio: see there.
        apply_rope: of keys that a KV cache stores; see `liveavatar.model.rope`.
    """

    pre_attention: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    post_attention: Callable[..., torch.Tensor]
    inject_audio: Callable[..., torch.Tensor]
    apply_rope: Callable[[torch.Tensor, Rope], torch.Tensor]

    def attending(self, kernel: AttentionKernel) -> LayerOps:
        """The same with a kernel of self-attention."""
        return dataclasses.replace(self, post_attention=functools.partial(self.post_attention, kernel=kernel))


EAGER = LayerOps(Layer.pre_attention, Layer.post_attention, inject_audio, apply_rope)
