"""Say what would be made and what memory it takes, without loading anything."""

from __future__ import annotations

import argparse
import json
import math

from ..request import DEFAULT_PROMPT, check_request
from .options import add_request_arguments, placement_of, request_of
from .tables import effective_lines, note_lines, plan_lines

_ASSUMED_SECONDS = 10.0
_MOST_SECONDS = 1e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `plan`."""
    parser.add_argument("--image", metavar="P", help="the portrait (default: a picture of the asked aspect)")
    parser.add_argument("--audio", metavar="W", help="the voice (default: --seconds of sound, or 10)")
    parser.add_argument("--prompt", default=DEFAULT_PROMPT, metavar="T", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="for machines")
    add_request_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Plan; a model may be named (wan2.2-s2v-14b) without being there."""
    request = request_of(arguments)
    check_request(request)
    from ..api import foresee
    from ..media.picture import read_picture
    from ..media.sound import read_sound
    from ..receipt import json_ready
    from ..size import parse_size

    picture, length = None, None
    if arguments.image:
        height, width = read_picture(arguments.image).shape[:2]
        picture = (width, height)
    if arguments.audio:
        sound = read_sound(arguments.audio)
        length = (len(sound.samples), sound.rate)
    picture = picture or _at_least_full_hd(parse_size(request.size))
    length = length or (math.ceil(min(arguments.seconds or _ASSUMED_SECONDS, _MOST_SECONDS) * 16_000), 16_000)
    effective, plan = foresee(request, picture, *length, model=arguments.model, **placement_of(arguments))
    if arguments.json:
        known = {"effective": effective, "plan": plan, "total_by_device": plan.total_by_device}
        print(json.dumps(json_ready(known), indent=2, ensure_ascii=False))
    else:
        print("\n".join([*effective_lines(effective), *plan_lines(plan), *note_lines(effective.notes)]))
    return 0


def _at_least_full_hd(size: tuple[int, int]) -> tuple[int, int]:
    """A picture large enough that nothing of the asked area is lost."""
    factor = -(-1920 // min(size))
    return size[0] * factor, size[1] * factor
