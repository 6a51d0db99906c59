"""How a stage stores what it holds: formats of weights and KV caches, and what is offloaded, as data.

The planner chooses, the weights' reader and the stage obey. Nothing else asks which level it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

WeightFormat = Literal["plain", "fp8", "fp8-tensor", "int8", "packed", "packed-native"]
"""The large matrices: in the working dtype; e4m3 with one scale per output row (or one per tensor, as the published
implementation has it); int8 with one scale per output row, worked in the working dtype; packed as the model's file has
them, with LoRAs beside them, worked in the working dtype; or the same, multiplied as they are where the device can (see
`liveavatar.model.native`)."""
OLDER_WEIGHTS: Mapping[str, WeightFormat] = {"gguf": "packed"}
"""Words that mean another one now."""
PACKED_FORMATS: tuple[WeightFormat, ...] = ("packed", "packed-native")
NOT_PACKED = (
    "The matrices stay packed (--weights packed) only where the model's file has them in few bits, and it has not.",
    "Use a GGUF of the model, one that ComfyUI has in int8, mxfp8 or nvfp4, or --weights fp8.",
)
"""What is wrong where a file has no matrices that stay packed, and what works."""
FP8_CAPABILITY = (8, 9)
"""CUDA compute capability from which on devices multiply e4m3 themselves (Ada, Hopper, Blackwell)."""
KVDtype = Literal["plain", "fp8", "int4"]
"""Keys and values of blocks: in the working dtype; e4m3 with one scale per token and head; four bits with one scale per
token and 32 numbers of a head, of channels that each block brings to mean 0 and nearer to one spread."""


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

    def __post_init__(self) -> None:
        if isinstance(self.weights, str):  # what else may be given is refused where it is used
            object.__setattr__(self, "weights", OLDER_WEIGHTS.get(self.weights, self.weights))

    @property
    def packed(self) -> bool:
        """Whether matrices stay as the model's file has them."""
        return self.weights in PACKED_FORMATS


PLAIN = StorageConfig()
"""Everything on the device in the working dtype."""


def int4_groups(head_dim: int) -> int:
    """Scales of a token and head in int4: of 32 numbers each or fewer, evenly, and of an even count."""
    return next(n for n in range(-(-head_dim // 32), head_dim + 1) if head_dim % (2 * n) == 0)


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
