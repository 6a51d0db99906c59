"""Choosing a plan: the highest fidelity level that fits, and on it the fastest topology; or what is too large, and what
fits."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from ..attention_choice import AttentionUse
from ..config import BLOCK_FRAMES, CLIP_BLOCKS, ModelConfig
from ..errors import PlanError, SizeError
from ..request import ResolvedRequest, VideoShape, resolve_size
from ..storage import cli_options
from ..task_graph import Partition, StageSpeed, simulate
from ..utils import format_bytes
from .hardware import ASSUMED_SPEEDS, GIB, MAX_DEVICES, Hardware
from .levels import FIRST_FP8, next_level_down
from .memory import DTYPE_BYTES
from .pace import Forecast
from .plan import Plan, assemble, check_dtype_and_threads, check_tiles, stage_plan
from .search import (
    DEFAULT_OPTIONS,
    Candidate,
    PlanOptions,
    PlanSearch,
    highest_level,
    plan_searches,
)

SMALLER_SIZES = ("1280x720", "1024x704", "832x480", "704x384", "640x384", "512x384", "384x256", "256x256")
"""Areas that are tried where a smaller video is allowed, largest first."""

_ALIKE = 0.02
"""Share of a block's time that is not worth rounding more."""


def choose_plan(
    resolved: ResolvedRequest,
    config: ModelConfig,
    hardware: Hardware,
    options: PlanOptions = DEFAULT_OPTIONS,
    *,
    model: str,
) -> Plan:
    """The plan that rounds and moves least and fits; of several, the fastest.

    Args:
        resolved: what will be made.
        config: of the network.
        hardware: devices and host memory.
        options: what matters.
        model: its name, for the reader.

    Returns:
        A plan of `resolved`, or of `fitted(effective, plan)` where a smaller video was allowed and needed.

    Raises:
        PlanError: nothing fits; it names what is too large and the nearest that fits.
    """
    check_options(resolved, options)
    for tried in [resolved, *(smaller_sizes(resolved) if options.allow_smaller else ())]:
        best = best_candidate(tried.shape, config, hardware, options)
        if best:
            return candidate_plan(best, tried, config, hardware, options, model=model)
    raise infeasible(resolved, config, hardware, options, model, smaller_sizes(resolved))


def check_options(resolved: ResolvedRequest, options: PlanOptions) -> None:
    """Refuse what no plan can have.

    Raises:
        PlanError: with the nearest that works.
    """
    check_dtype_and_threads(options.dtype, options.threads)
    if options.vae_tiles:
        check_tiles(resolved, options.vae_tiles)
    if options.prefer not in ("quality", "speed"):
        raise PlanError(f"The preference {options.prefer!r} is not known.", "Use quality or speed.")


def apply_plan_size(resolved: ResolvedRequest, plan: Plan) -> ResolvedRequest:
    """What will be made by a plan: the same, or smaller where the plan is for a smaller size."""
    asked = (resolved.width, resolved.height)
    if plan.size == asked:
        return resolved
    wanted = "keeps no pace of speech on" if resolved.is_open else "does not fit"
    note = f"{asked[0]}x{asked[1]} {wanted} these cards; {plan.size[0]}x{plan.size[1]} does"
    return dataclasses.replace(resolved, width=plan.size[0], height=plan.size[1], notes=(*resolved.notes, note))


def smaller_sizes(resolved: ResolvedRequest) -> Iterator[ResolvedRequest]:
    """The same video at smaller sizes in its aspect, largest first."""
    width, height = resolved.width, resolved.height
    known = {(width, height)}
    for area in SMALLER_SIZES:
        w, h = map(int, area.split("x"))
        if w * h >= width * height:
            continue
        try:
            size = resolve_size((width * 8, height * 8), w * h)
        except SizeError:
            return
        if size not in known:
            known.add(size)
            yield dataclasses.replace(resolved, width=size[0], height=size[1])


@functools.lru_cache(maxsize=64)
def best_candidate(
    video: VideoShape, config: ModelConfig, hardware: Hardware, options: PlanOptions
) -> Candidate | None:
    """The candidate that rounds and moves least and fits, or the fastest one; None: nothing fits.

    Remembered, because callers plan more than once for one video: to show what will happen, and to do it.
    """
    searches = plan_searches(video, config, hardware, options)
    if not searches:
        return None
    if options.prefer == "quality":
        found = highest_level(searches)
        return None if found is None else found[1].fastest(found[0])
    return _fastest_rounded(searches)


def _fastest_rounded(searches: Sequence[PlanSearch]) -> Candidate | None:
    """The fastest of the levels that may round; of nearly as fast ones that which rounds least."""
    search = searches[0]
    fp8 = all(device.speed.supports_fp8 for device in search.hardware.devices)
    # The lowest of each kind of rounding: stages with room stand higher by themselves.
    first = FIRST_FP8 if fp8 and not search.options.packs_network else 0
    levels = [n for n, level in enumerate(search.levels) if n >= first and level.offloads_layers]
    found: list[Candidate] = []
    bound = math.inf
    for level in levels:
        if found and search.levels[level].last_resort:
            break
        for search in searches:
            if candidate := search.fastest(level, bound):
                found.append(candidate)
                bound = min(bound, candidate.seconds * (1 + _ALIKE))
    return next((candidate for candidate in found if candidate.seconds <= bound), None)


