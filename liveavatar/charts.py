"""Small images of plans: which stage works when, and what takes memory where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .task_graph import Denoise
from .utils import format_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

    from .task_graph import Simulation

_COLOURS = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#b07aa1",
    "#76b7b2",
    "#edc948",
    "#e15759",
    "#9c755f",
    "#ff9da7",
    "#bab0ac",
)
_SINK = "#555555"
_ROW, _LABEL, _MARGIN, _FOOT, _TOTAL = 30, 64, 10, 22, 80


def draw_timeline(simulation: Simulation, until: float | None = None, width: int = 1200) -> Image:
    """Stages from top to bottom, time from left to right; every block has its colour, prefills are dark.

    Args:
        simulation: what to draw.
        until: seconds shown; all of them by default.
        width: pixels.
    """
    from PIL import Image, ImageDraw

    stages = len(simulation.busy)
    seconds = min(until or simulation.seconds, simulation.seconds)
    image = Image.new("RGB", (width, 2 * _MARGIN + stages * _ROW + _FOOT), "white")
    pen = ImageDraw.Draw(image)
    scale = (width - _LABEL - _MARGIN) / seconds
    for stage in range(stages):
        y = _MARGIN + stage * _ROW
        pen.text((_MARGIN, y + 8), f"stage {stage}", fill="black")
        pen.text((width - 44, y + 8), f"{100 * simulation.busy[stage]:.0f} %", fill="black")
    for start in (s for s in simulation.starts if s.start < seconds):
        y = _MARGIN + start.stage * _ROW
        left, right = _LABEL + start.start * scale, _LABEL + min(start.end, seconds) * scale
        task = start.task
        colour = _COLOURS[task.block % len(_COLOURS)] if isinstance(task, Denoise) else _SINK
        pen.rectangle((left, y + 3, max(left, right - 1), y + _ROW - 5), fill=colour)
        if isinstance(task, Denoise) and right - left > 22:
            pen.text((left + 3, y + 8), f"{task.block}.{task.step}", fill="white")
    pen.text((_LABEL, image.height - _FOOT), f"0 to {seconds:.2f} s; block.step", fill="black")
    return image


def draw_memory(terms: Mapping[str, Mapping[str, int]], usable: Mapping[str, int], width: int = 900) -> Image:
    """A bar per device: what it holds, by kind; a line marks what may be used where that is known.

    Args:
        terms: per device, the bytes of every kind; the same kinds everywhere.
        usable: bytes per device, where they are known.
        width: pixels.
    """
    from PIL import Image, ImageDraw

    totals = {device: sum(held.values()) for device, held in terms.items()}
    image = Image.new("RGB", (width, 2 * _MARGIN + (len(terms) + 1) * _ROW), "white")
    pen = ImageDraw.Draw(image)
    scale = (width - _LABEL - _TOTAL) / max([1, *totals.values(), *usable.values()])
    for row, (device, held) in enumerate(terms.items()):
        y, x = _MARGIN + row * _ROW, float(_LABEL)
        pen.text((_MARGIN, y + 8), device, fill="black")
        for colour, size in zip(_COLOURS, held.values(), strict=True):
            if size:
                pen.rectangle((x, y + 3, max(x, x + size * scale - 1), y + _ROW - 5), fill=colour)
            x += size * scale
        if device in usable:
            edge = _LABEL + usable[device] * scale
            pen.line((edge, y, edge, y + _ROW - 2), fill="black", width=2)
        end = max(x, _LABEL + usable.get(device, 0) * scale)
        pen.text((end + 8, y + 8), format_bytes(totals[device]), fill="black")
    x, y = float(_LABEL), image.height - _ROW + 4
    for colour, name in zip(_COLOURS, next(iter(terms.values())), strict=True):
        pen.rectangle((x, y + 2, x + 10, y + 12), fill=colour)
        pen.text((x + 14, y), name, fill="black")
        x += 95
    return image
