"""`live` refuses what it cannot serve before anything is loaded, and serves its page until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from liveavatar.cli import main
from liveavatar.media.video import probe

PROJECT = Path(__file__).parents[2]
aiohttp = pytest.importorskip("aiohttp", reason="live talk needs the package aiohttp")


@pytest.mark.parametrize(
    "options, said",
    [
        (["--seconds", "3"], "--seconds is not for live talk"),
        (["--engine", "rays"], "The engine 'rays' is not known"),
        (["--restarts", "1"], "--restarts is for worker processes"),
        (["--engine", "ray", "--restarts", "-1"], "--restarts -1 is not possible"),
        (["--port", "70000"], "0 to 65535"),
        (["--size", "1x1"], "too small"),
        (["--image", "/nowhere.png"], "nowhere.png"),
        (["--model", "/nowhere"], "nowhere"),
        (["--record", "talk.avi"], "ends in .mp4"),
        (["--record", "/nowhere/talk.mp4"], "does not exist"),
        (["--out-url", "ftp://a.example/live"], "no protocol that is known"),
        (["--out-url", "rtmp://a.example/only"], "key of the stream"),
    ],
)
def test_what_cannot_be_served_is_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["live", "--port", "0", *options]) == 2
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["live", "--model", "untrained", "--port", str(port)]) == 2
    assert f"Port {port}" in capsys.readouterr().err


def served(*options: str) -> tuple[str, str, int]:
    """The page's address, its text, and the exit code after Ctrl-C."""
    command = [sys.executable, "-m", "liveavatar", "live", "--model", "untrained", "--port", "0", *options]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stdout is not None
        try:
            told = list(itertools.takewhile(lambda line: not line.startswith("Ctrl-C"), process.stdout))
            assert any(line.startswith("delay ") for line in told), "before anything is loaded"
            address = next(line.split()[1] for line in told if line.startswith("page "))
            with contextlib.closing(urllib.request.urlopen(address, timeout=30)) as page:
                text = page.read().decode()
            process.send_signal(signal.SIGINT)
            return address, text, process.wait(60)
        finally:
            process.kill()


def test_the_page_is_served_until_ctrl_c() -> None:
    address, text, code = served()
    assert address.startswith("http://127.0.0.1:")
    assert "token" not in address
    assert "live.js" in text
    assert code in (0, 130)


def test_ctrl_c_while_somebody_talks_leaves_a_whole_recording(tmp_path: Path) -> None:
    out = tmp_path / "talk.mp4"
    command = [sys.executable, "-m", "liveavatar", "live", "--model", "untrained", "--size", "64x64", "--port", "0"]

    async def talk(address: str) -> None:
        async with aiohttp.ClientSession() as http, http.ws_connect(f"{address}live") as client:
            await client.send_json({"type": "hello", "version": 1})
            await client.send_json({"type": "start"})
            async for message in client:
                if message.type == aiohttp.WSMsgType.TEXT and json.loads(message.data).get("block", 0) >= 2:
                    process.send_signal(signal.SIGINT)
                    break
            async for _ in client:
                pass

    with subprocess.Popen([*command, "--record", str(out)], cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = next(line.split()[1] for line in process.stdout if line.startswith("page "))
            asyncio.run(asyncio.wait_for(talk(address), 120))
            assert process.wait(60) in (0, 130)
        finally:
            process.kill()
        said = process.stdout.read()
    assert f"recording: {out}" in said and f"closed: {out}" in said
    receipt = json.loads(out.with_suffix(".json").read_text())
    assert receipt["status"] == "complete" and probe(out).frames == receipt["effective"]["frames"] >= 24


def test_beyond_this_machine_a_token_is_drawn() -> None:
    address, _, _ = served("--host", "0.0.0.0")
    assert len(address.partition("#token=")[2]) > 16
