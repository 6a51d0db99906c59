"""Memory does not grow with the video: a minute by default, ten minutes when asked for (-m slow)."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli.runs import write_picture, write_voice

from liveavatar import LiveAvatarPipeline
from liveavatar.events import Event

PROJECT = Path(__file__).parents[2]
EARLY_FRAMES = 96
"""From the third clip on everything is in use: both sinks, full rings, the file."""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to read memory from")


def resident(process: int | str = "self") -> float:
    """MB of a process in memory, pages of mapped files included; 0 when it has just ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


@pytest.mark.slow
def test_a_minute_takes_no_more_memory_than_four_seconds(tmp_path):
    write_picture(tmp_path / "portrait.png")
    write_voice(tmp_path / "voice.wav", 61, 48_000, channels=2)
    seen: list[float] = []

    def watch(event: Event) -> None:
        if event.frames >= EARLY_FRAMES:
            seen.append(resident())

    pipeline = LiveAvatarPipeline.from_pretrained(threads=1)
    inputs = tmp_path / "portrait.png", tmp_path / "voice.wav"
    with contextlib.closing(pipeline(*inputs, size="64x64", seconds=60, steps=2)) as job:
        receipt = job.save(tmp_path / "out.mp4", callback=watch)
    assert receipt.probed.frames == 1500 and len(seen) > 200
    assert max(seen) - seen[0] < 5, "MB; 50 MB in ten minutes"


def command_line(folder: Path, seconds: int) -> tuple[list[float], dict]:
    """Resident memory of the program, four times a second from the first seconds of video on, and its receipt."""
    voice, out = folder / f"{seconds}.wav", folder / f"{seconds}.mp4"
    write_voice(voice, seconds, 48_000, channels=2)
    command = [sys.executable, "-m", "liveavatar", "generate", "--image", folder / "portrait.png", "--audio", voice]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    seen = []
    with subprocess.Popen(
        [*command, "--size", "64x64", "--threads", "1", "--quiet", "--out", out], cwd=folder, env=environment
    ) as process:
        while process.poll() is None:
            if out.exists() and out.stat().st_size > 100_000:
                seen.append(resident(process.pid))
            time.sleep(0.25)
    assert process.returncode == 0
    return seen, json.loads(out.with_suffix(".json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_minutes_take_no_more_memory_than_one(tmp_path):
    write_picture(tmp_path / "portrait.png")
    _, short = command_line(tmp_path, 60)
    seen, long = command_line(tmp_path, 600)
    assert long["probed"]["frames"] == 15_000 and len(seen) > 20
    grown = max(seen) - seen[0]
    peaks = [told["peak_memory"]["host"] / 2**20 for told in (short, long)]
    print(f"grown by {grown:.1f} MB while generating; peaks of 1 and 10 minutes: {peaks[0]:.0f} and {peaks[1]:.0f} MB")
    assert grown < 50
    assert peaks[1] - peaks[0] < 50
