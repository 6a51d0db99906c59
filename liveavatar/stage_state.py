"""What stages hold at a block boundary, by name and layer, so that a video can go on on any partition.

Later blocks attend to the rows that earlier ones left in the KV cache of each step, but for the oldest, whose place the
next block takes; and to the sink in use. It is saved and restored in pieces: a KV cache of one step and layer, or the
sink of one layer, so that of gigabytes a few hundred megabytes are under way.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch

from .config import BLOCK_LATENTS, ModelConfig
from .model.kv_cache import KVCacheLayer, SinkKV, Window, part_rows
from .offload.kv_formats import KV_FORMATS, KVCacheShape, as_kv_format, kv_tensors
from .stage import Stage
from .storage import KVDtype
from .task_graph import sink_version
from .weights.writing import LazyTensor

KV_KINDS = tuple(f"{name}{kind}" for kind in KV_FORMATS["int4"].kinds for name in "kv")
"""The tensors of a KV cache: the first two of one that is not rounded, the first four of one in fp8, all in int4."""
SINK_KINDS = ("k", "v")


class SavedTensors(Protocol):
    """Tensors by name, read one by one; what was read may be a view of a file."""

    def keys(self) -> frozenset[str]: ...

    def read(self, key: str) -> torch.Tensor: ...


def kv_piece(step: int, layer: int) -> str:
    """The name of a KV cache; that of its tensors begins with it."""
    return f"kv.{step}.{layer}"


def sink_piece(layer: int) -> str:
    """The name of a layer's sink; that of its tensors begins with it."""
    return f"sink.{layer}"


def pieces_of(steps: Iterable[int], layers: Iterable[int]) -> Iterator[str]:
    """The names of all that a stage holds."""
    layers = tuple(layers)
    yield from map(sink_piece, layers)
    yield from (kv_piece(step, layer) for step in steps for layer in layers)


def read_piece(saved: SavedTensors, piece: str) -> list[torch.Tensor]:
    """The tensors of a piece, in the order of `KV_KINDS`."""
    held = saved.keys()
    return [saved.read(name) for kind in KV_KINDS if (name := f"{piece}.{kind}") in held]


def earlier_tokens(boundary: int, frame_tokens: int, clip_blocks: int) -> int:
    """Rows of a KV cache that the block after a boundary attends to."""
    window = Window.of(boundary, frame_tokens, clip_blocks)
    return window.valid - window.tokens


def state_shapes(
    config: ModelConfig, steps: int, clip_blocks: int, frame_tokens: int, boundary: int, kv_dtype: KVDtype
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors, of all stages together."""
    rows, heads, width = earlier_tokens(boundary, frame_tokens, clip_blocks), config.num_heads, config.head_dim
    blocks = rows // (BLOCK_LATENTS * frame_tokens)
    kept = kv_tensors(kv_dtype, KVCacheShape(rows, heads, width, torch.float32, blocks))
    sink = frame_tokens + 3 * frame_tokens // 2
    for layer in range(config.num_layers):
        for step in range(steps):
            for kind, (shape, _) in zip(KV_KINDS, kept, strict=False):
                yield f"{kv_piece(step, layer)}.{kind}", shape
        for kind in SINK_KINDS:
            yield f"{sink_piece(layer)}.{kind}", (sink, heads, width)


def stage_state(stage: Stage, boundary: int) -> dict[str, LazyTensor]:
    """What a stage holds after the blocks before a boundary; read while the stage is at rest."""
    parts = (*(step_state(stage, boundary, step) for step in stage.kv_caches), sink_state(stage, boundary))
    return {name: tensor for part in parts for name, tensor in part.items()}


def step_state(stage: Stage, boundary: int, step: int) -> dict[str, LazyTensor]:
    """The KV caches of one step, which the block before a boundary has passed and no later one."""
    window, state = _window(stage, boundary), dict[str, LazyTensor]()
    for layer, kv_cache in zip(stage.net.slice.layers, stage.kv_caches[step], strict=True):
        for kind, rows in zip(KV_KINDS, _earlier_rows(kv_cache, window), strict=False):
            shape = (sum(map(len, rows)), *rows[0].shape[1:])
            read = functools.partial(torch.cat, rows)
            state[f"{kv_piece(step, layer)}.{kind}"] = LazyTensor(shape, rows[0].dtype, read)
    return state


def sink_state(stage: Stage, boundary: int) -> dict[str, LazyTensor]:
    """The sink that the block before a boundary attends to."""
    state: dict[str, LazyTensor] = {}
    for layer, sink in zip(stage.net.slice.layers, stage.sinks[_version(stage, boundary)], strict=True):
        keys = functools.partial(torch.cat, (sink.reference_k, sink.motion_k))
        state[f"{sink_piece(layer)}.k"] = LazyTensor(tuple(sink.v.shape), sink.v.dtype, keys)
        state[f"{sink_piece(layer)}.v"] = LazyTensor.of(sink.v)
    return state


def restore_stage(stage: Stage, boundary: int, saved: SavedTensors) -> None:
    """Give a new stage what those before it held at a boundary, whatever the partition and the format of their KV
    caches was."""
    for piece in pieces_of(stage.kv_caches, stage.net.slice.layers):
        restore_piece(stage, boundary, piece, read_piece(saved, piece))


def restore_piece(stage: Stage, boundary: int, piece: str, tensors: Sequence[torch.Tensor]) -> None:
    """Give a new stage one piece of what others held at a boundary; those of the sink in the order of its layers."""
    of, *numbers = piece.split(".")
    if of == "sink":
        (k, v), frame = (tensor.to(stage.device, stage.dtype) for tensor in tensors), stage.grid.tokens
        sink = SinkKV(k[:frame].clone(), k[frame:].clone(), v.clone())
        stage.sinks.setdefault(_version(stage, boundary), []).append(sink)
        return
    window, (step, layer) = _window(stage, boundary), map(int, numbers)
    if not window.earlier:
        return
    kept = _earlier_rows(stage.kv_caches[step][layer - stage.net.slice.layers.start], window)
    for parts, values in zip(kept, as_kv_format(tensors, len(kept), window.tokens), strict=True):
        for part, value in zip(parts, values.split(list(map(len, parts))), strict=True):
            part.copy_(value)


def _window(stage: Stage, boundary: int) -> Window:
    return Window.of(boundary, stage.grid.tokens, stage.conditioning.clip_blocks)


def _version(stage: Stage, boundary: int) -> int:
    """Of the sink that the last block before a boundary attends to."""
    given = stage.conditioning
    return sink_version(boundary - 1, given.clip_blocks, given.changes.portraits.starts)


def _earlier_rows(kv_cache: KVCacheLayer, window: Window) -> list[tuple[torch.Tensor, ...]]:
    """By tensor of a KV cache: views of the rows of earlier blocks, one of nothing first."""
    tensors = kv_cache.tensors()
    return list(zip(*(part_rows(tensors, part) for part in (slice(0, 0), *window.earlier)), strict=True))
