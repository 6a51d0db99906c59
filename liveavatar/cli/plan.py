"""Say what would be made and what memory it takes, without loading anything."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import MissingFilesError, OutputError, RequestError, shown
from ..request import DEFAULT_PROMPT, check_request
from .options import (
    add_pose_arguments,
    add_request_arguments,
    check_placement_options,
    parts_of,
    placement_of,
    request_of,
)
from .parser import number
from .speakers import add_speaker_count_argument, check_speaker_count
from .tables import live_lines, note_lines, plan_lines, resolved_lines, simulation_lines

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..components import Components
    from ..config import ModelConfig
    from ..placement import Placement
    from ..planner import Hardware, LiveForecast, Plan
    from ..request import Request, ResolvedRequest
    from ..task_graph import Simulation
    from ..weights.block_types import PackedFormat

_ASSUMED_SECONDS = 10.0
_LEAST_STEP, _MOST_SECONDS = 1e-9, 1e9
_MOST_SIMULATED = 1000
"""Blocks; what is steady after so many stays so."""
_PLOTTED_PERIODS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `plan`."""
    parser.add_argument("--image", metavar="P", help="the portrait (default: a picture of the asked aspect)")
    parser.add_argument("--audio", metavar="W", help="the voice (default: --seconds of sound, or 10)")
    parser.add_argument("--prompt", default=DEFAULT_PROMPT, metavar="T", help=argparse.SUPPRESS)
    add_speaker_count_argument(parser)
    add_pose_arguments(parser)
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--simulate", action="store_true", help="play the pipeline: throughput, delay, waiting")
    parser.add_argument(
        "--live",
        action="store_true",
        help="plan for live talk: whether 25 fps hold, how long a sample waits for its picture, and what would do",
    )
    parser.add_argument(
        "--step-seconds",
        type=number(0.5),
        metavar="T",
        help="of one block at one step in all layers on one device: for --simulate (default: 1, a unit), and for "
        "--live where nothing is known of the devices",
    )
    parser.add_argument(
        "--plot", metavar="FILE.png", help="stages over time, of the simulation; with --gpus alone: memory per card"
    )
    add_request_arguments(parser)
    devices = parser.add_argument_group("to let stages and storage be chosen for cards that need not be here")
    devices.add_argument("--gpus", metavar="NxGiB,...|here", help="4x24, 2x24,1x48, or the cards of this machine")
    devices.add_argument(
        "--packed",
        "--gguf",
        dest="packed",
        metavar="Q4_K|nvfp4",
        help="plan as for files that need not be here: GGUFs of the network and the text encoder in this type, or the "
        "network in nvfp4, mxfp8 or int8",
    )


