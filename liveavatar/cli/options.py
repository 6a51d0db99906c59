"""Options that several commands share, and how they become a request."""

from __future__ import annotations

import argparse

from ..config import MAX_SINK_DISTANCE, MIN_SINK_DISTANCE
from ..distance import SinkDistance
from ..errors import RequestError
from ..request import DEFAULT_PROMPT, Request
from .parser import number, whole_number

_DEFAULT_SIZES = {"mini": "128x128", "untrained": "128x128"}
_DEFAULT_SIZE = "704x384"
ENGINES = ("local", "ray")


def add_request_arguments(parser: argparse.ArgumentParser) -> None:
    """What is asked for, and where it runs."""
    parser.add_argument("--model", default="mini", metavar="mini|DIR|FILE", help="the model (default: mini)")
    parser.add_argument(
        "--size", metavar="WxH", help=f"width x height, an area (default: {_DEFAULT_SIZE}; mini: 128x128)"
    )
    parser.add_argument(
        "--steps", type=whole_number(4), default=4, metavar="N", help="denoising steps per block (default: 4)"
    )
    parser.add_argument(
        "--seed",
        type=whole_number(420),
        default=420,
        metavar="N",
        help="the same seed gives the same video; -1 draws one (default: 420)",
    )
    parser.add_argument("--seconds", type=number(10), metavar="N", help="stop after so much sound (default: all of it)")
    parser.add_argument(
        "--stages", default="1x1", metavar="SxP", help="groups of steps x parts of layers (default: 1x1)"
    )
    parser.add_argument(
        "--devices", metavar="D,D,...", help="stages take these in turn (default: the first GPU or cpu)"
    )
    parser.add_argument(
        "--engine",
        default="local",
        metavar="local|ray",
        help="who runs the stages: this process (default), or a worker process for each of them",
    )
    parser.add_argument(
        "--dtype", metavar="T", help="float32, bfloat16 or float16 (default: bfloat16 on GPUs, float32 on the CPU)"
    )
    parser.add_argument(
        "--threads", type=whole_number(1), metavar="N", help="CPU threads per task (default: all, at most 8)"
    )
    parity = parser.add_argument_group("to repeat the published implementation exactly")
    parity.add_argument("--fit", default="cover", metavar="F", help="cover (crop; the default), or pad (black bars)")
    parity.add_argument("--tail", default="silence", metavar="T", help="after the sound: silence (default), or zeros")
    parity.add_argument(
        "--lead", default="sync", metavar="L", help="sync (default), or original (3 frames dropped, 120 ms ahead)"
    )
    parity.add_argument(
        "--sink-distance",
        default="seeded",
        metavar="seeded|N",
        help="latent frames the reference stands ahead (default: seeded, drawn per block)",
    )


def request_of(arguments: argparse.Namespace) -> Request:
    """The request that the options make."""
    return Request(
        size=arguments.size or _DEFAULT_SIZES.get(arguments.model, _DEFAULT_SIZE),
        prompt=getattr(arguments, "prompt", DEFAULT_PROMPT),
        steps=arguments.steps,
        seed=arguments.seed,
        seconds=arguments.seconds,
        fit=arguments.fit,
        tail=arguments.tail,
        lead=arguments.lead,
        sink_distance=_distance(arguments.sink_distance),
    )


def placement_of(arguments: argparse.Namespace) -> dict:
    """Keyword arguments that say where and how it runs.

    Raises:
        RequestError: an engine that is not known.
    """
    check_engine(arguments.engine)
    devices = tuple(d.strip() for d in arguments.devices.split(",")) if arguments.devices else None
    return {
        "stages": arguments.stages,
        "devices": devices,
        "dtype": arguments.dtype,
        "threads": arguments.threads,
    }


def check_engine(name: str) -> None:
    """Refuse an engine that is not known.

    Raises:
        RequestError: naming those that are.
    """
    if name not in ENGINES:
        raise RequestError(f"The engine {name!r} is not known.", f"Use {' or '.join(ENGINES)}.")


def _distance(text: str) -> SinkDistance:
    if text == "seeded":
        return SinkDistance()
    if text.isdecimal() and MIN_SINK_DISTANCE <= int(text) <= MAX_SINK_DISTANCE:
        return SinkDistance("fixed", int(text))
    raise RequestError(
        f"The sink distance {text!r} is not known.",
        f"Use seeded, or a number from {MIN_SINK_DISTANCE} to {MAX_SINK_DISTANCE}.",
    )
