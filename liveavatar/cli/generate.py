"""Make a talking video."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Cancelled, LiveAvatarError, RequestError
from ..request import DEFAULT_PROMPT, check_request
from .options import (
    add_pose_arguments,
    add_request_arguments,
    check_placement_options,
    parts_of,
    placement_of,
    request_of,
)
from .parser import whole_number
from .tables import note_lines, plan_lines, receipt_lines, resolved_lines
from .terminal import BROKEN_OFF, CANCELLED, REFUSED, ProgressLine, say, say_error

if TYPE_CHECKING:
    from ..engine.backend import Backend
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
    parser.add_argument("--image", required=True, metavar="P", help="the portrait, any picture file")
    parser.add_argument("--audio", required=True, metavar="W", help="the voice, any sound file")
    parser.add_argument("--prompt", default=DEFAULT_PROMPT, metavar="T", help="what the video shows, in words")
    add_pose_arguments(parser)
    default = OUTPUT / "avatar.mp4"
    parser.add_argument(
        "--out", default=str(default), metavar="FILE.mp4", help=f"the video; replaces an older one (default: {default})"
    )
    parser.add_argument(
        "--receipt", metavar="FILE.json", help="what was really done; - prints it (default: beside the video)"
    )
    parser.add_argument("--quiet", action="store_true", help="errors only")
    add_request_arguments(parser)
    workers = parser.add_argument_group("worker processes (with --engine ray)")
    workers.add_argument(
        "--restarts",
        type=whole_number(2),
        metavar="N",
        help="lost worker processes that may be replaced before the video is given up (default: 2)",
    )
    workers.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="head of the cluster that this machine has joined, or auto; devices are named MACHINE/DEVICE then",
    )
    workers.add_argument(
        "--token-file",
        metavar="FILE",
        help="holds the token of the cluster, readable by you alone (default: what LIVEAVATAR_TOKEN_FILE names)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Generate; 0 only when the file is complete."""
    request = request_of(arguments)
    check_placement_options(arguments)
    check_request(request)
    _check_workers(arguments)
    from ..files import is_stream, path_of
    from ..pipeline import LiveAvatarPipeline
    from ..recorder import check_outputs

    out = path_of(arguments.out, "The video")
    if out.parent == OUTPUT:
        with contextlib.suppress(FileExistsError):  # a file of that name: said by the next line
            OUTPUT.mkdir(exist_ok=True)
    inputs = [arguments.image, arguments.audio, *filter(None, (arguments.pose, arguments.token_file))]
    receipt_path = check_outputs(out, arguments.receipt, inputs)
    progress, quiet = ProgressLine(arguments.quiet), arguments.quiet or is_stream(receipt_path)
    try:
        with _backend(arguments) as backend:
            pipeline = LiveAvatarPipeline.from_pretrained(arguments.model, backend=backend, **parts_of(arguments))
            made = pipeline(arguments.image, arguments.audio, request=request, pose=arguments.pose)
            with contextlib.closing(made) as video:
                if not quiet:
                    say(_spec_lines(video.spec, arguments.model, out))
                receipt = video.save(out, receipt_path, progress)
    except LiveAvatarError as error:
        progress.end()
        say_error(error)
        return CANCELLED if isinstance(error, Cancelled) else BROKEN_OFF if progress.generating else REFUSED
    progress.end()
    if not quiet:
        say([*receipt_lines(receipt), f"receipt {receipt_path}"])
    return 0


def _spec_lines(spec: VideoSpec, model: str, out: Path) -> list[str]:
    """What will be made, before anything is loaded."""
    notes = [f"{out} is there already and will be replaced"] if out.exists() else []
    notes += [*spec.resolved.notes, *([_ABOUT[model]] if model in _ABOUT else []), *spec.plan.notes]
    notes += [_ABOUT_POSE] if spec.pose is not None and model in _ABOUT else []
    return [*resolved_lines(spec.resolved), *plan_lines(spec.plan), *note_lines(notes)]


def _check_workers(arguments: argparse.Namespace) -> None:
    """Refuse options of worker processes that nobody would heed.

    Raises:
        RequestError: naming the option that is missing.
    """
    if arguments.restarts is not None and arguments.engine != "ray":
        raise RequestError("--restarts is for worker processes.", "Add --engine ray, or leave it out.")
    if arguments.restarts is not None and arguments.restarts < 0:
        raise RequestError(f"--restarts {arguments.restarts} is not possible.", "Use 0 for never, or more.")
    if arguments.address and arguments.engine != "ray":
        raise RequestError(f"The address {arguments.address} is for worker processes.", "Add --engine ray.")
    if arguments.token_file and not arguments.address:
        raise RequestError("A token file is for the cluster at an address.", "Add --address HOST:PORT, or auto.")


@contextlib.contextmanager
def _backend(arguments: argparse.Namespace) -> Iterator[Backend]:
    """Who runs the stages, for one video."""
    if arguments.engine == "local":
        from ..engine.backend import LocalBackend

        yield LocalBackend(placement_of(arguments))
        return
    from ..distributed import RayBackend, read_token
    from ..distributed.backend import RESTARTS

    token = read_token(Path(arguments.token_file)) if arguments.token_file else None
    restarts = RESTARTS if arguments.restarts is None else arguments.restarts
    backend = RayBackend(placement_of(arguments), arguments.address or "local", restarts=restarts, token=token)
    try:
        yield backend
    finally:
        backend.release()