def run(arguments: argparse.Namespace) -> int:
    """Plan; a model may be named (wan2.2-s2v-14b) without being there."""
    request = request_of(arguments)
    check_placement_options(arguments)
    check_request(request)
    _check_live(arguments)
    check_speaker_count(arguments.speakers)
    from ..charts import draw_memory
    from ..live.pace import LOOKAHEAD_SECONDS
    from ..media.audio import audio_notes
    from ..media.audio_file import read_audio
    from ..media.image import read_image
    from ..receipt import json_ready
    from ..request import image_size_for, resolve, resolve_open

    image, length, notes = None, None, list[str]()
    if arguments.image:
        height, width = read_image(arguments.image, notes).shape[:2]
        image = (width, height)
    if arguments.audio:
        audio = read_audio(arguments.audio, arguments.seconds)
        length = len(audio.samples), audio.rate
        notes += audio_notes(audio)
    image = image or image_size_for(request.size)
    length = length or (math.ceil(min(arguments.seconds or _ASSUMED_SECONDS, _MOST_SECONDS) * 16_000), 16_000)
    components, config = _model(arguments)
    notes += _prompt_notes(components, arguments.model, config, arguments.prompt)
    resolved = resolve_open(request, image, notes) if arguments.live else resolve(request, image, *length, notes)
    resolved = dataclasses.replace(resolved, speaker_count=arguments.speakers)
    if arguments.pose:
        resolved = _with_pose(arguments, request, resolved)
    resolved, plan = _plan(arguments, components, config, resolved)
    live = _live(arguments, resolved, plan) if arguments.live else None
    bars = arguments.plot and arguments.gpus and not arguments.simulate
    if bars:
        _write(draw_memory(plan.terms_by_device, dict(plan.usable)), arguments.plot)
    simulation = _simulation(arguments, resolved, plan) if arguments.simulate or (arguments.plot and not bars) else None
    if arguments.json:
        known = {"effective": resolved, "plan": plan, "total_by_device": plan.total_by_device}
        known["host_bytes_by_machine"] = plan.host_bytes_by_machine
        if simulation:
            known["simulation"] = dataclasses.replace(simulation, starts=())
        if arguments.live:
            known["live"] = _live_json(live, LOOKAHEAD_SECONDS)
        print(json.dumps(json_ready(known), indent=2, ensure_ascii=False))
    else:
        played = live_lines(live, LOOKAHEAD_SECONDS) if arguments.live else []
        played += simulation_lines(simulation) if simulation else []
        print(
            "\n".join(
                [*resolved_lines(resolved), *plan_lines(plan), *played, *note_lines([*resolved.notes, *plan.notes])]
            )
        )
    return 0


def _with_pose(arguments: argparse.Namespace, request: Request, resolved: ResolvedRequest) -> ResolvedRequest:
    """What will be made where a pose video is followed.

    Raises:
        PoseError: it cannot be read.
    """
    from ..inputs import with_pose
    from ..media.pose_video import PoseFile

    return with_pose(resolved, request, PoseFile(arguments.pose))


def _simulation(arguments: argparse.Namespace, resolved: ResolvedRequest, plan: Plan) -> Simulation:
    """The pipeline played, and drawn where that was asked."""
    from ..charts import draw_timeline
    from ..task_graph import StageSpeed, simulate

    blocks = min(resolved.blocks or _MOST_SIMULATED, _MOST_SIMULATED)
    speed = StageSpeed.even(plan.partition, 1.0 if arguments.step_seconds is None else arguments.step_seconds)
    found = simulate(plan.partition, blocks, speed, resolved.clip_blocks)
    if arguments.plot:
        _write(draw_timeline(found, until=_PLOTTED_PERIODS * found.bound + found.first_block), arguments.plot)
    return found


def _check_live(arguments: argparse.Namespace) -> None:
    """Refuse options that nobody would heed, and seconds that no step takes.

    Raises:
        RequestError: naming them.
    """
    step = arguments.step_seconds
    if step is not None and not _LEAST_STEP <= step <= _MOST_SECONDS:
        raise RequestError(f"A step cannot take {step} s.", "Give seconds from 1e-9 to 1e9, such as 0.5.")
    for name in ("audio", "seconds", "timeline") if arguments.live else ():
        if getattr(arguments, name) is not None:
            raise RequestError(f"--{name} is not for live talk.", "Leave it out, or leave out --live.")


def _live(arguments: argparse.Namespace, resolved: ResolvedRequest, plan: Plan) -> LiveForecast | None:
    """How a live talk will probably go: as the plan knows, or with the seconds of a step that were given."""
    from ..planner import play_live
    from ..task_graph import StageSpeed

    if plan.live is not None or arguments.step_seconds is None:
        return plan.live
    speed = StageSpeed.even(plan.partition, arguments.step_seconds)
    return play_live(plan.partition, speed, resolved.clip_blocks)


