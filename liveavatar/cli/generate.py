"""Make a talking video."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import Cancelled, LiveAvatarError
from ..request import DEFAULT_PROMPT
from .options import add_request_arguments, placement_of, request_of
from .tables import effective_lines, plan_lines, receipt_lines
from .terminal import BROKEN_OFF, CANCELLED, ProgressLine, say_error

OUTPUT = Path("output")
"""Where videos go that were given no name; made when needed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `generate`."""
    parser.add_argument("--image", required=True, metavar="P", help="the portrait, any picture file")
    parser.add_argument("--audio", required=True, metavar="W", help="the voice, any sound file")
    parser.add_argument("--prompt", default=DEFAULT_PROMPT, metavar="T", help="what the video shows, in words")
    parser.add_argument("--out", default=str(OUTPUT / "avatar.mp4"), metavar="FILE.mp4", help="the video")
    parser.add_argument("--receipt", metavar="FILE.json", help="what was really done (default: beside the video)")
    parser.add_argument("--quiet", action="store_true", help="errors only")
    add_request_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Generate; 0 only when the file is complete."""
    from ..api import generate, look_ahead

    request, placement = request_of(arguments), placement_of(arguments)
    prospect = look_ahead(arguments.image, arguments.audio, request, model=arguments.model, **placement)
    say = (lambda lines: None) if arguments.quiet else (lambda lines: print("\n".join(lines), flush=True))
    say([*effective_lines(prospect.effective), *plan_lines(prospect.plan)])
    if not prospect.components.trained:
        say(["note    this model is untrained: it proves the machinery, the picture is noise"])
    if Path(arguments.out).parent == OUTPUT:
        OUTPUT.mkdir(exist_ok=True)
    progress = ProgressLine(arguments.quiet)
    try:
        receipt = generate(prospect, arguments.out, receipt=arguments.receipt, on_progress=progress)
    except Cancelled as error:
        say_error(error)
        return CANCELLED
    except LiveAvatarError as error:
        if not progress.frames:
            raise
        say_error(error)
        return BROKEN_OFF
    finally:
        progress.end()
    say(receipt_lines(receipt))
    return 0
