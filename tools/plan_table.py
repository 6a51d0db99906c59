"""Rewrite the table of plans of docs/hardware.md between its two markers: `python -m tools.plan_table`."""

from __future__ import annotations

from pathlib import Path

from liveavatar.config import WAN2_2_S2V_14B
from liveavatar.planner import FIDELITY_LEVELS, Hardware, Plan, PlanOptions, choose_plan, level_of
from liveavatar.request import Request, image_size_for, resolve

PAGE = Path(__file__).parents[1] / "docs" / "hardware.md"
CARDS = ("1x16", "1x24", "2x24", "4x24", "5x24", "1x32", "1x48", "2x48", "1x80", "5x80", "8x80", "1x141")
SIZE = "704x384"
BEGIN, END = "<!-- plans: made by tools/plan_table.py -->", "<!-- end of plans -->"
_HEAD = (
    "| cards, GiB | prefer | stages | kept | fullest card, of usable | host | frames/s, assumed |",
    "|---|---|---|---|---|---|---|",
)


def table() -> str:
    """The table, for 704x384 and 4 steps; where both preferences give the same plan it stands once."""
    effective = resolve(Request(size=SIZE), image_size_for(SIZE), 160_000, 16_000)
    rows = list(_HEAD)
    for cards in CARDS:
        hardware = Hardware.parse(cards)
        quality, speed = (
            choose_plan(effective, WAN2_2_S2V_14B, hardware, PlanOptions(prefer=prefer), model="wan2.2-s2v-14b")
            for prefer in ("quality", "speed")
        )
        same = quality == speed
        rows.append(_row(cards, "both" if same else "quality", quality))
        rows += [] if same else [_row(cards, "speed", speed)]
    return "\n".join(rows)


def rewritten(page: str) -> str:
    """The page with the table as it is now."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def _row(cards: str, prefer: str, plan: Plan) -> str:
    """One plan."""
    usable, used = dict(plan.usable), plan.total_by_device
    fullest = max(used, key=lambda name: used[name] / usable[name])
    alone = plan.vae_device not in {stage.device for stage in plan.stages}
    kept = FIDELITY_LEVELS[level_of(tuple(stage.storage for stage in plan.stages))].name
    streamed = sum(stage.storage.offload_layers for stage in plan.stages)
    cells = (
        cards,
        prefer,
        f"{plan.partition}{' + VAE' * alone}",
        kept + (f" ({streamed} of {plan.partition.layer_shards[-1].stop})" if streamed else ""),
        f"{used[fullest] / 1e9:.1f} of {usable[fullest] / 1e9:.1f} GB",
        f"{sum(plan.host_bytes_by_machine.values()) / 1e9:.1f} GB",
        f"{plan.forecast.fps:.1f}" if plan.forecast else "",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
