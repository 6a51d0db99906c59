"""From an effective request and the hardware to a plan: which stage runs where, in what, and the memory it will take.

All arithmetic: nothing is loaded and no device is touched. The formulas count what the network's configuration says;
`tests/planner` holds them against real modules and buffers.

`make_plan` lays stages out as asked; `choose_plan` finds the plan that changes least and fits, `choose_live_plan` the
one that keeps the pace of speech.
"""

from .choose import apply_plan_size, choose_plan, suggest_next
from .hardware import CUDA_CONTEXT_BYTES, GIB, DeviceSpec, DeviceSpeed, Hardware, MeasuredSpeed
from .levels import FIDELITY_LEVELS, PACKED_LEVELS, FidelityLevel, level_of, lowest_level, next_level_down
from .live import choose_live_plan, play_live
from .memory import (
    DTYPE_BYTES,
    embed_parameters,
    embedder_parameters,
    head_parameters,
    layer_bytes,
    layer_parameters,
    workspace_bytes,
)
from .pace import BLOCK_SECONDS, COMPILE_SECONDS, Forecast, LiveForecast, compiling_saves
from .packed import PackedSizes, assumed_sizes, packed_sizes
from .plan import (
    LEAST_SNAPSHOT_BLOCKS,
    MAX_THREADS,
    SNAPSHOT_BYTES_PER_SECOND,
    SNAPSHOT_SHARE,
    Plan,
    StagePlan,
    make_plan,
    snapshot_due,
    snapshot_interval,
    stage_plan,
)
from .search import PlanOptions, Preference

__all__ = [
    "BLOCK_SECONDS",
    "COMPILE_SECONDS",
    "CUDA_CONTEXT_BYTES",
    "DTYPE_BYTES",
    "FIDELITY_LEVELS",
    "GIB",
    "LEAST_SNAPSHOT_BLOCKS",
    "MAX_THREADS",
    "PACKED_LEVELS",
    "SNAPSHOT_BYTES_PER_SECOND",
    "SNAPSHOT_SHARE",
    "DeviceSpec",
    "DeviceSpeed",
    "FidelityLevel",
    "Forecast",
    "Hardware",
    "LiveForecast",
    "MeasuredSpeed",
    "PackedSizes",
    "Plan",
    "PlanOptions",
    "Preference",
    "StagePlan",
    "apply_plan_size",
    "assumed_sizes",
    "choose_live_plan",
    "choose_plan",
    "compiling_saves",
    "embed_parameters",
    "embedder_parameters",
    "head_parameters",
    "layer_bytes",
    "layer_parameters",
    "level_of",
    "lowest_level",
    "make_plan",
    "next_level_down",
    "packed_sizes",
    "play_live",
    "snapshot_due",
    "snapshot_interval",
    "stage_plan",
    "suggest_next",
    "workspace_bytes",
]
