"""Bytes of all that a stage and the models beside it hold, counted for a network, its layers and a storage."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from ..config import (
    AUDIO_SAMPLE_RATE,
    BLOCK_FRAMES,
    BLOCK_LATENTS,
    MINI,
    SPATIAL_STRIDE,
    UNTRAINED,
    WINDOW_BLOCKS,
    DecoderConfig,
    ModelConfig,
)
from ..errors import PlanError
from ..storage import (
    NOT_PACKED,
    NUM_SLOTS,
    PACKED_FORMATS,
    PLAIN,
    KVDtype,
    MemoryUse,
    StorageConfig,
    WeightFormat,
    int4_groups,
    offloaded_layers,
)
from ..vae.tile_grid import WHOLE, Grid, Tiles
from ..weights.block_types import UNPACKED_AT_ONCE
from .decoders import decoder_figures
from .packed import PackedSizes

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per number of the dtypes a stage can work in."""
SINK_FRAMES = 2.5
"""Latent frames' worth of tokens in the sink: the reference, and the packed motion."""
SINK_VERSIONS = 2
"""Versions of the sink that overlap while it is refreshed."""
PROMPT_VERSIONS = 2
"""Versions of the prompt that overlap where it changes."""
_FLOAT32_BUFFERS = 6
"""Float32 copies of the residual stream that are alive at once in a layer (residual, norm, modulated, result...)."""
_INJECTOR_BUFFERS = 3
"""Copies of the residual stream for each speaker that are alive at once in an injector, counted."""
_FLOAT32_KEYS = 3
"""Float32 copies of the keys of the prompt that are alive at once in their norm."""

_SCALE = 4
"""Bytes of a scale of fp8 or int8."""
_SCALE_INT4, _CHANNEL = 2, 8
"""Bytes of a scale of a KV cache in int4, and of what each of its blocks keeps of a channel."""


