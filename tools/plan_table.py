"""Rewrite the tables of plans of docs/hardware.md between their markers: `python -m tools.plan_table`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from liveavatar.config import WAN2_2_S2V_14B
from liveavatar.errors import PlanError
from liveavatar.planner import (
    GIB,
    Hardware,
    Plan,
    PlanOptions,
    Preference,
    assumed_sizes,
    choose_plan,
    lowest_level,
)
from liveavatar.request import Request, image_size_for, resolve
from liveavatar.weights.block_types import PACKED

PAGE = Path(__file__).parents[1] / "docs" / "hardware.md"
MACHINES: tuple[tuple[str, int | None], ...] = (
    ("1x16", 32),
    ("1x16", 48),
    ("1x16", None),
    ("1x24", 32),
    ("1x24", None),
    *((cards, None) for cards in ("2x24", "4x24", "5x24", "1x32", "1x48", "2x48", "1x80", "5x80", "8x80", "1x141")),
)
"""Cards, and GiB of host memory; None: as much as is assumed."""
SIZE = "704x384"
BEGIN, END = "<!-- plans: made by tools/plan_table.py -->", "<!-- end of plans -->"
PACKED_MACHINES = tuple((f"1x{card}", host) for card in (12, 16, 24) for host in (16, 32, 64))
PACKED_SIZE, PACKED_TYPE = "640x384", "Q4_K"
PACKED_BEGIN, PACKED_END = "<!-- plans of a GGUF file: made by tools/plan_table.py -->", "<!-- end of those -->"
_HEAD = (
    "| cards, GiB | host, GiB | prefer | stages | kept | fullest card, of usable | host, of what may | frames/s |",
    "|---|---|---|---|---|---|---|---|",
)


def table() -> str:
    """The table, for 704x384 and 4 steps; where both preferences give the same plan it stands once."""
    effective = resolve(Request(size=SIZE), image_size_for(SIZE), 160_000, 16_000)
    rows = list(_HEAD)
    for cards, host in MACHINES:
        hardware = Hardware.parse(cards, host and host * GIB)

        def plan(prefer: Preference, compiled: bool, hardware: Hardware = hardware) -> Plan:
            options = PlanOptions(prefer=prefer, compiled=compiled)
            return choose_plan(effective, WAN2_2_S2V_14B, hardware, options, model="wan2.2-s2v-14b")

        (quality, fast), (speed, faster) = (
            (plan(prefer, False), plan(prefer, True)) for prefer in ("quality", "speed")
        )
        same = quality == speed
        rows.append(_row(hardware, "both" if same else "quality", quality, fast))
        rows += [] if same else [_row(hardware, "speed", speed, faster)]
    return "\n".join(rows)


def packed_table() -> str:
    """The table for the model in a GGUF file of four bits, on small cards and hosts; what does not fit says why."""
    resolved = resolve(Request(size=PACKED_SIZE), image_size_for(PACKED_SIZE), 160_000, 16_000)
    rows = list(_HEAD)
    for cards, host in PACKED_MACHINES:
        hardware = Hardware.parse(cards, host * GIB)
        options = PlanOptions(packed=assumed_sizes(WAN2_2_S2V_14B, PACKED[PACKED_TYPE]))
        compiled = dataclasses.replace(options, compiled=True)
        try:
            plans = [choose_plan(resolved, WAN2_2_S2V_14B, hardware, o, model="") for o in (options, compiled)]
        except PlanError as refusal:
            why = refusal.what.partition(": ")[2].rstrip(".")
            rows.append(f"| {cards} | {host} | quality | | does not fit: {why} | | | |")
        else:
            rows.append(_row(hardware, "quality", *plans))
    return "\n".join(rows)


def rewritten(page: str) -> str:
    """The page with the tables as they are now."""
    for begin, made, end in ((BEGIN, table(), END), (PACKED_BEGIN, packed_table(), PACKED_END)):
        before, rest = page.split(begin)
        after = rest.split(end)[1]
        page = f"{before}{begin}\n{made}\n{end}{after}"
    return page


def _row(hardware: Hardware, prefer: str, plan: Plan, compiled: Plan) -> str:
    """One plan, with the speed that the one for compiled layers would have."""
    usable, used = dict(plan.usable), plan.total_by_device
    fullest = max(used, key=lambda name: used[name] / usable[name])
    alone = plan.vae_device not in {stage.device for stage in plan.stages}
    kept = lowest_level(tuple(stage.storage for stage in plan.stages)).name
    streamed = sum(stage.storage.offload_layers for stage in plan.stages)
    cells = (
        str(hardware),
        f"{hardware.host / GIB:.0f}",
        prefer,
        f"{plan.partition}{' + VAE' * alone}",
        kept + (f" ({streamed} of {plan.partition.layer_shards[-1].stop})" if streamed else ""),
        f"{used[fullest] / 1e9:.1f} of {usable[fullest] / 1e9:.1f} GB",
        f"{sum(plan.host_bytes_by_machine.values()) / 1e9:.1f} of {hardware.usable_host / 1e9:.1f} GB",
        " / ".join(f"{each.forecast.fps:.1f}" for each in (plan, compiled) if each.forecast),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
