"""A real ComfyUI with this pack, in its own process and its own folders."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from live_client import Client

PACK = Path(__file__).parents[2]
FOLDER = "ComfyUI-LiveAvatar"
ODD_NODES = Path(__file__).with_name("odd_nodes")
START_SECONDS = 240.0
CORE, PYTHON = "COMFYUI_PATH", "COMFYUI_PYTHON"


class Absent(Exception):
    """There is no ComfyUI to test with; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Server:
    """A running ComfyUI.

    Attributes:
        client: speaks to it.
        process: the process; it is the server itself, no shell between.
        base: its folder, with input, output, temp, models and custom_nodes.
        log: what it prints.
    """

    client: Client
    process: subprocess.Popen[bytes]
    base: Path
    log: Path

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{self.client.host}:{self.client.port}"

    def written(self) -> str:
        """The log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def resident(self) -> int | None:
        """Resident memory of the process in bytes; None where the system does not tell."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


def find_core() -> tuple[Path, str]:
    """The folder of ComfyUI and its Python, from the environment.

    Raises:
        Absent: none is named, or what is named is none.
    """
    named = os.environ.get(CORE)
    if not named:
        raise Absent(f"set {CORE} to a ComfyUI folder (and {PYTHON} to its Python) to test with a real ComfyUI")
    core, python = Path(named).resolve(), os.environ.get(PYTHON) or sys.executable
    if not (core / "main.py").is_file():
        raise Absent(f"{CORE}={named} holds no main.py")
    return core, python


@contextlib.contextmanager
def serve(base: Path, *options: str, pack: Path = PACK, streams: bool = False) -> Iterator[Server]:
    """Start a ComfyUI on the CPU with this pack and a few odd nodes for tests; it ends with the block.

    Args:
        base: an empty folder for its models, input, output, temp and user files.
        options: more options of its main.py.
        pack: where this pack really is.
        streams: whether its pages may play streams; without core's API nodes, ComfyUI forbids them that.

    Raises:
        Absent: see `find_core`.
        RuntimeError: it did not come up, or not with this pack; what its log says is in the message.
    """
    core, python = find_core()
    packs = {FOLDER: pack, ODD_NODES.name: ODD_NODES}
    _lay_out(base, packs)
    port, log = _free_port(), base / "server.log"
    command = [python, str(core / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--base-directory", str(base), "--database-url", "sqlite:///:memory:", "--disable-auto-launch"]
    command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", *packs, *options]
    command += [] if streams else ["--disable-api-nodes"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "DO_NOT_TRACK": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=core, env=environment, stdout=file, stderr=subprocess.STDOUT)
    server = Server(Client("127.0.0.1", port), process, base, log)
    try:
        _wait(server)
        yield server
    finally:
        _end(process)


def _lay_out(base: Path, packs: Mapping[str, Path]) -> None:
    """The folders, and the packs under the names they have when installed."""
    for name in ("custom_nodes", "input", "output", "user", "models"):
        (base / name).mkdir(parents=True, exist_ok=True)
    for name, folder in packs.items():
        (base / "custom_nodes" / name).symlink_to(folder, target_is_directory=True)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _wait(server: Server) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if server.process.poll() is not None:
            break
        with contextlib.suppress(urllib.error.URLError, OSError):
            system: dict[str, Any] = server.client.get("/system_stats")["system"]
            if system.get("comfyui_version"):
                _check_import(server)
                return
        time.sleep(0.25)
    raise RuntimeError(f"ComfyUI did not come up. The end of its log:\n{server.written()[-4000:]}")


def _check_import(server: Server) -> None:
    """ComfyUI goes on without a pack that it cannot import; the tests do not."""
    reasons = [line for line in server.written().splitlines() if "Cannot import" in line and FOLDER in line]
    if reasons:
        raise RuntimeError(f"ComfyUI cannot import the pack. {reasons[0]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C would, then harder."""
    for wish in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(wish)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
