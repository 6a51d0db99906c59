"""Bytes of all a stage holds: what `liveavatar.storage` says of one piece, counted for a network and its layers."""

from __future__ import annotations

from ..config import BLOCK_LATENTS, WINDOW_BLOCKS, ModelConfig
from ..storage import (
    PLAIN,
    Held,
    KeyFormat,
    Storage,
    WeightFormat,
    bare_matrices,
    carried_by_layers,
    carried_by_rings,
    held_by_layers,
    held_by_reading,
    held_by_rings,
    injector_matrices,
    prompt_bytes,
    ring_bytes,
    saving,
    travelling,
)

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per number of the dtypes a stage can work in."""
SINK_FRAMES = 2.5
"""Latent frames' worth of tokens in the sink: the reference, and the packed motion."""
SINK_VERSIONS = 2
"""Versions of the sink that overlap while it is refreshed."""
_WIDE_BUFFERS = 6
"""Float32 copies of the residual stream that are alive at once in a layer (residual, norm, modulated, result...)."""
_WIDE_KEYS = 3
"""Float32 copies of the keys of the prompt that are alive at once in their norm."""


class Sizes:
    """What the layers of a network take, kept in one way; how many of them are streamed is said where it matters.

    Args:
        config: of the network.
        frame_tokens: tokens per latent frame, T.
        size: bytes per number of the working dtype.
        storage: how things are kept.
        window_blocks: blocks a KV ring holds: those of a clip.

    Attributes:
        sink, text: of one layer: both versions of the sink, and the prompt.
    """

    def __init__(
        self,
        config: ModelConfig,
        frame_tokens: int,
        size: int,
        storage: Storage,
        window_blocks: int = WINDOW_BLOCKS,
    ):
        def keys(form: KeyFormat, tokens: int) -> int:
            return ring_bytes(form, tokens, config.num_heads, config.head_dim, size)

        s, block = storage, BLOCK_LATENTS * frame_tokens
        self._storage, self._last, self._hearing = s, config.num_layers, frozenset(config.audio_inject_layers)
        self._window = window_blocks
        self._layer, self._injector = layer_bytes(config, size, s.weights), injector_bytes(config, size, s.weights)
        self._prompt = prompt_bytes(config.dim, s.weights, size)
        self._embed, self._head = embed_parameters(config) * size, head_parameters(config) * size
        self._block, self._ring = keys(s.keys, block), keys(s.keys, window_blocks * block)
        self.sink = SINK_VERSIONS * keys("plain", int(SINK_FRAMES * frame_tokens))
        self.text = keys("plain", config.text_len)
        self._task = workspace_bytes(config, frame_tokens, size, s, window_blocks)
        self._reading = _reading_bytes(config, size, s)

    @property
    def travelling(self) -> int:
        """Of a layer where it is streamed."""
        return travelling(self._storage, self._layer, self._prompt)

    def weights(self, layers: range, storage: Storage) -> Held:
        """Of layers, their injectors, and the ends of the network that belong to them.

        Args:
            layers: of the stage.
            storage: the same as of all, but for how many are streamed.
        """
        hearing = sum(layer in layers for layer in self._hearing)
        ends = self._embed * (layers.start == 0) + self._head * (layers.stop == self._last)
        return held_by_layers(storage, self._layer, self._prompt, len(layers)) + Held(hearing * self._injector + ends)

    def rings(self, layers: int, steps: int) -> Held:
        """Of so many layers and steps."""
        return held_by_rings(self._storage, self._ring, layers, steps)

    def workspace(self, layers: int, steps: int) -> int:
        """What work needs besides, at most.

        The prompt is read before the rings and the sink are there: it counts as far as it does not fit in their place.
        """
        reading = self._reading + held_by_reading(self._storage, self._prompt, layers)
        return max(self._task, reading - self.rings(layers, steps).device - layers * self.sink)

    def carried(self, layers: int, storage: Storage) -> int:
        """Bytes that a task in the full pipeline brings from the host, for so many layers; storage as in `weights`."""
        rows, _ = carried_by_rings(storage, self._block, layers, self._window - 1)
        return rows + carried_by_layers(storage, self._layer, self._prompt)


def layer_bytes(config: ModelConfig, size: int, weights: WeightFormat = "plain") -> int:
    """Bytes of a layer's weights, without an injector."""
    return _layer_parameters(config) * size - saving(bare_matrices(config), weights, size)


def injector_bytes(config: ModelConfig, size: int, weights: WeightFormat = "plain") -> int:
    """Bytes of an injector's weights."""
    return _injector_parameters(config) * size - saving(injector_matrices(config), weights, size)


def workspace_bytes(
    config: ModelConfig,
    frame_tokens: int,
    size: int,
    storage: Storage = PLAIN,
    window_blocks: int = WINDOW_BLOCKS,
) -> int:
    """What one task needs besides weights and memories, at most.

    The keys and values of one layer side by side, the residual stream and its float32 copies, the widest activation
    (the feed-forward or q, k and v), and the largest matrix once more where it is stored in another form.
    """
    tokens = BLOCK_LATENTS * frame_tokens
    keys = int((window_blocks * BLOCK_LATENTS + SINK_FRAMES) * frame_tokens)
    widest = max(config.ffn_dim, 4 * config.dim)
    matrix = 0 if storage.weights == "plain" else config.ffn_dim * config.dim * size
    return 2 * keys * config.dim * size + tokens * (_WIDE_BUFFERS * config.dim * 4 + 2 * widest * size) + matrix


def _reading_bytes(config: ModelConfig, size: int, storage: Storage) -> int:
    """What one layer needs to read the prompt besides weights and what it keeps.

    The embedded prompt, its keys, their float32 copies, and a matrix once more where it is stored in another form.
    """
    matrix = 0 if storage.weights == "plain" else config.dim * config.dim * size
    return config.text_len * config.dim * (_WIDE_KEYS * 4 + 2 * size) + matrix


def layer_parameters(config: ModelConfig, layer: int) -> int:
    """Numbers in one layer, with its injector if it has one."""
    hears = layer in config.audio_inject_layers
    return _layer_parameters(config) + (_injector_parameters(config) if hears else 0)


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


def condition_parameters(config: ModelConfig) -> int:
    """Numbers in the embeddings of text, time and sound."""
    d, c = config.dim, config.audio_dim
    text = (config.text_dim + 1) * d + (d + 1) * d
    time = (config.freq_dim + 1) * d + (d + 1) * d + (d + 1) * 6 * d
    first = (3 * c + 1) * (d // 4)
    shared = (3 * (d // 4) + 1) * (d // 2) + (3 * (d // 2) + 1) * d
    sound = config.audio_layers + d + first * config.num_audio_token + first + shared + (d + 1) * d
    return text + time + sound
