"""What stages hold at a block boundary, by name and layer, so that a video can go on on any partition.

Later blocks attend to the rows that earlier ones left in the KV cache of each step, but for the oldest, whose place the
next block takes; and to the sink in use. Snapshots (`distributed/snapshots.py`) keep more, for one stage in one run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
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


def kv_name(step: int, layer: int, kind: str) -> str:
    """The name of a tensor of a KV cache."""
    return f"kv.{step}.{layer}.{kind}"


def sink_name(layer: int, kind: str) -> str:
    """The name of a tensor of the sink."""
    return f"sink.{layer}.{kind}"


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
                yield kv_name(step, layer, kind), shape
        for kind in SINK_KINDS:
            yield sink_name(layer, kind), (sink, heads, width)


def stage_state(stage: Stage, boundary: int) -> dict[str, LazyTensor]:
    """What a stage holds after the blocks before a boundary; read while the stage is at rest."""
    window = _window(stage, boundary)
    state: dict[str, LazyTensor] = {}
    for step, kv_caches in stage.kv_caches.items():
        for layer, kv_cache in zip(stage.net.slice.layers, kv_caches, strict=True):
            for kind, rows in zip(KV_KINDS, _earlier_rows(kv_cache, window), strict=False):
                shape = (sum(map(len, rows)), *rows[0].shape[1:])
                read = functools.partial(torch.cat, rows)
                state[kv_name(step, layer, kind)] = LazyTensor(shape, rows[0].dtype, read)
    for layer, sink in zip(stage.net.slice.layers, stage.sinks[_version(stage, boundary)], strict=True):
        keys = functools.partial(torch.cat, (sink.reference_k, sink.motion_k))
        state[sink_name(layer, "k")] = LazyTensor(tuple(sink.v.shape), sink.v.dtype, keys)
        state[sink_name(layer, "v")] = LazyTensor.of(sink.v)
    return state


def restore_stage(stage: Stage, boundary: int, saved: SavedTensors) -> None:
    """Give a new stage what those before it held at a boundary, whatever the partition and the format of their KV
    caches was."""
    window, held = _window(stage, boundary), saved.keys()
    for step, kv_caches in stage.kv_caches.items() if window.earlier else ():
        for layer, kv_cache in zip(stage.net.slice.layers, kv_caches, strict=True):
            names = (kv_name(step, layer, kind) for kind in KV_KINDS)
            kept = _earlier_rows(kv_cache, window)
            rows = as_kv_format([saved.read(name) for name in names if name in held], len(kept), window.tokens)
            for parts, values in zip(kept, rows, strict=True):
                for part, value in zip(parts, values.split(list(map(len, parts))), strict=True):
                    part.copy_(value)
    frame = stage.grid.tokens
    stage.sinks[_version(stage, boundary)] = [
        SinkKV(k[:frame].clone(), k[frame:].clone(), v.clone())
        for k, v in (
            [saved.read(sink_name(layer, kind)).to(stage.device, stage.dtype) for kind in SINK_KINDS]
            for layer in stage.net.slice.layers
        )
    ]


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
