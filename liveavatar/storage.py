"""How a stage keeps what it holds: the rungs of the memory ladder, as data.

The planner chooses, the weights' reader and the stage obey. Nothing else asks which rung it is.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from .config import ModelConfig

WeightFormat = Literal["plain", "fp8", "fp8-tensor", "int8"]
"""The large matrices: in the working dtype; e4m3 with one scale per output row (or one per tensor, as the published
implementation has it); int8 with one scale per output row, worked in the working dtype."""
FLOAT8_CAPABILITY = (8, 9)
"""CUDA compute capability from which on cards multiply e4m3 themselves (Ada, Hopper, Blackwell)."""
KeyFormat = Literal["plain", "fp8"]
"""Keys and values of blocks: in the working dtype, or e4m3 with one scale per token and head."""
Home = Literal["device", "host"]
"""Where keys and values of the steps that are not being worked on lie; the host's memory is pinned."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """How one stage keeps its weights and memories.

    Attributes:
        weights: format of the large matrices.
        keys: format of the keys and values of blocks; those of the sink and of the prompt stay plain.
        keys_home: where they lie between two uses.
        prompt_weights: whether the matrices that make keys and values of the prompt stay on the device, or leave it
            once the prompt is read.
        streamed: how many of the stage's layers live in host memory and pass through two slots on the device.
    """

    weights: WeightFormat = "plain"
    keys: KeyFormat = "plain"
    keys_home: Home = "device"
    prompt_weights: Literal["stay", "leave"] = "stay"
    streamed: int = 0


PLAIN = Storage()
"""Everything on the device in the working dtype."""


def options_of(storage: Storage) -> str:
    """How a storage is asked for on the command line: "--weights fp8 --stream 5"; "" for the plain one."""
    asked = {
        "weights": storage.weights,
        "keys": storage.keys,
        "keys-home": storage.keys_home,
        "prompt-weights": storage.prompt_weights,
        "stream": storage.streamed,
    }
    usual = (PLAIN.weights, PLAIN.keys, PLAIN.keys_home, PLAIN.prompt_weights, PLAIN.streamed)
    return " ".join(f"--{name} {way}" for (name, way), plain in zip(asked.items(), usual, strict=True) if way != plain)


def embeddings_of(storage: Storage) -> Storage:
    """Of a part without layers, kept beside layers of this storage: it shares their format and nothing else."""
    return Storage(weights=storage.weights)


def weights_of(storage: Storage) -> Storage:
    """What of it weights depend on: those that are kept alike so can be shared."""
    return dataclasses.replace(storage, keys=PLAIN.keys, keys_home=PLAIN.keys_home)


def streamed_layers(layers: range, count: int) -> tuple[int, ...]:
    """Which `count` of some layers are streamed: spread evenly, so that resident ones hide the copies between them.

    Raises:
        ValueError: more than there are.
    """
    if not 0 <= count <= len(layers):
        raise ValueError(f"{count} of {len(layers)} layers cannot be streamed.")
    return tuple(layers[(2 * i + 1) * len(layers) // (2 * count)] for i in range(count))


_SCALE = 4
"""Bytes of a scale."""
SLOTS = 2
"""Places on the device that what lives on the host passes through: one in use, one being filled."""


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes that stay for as long as a stage lives.

    Attributes:
        device: on the device.
        host: in the host's memory, pinned for a CUDA device.
    """

    device: int
    host: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(self.device + other.device, self.host + other.host)


def ring_bytes(keys: KeyFormat, tokens: int, heads: int, head_dim: int, size: int) -> int:
    """Keys and values of some tokens in one layer.

    Args:
        keys: how they are kept.
        tokens: how many; a ring has those of all blocks of its window.
        heads, head_dim: of the network.
        size: bytes per number of the working dtype.
    """
    return 2 * tokens * heads * (head_dim + _SCALE if keys == "fp8" else head_dim * size)


def held_by_rings(storage: Storage, ring: int, layers: int, steps: int) -> Held:
    """The rings of a stage, of `ring` bytes each: all on the device, or all on the host and two slots on the device."""
    rings = ring * layers * steps
    return Held(rings) if storage.keys_home == "device" else Held(SLOTS * ring, rings)


def held_by_layers(storage: Storage, layer: int, prompt: int, layers: int) -> Held:
    """The layers of a stage without their injectors, which always stay on the device.

    Args:
        storage: of the stage.
        layer: bytes of one layer in its format, its prompt weights among them.
        prompt: bytes of those: `prompt_bytes` of the network.
        layers: how many.
    """
    each = travelling(storage, layer, prompt)
    at_once = layers - storage.streamed + min(storage.streamed, SLOTS)
    return Held(at_once * each, storage.streamed * each + layers * (layer - each))


def travelling(storage: Storage, layer: int, prompt: int) -> int:
    """Bytes of a layer that work in every task, and travel where it is streamed; arguments as in `held_by_layers`."""
    return layer - (prompt if storage.prompt_weights == "leave" else 0)


def held_by_reading(storage: Storage, prompt: int, layers: int) -> int:
    """Bytes of the slots that prompt weights pass through; they are there only while a stage reads the prompt."""
    return min(layers, SLOTS) * prompt if storage.prompt_weights == "leave" else 0


def prompt_bytes(dim: int, weights: WeightFormat, size: int) -> int:
    """What of a layer only the prompt needs: its key and value matrices, and the norm of the keys.

    Args:
        dim: of the network.
        weights, size: as in `linear_bytes`.
    """
    return 2 * linear_bytes(dim, dim, weights, size) + dim * size


def carried_by_rings(storage: Storage, block_row: int, layers: int, earlier: int) -> tuple[int, int]:
    """Bytes a block moves at one step through a stage: to the device and to the host.

    Args:
        storage: of the stage.
        block_row: `ring_bytes` of the tokens of one block.
        layers: how many.
        earlier: how many earlier blocks it sees.
    """
    return (0, 0) if storage.keys_home == "device" else (earlier * block_row * layers, block_row * layers)


def carried_by_layers(storage: Storage, layer: int, prompt: int) -> int:
    """Bytes one task moves to the device; two streamed layers or fewer stay in their slots."""
    return storage.streamed * travelling(storage, layer, prompt) if storage.streamed > SLOTS else 0


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


Matrices = tuple[tuple[int, int], ...]
"""(out, in) of each."""


def layer_matrices(config: ModelConfig, layer: int) -> Matrices:
    """(out, in) of every matrix in one layer and its injector, if it has one: all that formats change.

    The embeddings, the head and the encoder of the sound have none.
    """
    return bare_matrices(config) + (injector_matrices(config) if layer in config.audio_inject_layers else ())


def bare_matrices(config: ModelConfig) -> Matrices:
    """(out, in) of the matrices in a layer without its injector."""
    d, f = config.dim, config.ffn_dim
    return ((d, d),) * 8 + ((f, d), (d, f))


def injector_matrices(config: ModelConfig) -> Matrices:
    """(out, in) of the matrices in an injector."""
    d = config.dim
    return ((d, d),) * 4 + ((2 * d, d),)


def layer_saving(config: ModelConfig, layer: int, weights: WeightFormat, size: int) -> int:
    """How many bytes a layer is smaller in a format than plain in a working dtype of `size` bytes."""
    return saving(layer_matrices(config, layer), weights, size)


def saving(matrices: Matrices, weights: WeightFormat, size: int) -> int:
    """How many bytes some matrices are smaller in a format than plain in a working dtype of `size` bytes."""
    return sum(linear_bytes(*shape, "plain", size) - linear_bytes(*shape, weights, size) for shape in matrices)
