"""Make a talking video."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Cancelled, LiveAvatarError, RequestError
from ..request import DEFAULT_PROMPT, check_request
from .backends import add_worker_arguments, backend_of, check_worker_options
from .options import (
    add_pose_arguments,
    add_request_arguments,
    check_placement_options,
    parts_of,
    request_of,
)
from .speakers import add_audio_arguments, speaker_lines, spoken_of
from .tables import note_lines, plan_lines, receipt_lines, resolved_lines
from .terminal import BROKEN_OFF, CANCELLED, REFUSED, ProgressLine, say, say_error

if TYPE_CHECKING:
    from ..recorder import VideoSpec

OUTPUT = Path("output")
"""Where videos go that were given no name; made when needed."""
_ABOUT = {
    "mini": "this is the miniature: it knows drawn people of 128x128 only, and is no measure of the 14B model",
    "untrained": "this model is untrained: it proves the machinery, the picture is noise",
}
_ABOUT_POSE = "this model never learnt what a pose means: it only disturbs the picture"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `generate`."""
    parser.add_argument(
        "--image", metavar="P", help="the portrait, any picture file; needed unless --continue names another video"
    )
    add_audio_arguments(parser)
    parser.add_argument("--prompt", default=DEFAULT_PROMPT, metavar="T", help="what the video shows, in words")
    add_pose_arguments(parser)
    default = OUTPUT / "avatar.mp4"
    parser.add_argument(
        "--out", default=str(default), metavar="FILE.mp4", help=f"the video; replaces an older one (default: {default})"
    )
    parser.add_argument(
        "--receipt", metavar="FILE.json", help="what was really done; - prints it (default: beside the video)"
    )
    parser.add_argument(
        "--save-state",
        metavar="FILE",
        help="keep what --continue needs: the video ends with a whole block, and may be cancelled before",
    )
    parser.add_argument(
        "--continue",
        dest="continue_from",
        metavar="FILE",
        help="go on from what --save-state has written, as if that video had never ended; or, approximately, from the "
        "last frames of an MP4",
    )
    parser.add_argument("--quiet", action="store_true", help="errors only")
    add_request_arguments(parser)
    add_worker_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Generate; 0 only when the file is complete."""
    request = dataclasses.replace(request_of(arguments), keep_state=arguments.save_state is not None)
    check_placement_options(arguments)
    check_request(request)
    check_worker_options(arguments)
    spoken = spoken_of(arguments)
    if arguments.image is None and arguments.continue_from is None:
        raise RequestError("The following arguments are required: --image.", "Name a picture; see generate --help.")
    from ..continuation import size_of, start_of
    from ..files import is_stream, path_of
    from ..pipeline import LiveAvatarPipeline
    from ..recorder import check_outputs
    from ..speakers import files_of_audio

    out = path_of(arguments.out, "The video")
    if out.parent == OUTPUT:
        with contextlib.suppress(FileExistsError):  # a file of that name: said by the next line
            OUTPUT.mkdir(exist_ok=True)
    a = arguments
    given = (a.image, a.timeline, a.pose, a.token_file, a.continue_from, *files_of_audio(spoken))
    receipt_path = check_outputs(out, arguments.receipt, filter(None, given))
    progress, quiet = ProgressLine(arguments.quiet), arguments.quiet or is_stream(receipt_path)
    try:
        with backend_of(arguments) as backend:
            pipeline = LiveAvatarPipeline.from_pretrained(arguments.model, backend=backend, **parts_of(arguments))
            start = start_of(arguments.continue_from)
            if start is not None and arguments.size is None:
                request = dataclasses.replace(request, size=size_of(start))
            given_pose = arguments.pose
            made = pipeline(arguments.image, spoken, request=request, continue_from=start, pose=given_pose)
            with contextlib.closing(made) as video:
                if not quiet:
                    say(_spec_lines(video.spec, arguments.model, out))
                receipt = video.save(out, receipt_path, progress, state=arguments.save_state)
    except LiveAvatarError as error:
        progress.end()
        say_error(error)
        return CANCELLED if isinstance(error, Cancelled) else BROKEN_OFF if progress.generating else REFUSED
    progress.end()
    if not quiet:
        state = [f"state   {arguments.save_state}"] if arguments.save_state else []
        say([*receipt_lines(receipt), f"receipt {receipt_path}", *state])
    return 0


def _spec_lines(spec: VideoSpec, model: str, out: Path) -> list[str]:
    """What will be made, before anything is loaded."""
    notes = [f"{out} is there already and will be replaced"] if out.exists() else []
    notes += [*spec.resolved.notes, *([_ABOUT[model]] if model in _ABOUT else []), *spec.plan.notes]
    notes += [_ABOUT_POSE] if spec.pose is not None and model in _ABOUT else []
    speakers = speaker_lines(spec.speaker_reports)
    return [*resolved_lines(spec.resolved), *speakers, *plan_lines(spec.plan), *note_lines(notes)]
