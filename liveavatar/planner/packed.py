"""Bytes of a network whose matrices stay packed as its file has them, layer by layer, and of the text encoder."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..config import ModelConfig
from ..weights.block_types import BlockType, PackedFormat, PackedMatrices, PackedMatrix, packed_parts

if TYPE_CHECKING:
    from ..weights.source import TensorSource

ASSUMED_RANK = 128
"""Of the published LoRA, which stands beside packed matrices."""
_UMT5_MATRICES = 24 * (4 * 4096**2 + 3 * 4096 * 10_240)
"""Numbers in the matrices of UMT5-XXL that are no embeddings."""


@dataclasses.dataclass(frozen=True)
class PackedBytes:
    """What some matrices take that are packed, against what they take in numbers of the working dtype.

    Attributes:
        stored: bytes as they lie in the file.
        numbers: of the working dtype that come (factors of LoRAs) or go (matrices that are packed).
    """

    stored: int = 0
    numbers: int = 0

    def __add__(self, other: PackedBytes) -> PackedBytes:
        return PackedBytes(self.stored + other.stored, self.numbers + other.numbers)

    def saved(self, size: int) -> int:
        """Bytes that are saved where a number of the working dtype takes `size`."""
        return -(self.stored + self.numbers * size)


@dataclasses.dataclass(frozen=True)
class PackedSizes:
    """Of every layer, and of the text encoder.

    Attributes:
        layers: without injectors; none where those of the network do not stay packed.
        text_kv: the part of it that only the prompt needs.
        injectors: of the layers that have one.
        text_encoder: of its matrices, where they stay packed; else nothing.
        formats: of the network's matrices, and how many are in each, the most frequent first.
    """

    layers: tuple[PackedBytes, ...] = ()
    text_kv: tuple[PackedBytes, ...] = ()
    injectors: tuple[PackedBytes, ...] = ()
    text_encoder: PackedBytes = PackedBytes()
    formats: tuple[tuple[str, int], ...] = ()


Group = tuple[tuple[str, ...], tuple[int, int]]
"""Matrices of one module, and (out, in) of each."""


def packed_sizes(
    config: ModelConfig, matrices: PackedMatrices, text_encoder: PackedBytes = PackedBytes()
) -> PackedSizes:
    """Counted from how a file has the matrices: see `liveavatar.weights.packed`."""
    layers = [_sum(_layer_groups(config, i), matrices) for i in range(config.num_layers)]
    groups = (_layer_groups, _injector_groups)
    modules = (names for i in range(config.num_layers) for of in groups for names, _ in of(config, i))
    kinds = (part.kind for names in modules for part in packed_parts(names, matrices))
    formats = Counter(kind.name for kind in kinds if kind.is_rounded)
    text_kv = [_sum([_text_kv(config, i)], matrices) for i in range(config.num_layers)]
    injectors = [_sum(_injector_groups(config, i), matrices) for i in range(config.num_layers)]
    return PackedSizes(tuple(layers), tuple(text_kv), tuple(injectors), text_encoder, tuple(formats.most_common()))


def assumed_sizes(config: ModelConfig, kind: PackedFormat) -> PackedSizes:
    """Of files that need not be here: all matrices of the network in one format, and the published LoRA beside those it
    changes; those of UMT5-XXL likewise where it is a type of GGUF files."""
    layers = range(config.num_layers)
    groups = (group for i in layers for group in (*_layer_groups(config, i), *_injector_groups(config, i)))
    names = [name for modules, _ in groups for name in modules]
    ranks = {name: 0 if "adain" in name else ASSUMED_RANK for name in names}
    matrices = {name: PackedMatrix(kind, rank) for name, rank in ranks.items()}
    if not isinstance(kind, BlockType):
        return packed_sizes(config, matrices)
    return packed_sizes(config, matrices, PackedBytes(kind.bytes_of((_UMT5_MATRICES,)), -_UMT5_MATRICES))


def packed_linears(source: TensorSource, matrices: PackedMatrices) -> PackedBytes:
    """Of the matrices of a text encoder that are no embeddings."""
    names = (name for name in matrices if name != "shared" and not name.endswith("relative_attention_bias"))
    shapes = ((name, source.shape(f"{name}.weight")) for name in names)
    return _sum((((name,), (shape[0], shape[1])) for name, shape in shapes), matrices)


def _sum(groups: Iterable[Group], matrices: PackedMatrices) -> PackedBytes:
    total = PackedBytes()
    for names, (rows, width) in groups:
        if parts := packed_parts(names, matrices):
            stored = sum(part.kind.bytes_of((rows, width)) for part in parts)
            rank = max(part.rank for part in parts)
            total += PackedBytes(stored, len(parts) * (rank * (rows + width) - rows * width))
    return total


def _layer_groups(config: ModelConfig, layer: int) -> Iterator[Group]:
    d, f, name = config.dim, config.ffn_dim, f"blocks.{layer}"
    yield tuple(f"{name}.self_attn.{part}" for part in "qkv"), (d, d)
    yield (f"{name}.self_attn.o",), (d, d)
    yield (f"{name}.cross_attn.q",), (d, d)
    yield _text_kv(config, layer)
    yield (f"{name}.cross_attn.o",), (d, d)
    yield (f"{name}.ffn.0",), (f, d)
    yield (f"{name}.ffn.2",), (d, f)


def _text_kv(config: ModelConfig, layer: int) -> Group:
    return tuple(f"blocks.{layer}.cross_attn.{part}" for part in "kv"), (config.dim, config.dim)


def _injector_groups(config: ModelConfig, layer: int) -> Iterator[Group]:
    if layer not in config.audio_inject_layers:
        return
    d, number = config.dim, config.audio_inject_layers.index(layer)
    name = f"audio_injector.injector.{number}"
    yield (f"{name}.q",), (d, d)
    yield tuple(f"{name}.{part}" for part in "kv"), (d, d)
    yield (f"{name}.o",), (d, d)
    yield (f"audio_injector.injector_adain_layers.{number}.linear",), (2 * d, d)