def _live_json(live: LiveForecast | None, lookahead: float) -> dict[str, object] | None:
    from ..planner import BLOCK_SECONDS

    if live is None:
        return None
    return {
        "holds": live.holds,
        "fps": live.fps,
        "latency_seconds": live.latency(lookahead),
        "block_seconds": BLOCK_SECONDS,
        "lookahead_seconds": lookahead,
        "pipeline_seconds": live.pipeline_seconds,
        "seconds_per_block": live.seconds_per_block,
        "source": live.source,
        "nearest": live.nearest,
    }


def _plan(
    arguments: argparse.Namespace, components: Components | None, config: ModelConfig, resolved: ResolvedRequest
) -> tuple[ResolvedRequest, Plan]:
    """The plan of a video, on devices that need not be here; as `Placement.plan`."""
    from ..components import notes_of, packed_of, tiny_config
    from ..planner import assumed_sizes

    placement, hardware = _where(arguments)
    tiny, packed = (tiny_config(components), packed_of(components)) if components else (None, None)
    if arguments.packed:
        packed = assumed_sizes(config, _packed_format(arguments.packed))
    resolved, plan = placement.plan(resolved, config, arguments.model, hardware, tiny, packed)
    return resolved, dataclasses.replace(plan, notes=(*plan.notes, *(notes_of(components) if components else ())))


def _packed_format(name: str) -> PackedFormat:
    """A format as people write it: nvfp4, q4_k, or Q4_K_M, whose matrices are Q4_K for the most part.

    Raises:
        RequestError: none that stays packed.
    """
    from ..weights.block_types import PACKED
    from ..weights.layouts import FORMATS

    known: dict[str, PackedFormat] = {kind.upper(): found for kind, found in (PACKED | FORMATS).items()}
    kind = re.sub(r"_[SML]$", "", name.strip().upper())
    if kind not in known:
        raise RequestError(f"--packed {shown(name)} is not known.", f"Use {', '.join((*PACKED, *FORMATS))}.")
    return known[kind]


def _model(arguments: argparse.Namespace) -> tuple[Components | None, ModelConfig]:
    """A model and its configuration; it need not be here where its name is known."""
    from ..components import open_components
    from ..config import PRESETS

    model, parts = arguments.model, parts_of(arguments)
    if model in PRESETS and not parts:
        return None, PRESETS[model]
    components = open_components(model, **parts)
    return components, components.config


def _prompt_notes(components: Components | None, model: str, config: ModelConfig, prompt: str) -> tuple[str, ...]:
    """What is to be told of a prompt that is too long, as far as that is known without the model."""
    from ..components import open_components
    from ..encoders.text import prompt_notes

    try:
        return prompt_notes(lambda: (components or open_components(model)).tokenizer(), prompt, config.text_len)
    except MissingFilesError:
        words = len(prompt.split())
        if words < config.text_len:
            return ()
        return (f"the prompt has {words} words and the model reads {config.text_len} tokens: the rest has no effect",)


def _where(arguments: argparse.Namespace) -> tuple[Placement, Callable[[], Hardware]]:
    """Where it runs as asked, or chosen for all devices that are asked for; and the devices at hand.

    Raises:
        RequestError: options that make no sense, or not together.
    """
    from ..hardware_cache import detect_hardware
    from ..planner import Hardware

    placement = placement_of(arguments)
    if not arguments.gpus:
        return placement, lambda: detect_hardware({})
    hardware = detect_hardware({}) if arguments.gpus.strip() == "here" else Hardware.parse(arguments.gpus)
    return placement.for_cards(hardware), lambda: hardware


def _write(image: Image, path: str) -> None:
    """Write a picture, in the format that its name ends in."""
    from PIL import Image as pillow

    from ..files import path_of, write_file

    place, data = path_of(path, "The picture"), io.BytesIO()
    try:
        image.save(data, pillow.registered_extensions()[place.suffix.lower()])
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(
            f"The picture {path} cannot be written: no such format is known.", "Give a name that ends in .png."
        ) from error
    write_file(place, data.getvalue(), "The picture")
