"""Choosing a plan: the highest rung of the ladder that fits, and on it the fastest topology."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from ..config import ModelConfig
from ..errors import PlanError, SizeError
from ..pipeline import Cut
from ..request import Effective
from ..simulate import StageSpeed, simulate
from ..size import effective_size
from .assemble import assemble, stage_plan
from .checks import check_tiles, check_working
from .hardware import GIB, Hardware
from .ladder import FIRST_FP8, LADDER
from .plan import Plan
from .refuse import refusal
from .search import Layout, Search, highest, searches
from .speed import Forecast
from .wishes import NONE, Preference, Wishes

SMALLER = ("1280x720", "1024x704", "832x480", "704x384", "640x384", "512x384", "384x256", "256x256")
"""Areas that are tried where a smaller video is allowed, largest first."""

_ALIKE = 0.02
"""Share of a block's time that is not worth rounding more."""


def choose_plan(
    effective: Effective, config: ModelConfig, hardware: Hardware, wishes: Wishes = NONE, *, model: str
) -> Plan:
    """The plan that rounds and moves least and fits; of several, the fastest.

    Args:
        effective: what will be made.
        config: of the network.
        hardware: cards and host memory.
        wishes: what matters.
        model: its name, for the reader.

    Returns:
        A plan of `effective`, or of `fitted(effective, plan)` where a smaller video was allowed and needed.

    Raises:
        PlanError: nothing fits; it names what is too large and the nearest that fits.
    """
    check_working(wishes.dtype, wishes.threads)
    if wishes.vae_tiles:
        check_tiles(effective, wishes.vae_tiles)
    if wishes.prefer not in ("quality", "speed"):
        raise PlanError(f"The preference {wishes.prefer!r} is not known.", "Use quality or speed.")
    for tried in [effective, *(smaller_sizes(effective) if wishes.allow_smaller else ())]:
        ways = searches(tried, config, hardware, wishes)
        best = _best(ways, wishes.prefer) if ways else None
        if best:
            return _planned(*best, model)
    raise refusal(effective, config, hardware, wishes, model, smaller_sizes(effective))


def fitted(effective: Effective, plan: Plan) -> Effective:
    """What will be made by a plan: the same, or smaller where the plan is for a smaller size."""
    asked = (effective.width, effective.height)
    if plan.size == asked:
        return effective
    note = f"{asked[0]}x{asked[1]} does not fit these cards; {plan.size[0]}x{plan.size[1]} does"
    return dataclasses.replace(effective, width=plan.size[0], height=plan.size[1], notes=(*effective.notes, note))


def smaller_sizes(effective: Effective) -> Iterator[Effective]:
    """The same video at smaller sizes in its aspect, largest first."""
    width, height = effective.width, effective.height
    known = {(width, height)}
    for area in SMALLER:
        w, h = map(int, area.split("x"))
        if w * h >= width * height:
            continue
        try:
            size = effective_size((width * 8, height * 8), w * h)
        except SizeError:
            return
        if size not in known:
            known.add(size)
            yield dataclasses.replace(effective, width=size[0], height=size[1])


def _best(ways: Sequence[Search], prefer: Preference) -> tuple[Search, Layout] | None:
    if prefer == "quality":
        found = highest(ways)
        if found is None:
            return None
        rung, search = found
        layout = _fastest(search, rung)
        return None if layout is None else (search, layout)
    fp8 = all(card.speed.computes_fp8 for card in ways[0].hardware.cards)
    rungs = [rung for rung in range(FIRST_FP8 if fp8 else 0, len(LADDER)) if LADDER[rung].streams]
    """The lowest of each kind of rounding: stages with room stand higher by themselves."""
    pairs = [(search, layout) for rung in rungs for search in ways if (layout := _fastest(search, rung))]
    least = min((layout.seconds for _, layout in pairs), default=0.0)
    return next(((search, layout) for search, layout in pairs if layout.seconds <= least * (1 + _ALIKE)), None)


def _fastest(search: Search, rung: int) -> Layout | None:
    """The fastest layout on a rung; of equally fast ones that with the fewest cards."""
    return min(search.layouts(rung), key=lambda found: (round(found.seconds, 4), found.topology.cards), default=None)


def _planned(search: Search, layout: Layout, model: str) -> Plan:
    """A layout in full."""
    topology, config, effective = layout.topology, search.config, search.effective
    cut = Cut(topology.steps, tuple(share.layers for share in layout.shares))
    stages = [
        stage_plan(
            config,
            effective.frame_tokens,
            steps,
            share.layers,
            search.size,
            column[group].card.name,
            share.storage,
            effective.clip_blocks,
        )
        for group, steps in enumerate(topology.steps)
        for column, share in zip(topology.columns, layout.shares, strict=True)
    ]
    wishes, vae = search.wishes, topology.vae.name
    plan = assemble(effective, config, model, cut, stages, wishes.dtype, vae, wishes.threads, search.tiles)
    plan = dataclasses.replace(plan, processes=wishes.processes)
    used = plan.total_by_device
    return dataclasses.replace(
        plan,
        usable=tuple((card.name, card.usable) for card in search.hardware.cards if card.name in used),
        forecast=_forecast(search, layout, cut),
        notes=tuple(_notes(search.hardware, used)),
    )


def _forecast(search: Search, layout: Layout, cut: Cut) -> Forecast:
    """The pipeline played with the seconds of every stage; a VAE that shares a card adds to its load."""
    shares, groups = layout.shares, range(len(cut.steps))
    speed = StageSpeed(tuple(share.seconds[group] / len(share.layers) for group in groups for share in shares))
    played = simulate(cut, 4 * cut.stages + 12, speed, search.effective.clip_blocks)
    used = [seat.card for column in layout.topology.columns for seat in column]
    measured = all(card.measured for card in [*used, layout.topology.vae])
    return Forecast(
        seconds_per_block=max(played.period, layout.seconds),
        first_frames_seconds=played.first_block + layout.decode,
        source="measured" if measured else "assumed",
    )


def _notes(hardware: Hardware, used: dict[str, int]) -> Iterator[str]:
    left = [card for card in hardware.cards if card.name not in used]
    if left:
        names = ", ".join(f"{card.name} ({card.total / GIB:.4g} GiB)" for card in left)
        yield f"{names} left out: it would not be faster with {'it' if len(left) == 1 else 'them'} on this rung"
