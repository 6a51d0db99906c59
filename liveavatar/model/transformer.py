"""The causal sound-to-video transformer, whole or as a slice: embeddings, sink tokens, layers and head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..config import MOTION_LATENTS, ModelConfig
from ..storage import PACKED_FORMATS, WeightFormat
from ..utils import to_device_async, without_memory
from ..weights.block_types import PackedMatrices
from .attention import Attention
from .audio_encoder import CausalAudioEncoder
from .fused import untrained_linears
from .layer import EAGER, AudioInjector, AudioTokens, KVCache, Layer, LayerOps, TextKV
from .packed import pack_linears
from .pointwise import layer_norm, modulated
from .quantize import replace_linears
from .rope import Rope

_PACKED = (16, 2, 1)
"""Latent frames packed 4x, 2x and 1x, oldest first."""


class FramePacker(nn.Module):
    """Packs 19 motion latents into 1.5 latent frames' worth of tokens (`frame_packer`): the older, the coarser."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.proj = _patches(config, (1, 2, 2))
        self.proj_2x = _patches(config, (2, 4, 4))
        self.proj_4x = _patches(config, (4, 8, 8))

    def forward(self, motion: torch.Tensor) -> torch.Tensor:
        """motion [16, frames, h, w]: the last 19 count, missing ones are zero -> [1.5 S, dim], newest first."""
        missing = MOTION_LATENTS - motion.shape[1]
        motion = nn.functional.pad(motion, (0, 0, 0, 0, missing, 0)) if missing > 0 else motion[:, -MOTION_LATENTS:]
        oldest, older, newest = motion.split(_PACKED, 1)
        return torch.cat((tokens(self.proj, newest), tokens(self.proj_2x, older), tokens(self.proj_4x, oldest)))


def _patches(config: ModelConfig, kernel: tuple[int, int, int]) -> nn.Conv3d:
    return nn.Conv3d(config.in_dim, config.dim, kernel, kernel)


def tokens(projection: nn.Conv3d, latents: torch.Tensor) -> torch.Tensor:
    """Patch latents [channels, frames, h, w] -> [tokens, dim], frame by frame, row by row."""
    return rearrange(projection(latents[None]), "1 dim f h w -> (f h w) dim")


_NOISE, _REFERENCE, _MOTION = range(3)
"""Rows of trainable_cond_mask: the kind of a token."""


@dataclasses.dataclass(frozen=True)
class ModelSlice:
    """What of the network a module owns.

    Attributes:
        layers: contiguous layers, with their injectors; may be empty.
        embed: latents to tokens.
        head: tokens to velocity.
        embedders: embeddings of text, timesteps and audio.
    """

    layers: range
    embed: bool = False
    head: bool = False
    embedders: bool = False

    @classmethod
    def whole(cls, config: ModelConfig) -> ModelSlice:
        """Everything."""
        return cls(range(config.num_layers), True, True, True)

    @classmethod
    def of(cls, layers: range, config: ModelConfig) -> ModelSlice:
        """Layers, with the ends of the network that belong to the first and the last of them."""
        return cls(layers, embed=layers.start == 0, head=layers.stop == config.num_layers)


EMBEDDERS = ModelSlice(range(0), embedders=True)
"""The embeddings alone."""


LayerProvider = Callable[[Iterable[tuple[int, Layer]]], Iterator[Layer]]
"""Leads numbered layers by, in their order; each is ready to work on the device until the next one is asked for."""


def always_resident(layers: Iterable[tuple[int, Layer]]) -> Iterator[Layer]:
    """Layers that are always ready."""
    return (layer for _, layer in layers)


@dataclasses.dataclass(frozen=True)
class TimestepEmbedding:
    """Embedded timesteps, float32.

    Attributes:
        head: [n, dim] for the head.
        layers: [n, 6, dim] for every layer: shift, scale, gate of attention, then of the feed-forward.
    """

    head: torch.Tensor
    layers: torch.Tensor


