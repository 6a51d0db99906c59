"""Operations and bytes of one task, counted on tensors without memory."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import torch

from liveavatar.bench.tracked import MemoryTraffic
from liveavatar.config import ModelConfig
from liveavatar.model.attention import AttentionKernel, KeyValue
from liveavatar.model.layer import AudioTokens
from liveavatar.model.transformer import ModelSlice, TimestepEmbedding, empty_transformer
from liveavatar.noise_schedule import NoiseSchedule
from liveavatar.request import SinkDistance
from liveavatar.stage import Stage, StageConditioning, StageInput
from liveavatar.storage import PLAIN, StorageConfig
from liveavatar.task_graph import Denoise, Prefill


def traffic_of(work: Callable[[], object]) -> MemoryTraffic:
    """What some work does on a device that has a kernel of its own for attention, and one for products in fp8.

    Without memory there is neither: the one would be taken apart, the other refused.
    """
    counted = MemoryTraffic()

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> KeyValue:
        counted.operations += 1
        return q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=torch.float32)

    kernel = AttentionKernel("counted", lambda q, k, v: attend(q, k, v)[0], attend)

    def multiply(a: torch.Tensor, b: torch.Tensor, *_: object, out_dtype: torch.dtype, **__: object) -> torch.Tensor:
        counted.operations += 1
        return a.new_empty(a.shape[0], b.shape[1], dtype=out_dtype)

    with (
        mock.patch("liveavatar.model.attention.default_kernel", lambda _: kernel),
        mock.patch("torch._scaled_mm", multiply),
        mock.patch("liveavatar.model.quantize.supports_fp8_matmul", lambda *_: True),
        torch.no_grad(),
        counted,
    ):
        work()
    return counted


def layer_traffic(
    config: ModelConfig, layer: int, rows: int, columns: int, dtype: torch.dtype, storage: StorageConfig = PLAIN
) -> tuple[int, int]:
    """Bytes and operations of one layer with its injector, if it has one, at a block with a full window.

    That is what two layers do more than the first: each task makes some tables besides.
    """
    both, first = (
        task_traffic(config, range(layer - 1, end), rows, columns, dtype, storage) for end in (layer + 1, layer)
    )
    return both.total - first.total, both.operations - first.operations


def task_traffic(
    config: ModelConfig, layers: range, rows: int, columns: int, dtype: torch.dtype, storage: StorageConfig
) -> MemoryTraffic:
    """Of one task in some layers."""
    net = empty_transformer(config, ModelSlice(layers), storage.weights).to(dtype)
    tokens, meta = rows * columns, torch.device("meta")

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=meta)

    audio = AudioTokens(empty(1, 3, config.dim), empty(1, 3, config.num_audio_token + 1, config.dim))
    time = TimestepEmbedding(empty(2, config.dim, dtype=torch.float32), empty(2, 6, config.dim, dtype=torch.float32))
    conditioning = StageConditioning(
        rows=rows,
        columns=columns,
        schedule=NoiseSchedule.flow_matching(1),
        seed=0,
        distance=SinkDistance(),
        prompt=empty(config.text_len, config.dim),
        time=time,
        motion=empty(16, 19, 2 * rows, 2 * columns),
        audio=lambda block: audio,
    )
    with torch.no_grad():
        stage = Stage(net, range(1), conditioning, meta, dtype, storage)
        latent = empty(16, 3, 2 * rows, 2 * columns)
        for version in (0, 1):
            sink = StageInput(latent[:, :1], empty(5 * tokens // 2, config.dim))
            stage.run(Prefill(version, 0, 0), sink)
    given = StageInput(latent, empty(3 * tokens, config.dim))
    return traffic_of(lambda: stage.run(Denoise(7, 0, 0), given))
