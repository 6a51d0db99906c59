"""How a stage stores what it holds: formats of weights and KV caches, and what is offloaded, as data.

The planner chooses, the weights' reader and the stage obey. Nothing else asks which level it is.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from .config import ModelConfig

WeightFormat = Literal["plain", "fp8", "fp8-tensor", "int8"]
"""The large matrices: in the working dtype; e4m3 with one scale per output row (or one per tensor, as the published
implementation has it); int8 with one scale per output row, worked in the working dtype."""
FP8_CAPABILITY = (8, 9)
"""CUDA compute capability from which on devices multiply e4m3 themselves (Ada, Hopper, Blackwell)."""
KVDtype = Literal["plain", "fp8"]
"""Keys and values of blocks: in the working dtype, or e4m3 with one scale per token and head."""


@dataclasses.dataclass(frozen=True)
class StorageConfig:
    """How one stage stores its weights and KV caches.

    Attributes:
        weights: format of the large matrices.
        kv_dtype: format of the KV cache of blocks; the keys and values of the sink and of the prompt stay plain.
        kv_offload: whether the KV cache lies in pinned host memory between two uses.
        offload_text_kv: whether the matrices that make keys and values of the prompt leave the device once the prompt
            is encoded.
        offload_layers: how many of the stage's layers live in host memory and are prefetched into two slots on the
            device.
    """

    weights: WeightFormat = "plain"
    kv_dtype: KVDtype = "plain"
    kv_offload: bool = False
    offload_text_kv: bool = False
    offload_layers: int = 0


PLAIN = StorageConfig()
"""Everything on the device in the working dtype."""


def cli_options(storage: StorageConfig) -> str:
    """Command-line options of a storage: "--weights fp8 --offload-layers 5"; "" for the plain one."""
    options = [
        f"--weights {storage.weights}" * (storage.weights != PLAIN.weights),
        f"--kv-dtype {storage.kv_dtype}" * (storage.kv_dtype != PLAIN.kv_dtype),
        "--kv-offload" * storage.kv_offload,
        "--offload-text-kv" * storage.offload_text_kv,
        f"--offload-layers {storage.offload_layers}" * (storage.offload_layers > 0),
    ]
    return " ".join(filter(None, options))


def embedder_storage(storage: StorageConfig) -> StorageConfig:
    """Of a part without layers, kept beside layers of this storage: it shares their format and nothing else."""
    return StorageConfig(weights=storage.weights)


def weight_storage(storage: StorageConfig) -> StorageConfig:
    """What of it weights depend on: those that are kept alike so can be shared."""
    return dataclasses.replace(storage, kv_dtype=PLAIN.kv_dtype, kv_offload=PLAIN.kv_offload)


def offloaded_layers(layers: range, count: int) -> tuple[int, ...]:
    """Which `count` of some layers are offloaded: spread evenly, so that resident ones hide the copies between them.

    Raises:
        ValueError: more than there are.
    """
    if not 0 <= count <= len(layers):
        raise ValueError(f"{count} of {len(layers)} layers cannot be streamed.")
    return tuple(layers[(2 * i + 1) * len(layers) // (2 * count)] for i in range(count))


_SCALE = 4
"""Bytes of a scale."""
NUM_SLOTS = 2
"""Places on the device that what lives on the host passes through: one in use, one being filled."""


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """Bytes that stay for as long as a stage lives.

    Attributes:
        device: on the device.
        host: in the host's memory, pinned for a CUDA device.
    """

    device: int
    host: int = 0

    def __add__(self, other: MemoryUse) -> MemoryUse:
        return MemoryUse(self.device + other.device, self.host + other.host)


def kv_cache_bytes(kv_dtype: KVDtype, tokens: int, heads: int, head_dim: int, size: int) -> int:
    """Keys and values of some tokens in one layer.

    Args:
        kv_dtype: how they are kept.
        tokens: how many; a KV cache has those of all blocks of its window.
        heads, head_dim: of the network.
        size: bytes per number of the working dtype.
    """
    return 2 * tokens * heads * (head_dim + _SCALE if kv_dtype == "fp8" else head_dim * size)


def kv_cache_resident_bytes(storage: StorageConfig, layer_bytes: int, layers: int, steps: int) -> MemoryUse:
    """The KV caches of a stage, of `layer_bytes` bytes each: all on the device, or all on the host and two slots on the
    device."""
    total = layer_bytes * layers * steps
    return MemoryUse(total) if not storage.kv_offload else MemoryUse(NUM_SLOTS * layer_bytes, total)


def layers_resident_bytes(storage: StorageConfig, layer: int, prompt: int, layers: int) -> MemoryUse:
    """The layers of a stage without their injectors, which always stay on the device.

    Args:
        storage: of the stage.
        layer: bytes of one layer in its format, its text KV weights among them.
        prompt: bytes of those: `text_kv_bytes` of the network.
        layers: how many.
    """
    each = layer_transfer_bytes(storage, layer, prompt)
    at_once = layers - storage.offload_layers + min(storage.offload_layers, NUM_SLOTS)
    return MemoryUse(at_once * each, storage.offload_layers * each + layers * (layer - each))


def layer_transfer_bytes(storage: StorageConfig, layer: int, prompt: int) -> int:
    """Bytes of a layer that work in every task, and travel where it is offloaded; arguments as in
    `layers_resident_bytes`."""
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


def layers_transfer_bytes(storage: StorageConfig, layer: int, prompt: int) -> int:
    """Bytes one task moves to the device; two offloaded layers or fewer stay in their slots."""
    return (
        storage.offload_layers * layer_transfer_bytes(storage, layer, prompt)
        if storage.offload_layers > NUM_SLOTS
        else 0
    )


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