class Head(nn.Module):
    """Tokens to patches of velocity (`head`); computed in float32."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))
        self.head = nn.Linear(config.dim, config.out_dim * 4)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """x [tokens, dim], time [dim] -> [tokens, 4 * out_dim]"""
        shift, scale = (self.modulation[0].float() + time).unbind(0)
        normed = modulated(layer_norm(x, self.eps), shift, 1 + scale, torch.float32)
        return F.linear(normed, self.head.weight.float(), self.head.bias.float())


class CausalS2VTransformer(nn.Module):
    """A slice of the network.

    Args:
        config: dimensions of the whole network.
        model_slice: what of it this module owns; the rest has no parameters and its methods must not be called.

    Attributes:
        layers_on_device: how the layers come to work.
        text_layers_on_device: how those parts of them come that only the prompt needs; None where they come with the
            layers.
    """

    layers_on_device: LayerProvider = staticmethod(always_resident)
    text_layers_on_device: LayerProvider | None = None

    def __init__(self, config: ModelConfig, model_slice: ModelSlice):
        super().__init__()
        self.config, self.slice = config, model_slice
        if model_slice.embedders:
            self.text_embedding = _mlp(config.text_dim, config.dim, nn.GELU("tanh"))
            self.time_embedding = _mlp(config.freq_dim, config.dim, nn.SiLU())
            self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, 6 * config.dim))
            self.casual_audio_encoder = CausalAudioEncoder(config)
        if model_slice.embed:
            self.patch_embedding = nn.Conv3d(config.in_dim, config.dim, (1, 2, 2), (1, 2, 2))
            self.cond_encoder = nn.Conv3d(config.cond_dim, config.dim, (1, 2, 2), (1, 2, 2))
            self.trainable_cond_mask = nn.Embedding(3, config.dim)
            self.frame_packer = FramePacker(config)
        self.blocks = nn.ModuleDict({str(i): Layer(config) for i in model_slice.layers})
        self.audio_injector = AudioInjector(config, model_slice.layers)
        if model_slice.head:
            self.head = Head(config)

    # -- conditions: once per session (text, time) or once per block (sound) --

    def embed_text(self, context: torch.Tensor) -> torch.Tensor:
        """Prompt features [n <= text_len, text_dim] -> [text_len, dim].

        Padding comes before the embedding, so padded rows become a constant that is attended to like any other.
        """
        first = self.text_embedding.get_parameter("0.weight")
        context = context[: self.config.text_len].to(first.device, first.dtype)
        return self.text_embedding(F.pad(context, (0, 0, 0, self.config.text_len - len(context))))

    def embed_timesteps(self, timesteps: Sequence[float]) -> TimestepEmbedding:
        """Timesteps (0..1000) -> modulation vectors, in float32 whatever the stored dtype."""
        device = self.time_embedding.get_parameter("0.weight").device
        e = _float32(self.time_embedding, timestep_sinusoid(timesteps, self.config.freq_dim).to(device))
        return TimestepEmbedding(e, _float32(self.time_projection, e).unflatten(1, (6, -1)))

    def embed_audio(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> AudioTokens:
        """Features of a block [actors, audio_layers, audio_dim, 12] -> tokens in the stored dtype.

        Args:
            features: what each actor says.
            mask: [actors, >= 3, rows, columns, 1], where each actor is; only the first three latent frames count.
        """
        weights = self.casual_audio_encoder.weights
        frame, local = self.casual_audio_encoder(to_device_async(features, weights.device))
        where = None if mask is None else mask[:, :3].flatten(1, 3).to(weights.device, weights.dtype)
        # `contiguous` would leave the strides of a single actor as they are: compiled layers know one order of numbers.
        frame, local = (t.to(weights.dtype).clone(memory_format=torch.contiguous_format) for t in (frame, local))
        return AudioTokens(frame, local, where)

    # -- the pass of a block or of the sink --

    def embed_block(self, latent: torch.Tensor, pose: torch.Tensor | None = None) -> torch.Tensor:
        """Noisy latent [16, 3, h, w] (and pose latent of the same frames; none is zeros) -> [3 S, dim]"""
        x = tokens(self.patch_embedding, latent.to(self.patch_embedding.weight.dtype))
        # A pose latent of zeros leaves only the bias of its convolution.
        cond = self.cond_encoder.get_parameter("bias") if pose is None else tokens(self.cond_encoder, pose.to(x.dtype))
        # Row by row, as the layers leave it: compiled layers know one order of the numbers.
        return (x + cond + self.trainable_cond_mask.weight[_NOISE]).contiguous()

    def embed_sink(self, reference: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
        """Reference latent [16, 1, h, w] and motion latents [16, <= 19, h, w] -> [2.5 S, dim], reference first."""
        dtype, kind = self.patch_embedding.weight.dtype, self.trainable_cond_mask.weight
        image = tokens(self.patch_embedding, reference.to(dtype)) + kind[_REFERENCE]
        return torch.cat((image, self.frame_packer(motion.to(dtype)) + kind[_MOTION]))

    def text_kv(self, text: torch.Tensor) -> list[TextKV]:
        """Embedded prompt -> keys and values per owned layer."""
        lead = self.text_layers_on_device or self.layers_on_device
        return [layer.text_kv(text) for layer in lead(self.numbered_layers())]

    def modulation(self, time: torch.Tensor) -> torch.Tensor:
        """Embedded timesteps [..., 6, dim] -> what modulates the owned layers then [layers, ..., 6, dim] float32."""
        return torch.stack([layer.modulation_of(time) for _, layer in self.numbered_layers()])

    def run_layers(
        self,
        x: torch.Tensor,
        modulation: torch.Tensor,
        rope: Rope,
        text: Sequence[TextKV],
        kv_caches: Sequence[KVCache],
        audio: AudioTokens | None,
        ops: LayerOps = EAGER,
    ) -> torch.Tensor:
        """Through all owned layers.

        Args:
            x: [tokens, dim]
            modulation: of the timestep, one per owned layer [layers, 6, dim] float32
            rope: of the tokens
            text, kv_caches: one per owned layer
            audio: tokens of the block; None for the sink, which has none
            ops: how layers do what they do
        """
        layers = self.layers_on_device(self.numbered_layers())
        inputs = zip(self.slice.layers, layers, modulation, text, kv_caches, strict=True)
        for number, layer, its_modulation, words, kv_cache in inputs:
            x = layer(x, its_modulation, rope, words, kv_cache, ops)
            if audio is not None:
                x = self.audio_injector(number, x, audio, ops)
        return x

    def numbered_layers(self) -> Iterator[tuple[int, Layer]]:
        """The owned layers, in their order."""
        blocks = zip(self.slice.layers, self.blocks.values(), strict=True)
        return ((number, layer) for number, layer in blocks if isinstance(layer, Layer))

    def velocity(self, x: torch.Tensor, time: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Tokens [3 S, dim] -> velocity [16, 3, 2 rows, 2 columns] in x's dtype; channels run fastest in a token."""
        patches = self.head(x, time).to(x.dtype)
        return rearrange(patches, "(f h w) (p q c) -> c f (h p) (w q)", h=rows, w=columns, p=2, q=2)


