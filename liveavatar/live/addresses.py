"""Addresses on a network that a talk is sent to: what they mean, and what of them people are shown."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shutil
from collections.abc import Mapping
from urllib.parse import SplitResult, unquote, urlsplit

from ..errors import RequestError

WHIP = "whip"
"""The format of what is sent over WebRTC."""
HIDDEN = "***"
"""Stands for what only the server may know: passwords, keys of streams."""
NAMED = "$LIVEAVATAR_"
"""How an environment variable is called that may stand for an address: any other would let a graph from elsewhere send
what the environment holds."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a kind of address is spoken to.

    Attributes:
        format: FFmpeg's name of the container; `WHIP` has none.
        example: an address.
        options: of the container.
    """

    format: str
    example: str
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


_RTMP = Protocol("flv", "rtmp://127.0.0.1/live/key", {"flvflags": "no_duration_filesize"})
_WHIP = Protocol(WHIP, "whip+https://:TOKEN@example.org/whip/room")
PROTOCOLS: Mapping[str, Protocol] = {
    "rtmp": _RTMP,
    "rtmps": _RTMP,
    "rtsp": Protocol("rtsp", "rtsp://127.0.0.1:8554/live", {"rtsp_transport": "tcp"}),
    "srt": Protocol("mpegts", "srt://127.0.0.1:9000"),
    "whip+https": _WHIP,
    "whip+http": _WHIP,
}
"""By the beginning of the address."""


@dataclasses.dataclass(frozen=True)
class OutputAddress:
    """Where a stream is sent.

    Attributes:
        url: to connect to, with its secrets.
        shown: as people and logs are shown it, without them.
        host: to be found before anything is sent.
        protocol: see there.
        options: of the container, with its secrets.
        needs_program: whether the program ffmpeg has to carry it, because PyAV's FFmpeg cannot.
    """

    url: str = dataclasses.field(repr=False)
    shown: str
    host: str
    protocol: Protocol
    options: Mapping[str, str] = dataclasses.field(repr=False)
    needs_program: bool = False


def parse_address(text: str) -> OutputAddress:
    """Read an address, or the environment variable `$LIVEAVATAR_...` that holds it: then its key stands in no graph,
    file or list of processes.

    Raises:
        RequestError: no such variable or kind of address, a part that is missing, or what is installed cannot speak to
            it.
    """
    text = _named(text.strip()) if text.strip().startswith("$") else text
    scheme = text.partition("://")[0].lower()
    if scheme not in PROTOCOLS:
        examples = ", ".join(dict.fromkeys(protocol.example for protocol in PROTOCOLS.values()))
        raise RequestError("An address to send to begins with no protocol that is known.", f"Give one as {examples}.")
    protocol = PROTOCOLS[scheme]
    parts = _split(text, scheme, protocol)
    options = dict(protocol.options)
    url = f"{scheme.removeprefix('whip+')}{text[len(scheme) :]}"
    if protocol.format == WHIP and "@" in parts.netloc:
        options["authorization"] = unquote(parts.password or parts.username or "")
        url = url.replace(f"{parts.netloc.rpartition('@')[0]}@", "", 1)
    needs_program = _check_installed(scheme, protocol)
    return OutputAddress(url, _shown(scheme, parts), parts.hostname or "", protocol, options, needs_program)


def _named(name: str) -> str:
    """What an environment variable holds."""
    if not name.startswith(NAMED):
        raise RequestError(f"An address is taken from variables {NAMED}... only.", f"Call it {NAMED}OUT_URL.")
    if not (text := os.environ.get(name[1:], "").strip()):
        raise RequestError(
            f"The environment variable {name[1:]} does not hold an address.",
            f"Set it before the program starts, such as to {_RTMP.example}.",
        )
    return text


def _split(text: str, scheme: str, protocol: Protocol) -> SplitResult:
    """The parts of an address. No message repeats the address, which may hold a key."""
    example = f"Write it as {protocol.example}."
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise RequestError(f"The {scheme} address holds spaces or line breaks.", example)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise RequestError(f"The {scheme} address cannot be read.", example) from error
    if not host:
        raise RequestError(f"The {scheme} address names no host.", example)
    if scheme == "srt" and port is None:
        raise RequestError("The srt address names no port.", example)
    if protocol.format == "flv" and len([part for part in parts.path.split("/") if part]) < 2:
        raise RequestError(f"The {scheme} address lacks the application or the key of the stream.", example)
    return parts


def _shown(scheme: str, parts: SplitResult) -> str:
    """The address without its secrets: user and password, the key at its end, and what stands behind "?"."""
    name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    host = f"{name}:{parts.port}" if parts.port else name
    user = f"{HIDDEN}@" if "@" in parts.netloc else ""
    path = parts.path
    if scheme.startswith("rtmp"):
        path = f"{path.rstrip('/').rpartition('/')[0]}/{HIDDEN}"
    elif scheme.startswith("whip") and path.strip("/"):
        path = f"/{HIDDEN}"
    return f"{scheme}://{user}{host}{path}{f'?{HIDDEN}' if parts.query else ''}"


def _check_installed(scheme: str, protocol: Protocol) -> bool:
    """Whether the program ffmpeg has to help.

    Raises:
        RequestError: even with it, this cannot be sent.
    """
    import av

    if protocol.format == WHIP:
        for name in ("aiortc", "aiohttp"):
            if importlib.util.find_spec(name) is None:
                raise RequestError(f"WHIP needs the package {name}.", "Install it, or use another protocol: rtmp://.")
        return False
    if missing := {"libx264", "aac"} - av.codecs_available:
        raise RequestError(
            f"The installed PyAV lacks {', '.join(sorted(missing))}.", "Install the published PyAV wheel (package av)."
        )
    if scheme != "srt" or _knows_srt():
        return False
    if shutil.which("ffmpeg") is None:
        raise RequestError(
            "The FFmpeg of the installed PyAV has no SRT, and the program ffmpeg is not there to do it instead.",
            "Install ffmpeg, or use another protocol: rtmp://.",
        )
    return True


def _knows_srt() -> bool:
    """Whether PyAV's own FFmpeg has SRT; nothing is connected."""
    import av

    try:
        av.open("srt://")
    except av.error.ProtocolNotFoundError:
        return False
    except (OSError, ValueError, av.error.FFmpegError):
        pass
    return True
