"""From the times of a run to its figures."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence

import torch

from ..attention_choice import PYTORCH
from ..config import BLOCK_FRAMES, SPATIAL_STRIDE, WINDOW_BLOCKS, ModelConfig
from ..doctor.report import FLOAT8_ROWS, Compute
from ..model.quantize import supports_fp8_matmul
from ..planner import CUDA_CONTEXT_BYTES, Plan
from ..planner.pace import layer_tflop
from ..task_graph import Denoise, Prefill
from .found import Pace, Work
from .watched import Run

_PATCH = 2 * SPATIAL_STRIDE


def seconds_per_block(ends: Sequence[float]) -> float:
    """Mean time between the ends of two blocks, once the window is full and the sink is renewed."""
    return (ends[-1] - ends[WINDOW_BLOCKS - 1]) / (len(ends) - WINDOW_BLOCKS)


def pace_of(run: Run, plan: Plan) -> Pace:
    """See `Pace`."""
    steady = [t for t in run.tasks if isinstance(t.task, Denoise) and t.task.block >= WINDOW_BLOCKS]
    phases: dict[str, list[float]] = {}
    for task in steady:
        for name, seconds in task.phases.items():
            phases.setdefault(name, []).append(seconds)
    prefills = [t.seconds for t in run.tasks if isinstance(t.task, Prefill) and t.task.version == t.task.group == 0]
    period = seconds_per_block(run.ends)
    return Pace(
        seconds_per_block=period,
        fps=BLOCK_FRAMES / period,
        seconds_per_task=statistics.median(t.seconds for t in steady),
        phases={name: statistics.median(times) for name, times in phases.items()},
        first_block_seconds=run.ends[0],
        prefill_seconds=sum(prefills),
    )


def work_of(config: ModelConfig, plan: Plan, can: Compute, device: torch.device, seconds: float) -> Work:
    """Operations against what a device can.

    Args:
        config, plan: of the network.
        can: as the device was measured.
        device: which.
        seconds: per block.
    """
    width, height = plan.size
    frame_tokens, steps = width // _PATCH * (height // _PATCH), plan.partition.last_step + 1
    each = [layer_tflop(config, frame_tokens, layer) for layer in range(config.num_layers)]
    matrices, attended = (steps * sum(part) for part in zip(*each, strict=True))
    worked_in = _matrix_dtype(plan, can, device)
    peak, attention = can.matmul.get(worked_in), can.attention_tflops(plan.dtype).get(PYTORCH)
    total = matrices + attended
    return Work(
        tflop_per_block=total,
        tflops=total / seconds,
        peak_tflops=peak,
        peak_dtype=worked_in,
        share_of_peak=None if peak is None else total / seconds / peak,
        attention_tflops=attention,
        share_of_possible=None
        if peak is None or attention is None
        else (matrices / peak + attended / attention) / seconds,
    )


def _matrix_dtype(plan: Plan, can: Compute, device: torch.device) -> str:
    """What the large matrices are multiplied in, by its name in `Compute.matmul`."""
    formats = {stage.storage.weights for stage in plan.stages}
    if formats == {"fp8"} and supports_fp8_matmul(device, by_row=True) and FLOAT8_ROWS in can.matmul:
        return FLOAT8_ROWS
    if formats == {"fp8-tensor"} and supports_fp8_matmul(device, by_row=False) and "float8" in can.matmul:
        return "float8"
    return plan.dtype


def bytes_needed(plan: Plan, vae: bool) -> int:
    """Bytes on the plan's device, with those of the VAE only where it is there."""
    return sum(plan.total_by_device.values()) - (0 if vae else plan.vae)


def free_bytes(device: torch.device, most: int | None = None) -> int:
    """Bytes of a GPU that a plan may use; what this process holds there counts as free, because the plan counts it.

    Args:
        device: a CUDA device.
        most: bytes that may be used at most, the driver's context among them; None: all that are free.
    """
    gc.collect()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_allocated(device)
    return free if most is None else min(free, most - CUDA_CONTEXT_BYTES)
