"""Measure the speed and the memory of the network itself, with random weights of the real shapes."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli.options import add_storage_arguments, storage_of
from ..cli.parser import number, whole_number
from ..cli.tables import aligned, counted, gigabytes
from ..cli.terminal import say
from ..config import PRESETS, ModelConfig
from ..errors import ModelError, PlanError, RequestError
from ..storage import PLAIN, StorageConfig

if TYPE_CHECKING:
    from ..placement import Placement
    from ..planner import Plan
    from ..request import ResolvedRequest
    from .found import Compared, Decoding, Launching, Memory, ModelBench, Moved, Work

_BIG, _SMALL = "wan2.2-s2v-14b", "mini"
_SIZES = {_BIG: "704x384"}
_SIZE = "128x128"
_BLOCKS = 8
_BUSY = 70
"""Percent of the device's time from which on the host's launching is too near to it."""
_LEAST_CAP, _MOST_CAP = 1, 100_000
"""GB."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench model`."""
    parser.add_argument("--model", metavar="|".join(PRESETS), help=f"shapes (default: {_BIG} on a GPU, else {_SMALL})")
    parser.add_argument("--size", metavar="WxH", help=f"width x height (default: {_SIZES[_BIG]}; small ones: {_SIZE})")
    parser.add_argument("--steps", type=whole_number(4), default=4, metavar="N", help="per block (default: 4)")
    parser.add_argument(
        "--blocks", type=whole_number(_BLOCKS), default=_BLOCKS, metavar="N", help=f"of the video (default: {_BLOCKS})"
    )
    parser.add_argument("--device", metavar="D", help="cuda:0 or cpu (default: the first GPU, else the CPU)")
    parser.add_argument("--dtype", metavar="T", help="float32, bfloat16 or float16 (default: bfloat16 on a GPU)")
    parser.add_argument("--threads", type=whole_number(1), metavar="N", help="CPU threads (default: all, at most 8)")
    parser.add_argument("--stages", default="1x1", metavar="SxP", help="all on the one device (default: 1x1)")
    parser.add_argument("--plan", choices=["auto"], help="let the storage be chosen for the device and --vram-cap")
    parser.add_argument("--vram-cap", type=number(24), metavar="GB", help="use no more of the GPU")
    add_storage_arguments(parser.add_argument_group("how a stage stores its weights and KV cache"))
    parser.add_argument("--compile", action="store_true", help="compile the layers")
    parser.add_argument("--vae", action="store_true", help="measure the VAE, too, alone and beside the network")
    parser.add_argument(
        "--vae-tiles", metavar="RxC", help="let the VAE work in tiles, such as 2x2 (default: as planned)"
    )
    parser.add_argument("--baseline", action="store_true", help="measure a naive path in turns with ours")
    parser.add_argument("--no-warm", action="store_true", help="begin cold: no short video before the measured one")
    parser.add_argument("--no-launch", action="store_true", help="leave out what launching costs the host (GPUs)")
    parser.add_argument("--json", metavar="FILE", help="write it down for machines, with versions and the date")


def run(arguments: argparse.Namespace) -> int:
    """Measure, show a table, and write it down where that was asked."""
    from .model import Asked, bench_model, cap_device, check_asked
    from .report import check_report, write_report

    most = _check_cap(arguments.vram_cap)
    if arguments.json:
        check_report(Path(arguments.json))
    model, plan = _planned(arguments, most)
    plan = dataclasses.replace(plan, compiled=arguments.compile)
    asked = Asked(
        arguments.blocks,
        arguments.vae,
        arguments.baseline,
        most,
        warm=not arguments.no_warm,
        launch=not arguments.no_launch,
    )
    check_asked(plan, asked)
    if most is not None:
        cap_device(plan.stages[0].device, most)
    found = bench_model(model, plan, asked, _print_progress)
    say(model_lines(found))
    if arguments.json:
        write_report(Path(arguments.json), "model", {"vram_cap_gb": arguments.vram_cap, "plan": plan}, found)
    return 0


