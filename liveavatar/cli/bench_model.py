"""Measure the speed and the memory of the network itself, with random weights of the real shapes."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import PRESETS, ModelConfig
from ..errors import ModelError, PlanError, RequestError
from ..storage import PLAIN, StorageConfig
from .options import add_storage_arguments, storage_of
from .parser import number, whole_number
from .terminal import say

if TYPE_CHECKING:
    from ..placement import Placement
    from ..planner import Plan
    from ..request import ResolvedRequest

_BIG, _SMALL = "wan2.2-s2v-14b", "mini"
_SIZES = {_BIG: "704x384"}
_SIZE = "128x128"
_BLOCKS = 8
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
    from ..bench.model import Asked, bench_model, cap_device, check_asked
    from ..bench.report import check_report, write_report
    from .model_lines import model_lines

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
    found = bench_model(model, plan, asked, _tell)
    say(model_lines(found))
    if arguments.json:
        write_report(Path(arguments.json), "model", {"vram_cap_gb": arguments.vram_cap, "plan": plan}, found)
    return 0


def _planned(arguments: argparse.Namespace, most: int | None) -> tuple[str, Plan]:
    """The name of the shapes, and the plan: as told, or chosen.

    Raises:
        RequestError, PlanError, ModelError: options that make no sense, or not together or here.
    """
    from ..bench.material import noise_effective
    from ..placement import Placement, default_devices
    from ..planner import make_plan
    from ..vae.tile_grid import WHOLE

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


def _tell(line: str) -> None:
    print(f"measuring {line}", file=sys.stderr, flush=True)
