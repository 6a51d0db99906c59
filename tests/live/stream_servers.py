"""Servers that tests send streams to: nginx with its RTMP module, ffmpeg that listens, and one that is silent."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

RTMP_MODULE = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
needs_nginx = pytest.mark.skipif(
    not (RTMP_MODULE.exists() and Path(NGINX).exists()),
    reason="needs nginx and libnginx-mod-rtmp (tests/live/README.md)",
)
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the program ffmpeg")
_CONFIGURATION = """
load_module {module};
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors.log;
events {{ worker_connections 64; }}
rtmp {{ server {{ listen 127.0.0.1:{port}; application live {{ live on; record all; record_path {folder}/kept; }} }} }}
"""


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def nginx(folder: Path, port: int) -> Iterator[Path]:
    """An RTMP server; yields the folder in which it keeps what it is sent."""
    kept = folder / "kept"
    kept.mkdir(exist_ok=True)
    kept.chmod(0o777)
    configuration = folder / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(module=RTMP_MODULE, folder=folder, port=port))
    command = [NGINX, "-p", str(folder), "-c", str(configuration), "-e", str(folder / "errors.log")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for_port(port)
            yield kept
        finally:
            server.terminate()


@contextlib.contextmanager
def listening_ffmpeg(address: str, out: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """ffmpeg that takes what is sent to an address and keeps it."""
    arguments = [
        "-nostdin",
        "-loglevel",
        "error",
        "-analyzeduration",
        "1000000",
        *options,
        "-i",
        address,
        "-c",
        "copy",
        "-y",
        str(out),
    ]
    with subprocess.Popen(["ffmpeg", *arguments]) as server:
        try:
            yield server
        finally:
            server.terminate()


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """A port that lets everybody in and never says a word."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield int(one.getsockname()[1])


def wait_for_port(port: int, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nobody listens at {port}")
