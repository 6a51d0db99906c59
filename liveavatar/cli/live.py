"""Talk live: serve a page that hears a microphone or typed words and shows the talking portrait."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import ipaddress
import secrets
import signal
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LiveAvatarError, RequestError
from ..request import DEFAULT_PROMPT, check_request
from .backends import add_worker_arguments, backend_of, check_worker_options
from .demo import ASSETS
from .options import add_request_arguments, check_placement_options, parts_of, request_of
from .parser import whole_number
from .speakers import add_mask_argument, mask_lines
from .tables import live_lines, note_lines, resolved_lines
from .terminal import REFUSED, say, say_error

if TYPE_CHECKING:
    from ..live.network import OutputStatus
    from ..live.outputs import Outputs
    from ..live.server import LiveServer

PORT = 8030
_FAREWELL_SECONDS = 1.0
"""For clients that are still there at the end."""
_UNHEEDED = {"seconds": None, "timeline": None, "tail": "silence", "lead": "sync"}
"""Options of videos that a live talk does not have, with what they are where they were not given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `live`."""
    parser.add_argument("--image", metavar="P", help="the portrait (default: this project's own)")
    parser.add_argument("--prompt", default=DEFAULT_PROMPT, metavar="T", help="what the video shows, in words")
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=whole_number(PORT), default=PORT, metavar="N", help=f"0: any (default: {PORT})")
    parser.add_argument("--token", metavar="T", help="clients have to know it; beyond this machine one is drawn")
    parser.add_argument(
        "--origin", action="append", default=[], metavar="URL", help="another page that may connect; may be repeated"
    )
    parser.add_argument(
        "--record", metavar="FILE", help="record the talk as an MP4; further talks beside it as FILE-2 and so on"
    )
    parser.add_argument(
        "--out-url",
        action="append",
        default=[],
        metavar="URL",
        help="send the talk to rtmp://, rtsp://, srt:// or whip+https://; may be repeated",
    )
    parser.add_argument("--open", action="store_true", help="open the page in this machine's browser")
    add_mask_argument(parser)
    add_request_arguments(parser)
    add_worker_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    request = request_of(arguments)
    check_placement_options(arguments)
    check_request(request)
    check_worker_options(arguments)
    _check(arguments)
    from ..live.pace import LOOKAHEAD_SECONDS

    outputs = _outputs(arguments)
    from ..live.server import LiveServer
    from ..media.image import read_image
    from ..pipeline import LiveAvatarPipeline
    from ..speakers import open_masks, place_masks

    local = _is_local(arguments.host)
    token = arguments.token if arguments.token is not None else "" if local else secrets.token_urlsafe(16)
    try:
        image, masks = read_image(Path(arguments.image or ASSETS / "portrait.png")), open_masks(arguments.speaker)
        size = image.shape[1], image.shape[0]
        with backend_of(arguments) as backend:
            pipeline = LiveAvatarPipeline.from_pretrained(arguments.model, backend=backend, **parts_of(arguments))
            resolved, plan = pipeline.plan_open(request, size, len(masks) or 1)  # the impossible: now
            lines, told = resolved_lines(resolved), live_lines(plan.live, LOOKAHEAD_SECONDS)
            notes: list[str] = []
            if masks:
                placed = place_masks(masks, size, resolved.width, resolved.height, request.fit)
                lines += mask_lines(masks, placed.shares)
                notes += [f"{mask.name}: {note}" for mask in masks for note in mask.notes] + [*placed.notes]
            say([*lines, *told, *note_lines([*notes, *plan.notes])])
            asked = dataclasses.replace(request, seconds=None)
            server = LiveServer(pipeline, image, asked, token, tuple(arguments.origin), outputs=outputs, speakers=masks)
            if plan.live is not None:
                server.room.latency_ms = 1000 * plan.live.latency(LOOKAHEAD_SECONDS)
            asyncio.run(_serve(server, arguments.host, arguments.port, arguments.open))
    except LiveAvatarError as error:
        say_error(error)
        return REFUSED
    return 0


async def _serve(server: LiveServer, host: str, port: int, open_page: bool) -> None:
    from aiohttp import web

    runner = web.AppRunner(server.application(), shutdown_timeout=_FAREWELL_SECONDS)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise RequestError(
                f"Port {port} of {host} cannot be used ({error.strerror or error}).", "Choose another: --port 0."
            ) from error
        url = f"http://{_shown_host(host)}:{runner.addresses[0][1]}/"
        url += f"#token={server.token}" if server.token else ""
        say([f"page    {url}", "Ctrl-C ends it."])
        if open_page:
            await asyncio.to_thread(webbrowser.open, url)
        await _told_to_end().wait()
    finally:
        await runner.cleanup()


def _told_to_end() -> asyncio.Event:
    """Set by Ctrl-C, which elsewhere strikes in the middle of whatever the loop is doing."""
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # on Windows it strikes
            asyncio.get_running_loop().add_signal_handler(number, told.set)
    return told


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be served, before anything is loaded.

    Raises:
        RequestError: an option that nobody would heed, a port that does not exist, or aiohttp is not installed.
    """
    for name, default in _UNHEEDED.items():
        if getattr(arguments, name) != default:
            raise RequestError(f"--{name} is not for live talk.", "Leave it out.")
    if not 0 <= arguments.port <= 65_535:
        raise RequestError(f"--port {arguments.port} is not possible.", "Use 0 to 65535; 0 takes a free one.")
    try:
        import aiohttp  # noqa: F401
    except ImportError as error:
        raise RequestError(
            f"Live talk needs the package aiohttp, which this Python ({sys.executable}) lacks.",
            "Install it (ComfyUI has it, and so has .venv after `make setup`).",
        ) from error


def _outputs(arguments: argparse.Namespace) -> Outputs:
    """Where talks go besides the page.

    Raises:
        LiveAvatarError: a file that cannot be written, or an address that cannot be sent to.
    """
    from ..live.addresses import parse_address
    from ..live.outputs import Outputs
    from ..media.masks import HALVES
    from ..recorder import check_outputs

    if arguments.record is not None:
        masks = [Path(name) for name in arguments.speaker if name not in HALVES]
        check_outputs(arguments.record, inputs=[*([arguments.image] if arguments.image else []), *masks])
    addresses = tuple(parse_address(url) for url in arguments.out_url)
    return Outputs(None if arguments.record is None else Path(arguments.record), addresses, _say_news())


def _say_news() -> Callable[[OutputStatus], None]:
    """Prints what happens to outputs, each state once until it changes."""
    states: dict[str, str] = {}

    def say_it(status: OutputStatus) -> None:
        if status.state != "connecting" and states.get(status.to) != status.state:
            say([f"{status.state}: {status.what or status.to}"])
            states[status.to] = status.state

    return say_it


def _is_local(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _shown_host(host: str) -> str:
    return "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