def empty_transformer(
    config: ModelConfig,
    model_slice: ModelSlice,
    weights: WeightFormat = "plain",
    packed: PackedMatrices | None = None,
) -> CausalS2VTransformer:
    """A part without memory, on the meta device, with its large matrices in a format: ready to be filled.

    Projections of the same input are fused (see fused.py).

    Args:
        config, model_slice: of the network.
        weights: the format.
        packed: how the file has its matrices, where they stay so ("packed", "packed-native").

    Raises:
        ModelError: they are to stay packed, and the file has none that may.
    """
    with without_memory():
        net = CausalS2VTransformer(config, model_slice)
    untrained_linears(net.blocks)
    untrained_linears(net.audio_injector)
    for _, layer in net.numbered_layers():
        layer.self_attn.fuse("qkv")
        layer.cross_attn.fuse("kv")
    for injector in net.audio_injector.injector.values():
        assert isinstance(injector, Attention)
        injector.fuse("kv")
    if weights in PACKED_FORMATS:
        pack_linears(net, packed, native=weights == "packed-native")
    else:
        replace_linears(net, weights)
    return net


def timestep_sinusoid(timesteps: Sequence[float], width: int) -> torch.Tensor:
    """Timesteps -> [n, width] float32, cosines first; angles in float64 (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.tensor(timesteps, dtype=torch.float64).unsqueeze(1) * frequency
    return torch.cat((angle.cos(), angle.sin()), 1).float()


def _mlp(wide: int, dim: int, act: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(wide, dim), act, nn.Linear(dim, dim))


def _float32(layers: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Run a small stack in float32 without keeping a float32 copy of its weights."""
    for layer in layers:
        x = F.linear(x, layer.weight.float(), layer.bias.float()) if isinstance(layer, nn.Linear) else layer(x)
    return x
