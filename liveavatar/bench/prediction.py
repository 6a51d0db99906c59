"""What the planner says of a plan on one device, to be set beside what is measured."""

from __future__ import annotations

import torch

from ..attention_choice import PYTORCH
from ..config import BLOCK_FRAMES, BLOCK_LATENTS, SPATIAL_STRIDE, ModelConfig
from ..doctor.report import FLOAT8_ROWS
from ..planner import DeviceSpec, DeviceSpeed, Plan
from ..planner.levels import FidelityLevel
from ..planner.memory import DTYPE_BYTES, aux_models
from ..planner.pace import compute_seconds, decode_seconds, task_seconds
from ..planner.search import CostTable
from ..request import ResolvedRequest
from .model import DeviceSpeeds

_PATCH = 2 * SPATIAL_STRIDE


def assumed_speed(device: torch.device) -> DeviceSpeed | None:
    """The speed that the planner assumes of a device as large as this; None for a CPU, of which it assumes nothing."""
    if device.type != "cuda":
        return None
    return DeviceSpec(str(device), torch.cuda.get_device_properties(device).total_memory).speed


def measured_speed(speeds: DeviceSpeeds, dtype: str) -> DeviceSpeed | None:
    """What a device was measured to reach, as the planner reckons with it; None where a part is missing."""
    matmul, attention = speeds.compute.matmul, speeds.compute.attention_tflops(dtype).get(PYTORCH)
    matrices, fp8 = matmul.get(dtype), matmul.get(FLOAT8_ROWS)
    if matrices is None or attention is None:
        return None
    return DeviceSpeed(
        matrices, fp8 or matrices, attention, speeds.copy_gb, speeds.memory_gb, supports_fp8=fp8 is not None
    )


def block_seconds(config: ModelConfig, plan: Plan, speed: DeviceSpeed) -> float:
    """Seconds per block of a plan with one stage, without the VAE, by `liveavatar.planner.pace`."""
    (stage,) = plan.stages
    width, height = plan.size
    frame_tokens = width // _PATCH * (height // _PATCH)
    level = FidelityLevel("as planned", stage.storage)
    costs = CostTable(config, frame_tokens, DTYPE_BYTES[plan.dtype], level, plan.clip_blocks, plan.compiled)
    compute = compute_seconds(costs.work(stage.layers), stage.storage, speed)
    carried = costs.transfer_bytes(stage.layers, stage.storage.offload_layers)
    return len(stage.steps) * task_seconds(compute, carried, len(stage.layers), speed, 1)


def vae_seconds(config: ModelConfig, resolved: ResolvedRequest, plan: Plan, speed: DeviceSpeed) -> float:
    """Seconds to decode a block."""
    work = aux_models(config).decode_work(resolved.latent_size, BLOCK_LATENTS, plan.vae_tiles)
    return decode_seconds(*work, speed, plan.vae_host)


def frames_per_second(seconds_per_block: float) -> float:
    """12 frames in that time."""
    return BLOCK_FRAMES / seconds_per_block
