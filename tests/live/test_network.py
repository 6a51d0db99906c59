"""What is sent to the network arrives whole and in step; servers that refuse, are silent or die are tried again."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from live.pieces import pieces_of
from live.stream_servers import (
    free_port,
    listening_ffmpeg,
    needs_ffmpeg,
    needs_nginx,
    nginx,
    silent_server,
)

from liveavatar.live.addresses import parse_address
from liveavatar.live.block import LiveBlock, LivePiece
from liveavatar.live.network import WAITING_BLOCKS, NetworkOutput, OutputStatus

KEY = "a-secret-key"
BLOCK_SECONDS = 0.48


def block(number: int) -> list[LivePiece]:
    """The pieces of a block whose picture flashes white, while a tone sounds, in its first quarter."""
    images = np.full((12, 64, 64, 3), 16, np.uint8)
    images[:3] = 235
    audio = np.zeros(23_040, np.float32)
    audio[:5_760] = 0.5 * np.sin(np.arange(5_760) * 2 * np.pi * 1000 / 48_000)
    return pieces_of(LiveBlock(number, images, audio, True, 0.0, 0.0))


@contextlib.contextmanager
def sending(url: str, **options: float | tuple[float, ...]) -> Iterator[tuple[NetworkOutput, list[OutputStatus]]]:
    told: list[OutputStatus] = []
    output = NetworkOutput(parse_address(url), 64, 64, told.append, retries=(0.2,), **options)  # type: ignore[arg-type]
    try:
        yield output, told
    finally:
        output.close()
    assert output.status.state == "closed"
    assert not any(KEY in status.to + status.what for status in told)


def send_while(output: NetworkOutput, more: Callable[[], bool], most: int = 80) -> None:
    """Put blocks at the pace of a talk for as long as more are wanted."""
    number = 0
    while more():
        assert number < most, output.status
        for piece in block(number):
            output.put(piece)
        number += 1
        time.sleep(BLOCK_SECONDS)


def send(output: NetworkOutput, blocks: int) -> None:
    """Let the server in, then send so many blocks."""
    send_while(output, lambda: output.status.state != "sending")
    left = iter(range(blocks))
    send_while(output, lambda: next(left, None) is not None)


def flashes_and_tones(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """When pictures turn white and tones begin, in seconds."""
    with av.open(str(path)) as container:
        light = [(f.time or 0.0, f.to_ndarray(format="gray").mean() > 120) for f in container.decode(video=0)]
    with av.open(str(path)) as container:
        pieces = [(f.time or 0.0, np.abs(f.to_ndarray()).mean(0)) for f in container.decode(audio=0)]
        rate = container.streams.audio[0].rate
    loud = [(start + i / rate, level > 0.05) for start, levels in pieces for i, level in enumerate(_smooth(levels))]
    return _beginnings(light), _beginnings(loud)


def _smooth(levels: np.ndarray) -> np.ndarray:
    return np.convolve(levels, np.ones(96) / 96, "same")


def _beginnings(states: list[tuple[float, bool]]) -> np.ndarray:
    found: list[float] = []
    for (_, before), (when, on) in itertools.pairwise(states):
        if on and not before and (not found or when - found[-1] > 0.3):
            found.append(when)
    return np.array(found)


def assert_in_step(path: Path, flashes: int) -> None:
    lights, tones = flashes_and_tones(path)
    assert len(lights) >= flashes
    gaps = [np.abs(tones - light).min() for light in lights]
    assert np.median(gaps) < 0.045, "picture and sound are a frame apart at most"


@needs_nginx
def test_rtmp_arrives_whole_and_comes_back_after_the_server_died(tmp_path: Path) -> None:
    port = free_port()
    with sending(f"rtmp://127.0.0.1:{port}/live/{KEY}") as (output, told):
        send_while(output, lambda: output.status.state != "lost")
        assert "refused" in output.status.what
        with nginx(tmp_path, port) as kept:
            send(output, 6)
            (first,) = kept.iterdir()
            first = first.rename(tmp_path / "first.flv")
        send_while(output, lambda: output.status.state == "sending")
        with nginx(tmp_path, port) as kept:
            send(output, 4)
    assert_in_step(first, 4)
    (second,) = kept.iterdir()
    assert_in_step(second, 3)
    states = [status.state for status in told]
    assert states.count("sending") == 2
    assert all(status.to == f"rtmp://127.0.0.1:{port}/live/***" for status in told)


@needs_nginx
@needs_ffmpeg
def test_a_stream_can_be_watched_while_it_is_sent(tmp_path: Path) -> None:
    port, out = free_port(), tmp_path / "seen.mp4"
    with nginx(tmp_path, port), sending(f"rtmp://127.0.0.1:{port}/live/{KEY}") as (output, _):
        send(output, 1)
        arguments = [
            "-loglevel",
            "error",
            "-t",
            "2",
            "-i",
            f"rtmp://127.0.0.1:{port}/live/{KEY}",
            "-c",
            "copy",
            str(out),
        ]
        with subprocess.Popen(["ffmpeg", "-nostdin", *arguments]) as watcher:
            send_while(output, lambda: watcher.poll() is None)
    assert_in_step(out, 3)


@needs_ffmpeg
@pytest.mark.parametrize(
    "scheme, path, options", [("srt", "?mode=listener", []), ("rtsp", "/live", ["-rtsp_flags", "listen"])]
)
def test_srt_and_rtsp_arrive(scheme: str, path: str, options: list[str], tmp_path: Path) -> None:
    protocols = subprocess.run(["ffmpeg", "-hide_banner", "-protocols"], capture_output=True, text=True, check=True)
    if scheme == "srt" and " srt" not in protocols.stdout:
        pytest.skip("this ffmpeg has no SRT")
    port, out = free_port(), tmp_path / "seen.mkv"
    to = f"{scheme}://127.0.0.1:{port}{path if scheme == 'rtsp' else '?latency=100000'}"
    with listening_ffmpeg(f"{scheme}://127.0.0.1:{port}{path}", out, *options) as server:
        with sending(to) as (output, _):
            send_while(output, lambda: output.status.state != "sending")
            send(output, 10)
        server.wait(20)
    assert_in_step(out, 4)


def test_a_server_that_never_answers_is_given_up_and_nothing_waits_for_it() -> None:
    with silent_server() as port, sending(f"rtmp://127.0.0.1:{port}/live/{KEY}", patience=0.5) as (output, told):
        for piece in itertools.chain.from_iterable(map(block, range(WAITING_BLOCKS + 1))):
            output.put(piece)
        while not any(status.state == "lost" for status in told):
            output.put(block(0)[0])
            time.sleep(0.05)
        assert output.status.skipped_blocks > 0, "blocks were taken while nobody took them"
    assert "did not answer within 0.5 s" in next(status.what for status in told if status.state == "lost")


def test_a_host_that_does_not_exist_is_named() -> None:
    with sending(f"rtmp://no-such-host.invalid/live/{KEY}") as (output, _):
        send_while(output, lambda: output.status.state != "lost")
        assert "no-such-host.invalid" in output.status.what and "host is not known" in output.status.what


def test_the_process_that_sends_stays_small() -> None:
    check = "import sys, liveavatar.live.sender, liveavatar.live.whip; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[2], check=True)