class LayerSizes:
    """What the layers of a network take, stored in one way; how many of them are offloaded is said where it matters.

    Args:
        config: of the network.
        frame_tokens: tokens per latent frame, T.
        size: bytes per number of the working dtype.
        storage: how things are kept.
        window_blocks: blocks a KV cache holds: those of a clip.
        changes_prompt: whether another prompt is read while blocks are made.
        packed: of the matrices, where they stay packed.
        speakers: how many are heard in one picture.

    Attributes:
        sink, text: of one layer: both versions of the sink, and the prompt; both versions of it where it changes.
    """

    def __init__(
        self,
        config: ModelConfig,
        frame_tokens: int,
        size: int,
        storage: StorageConfig,
        window_blocks: int = WINDOW_BLOCKS,
        changes_prompt: bool = False,
        packed: PackedSizes | None = None,
        speakers: int = 1,
    ):
        def kv_bytes(form: KVDtype, tokens: int) -> int:
            return kv_cache_bytes(form, tokens, config.num_heads, config.head_dim, size)

        s, block = storage, BLOCK_LATENTS * frame_tokens
        self._storage, self._window = s, window_blocks
        self._layers, self._prompts, always = _weight_bytes(config, size, s.weights, packed)
        always[0] += embed_parameters(config) * size
        always[-1] += head_parameters(config) * size
        self._always_resident = [0, *itertools.accumulate(always)]
        """Of the layers before each: injectors, and the ends of the network, which are never offloaded."""
        self._block = kv_bytes(s.kv_dtype, block)
        self._kv_cache = window_blocks * self._block
        self.sink = SINK_VERSIONS * kv_bytes("plain", int(SINK_FRAMES * frame_tokens))
        self._changes_prompt = changes_prompt
        self.text = (PROMPT_VERSIONS if changes_prompt else 1) * kv_bytes("plain", config.text_len)
        self._modulation = 6 * config.dim * 4
        self._task = workspace_bytes(config, frame_tokens, size, s, window_blocks, speakers)
        self._text_kv_workspace = _text_kv_workspace_bytes(config, size, s)

    @property
    def layer_transfer_bytes(self) -> int:
        """Of the largest layer where it is offloaded."""
        return max(map(layer_transfer_bytes, itertools.repeat(self._storage), self._layers, self._prompts))

    def weights_resident_bytes(self, layers: range, storage: StorageConfig) -> MemoryUse:
        """Of layers, their injectors, and the ends of the network that belong to them.

        Args:
            layers: of the stage.
            storage: the same as of all, but for how many are offloaded.
        """
        always = self._always_resident[layers.stop] - self._always_resident[layers.start]
        return layers_resident_bytes(storage, *self._of(layers)) + MemoryUse(always)

    def kv_cache_resident_bytes(self, layers: int, steps: int) -> MemoryUse:
        """Of so many layers and steps."""
        return kv_cache_resident_bytes(self._storage, self._kv_cache, layers, steps)

    def snapshot_bytes(self, layers: int, steps: int) -> int:
        """Of so many layers and steps: their KV caches but for the block that the next one takes the place of, and the
        sink in use."""
        return layers * (steps * (self._window - 1) * self._block + self.sink // SINK_VERSIONS)

    def conditions(self, layers: int, steps: int) -> int:
        """Of the prompt, and of what modulates the layers in each step and in the prefill."""
        return layers * (self.text + (steps + 1) * self._modulation)

    def workspace(self, layers: int, steps: int) -> int:
        """What work needs besides, at most.

        The prompt is read before the KV caches and the sink are there: it counts as far as it does not fit in their
        place. One that takes its place is read between two tasks.
        """
        text_kv = self._text_kv_workspace + text_kv_resident_bytes(self._storage, max(self._prompts), layers)
        if self._changes_prompt:
            return max(self._task, text_kv)
        return max(self._task, text_kv - self.kv_cache_resident_bytes(layers, steps).device - layers * self.sink)

    def transfer_bytes(self, layers: range, storage: StorageConfig) -> int:
        """Bytes that a task in the full pipeline brings from the host, for these layers; storage as in
        `weights_resident_bytes`."""
        rows, _ = kv_cache_transfer_bytes(storage, self._block, len(layers), self._window - 1)
        return rows + layers_transfer_bytes(storage, *self._of(layers))

    def _of(self, layers: range) -> tuple[list[int], list[int]]:
        """Bytes of these layers, and of their text KV weights."""
        return self._layers[layers.start : layers.stop], self._prompts[layers.start : layers.stop]


def _weight_bytes(
    config: ModelConfig, size: int, weights: WeightFormat, packed: PackedSizes | None
) -> tuple[list[int], list[int], list[int]]:
    """Of every layer: its weights without an injector, those of them that only the prompt needs, and its injector's."""
    count, injects = config.num_layers, [i in config.audio_inject_layers for i in range(config.num_layers)]
    if weights not in PACKED_FORMATS:
        layer, prompt = layer_bytes(config, size, weights), text_kv_bytes(config.dim, weights, size)
        injector = injector_bytes(config, size, weights)
        return [layer] * count, [prompt] * count, [injector * has_one for has_one in injects]
    if packed is None or not packed.layers:
        raise PlanError(*NOT_PACKED)
    layer, prompt = layer_bytes(config, size), text_kv_bytes(config.dim, "plain", size)
    injector = injector_bytes(config, size)
    return (
        [layer - each.saved(size) for each in packed.layers],
        [prompt - each.saved(size) for each in packed.text_kv],
        [injector * has_one - each.saved(size) for has_one, each in zip(injects, packed.injectors, strict=True)],
    )


def layer_bytes(config: ModelConfig, size: int, weights: WeightFormat = "plain") -> int:
    """Bytes of a layer's weights, without an injector."""
    return _layer_parameters(config) * size - saved_bytes(layer_matrices_without_injector(config), weights, size)


def injector_bytes(config: ModelConfig, size: int, weights: WeightFormat = "plain") -> int:
    """Bytes of an injector's weights."""
    return _injector_parameters(config) * size - saved_bytes(injector_matrices(config), weights, size)


def kv_cache_bytes(kv_dtype: KVDtype, tokens: int, heads: int, head_dim: int, size: int) -> int:
    """Keys and values of the tokens of one block in one layer; a KV cache has as many blocks as its window.

    Args:
        kv_dtype: how they are kept.
        tokens: how many; those that are not rounded, or to fp8, may be of several blocks.
        heads, head_dim: of the network.
        size: bytes per number of the working dtype.
    """
    if kv_dtype == "int4":
        return 2 * heads * (tokens * (head_dim // 2 + int4_groups(head_dim) * _SCALE_INT4) + head_dim * _CHANNEL)
    return 2 * tokens * heads * (head_dim + _SCALE if kv_dtype == "fp8" else head_dim * size)


def kv_cache_resident_bytes(storage: StorageConfig, layer_bytes: int, layers: int, steps: int) -> MemoryUse:
    """The KV caches of a stage, of `layer_bytes` bytes each: all on the device, or all on the host and two slots on the
    device."""
    total = layer_bytes * layers * steps
    return MemoryUse(total) if not storage.kv_offload else MemoryUse(NUM_SLOTS * layer_bytes, total)


def layers_resident_bytes(storage: StorageConfig, layers: Sequence[int], prompts: Sequence[int]) -> MemoryUse:
    """The layers of a stage without their injectors, which always stay on the device.

    Args:
        storage: of the stage.
        layers: bytes of each in its format, its text KV weights among them.
        prompts: bytes of those: `text_kv_bytes` of the network.
    """
    each = list(map(layer_transfer_bytes, itertools.repeat(storage), layers, prompts))
    offloaded = [each[i] for i in offloaded_layers(range(len(each)), storage.offload_layers)]
    slots = min(len(offloaded), NUM_SLOTS) * max(offloaded, default=0)
    return MemoryUse(sum(each) - sum(offloaded) + slots, sum(offloaded) + sum(layers) - sum(each))


def layer_transfer_bytes(storage: StorageConfig, layer: int, prompt: int) -> int:
    """Bytes of a layer that work in every task, and travel where it is offloaded: all, or without its text KV
    weights."""
    return layer - (prompt if storage.offload_text_kv else 0)


def text_kv_resident_bytes(storage: StorageConfig, prompt: int, layers: int) -> int:
    """Bytes of the slots that text KV weights pass through; they are there only while a stage reads the prompt."""
    return min(layers, NUM_SLOTS) * prompt if storage.offload_text_kv else 0


def text_kv_bytes(dim: int, weights: WeightFormat, size: int) -> int:
    """What of a layer only the prompt needs: its key and value matrices, and the norm of the keys.

    Args:
        dim: of the network.
        weights, size: as in `linear_bytes`.
    """
    return 2 * linear_bytes(dim, dim, weights, size) + dim * size


def kv_cache_transfer_bytes(storage: StorageConfig, block_bytes: int, layers: int, earlier: int) -> tuple[int, int]:
    """Bytes a block moves at one step through a stage: to the device and to the host.

    Args:
        storage: of the stage.
        block_bytes: `kv_cache_bytes` of the tokens of one block.
        layers: how many.
        earlier: how many earlier blocks it sees.
    """
    return (0, 0) if not storage.kv_offload else (earlier * block_bytes * layers, block_bytes * layers)


def layers_transfer_bytes(storage: StorageConfig, layers: Sequence[int], prompts: Sequence[int]) -> int:
    """Bytes one task moves to the device; two offloaded layers or fewer stay in their slots."""
    offloaded = offloaded_layers(range(len(layers)), storage.offload_layers)
    if len(offloaded) <= NUM_SLOTS:
        return 0
    return sum(layer_transfer_bytes(storage, layers[i], prompts[i]) for i in offloaded)


def linear_bytes(out_features: int, in_features: int, weights: WeightFormat, size: int) -> int:
    """What a large matrix takes with its scales and its bias, in bytes.

    Args:
        out_features, in_features: of the matrix.
        weights: its format.
        size: bytes of a number in the working dtype, which the bias always has.
    """
    bias, numbers = out_features * size, out_features * in_features
    if weights == "plain":
        return numbers * size + bias
    return numbers + bias + (_SCALE if weights == "fp8-tensor" else _SCALE * out_features)


MatrixShapes = tuple[tuple[int, int], ...]
"""(out, in) of each."""


def layer_matrices(config: ModelConfig, layer: int) -> MatrixShapes:
    """(out, in) of every matrix in one layer and its injector, if it has one: all that formats change.

    The embeddings, the head and the encoder of the audio have none.
    """
    return layer_matrices_without_injector(config) + (
        injector_matrices(config) if layer in config.audio_inject_layers else ()
    )


def layer_matrices_without_injector(config: ModelConfig) -> MatrixShapes:
    """(out, in) of the matrices in a layer without its injector."""
    d, f = config.dim, config.ffn_dim
    return ((d, d),) * 8 + ((f, d), (d, f))


def injector_matrices(config: ModelConfig) -> MatrixShapes:
    """(out, in) of the matrices in an injector."""
    d = config.dim
    return ((d, d),) * 4 + ((2 * d, d),)


def layer_saved_bytes(config: ModelConfig, layer: int, weights: WeightFormat, size: int) -> int:
    """How many bytes a layer is smaller in a format than plain in a working dtype of `size` bytes."""
    return saved_bytes(layer_matrices(config, layer), weights, size)


def saved_bytes(matrices: MatrixShapes, weights: WeightFormat, size: int) -> int:
    """How many bytes some matrices are smaller in a format than plain in a working dtype of `size` bytes."""
    return sum(linear_bytes(*shape, "plain", size) - linear_bytes(*shape, weights, size) for shape in matrices)


def workspace_bytes(
    config: ModelConfig,
    frame_tokens: int,
    size: int,
    storage: StorageConfig = PLAIN,
    window_blocks: int = WINDOW_BLOCKS,
    speakers: int = 1,
) -> int:
    """What one task needs besides weights and memories, at most.

    The keys of the sink, and the window of one layer where it is stored in another form; the residual stream and its
    float32 copies, the widest activation (the feed-forward or q, k and v), and the largest matrix once more where it is
    stored in another form; where it is multiplied as it is packed, a product in 32 bits. An injector takes more than a
    layer only where many speak.
    """
    tokens = BLOCK_LATENTS * frame_tokens
    window = 2 * window_blocks * tokens if storage.kv_dtype != "plain" else 0
    keys = int(SINK_FRAMES * frame_tokens) + window
    widest = max(config.ffn_dim, 4 * config.dim)
    matrix = _unpacked_bytes(config.ffn_dim * config.dim, storage.weights, size)
    layer = _FLOAT32_BUFFERS * config.dim * 4 + 2 * widest * size
    injector = (2 + _INJECTOR_BUFFERS * speakers) * config.dim * size
    matrix += tokens * widest * 4 if storage.weights == "packed-native" else 0
    return keys * config.dim * size + tokens * max(layer, injector) + matrix


_UNPACKING_BYTES = 16
"""That a number of a packed matrix takes while it is unpacked."""


def _unpacked_bytes(numbers: int, weights: WeightFormat, size: int) -> int:
    """A matrix once more where it is stored in another form, and what is needed to make it of that."""
    if weights == "plain":
        return 0
    return numbers * size + (min(numbers, UNPACKED_AT_ONCE) * _UNPACKING_BYTES if weights in PACKED_FORMATS else 0)


def _text_kv_workspace_bytes(config: ModelConfig, size: int, storage: StorageConfig) -> int:
    """What one layer needs to read the prompt besides weights and what it keeps.

    The embedded prompt, its keys, their float32 copies, and a matrix once more where it is stored in another form.
    """
    matrix = _unpacked_bytes(config.dim * config.dim, storage.weights, size)
    return config.text_len * config.dim * (_FLOAT32_KEYS * 4 + 2 * size) + matrix


def layer_parameters(config: ModelConfig, layer: int) -> int:
    """Numbers in one layer, with its injector if it has one."""
    has_injector = layer in config.audio_inject_layers
    return _layer_parameters(config) + (_injector_parameters(config) if has_injector else 0)


def _layer_parameters(config: ModelConfig) -> int:
    """Without an injector: two attentions, the feed-forward, its modulation and a norm."""
    d = config.dim
    return 2 * _attention_parameters(d) + 2 * d * config.ffn_dim + config.ffn_dim + d + 6 * d + 2 * d


def _injector_parameters(config: ModelConfig) -> int:
    d = config.dim
    return _attention_parameters(d) + 2 * d * d + 2 * d


def _attention_parameters(d: int) -> int:
    return 4 * (d * d + d) + 2 * d


def embed_parameters(config: ModelConfig) -> int:
    """Numbers in the latent, pose, kind and motion embeddings."""
    d = config.dim
    patch = lambda channels, kernel: channels * kernel * d + d  # noqa: E731
    packer = patch(config.in_dim, 4) + patch(config.in_dim, 32) + patch(config.in_dim, 256)
    return patch(config.in_dim, 4) + patch(config.cond_dim, 4) + 3 * d + packer


def head_parameters(config: ModelConfig) -> int:
    """Numbers in the head."""
    return 2 * config.dim + (config.dim + 1) * config.out_dim * 4


def embedder_parameters(config: ModelConfig) -> int:
    """Numbers in the embeddings of text, timesteps and audio."""
    d, c = config.dim, config.audio_dim
    text = (config.text_dim + 1) * d + (d + 1) * d
    time = (config.freq_dim + 1) * d + (d + 1) * d + (d + 1) * 6 * d
    first = (3 * c + 1) * (d // 4)
    shared = (3 * (d // 4) + 1) * (d // 2) + (3 * (d // 2) + 1) * d
    audio = config.audio_layers + d + first * config.num_audio_token + first + shared + (d + 1) * d
    return text + time + audio


AUDIO_WORK = 206
"""Numbers that the published audio encoder takes per sample of a window, counted; smaller ones take fewer."""
LIVE_WINDOW_SECONDS, LONG_WINDOW_SECONDS = 6.5, 40.0
"""Of audio that is encoded at once, at most: see `live.features` and `encoders.audio`."""
_UMT5_MATRIX = 10_240 * 4096
"""Numbers in the largest matrix of UMT5-XXL that is no embedding."""
_DECODE_WORK = 0.8
"""Activations of a decode against its caches; 0.75 was found with every allocation tracked."""
_ENCODE_SHARE, _ENCODE_STATE = 0.593, 0.376
"""Operations of an encode against those of a decode, and what an encode remembers against what it takes: counted for
the published VAE, and taken for what is moved and for small ones, too."""
_FRAME_BYTES = BLOCK_FRAMES * 3 * SPATIAL_STRIDE**2 * 4
"""Bytes per latent pixel of a block's frames in float32, to which tiles add theirs."""


@dataclasses.dataclass(frozen=True)
class AuxModels:
    """Sizes of the models beside the network.

    Attributes:
        vae: parameters of the VAE.
        decode_state: numbers a decode remembers per latent pixel (h x w); constant from the second latent frame on.
            1576 times the base width and 32 in the published VAE.
        decode_flops: operations per latent pixel and latent frame.
        decode_bytes: that all but the convolutions read and write per latent pixel and latent frame, counted: 90 GB a
            block at 704x384 in 16 bits; those of the small ones in 32 bits.
        text, audio: parameters of the encoders.
        encode_work: numbers that an encode takes at most per latent pixel, with what it remembers.
        tiny: the decoder that works in place of the VAE's own; None: none.
        pose: whether pose latents are encoded beside the decode.
    """

    vae: int
    decode_state: int
    decode_flops: float
    decode_bytes: float
    text: int
    audio: int
    encode_work: int
    tiny: DecoderConfig | None = None
    pose: bool = False

    def vae_bytes(
        self, latent_size: tuple[int, int], size: int, tiles: Tiles = WHOLE, on_gpu: bool = True
    ) -> MemoryUse:
        """Weights, decode caches and the activations of a decode.

        In tiles, one tile's caches and activations are on the device, and the caches of all lie on the host. At
        1280x704 in 16 bits the whole takes 7.9 GB, 4.3 of them caches. Four tiles would still take 6.2 with all caches
        on the card; with those at rest on the host they take 2.6, and 4.9 there. To carry them there and back for every
        block takes 0.4 s at 25 GB/s, where the network of a device that needs it takes ten or more.

        Args:
            latent_size: height and width of what is decoded.
            size: bytes per number.
            tiles: rows and columns.
            on_gpu: whether it is decoded on one; the memory of a CPU holds the caches of all tiles by itself.
        """
        grid = Grid.of(*latent_size, tiles)
        if self.tiny is not None:
            return self._with_tiny(latent_size, size, grid)
        cache = self.decode_state * size
        device = self.vae * size + int((1 + _DECODE_WORK) * cache * grid.tile)
        device += self._pose_bytes(size, grid) if self.pose else 0
        if tiles == WHOLE:
            return MemoryUse(device)
        height, width = latent_size
        device += _FRAME_BYTES * height * width
        kept = cache * grid.covered
        return MemoryUse(device, kept) if on_gpu else MemoryUse(device + kept - cache * grid.tile)

    def _with_tiny(self, latent_size: tuple[int, int], size: int, grid: Grid) -> MemoryUse:
        """Weights of the VAE and of the decoder in its place, and of an encode, which alone works in tiles, and a
        decode the larger one."""
        assert self.tiny is not None
        height, width = latent_size
        figures = decoder_figures(self.tiny)
        decode = int(1.1 * (figures.work * size + _FRAME_BYTES)) * height * width
        encode = self.encode_work * size * grid.tile
        beside = decode + self._pose_bytes(size, grid) if self.pose else max(encode, decode)
        return MemoryUse((self.vae + figures.parameters) * size + beside)

    def _pose_bytes(self, size: int, grid: Grid) -> int:
        """Of an encode beside the decode: in tiles, one works and all remember."""
        return int(self.encode_work * size * (grid.tile + _ENCODE_STATE * (grid.covered - grid.tile)))

    def decode_work(self, latent_size: tuple[int, int], latents: int, tiles: Tiles = WHOLE) -> tuple[float, float]:
        """10^12 operations to decode so many latent frames, and to encode their poses, and bytes that are moved beside;
        where tiles overlap, twice."""
        pixels = Grid.of(*latent_size, tiles).covered * latents
        encode = _ENCODE_SHARE if self.pose else 0.0
        if self.tiny is not None:
            small = decoder_figures(self.tiny).flops * math.prod(latent_size) * latents
            return (small + encode * self.decode_flops * pixels) / 1e12, encode * self.decode_bytes * pixels
        return (1 + encode) * self.decode_flops * pixels / 1e12, (1 + encode) * self.decode_bytes * pixels

    def encoder_bytes(self, size: int, packed: PackedSizes | None = None) -> int:
        """The larger encoder: they are never there together. A packed one stays so, and unpacks a matrix."""
        text = self.text * size
        if packed and packed.text_encoder.stored:
            text += _unpacked_bytes(min(self.text, _UMT5_MATRIX), "packed", size) - packed.text_encoder.saved(size)
        return max(text, self.audio * size)

    def audio_encoder_bytes(self, size: int, live: bool) -> int:
        """The audio encoder with a window of audio, where it works while blocks are made.

        Args:
            size: bytes per number.
            live: whether the window is that of one block; else the one of long audio.
        """
        seconds = LIVE_WINDOW_SECONDS if live else LONG_WINDOW_SECONDS
        return (self.audio + int(AUDIO_WORK * AUDIO_SAMPLE_RATE * seconds)) * size


PUBLISHED_AUX = AuxModels(
    vae=126_892_531,
    decode_state=151_328,
    decode_flops=2.163e9,
    decode_bytes=6.19e6,
    text=5_680_910_336,
    audio=315_438_720,
    encode_work=238_800,
)
"""The Wan 2.1 VAE, UMT5-XXL and wav2vec2-large."""
_SMALL = {
    MINI: AuxModels(
        vae=2_050_595,
        decode_state=16_288,
        decode_flops=3.43e7,
        decode_bytes=1.34e6,
        text=131_648,
        audio=215_136,
        encode_work=32_600,
    ),
    UNTRAINED: AuxModels(
        vae=188_211,
        decode_state=6_528,
        decode_flops=5.19e6,
        decode_bytes=5.48e5,
        text=64_944,
        audio=189_472,
        encode_work=16_100,
    ),
}


def aux_models(config: ModelConfig, tiny: DecoderConfig | None = None, pose: bool = False) -> AuxModels:
    """Those of a network; one that is not known is taken to have the published ones, which are large.

    Args:
        config: of the network.
        tiny: the decoder that works in place of the VAE's own.
        pose: whether a pose video is followed.
    """
    return dataclasses.replace(_SMALL.get(config, PUBLISHED_AUX), tiny=tiny, pose=pose)
