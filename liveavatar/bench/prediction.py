"""What the planner says of a plan on one device, to be set beside what is measured."""

from __future__ import annotations

import torch

from ..config import BLOCK_FRAMES, BLOCK_LATENTS, SPATIAL_STRIDE, ModelConfig
from ..doctor.report import FLOAT8_ROWS
from ..planner import Card, Plan, Speed
from ..planner.bytes import BYTES
from ..planner.companions import companions_of
from ..planner.ladder import Rung
from ..planner.shelf import Shelf
from ..planner.speed import compute_seconds, decode_seconds, task_seconds
from ..request import Effective
from .model import DeviceSpeeds

_PATCH = 2 * SPATIAL_STRIDE


def assumed_speed(device: torch.device) -> Speed | None:
    """The speed that the planner assumes of a card as large as this; None for a CPU, of which it assumes nothing."""
    if device.type != "cuda":
        return None
    return Card(str(device), torch.cuda.get_device_properties(device).total_memory).speed


def measured_speed(speeds: DeviceSpeeds, dtype: str) -> Speed | None:
    """What a device was measured to reach, as the planner reckons with it; None where a part is missing."""
    matmul = speeds.compute.matmul
    matrices, attention, fp8 = matmul.get(dtype), speeds.compute.attention.get(dtype), matmul.get(FLOAT8_ROWS)
    if matrices is None or attention is None:
        return None
    return Speed(matrices, fp8 or matrices, attention, speeds.copy_gb, computes_fp8=fp8 is not None)


def block_seconds(config: ModelConfig, plan: Plan, speed: Speed) -> float:
    """Seconds per block of a plan with one stage, without the VAE, by `liveavatar.planner.speed`."""
    (stage,) = plan.stages
    width, height = plan.size
    frame_tokens = width // _PATCH * (height // _PATCH)
    shelf = Shelf(config, frame_tokens, BYTES[plan.dtype], Rung("as planned", stage.storage))
    compute = compute_seconds(*shelf.work(stage.layers), stage.storage, speed)
    carried = shelf.carried(len(stage.layers), stage.storage.streamed)
    return len(stage.steps) * task_seconds(compute, carried, len(stage.layers), speed, 1)


def vae_seconds(config: ModelConfig, effective: Effective, plan: Plan, speed: Speed) -> float:
    """Seconds to decode a block."""
    tflop = companions_of(config).decode_tflop(effective, BLOCK_LATENTS, plan.vae_tiles)
    return decode_seconds(tflop, speed, plan.vae_host)


def frames_per_second(seconds_per_block: float) -> float:
    """12 frames in that time."""
    return BLOCK_FRAMES / seconds_per_block
