"""Bytes of everything a stage holds, from the network's configuration and the storage it was given."""

from __future__ import annotations

from ..config import BLOCK_LATENTS, WINDOW_BLOCKS, ModelConfig
from ..storage import PLAIN, KeyFormat, Storage, WeightFormat

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per number of the dtypes a stage can work in."""
SINK_FRAMES = 2.5
"""Latent frames' worth of tokens in the sink: the reference, and the packed motion."""
SINK_VERSIONS = 2
"""Versions of the sink that overlap while it is refreshed."""
_WIDE_BUFFERS = 6
"""Float32 copies of the residual stream that are alive at once in a layer (residual, norm, modulated, result...)."""
_SLOTS = 2
"""Places on the device that what lives on the host passes through: one in use, one being filled."""
_SCALE = 4
"""Bytes of the scale of a quantised row, or of a quantised token in one head."""


def layer_bytes(config: ModelConfig, layer: int, size: int, storage: Storage = PLAIN) -> int:
    """Bytes of one layer's weights, with its injector if it has one, as far as they stay with it."""
    large = _matrices(config, layer)
    rest = layer_parameters(config, layer) - sum(rows * columns for rows, columns in large)
    total = sum(_matrix_bytes(*shape, size, storage.weights) for shape in large) + rest * size
    return total - (prompt_bytes(config, size, storage.weights) if storage.prompt_weights == "leave" else 0)


def prompt_bytes(config: ModelConfig, size: int, weights: WeightFormat = "plain") -> int:
    """Bytes of the weights in one layer that make keys and values of the prompt: k, v, and the norm of k."""
    return 2 * _matrix_bytes(config.dim, config.dim, size, weights) + 3 * config.dim * size


def token_bytes(config: ModelConfig, size: int, keys: KeyFormat = "plain") -> int:
    """Bytes of the keys and values of one token in one layer."""
    return 2 * (config.dim + _SCALE * config.num_heads) if keys == "fp8" else 2 * config.dim * size


def ring_bytes(config: ModelConfig, frame_tokens: int, size: int, keys: KeyFormat = "plain") -> int:
    """Bytes of the window of one step in one layer."""
    return WINDOW_BLOCKS * BLOCK_LATENTS * frame_tokens * token_bytes(config, size, keys)


def sink_bytes(config: ModelConfig, frame_tokens: int, size: int) -> int:
    """Bytes of the sink in one layer, both versions."""
    return int(SINK_FRAMES * frame_tokens) * token_bytes(config, size) * SINK_VERSIONS


def text_bytes(config: ModelConfig, size: int) -> int:
    """Bytes of keys and values of the prompt in one layer."""
    return config.text_len * token_bytes(config, size)


def slot_bytes(config: ModelConfig, frame_tokens: int, size: int, storage: Storage, largest_layer: int) -> int:
    """Bytes on the device that what lives on the host passes through.

    Keys and values: two slots of a layer's whole window and the block itself. Layers: two slots of the largest one.
    """
    window = (WINDOW_BLOCKS + 1) * BLOCK_LATENTS * frame_tokens * token_bytes(config, size, storage.keys)
    return _SLOTS * ((window if storage.keys_home == "host" else 0) + (largest_layer if storage.streamed else 0))


def workspace_bytes(config: ModelConfig, frame_tokens: int, size: int, storage: Storage = PLAIN) -> int:
    """What one task needs besides weights and memories, at most.

    The keys and values of one layer side by side, the residual stream and its float32 copies, the widest activation
    (the feed-forward or q, k and v), and the largest matrix once more where it is stored in another form.
    """
    tokens = BLOCK_LATENTS * frame_tokens
    keys = int((WINDOW_BLOCKS * BLOCK_LATENTS + SINK_FRAMES) * frame_tokens)
    widest = max(config.ffn_dim, 4 * config.dim)
    matrix = 0 if storage.weights == "plain" else config.ffn_dim * config.dim * size
    return 2 * keys * config.dim * size + tokens * (_WIDE_BUFFERS * config.dim * 4 + 2 * widest * size) + matrix


def layer_parameters(config: ModelConfig, layer: int) -> int:
    """Numbers in one layer, with its injector if it has one."""
    d = config.dim
    attention = 4 * (d * d + d) + 2 * d
    plain = 2 * attention + 2 * d * config.ffn_dim + config.ffn_dim + d + 6 * d + 2 * d
    hears = layer in config.audio_inject_layers
    return plain + (attention + 2 * d * d + 2 * d if hears else 0)


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


def _matrices(config: ModelConfig, layer: int) -> list[tuple[int, int]]:
    """Shapes (rows, columns) of a layer's large matrices: those that may be stored in another form."""
    d = config.dim
    injector = [(d, d)] * 4 + [(2 * d, d)] if layer in config.audio_inject_layers else []
    return [(d, d)] * 8 + [(config.ffn_dim, d), (d, config.ffn_dim)] + injector


def _matrix_bytes(rows: int, columns: int, size: int, weights: WeightFormat) -> int:
    """Without the bias, which stays in the working dtype; one scale per tensor is counted as one per row."""
    return rows * columns * size if weights == "plain" else rows * columns + _SCALE * rows