def candidate_plan(
    candidate: Candidate,
    resolved: ResolvedRequest,
    config: ModelConfig,
    hardware: Hardware,
    options: PlanOptions,
    *,
    model: str,
) -> Plan:
    """A candidate in full; arguments as of `choose_plan`."""
    topology = candidate.topology
    partition = Partition(topology.steps, tuple(shard.layers for shard in candidate.shards))
    stages = [
        stage_plan(
            config,
            resolved.frame_tokens,
            steps,
            shard.layers,
            DTYPE_BYTES[options.dtype],
            column[group].device.name,
            shard.storage,
            resolved.clip_blocks,
            resolved.shape.changes_prompt,
            options.packed,
            resolved.speaker_count,
        )
        for group, steps in enumerate(topology.steps)
        for column, shard in zip(topology.columns, candidate.shards, strict=True)
    ]
    vae, tiles = topology.vae.name, candidate.tiles
    plan = assemble(
        resolved,
        config,
        model,
        partition,
        stages,
        options.dtype,
        vae,
        options.threads,
        tiles,
        options.tiny,
        options.packed,
    )
    plan = dataclasses.replace(plan, processes=options.processes, compiled=options.compiled)
    used = plan.total_by_device
    return dataclasses.replace(
        plan,
        usable=tuple((device.name, device.usable) for device in hardware.devices if device.name in used),
        forecast=_forecast(candidate, partition, resolved.clip_blocks),
        attention_uses=tuple(
            AttentionUse(c.name, c.attention, tflops=c.speed.attention, source=c.attention_source)
            for c in hardware.devices
            if any(stage.device == c.name for stage in stages)
        ),
        notes=(*plan.notes, *_notes(hardware, used)),
    )


def _forecast(candidate: Candidate, partition: Partition, clip_blocks: int) -> Forecast:
    """The pipeline played with the seconds of every stage; a VAE that shares a device adds to its load."""
    shares, groups = candidate.shards, range(len(partition.step_groups))
    speed = StageSpeed(tuple(share.seconds[group] / len(share.layers) for group in groups for share in shares))
    played = simulate(partition, 4 * partition.stages + 12, speed, clip_blocks)
    used = [slot.device for column in candidate.topology.columns for slot in column]
    measured = all(device.is_measured for device in [*used, candidate.topology.vae])
    return Forecast(
        seconds_per_block=max(played.period, candidate.seconds),
        first_frames_seconds=played.first_block + candidate.decode_seconds,
        source="measured" if measured else "assumed",
    )


def _notes(hardware: Hardware, used: dict[str, int]) -> Iterator[str]:
    left = [device for device in hardware.devices if device.name not in used]
    if left:
        names = ", ".join(f"{device.name} ({device.total / GIB:.4g} GiB)" for device in left)
        yield f"{names} left out: it would not be faster with {'it' if len(left) == 1 else 'them'} at this level"


_OFFERS = 3
_GB = 10**9
"""What caps are counted in."""


def infeasible(
    resolved: ResolvedRequest,
    config: ModelConfig,
    hardware: Hardware,
    options: PlanOptions,
    model: str,
    smaller: Iterable[ResolvedRequest],
) -> PlanError:
    """The error of a request that does not fit: what was asked, what is too large, and up to three that fit.

    Args:
        resolved, config, hardware, options, model: of the request.
        smaller: sizes that may be offered, largest first.
    """
    cap = f" capped at {format_bytes(hardware.cap, '.4g')}" if hardware.cap else ""
    clips = f" and clips of {resolved.clip_blocks * BLOCK_FRAMES} frames" * (resolved.clip_blocks != CLIP_BLOCKS)
    video = f"{model} at {resolved.width}x{resolved.height} with {resolved.steps} steps{clips}"
    asked = f"{video} does not fit {hardware}{cap}"
    why = _shortage(resolved, plan_searches(resolved.shape, config, hardware, options)[-1])
    offers = list(itertools.islice(_offers(resolved, config, hardware, options, smaller), _OFFERS))
    typed = "; ".join(f"--model {model} {offer}" for offer in offers)
    return PlanError(f"{asked}: {why}.", f"What fits: {typed}." if typed else "")


def suggest_next(plan: Plan) -> str:
    """What takes less of the devices than a plan that did not fit after all, a sentence."""
    down = next_level_down(tuple(s.storage for s in plan.stages), min(len(s.layers) for s in plan.stages))
    if down is None:
        return "Nothing can be kept in less."
    level, storage = down
    return f"Try next what takes less: {level.name} ({cli_options(storage)})."


