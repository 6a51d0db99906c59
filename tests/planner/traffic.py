"""Operations and bytes of one task, counted on tensors without memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from liveavatar.config import ModelConfig
from liveavatar.model.layer import AudioTokens
from liveavatar.model.transformer import ModelSlice, TimestepEmbedding, empty_transformer
from liveavatar.noise_schedule import NoiseSchedule
from liveavatar.request import SinkDistance
from liveavatar.stage import Stage, StageConditioning, StageInput
from liveavatar.storage import WeightFormat
from liveavatar.task_graph import Denoise, Prefill

_COMPUTES = ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm", "convolution", "scaled_dot", "flash", "mkldnn_convolution")
"""Operations that are bound by what they compute, by the beginnings of their names."""
_FREE = ("empty", "new_empty", "_unsafe_view", "_reshape_alias", "detach", "alias", "lift_fresh", "_local_scalar")
"""Those that move nothing."""


@dataclasses.dataclass
class Traffic(TorchDispatchMode):
    """What is done while it is active.

    Attributes:
        ops: operations that would be launched.
        nbytes: that all of them read and write but those which compute; of what is broadcast, once.
    """

    ops: int = 0
    nbytes: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        name = function._schema.name.partition("::")[2]
        if not function.is_view and not name.startswith(_FREE):
            self.ops += 1
            if not name.startswith(_COMPUTES):
                touched = [t for t in tree_iter((args, kwargs, made)) if isinstance(t, torch.Tensor)]
                self.nbytes += sum(map(_held, touched))
        return made


def _held(t: torch.Tensor) -> int:
    """Bytes of the numbers that a tensor shows, each once."""
    return t.element_size() * math.prod(n for n, stride in zip(t.shape, t.stride(), strict=True) if stride)


def traffic_of(work: Callable[[], object]) -> Traffic:
    """What some work does on a device that has a kernel of its own for attention, and one for products in fp8.

    Without memory there is neither: the one would be taken apart, the other refused.
    """
    counted = Traffic()

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: object) -> torch.Tensor:
        counted.ops += 1
        return q.new_empty(*q.shape[:-1], v.shape[-1])

    def multiply(a: torch.Tensor, b: torch.Tensor, *_: object, out_dtype: torch.dtype, **__: object) -> torch.Tensor:
        counted.ops += 1
        return a.new_empty(a.shape[0], b.shape[1], dtype=out_dtype)

    with (
        mock.patch("torch.nn.functional.scaled_dot_product_attention", attend),
        mock.patch("torch._scaled_mm", multiply),
        mock.patch("liveavatar.model.quantize.supports_fp8_matmul", lambda *_: True),
        torch.no_grad(),
        counted,
    ):
        work()
    return counted


def layer_traffic(
    config: ModelConfig, layer: int, rows: int, columns: int, dtype: torch.dtype, weights: WeightFormat = "plain"
) -> Traffic:
    """Of one layer with its injector, if it has one, at a block with a full window."""
    net = empty_transformer(config, ModelSlice(range(layer, layer + 1)), weights).to(dtype)
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
        stage = Stage(net, range(1), conditioning, meta, dtype)
        latent = empty(16, 3, 2 * rows, 2 * columns)
        for version in (0, 1):
            sink = StageInput(latent[:, :1], empty(5 * tokens // 2, config.dim))
            stage.run(Prefill(version, 0, 0), sink)
    given = StageInput(latent, empty(3 * tokens, config.dim))
    return traffic_of(lambda: stage.run(Denoise(7, 0, 0), given))
