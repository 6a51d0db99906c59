"""Choosing a plan for live talk: the one that keeps the pace of speech and answers soonest, or what is nearest."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator

from ..config import BLOCK_LATENTS, ModelConfig
from ..request import ResolvedRequest, VideoShape
from ..task_graph import Partition, StageSpeed, simulate
from .choose import candidate_plan, card_options, cards_like, check_options, infeasible, smaller_sizes
from .hardware import ASSUMED_SPEEDS, GIB, MAX_DEVICES, Hardware
from .levels import levels_of
from .memory import aux_models
from .pace import BLOCK_SECONDS, LiveForecast, listen_seconds
from .plan import Plan
from .search import (
    DEFAULT_OPTIONS,
    Candidate,
    PlanOptions,
    PlanSearch,
    plan_searches,
)

_OFFERS = 3
_SIMULATED_BLOCKS = 24
"""And six for each stage; what is steady after so many stays so."""


def choose_live_plan(
    resolved: ResolvedRequest,
    config: ModelConfig,
    hardware: Hardware,
    options: PlanOptions = DEFAULT_OPTIONS,
    *,
    model: str,
) -> Plan:
    """The plan for live talk that rounds least of those that make 25 frames per second, and of them the one with the
    least latency; where there is none, the fastest, and what would do.

    Args:
        resolved: what will be made, of open length.
        config, hardware, options, model: as of `choose_plan`.

    Returns:
        A plan with `live`; smaller than asked where that was allowed and needed to keep the pace.

    Raises:
        PlanError: nothing fits; it names what is too large and the nearest that fits.
    """
    check_options(resolved, options)
    tried = [resolved, *(smaller_sizes(resolved) if options.allow_smaller else ())]
    for find in (_holding, _fastest):
        found = ((one, best) for one in tried if (best := find(one.shape, config, hardware, options)))
        made, best = next(found, (resolved, None))
        if best is not None:
            break
    else:
        raise infeasible(resolved, config, hardware, options, model, smaller_sizes(resolved))
    candidate, live = best
    if not live.holds:
        offers = _offers(made, config, hardware, options)
        live = dataclasses.replace(live, nearest=tuple(itertools.islice(offers, _OFFERS)))
    return dataclasses.replace(candidate_plan(candidate, made, config, hardware, options, model=model), live=live)


@functools.lru_cache(maxsize=256)
def _holding(
    video: VideoShape, config: ModelConfig, hardware: Hardware, options: PlanOptions
) -> tuple[Candidate, LiveForecast] | None:
    """The candidate with the least latency on the first level where any keeps the pace; none of a last resort."""
    searches = plan_searches(video, config, hardware, options)
    usual, _ = _levels(hardware, options)
    found = (_soonest(search, level) for level in usual for search in searches)
    return next(filter(None, found), None)


@functools.lru_cache(maxsize=64)
def _fastest(
    video: VideoShape, config: ModelConfig, hardware: Hardware, options: PlanOptions
) -> tuple[Candidate, LiveForecast] | None:
    """The fastest candidate of all levels; of a last resort where there is no other."""
    fastest, bound = None, math.inf
    searches = plan_searches(video, config, hardware, options)
    for levels in _levels(hardware, options):
        for search, level in itertools.product(searches, levels if fastest is None else ()):
            if (found := search.fastest(level, bound)) and found.seconds < bound:
                fastest, bound = found, found.seconds
    return None if fastest is None else (fastest, live_forecast(fastest, video, config))


def _levels(hardware: Hardware, options: PlanOptions) -> tuple[list[int], list[int]]:
    """The lowest of each kind of rounding: stages with room stand higher by themselves; and those that are last
    resorts."""
    fp8 = options.prefer == "speed" and all(device.speed.supports_fp8 for device in hardware.devices)
    levels = levels_of(options.packs_network)
    first = next(i for i, level in enumerate(levels) if level.storage.weights == "fp8") if fp8 else 0
    lowest = [number for number in range(first, len(levels)) if levels[number].offloads_layers]
    usual, last = ([n for n in lowest if levels[n].last_resort == wanted] for wanted in (False, True))
    return usual, last


def _soonest(search: PlanSearch, level: int) -> tuple[Candidate, LiveForecast] | None:
    """The candidate of a level with the least latency that makes 25 frames per second."""
    best: tuple[Candidate, LiveForecast] | None = None
    for candidate in sorted(search.candidates(level, BLOCK_SECONDS), key=_least_latency):
        if best and _least_latency(candidate)[0] >= best[1].pipeline_seconds:
            break
        live = live_forecast(candidate, search.video, search.config)
        if live.holds and (best is None or live.pipeline_seconds < best[1].pipeline_seconds):
            best = candidate, live
    return best


def _least_latency(candidate: Candidate) -> tuple[float, int]:
    """Seconds of a block that waits for nothing, and how many devices that takes."""
    steps = candidate.topology.steps
    work = sum(len(owned) * sum(s.seconds[group] for s in candidate.shards) for group, owned in enumerate(steps))
    return round(work + candidate.decode_seconds / BLOCK_LATENTS, 3), candidate.topology.device_count


def live_forecast(candidate: Candidate, video: VideoShape, config: ModelConfig) -> LiveForecast:
    """A live talk played on a candidate's stages; one that shares its device with the VAE is slower by its work.

    The first pictures of a block wait until a third of it is decoded.
    """
    topology, shards = candidate.topology, candidate.shards
    partition = Partition(topology.steps, tuple(shard.layers for shard in shards))
    seconds = []
    for group, steps in enumerate(topology.steps):
        for column, shard in zip(topology.columns, shards, strict=True):
            decoding = candidate.decode_seconds / len(steps) if column[group].decodes else 0.0
            seconds.append((shard.seconds[group] + decoding) / len(shard.layers))
    listening = video.speaker_count * listen_seconds(aux_models(config).audio, topology.vae.speed)
    used = [slot.device for column in topology.columns for slot in column]
    found = play_live(partition, StageSpeed(tuple(seconds)), video.clip_blocks)
    return dataclasses.replace(
        found,
        seconds_per_block=max(found.seconds_per_block, candidate.seconds),
        pipeline_seconds=found.pipeline_seconds + candidate.decode_seconds / BLOCK_LATENTS + listening,
        source="measured" if all(device.measured for device in [*used, topology.vae]) else "assumed",
    )


def play_live(partition: Partition, speed: StageSpeed, clip_blocks: int) -> LiveForecast:
    """A live talk of the network alone, with blocks that become known at the pace of speech."""
    blocks = _SIMULATED_BLOCKS + 6 * partition.stages
    flat_out = simulate(partition, blocks, speed, clip_blocks)
    holds = flat_out.period <= BLOCK_SECONDS
    paced = simulate(partition, blocks, speed, clip_blocks, BLOCK_SECONDS) if holds else None
    return LiveForecast(flat_out.period, paced.latency if paced else flat_out.first_block, "given")


def _offers(resolved: ResolvedRequest, config: ModelConfig, hardware: Hardware, options: PlanOptions) -> Iterator[str]:
    """Command-line options with which 25 frames per second hold: compiled layers, a smaller video, fewer steps, more or
    larger cards."""

    def first(tried: Iterable[tuple[str, ResolvedRequest, Hardware, PlanOptions]]) -> Iterator[str]:
        for words, wanted, devices, chosen in tried:
            if found := _holding(wanted.shape, config, devices, chosen):
                yield f"{words} ({found[1].fps:.1f} fps)"
                return

    def on(devices: Hardware) -> tuple[str, ResolvedRequest, Hardware, PlanOptions]:
        return card_options(hardware, devices).strip(), resolved, devices, options

    count, largest = len(hardware.devices), max(device.total for device in hardware.devices)
    if not options.compiled:
        yield from first([("--compile", resolved, hardware, dataclasses.replace(options, compiled=True))])
    sizes = smaller_sizes(resolved)
    yield from first((f"--size {one.width}x{one.height}", one, hardware, options) for one in sizes)
    fewer = (dataclasses.replace(resolved, steps=steps) for steps in range(resolved.steps - 1, 0, -1))
    yield from first((f"--steps {one.steps}", one, hardware, options) for one in fewer)
    yield from first(
        on(cards_like(hardware, n, largest)) for n in range(count + 1, min(2 * count + 7, MAX_DEVICES) + 1)
    )
    larger = (size * GIB for size in sorted(ASSUMED_SPEEDS) if size * GIB > largest)
    yield from first(on(cards_like(hardware, count, size)) for size in larger)