def _offers(
    resolved: ResolvedRequest,
    config: ModelConfig,
    hardware: Hardware,
    options: PlanOptions,
    smaller: Iterable[ResolvedRequest],
) -> Iterator[str]:
    """Command-line options that fit: clips as short as the model was trained with, a smaller video, more memory on the
    host, a higher cap, more or larger devices."""

    def fits(wanted: ResolvedRequest, devices: Hardware) -> str | None:
        found = highest_level(plan_searches(wanted.shape, config, devices, options))
        if found is None:
            return None
        number, search = found
        size = f"--size {wanted.width}x{wanted.height} --steps {wanted.steps}"
        if wanted.clip_blocks != CLIP_BLOCKS:
            size += f" --clip-frames {wanted.clip_blocks * BLOCK_FRAMES}"
        return f"{size}{card_options(hardware, devices)} ({search.levels[number].name})"

    def first(tried: Iterable[tuple[ResolvedRequest, Hardware]]) -> Iterator[str]:
        yield from itertools.islice(filter(None, (fits(*pair) for pair in tried)), 1)

    largest, cap = max(device.total for device in hardware.devices), hardware.cap
    sizes = sorted(ASSUMED_SPEEDS)
    more_host = (dataclasses.replace(hardware, host=hardware.host * factor) for factor in (2, 4, 8))
    higher_caps = (hardware.with_cap(size * _GB) for size in sizes if cap and cap < size * _GB < largest)
    uncapped = [hardware.with_cap(None)] if cap else []
    count = len(hardware.devices)
    more_cards = (cards_like(hardware, n, largest) for n in range(count + 1, min(2 * count + 7, MAX_DEVICES) + 1))
    larger = (cards_like(hardware, count, size * GIB) for size in sizes if size * GIB > largest)
    if resolved.clip_blocks > CLIP_BLOCKS:
        yield from first([(dataclasses.replace(resolved, clip_blocks=CLIP_BLOCKS), hardware)])
    yield from first((wanted, hardware) for wanted in smaller)
    yield from first((resolved, devices) for devices in more_host)
    yield from first((resolved, devices) for devices in higher_caps)
    yield from first((resolved, devices) for devices in uncapped)
    yield from first((resolved, devices) for devices in more_cards)
    yield from first((resolved, devices) for devices in larger)


def card_options(asked: Hardware, devices: Hardware) -> str:
    """How devices are named that stand beside those that were asked for; devices that are here need no name."""
    named = "" if devices.source == "measured" else f" --gpus {devices}"
    host = f" --host-ram {-(-devices.host // GIB)}" if devices.host != _usual_host(asked, devices) else ""
    return f"{named}{host}" + (f" --vram-cap {devices.cap / 1e9:.4g}" if devices.cap else "")


def _usual_host(asked: Hardware, devices: Hardware) -> int:
    """What is reckoned with where nobody says how much memory the host has."""
    return asked.host if devices.source == "measured" else Hardware.parse(str(devices)).host


def cards_like(hardware: Hardware, count: int, total: int) -> Hardware:
    """So many equal devices, capped alike, with no less host memory than there is or would be assumed."""
    asked = Hardware.parse(f"{count}x{total / GIB:.4g}").with_cap(hardware.cap)
    return dataclasses.replace(asked, host=max(asked.host, hardware.host))


def _shortage(resolved: ResolvedRequest, search: PlanSearch) -> str:
    """What is too large on the last level, spread over all devices."""
    largest = max(search.hardware.devices, key=lambda device: device.usable)
    if search.encoders > largest.usable:
        most = format_bytes(largest.usable)
        return f"the largest encoder takes {format_bytes(search.encoders)} and no card has more than {most} usable"
    plan = _thinnest(resolved, search)
    room = {device.name: device.usable for device in search.hardware.devices}
    over = {name: total - room[name] for name, total in plan.total_by_device.items()}
    worst = max(over, key=lambda name: over[name])
    if over[worst] > 0:
        terms = ", ".join(f"{name} {format_bytes(size)}" for name, size in plan.terms_by_device[worst].items() if size)
        return f"even at the last level, {worst} would hold {terms}, and has {format_bytes(room[worst])} usable"
    host, most = sum(plan.host_bytes_by_machine.values()), format_bytes(search.hardware.usable_host)
    return f"what the cards cannot hold, {format_bytes(host)}, has to lie on the host, where {most} may"


def _thinnest(resolved: ResolvedRequest, search: PlanSearch) -> Plan:
    """All layers offloaded on the last level, over all devices; the VAE on the largest."""
    config = search.config
    devices = sorted(search.hardware.devices, key=lambda device: device.usable)[-config.num_layers :]
    partition = Partition.even(1, len(devices), resolved.steps, config.num_layers)
    stages = [
        stage_plan(
            config,
            resolved.frame_tokens,
            partition.step_groups[0],
            layers,
            search.size,
            device.name,
            dataclasses.replace(search.thinnest.storage, offload_layers=len(layers)),
            resolved.clip_blocks,
            resolved.shape.changes_prompt,
            search.options.packed,
            resolved.speaker_count,
        )
        for device, layers in zip(devices, partition.layer_shards, strict=True)
    ]
    vae, dtype = devices[-1].name, search.options.dtype
    return assemble(resolved, config, "", partition, stages, dtype, vae, 1, search.tiles, search.options.tiny)