def _planned(arguments: argparse.Namespace, most: int | None) -> tuple[str, Plan]:
    """The name of the shapes, and the plan: as asked, or chosen.

    Raises:
        RequestError, PlanError, ModelError: options that make no sense, or not together or here.
    """
    from ..placement import Placement, default_devices
    from ..planner import make_plan
    from ..vae.tile_grid import WHOLE
    from .material import noise_effective

    device = arguments.device or default_devices()[0]
    if "," in device:
        raise RequestError("One device is measured at a time.", "Give one, such as cuda:0.")
    if most is not None and device == "cpu":
        raise RequestError(
            "--vram-cap is for GPUs; this would run on the CPU.", "Leave it out, or give --device cuda:0."
        )
    place = Placement(
        (device,),
        arguments.stages,
        arguments.dtype,
        arguments.threads,
        vae_tiles=arguments.vae_tiles,
        compile=arguments.compile,
    )
    place.check_devices()
    model = arguments.model or (_SMALL if device == "cpu" else _BIG)
    if model not in PRESETS:
        raise ModelError(f"The shapes of {model!r} are not known.", f"Use {', '.join(PRESETS)}.")
    config, size = PRESETS[model], arguments.size or _SIZES.get(model, _SIZE)
    storage = storage_of(arguments) or PLAIN
    resolved = noise_effective(max(1, arguments.blocks), arguments.steps, size)
    if arguments.plan:
        return model, _chosen(place, resolved, config, storage, most, model)
    return model, make_plan(
        resolved,
        config,
        model=model,
        stages=arguments.stages,
        devices=(device,),
        dtype=place.resolved_dtype,
        threads=place.resolved_threads,
        storage=storage,
        snapshot_blocks=0,
        vae_tiles=place.tiles or WHOLE,
    )


def _chosen(
    place: Placement,
    resolved: ResolvedRequest,
    config: ModelConfig,
    storage: StorageConfig,
    most: int | None,
    model: str,
) -> Plan:
    """By the planner, for the one device."""
    from ..planner import Hardware, PlanOptions, choose_plan

    if storage != PLAIN or place.stages != "1x1":
        raise RequestError("--plan auto chooses stages and storage itself.", "Leave out what it is to choose.")
    (device,) = place.devices
    if device == "cpu":
        raise PlanError("There is nothing to choose on the CPU.", "Leave --plan out, or give --device cuda:0.")
    here = Hardware.detect()
    hardware = dataclasses.replace(here, devices=tuple(c for c in here.devices if c.name == device))
    options = PlanOptions(dtype=place.resolved_dtype, threads=place.resolved_threads, vae_tiles=place.tiles)
    return choose_plan(resolved, config, hardware if most is None else hardware.with_cap(most), options, model=model)


def _check_cap(gigabytes: float | None) -> int | None:
    if gigabytes is None:
        return None
    if not _LEAST_CAP <= gigabytes < _MOST_CAP:
        raise RequestError(f"--vram-cap {gigabytes:g} is not possible.", f"Give {_LEAST_CAP} GB or more.")
    return int(gigabytes * 1e9)


def _print_progress(line: str) -> None:
    print(f"measuring {line}", file=sys.stderr, flush=True)


def model_lines(found: ModelBench) -> list[str]:
    """Speed, work, traffic and memory."""
    b, p = found, found.pace
    compiled = (
        "" if b.compile_seconds is None else f", {b.compile_seconds:.1f} s to compile (kept in {b.compile_cache})"
    )
    phases = ", ".join(f"{name} {1000 * seconds:.2f}" for name, seconds in p.phases.items())
    lines = [
        f"model   {b.model}, random weights, {b.dtype}, stages {b.stages} on {b.device} ({b.device_name})",
        f"video   {b.size[0]}x{b.size[1]}, {counted(b.blocks, 'block')}, {counted(b.steps, 'step')} each",
        f"before  {b.load_seconds:.1f} s to make weights, {b.warmup_seconds:.1f} s to warm up{compiled}",
        f"pace    {p.fps:.2f} frames per second, a block every {p.seconds_per_block:.3f} s",
        f"tasks   {1000 * p.seconds_per_task:.2f} ms each ({phases}), prefill {1000 * p.prefill_seconds:.2f}",
        f"first   block after {p.first_block_seconds:.3f} s of work",
        *_work_lines(b.work),
        *_launching_lines(b.launching),
        *_moved_lines(b.moved),
        *_memory_lines(b.memory),
    ]
    if b.decoding:
        lines += _decoding_lines(b.decoding)
    if b.compared:
        lines += _compared_lines(b.compared)
    return lines if b.finite else [*lines, "wrong   some latents are not finite: nothing here is to be trusted"]


