"""What people read: the effective values and the plan in words and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..planner import Plan
    from ..receipt import Receipt
    from ..request import Effective

_PLAN_COLUMNS = ("stage", "device", "steps", "layers", "weights", "KV rings", "sink", "text", "work", "sum")


def effective_lines(effective: Effective) -> list[str]:
    """What will be made, and where it differs from what was asked."""
    e = effective
    lines = [
        f"video   {e.width}x{e.height}, {e.frames} frames at 25 fps, {e.seconds:.2f} s",
        f"work    {e.blocks} blocks of 12 frames, {e.steps} steps each, seed {e.seed}",
    ]
    return lines + [f"note    {note}" for note in e.notes]


def plan_lines(plan: Plan) -> list[str]:
    """Which stage runs where, and the bytes it needs."""
    lines = [f"model   {plan.model}, {plan.dtype}, stages {plan.cut}, {plan.threads} CPU threads per task"]
    rows: list[tuple[str, ...]] = [_PLAN_COLUMNS]
    for number, s in enumerate(plan.stages):
        sizes = (s.weights, s.rings, s.sink, s.text, s.workspace, s.total)
        rows.append((str(number), s.device, _span(s.steps), _span(s.layers), *map(gigabytes, sizes)))
    lines += _table(rows)
    lines += [f"memory  {device}: {gigabytes(total)}" for device, total in plan.total_by_device.items()]
    return [*lines, "        (of the network; encoders come and go before it, the VAE shares the last device)"]


def receipt_lines(receipt: Receipt) -> list[str]:
    """What was really made, read back from the file, and what it cost."""
    p, memory = receipt.probed, receipt.peak_memory
    lines = [f"done    {receipt.video}"]
    if p:
        spent = max(receipt.seconds.get("generate", 0.0), 1e-9)
        lines.append(f"holds   {p.width}x{p.height}, {p.frames} frames at {p.fps:g} fps, {p.video_seconds:.2f} s")
        if p.audio_rate is not None and p.av_difference is not None:
            lines.append(f"sound   {p.audio_rate} Hz, ends {1000 * p.av_difference:+.0f} ms from the picture")
        lines.append(f"speed   {p.frames / spent:.1f} frames per second, {spent:.1f} s after loading")
    if memory and memory.host:
        devices = "".join(f", {gigabytes(n)} on {name}" for name, n in memory.devices.items())
        lines.append(f"peak    {gigabytes(memory.host)} of host memory{devices}")
    return lines


def gigabytes(count: int) -> str:
    """Decimal gigabytes, or megabytes below one."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _span(r: range) -> str:
    return f"{r.start}" if len(r) == 1 else f"{r.start}-{r.stop - 1}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["        " + "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
