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
        (["--speaker", "left"], "There is one speaker, and a mask"),
        (["--speaker", "left", "--speaker", "/nowhere.png"], "nowhere.png"),
        (["--speaker", "left", "--speaker", "left"], "The masks of speaker 1 and speaker 2 overlap"),
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


def test_a_mask_is_not_recorded_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = tmp_path / "mask.mp4"
    mask.write_bytes(b"a mask")
    masks = ["--speaker", "left", "--speaker", str(mask)]
    assert main(["live", "--port", "0", *masks, "--record", str(mask)]) == 2
    assert "would replace" in capsys.readouterr().err and mask.read_bytes() == b"a mask"


def page_of(told: list[str]) -> str:
    return next(line.split()[1] for line in told if line.startswith("page "))


def served(*options: str) -> tuple[list[str], str, int]:
    """What is told, the page's text, and the exit code after Ctrl-C."""
    command = [sys.executable, "-m", "liveavatar", "live", "--model", "untrained", "--port", "0", *options]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stdout is not None
        try:
            told = list(itertools.takewhile(lambda line: not line.startswith("Ctrl-C"), process.stdout))
            assert any(line.startswith("delay ") for line in told), "before anything is loaded"
            with contextlib.closing(urllib.request.urlopen(page_of(told), timeout=30)) as page:
                text = page.read().decode()
            process.send_signal(signal.SIGINT)
            return told, text, process.wait(60)
        finally:
            process.kill()


def test_the_page_is_served_until_ctrl_c() -> None:
    told, text, code = served("--size", "128x128", "--speaker", "left", "--speaker", "right")
    address = page_of(told)
    assert address.startswith("http://127.0.0.1:")
    assert "token" not in address
    assert "live.js" in text
    assert "speaker 2: at the right half (50% of the picture)\n" in told and "2 speakers" in "".join(told)
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
    told, _, _ = served("--host", "0.0.0.0")
    assert len(page_of(told).partition("#token=")[2]) > 16