def _work_lines(w: Work) -> list[str]:
    done = f"work    {w.tflop_per_block:.4g} TFLOP per block, {w.tflops:.4g} TFLOP/s"
    if w.peak_tflops is None or w.share_of_peak is None:
        return [f"{done} (what {w.peak_dtype} matrices reach here could not be measured)"]
    share = f"{100 * w.share_of_peak:.1f} % of the {w.peak_tflops:.4g} that {w.peak_dtype} matrices reach here"
    lines = [f"{done}: {share}"]
    if w.share_of_possible is not None:
        possible = f"{100 * w.share_of_possible:.1f} % of what is possible"
        lines.append(f"        {possible}, with attention at its own {w.attention_tflops:.4g}")
    return lines


def _launching_lines(launched: Launching | None) -> list[str]:
    if launched is None:
        return []
    share = 100 * launched.share
    reading = "the device is never kept waiting" if share < _BUSY else "the host may keep the device waiting"
    return [
        f"launch  {launched.seconds_per_block:.3f} s of the host per block, {share:.1f} % of the device's: {reading}"
    ]


def _moved_lines(m: Moved) -> list[str]:
    if not m.to_device + m.to_host:
        return ["copies  nothing moves between host and device"]
    lines = [
        f"copies  {gigabytes(m.to_device)} in and {gigabytes(m.to_host)} out per block; "
        f"{m.copy_seconds:.3f} s in at {m.copy_gb:.1f} GB/s"
    ]
    if m.resident_seconds_per_block is None or m.exposed_seconds is None:
        return [*lines, "        (with nothing on the host it does not fit, so what they cost cannot be told)"]
    return [
        *lines,
        f"        with nothing on the host a block takes {m.resident_seconds_per_block:.3f} s: "
        f"{m.exposed_seconds:+.3f} s are not hidden",
    ]


def _memory_lines(m: Memory) -> list[str]:
    rows: list[tuple[str, ...]] = [("bytes", "planned", "found", "difference")]
    named = {**m.parts, "all that stays": m.held, "most at once": m.peak}
    if m.host.planned or m.host.found:
        named["on the host"] = m.host
    for name, amount in named.items():
        shown = gigabytes(amount.planned), gigabytes(amount.found), f"{amount.difference:+.2f} %"
        rows.append((name, *shown))
    lines = ["memory", *aligned(rows)]
    if m.reserved is not None:
        lines.append(f"        {gigabytes(m.reserved)} reserved by the allocator")
    return lines


def _decoding_lines(d: Decoding) -> list[str]:
    lines = [
        f"VAE     {d.seconds_per_block:.3f} s per block alone, {d.warmup_seconds:.2f} s before the first; "
        f"first frames after {d.first_frames_seconds:.3f} s"
    ]
    if d.beside_seconds_per_block is not None and d.beside_decode_seconds is not None:
        lines.append(
            f"        side by side: a block every {d.beside_seconds_per_block:.3f} s, decoded in "
            f"{d.beside_decode_seconds:.3f} s"
        )
    return lines


def _compared_lines(c: Compared) -> list[str]:
    def shown(seconds: tuple[float, ...]) -> str:
        return ", ".join(f"{s:.3f}" for s in seconds)

    return [
        f"naive   {c.ratio:.2f} times as long: {shown(c.naive)} s per block, ours {shown(c.ours)}, in turns; "
        f"latents differ by {c.difference:.1e} of the largest"
    ]
