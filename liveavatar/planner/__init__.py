"""From an effective request and the hardware to a plan: which stage runs where, in what, and the memory it will take.

All arithmetic: nothing is loaded and no device is touched. The formulas count what the network's configuration says;
`tests/planner` holds them against real modules and buffers.

`make_plan` lays out what is told; `choose_plan` finds the plan that changes least and fits.
"""

from .assemble import make_plan, stage_plan
from .bytes import (
    BYTES,
    condition_parameters,
    embed_parameters,
    head_parameters,
    layer_bytes,
    layer_parameters,
    workspace_bytes,
)
from .checks import MAX_THREADS
from .choose import choose_plan, fitted
from .hardware import CONTEXT, GIB, Card, Hardware, Speed
from .ladder import LADDER, Rung, next_down, rung_of
from .plan import Plan, StagePlan
from .refuse import try_next
from .snapshots import LEAST_SNAPSHOT_BLOCKS, SNAPSHOT_BYTES_PER_SECOND, SNAPSHOT_SHARE, snapshot_due, snapshot_interval
from .speed import Forecast
from .wishes import Preference, Wishes

__all__ = [
    "BYTES",
    "CONTEXT",
    "GIB",
    "LADDER",
    "LEAST_SNAPSHOT_BLOCKS",
    "MAX_THREADS",
    "SNAPSHOT_BYTES_PER_SECOND",
    "SNAPSHOT_SHARE",
    "Card",
    "Forecast",
    "Hardware",
    "Plan",
    "Preference",
    "Rung",
    "Speed",
    "StagePlan",
    "Wishes",
    "choose_plan",
    "condition_parameters",
    "embed_parameters",
    "fitted",
    "head_parameters",
    "layer_bytes",
    "layer_parameters",
    "make_plan",
    "next_down",
    "rung_of",
    "snapshot_due",
    "snapshot_interval",
    "stage_plan",
    "try_next",
    "workspace_bytes",
]
