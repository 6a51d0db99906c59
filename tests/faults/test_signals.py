"""A run that is killed or told to stop leaves a video that plays, a receipt that does not lie, and nothing else."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
from cli.runs import generate, run, write_inputs

from liveavatar.media.video import probe
from liveavatar.video_state import VideoState

resource = pytest.importorskip("resource")
PROJECT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals, and /proc to watch a process")
CANCELLED = (130, -signal.SIGINT)
"""The second is Python's own, where `-m` runs a program and the signal came inside an `exec` of a string, such as while
a dataclass is made; a shell says 130 to both."""


@pytest.fixture
def inputs(tmp_path):
    (tmp_path / "temporary").mkdir()
    return write_inputs(tmp_path, 40)


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """The command line in a process of its own, on 40 s of sound."""
    command = [sys.executable, "-m", "liveavatar", "generate", "--image", "portrait.png", "--audio", "voice.wav"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "temporary")}
    return subprocess.Popen(
        [*command, "--size", "64x64", "--threads", "1", "--out", "out.mp4", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(process: subprocess.Popen, happened) -> None:
    deadline = time.monotonic() + 90
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def begun(folder: Path, size: int = 40_000):
    """Whether some blocks are in the file."""
    video = folder / "out.mp4"
    return lambda: video.exists() and video.stat().st_size > size


def frames_in(path: Path) -> int:
    """Frames that decode, all of them."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def told(folder: Path):
    return json.loads((folder / "out.json").read_text())


def seconds_of(process: subprocess.Popen) -> float:
    """What a running process has computed; unlike the clock, this does not depend on what else the machine does."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def seconds_of_children() -> float:
    """What all processes have computed that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def nothing_else(folder: Path) -> None:
    left = {p.name for p in folder.iterdir()} - {"portrait.png", "voice.wav", "out.mp4", "out.json", "temporary"}
    spools = [p for p in (folder / "temporary").rglob("*") if p.is_file()]  # torch makes a folder there
    assert not left and not spools, (left, spools)


def test_kill_9_leaves_a_playable_file_and_no_claim(inputs):
    process = start(inputs)
    wait_until(process, begun(inputs))
    process.kill()
    process.communicate()
    frames = frames_in(inputs / "out.mp4")
    found = probe(inputs / "out.mp4")
    assert frames >= 12 and found.frames == frames and frames % 12 == 0
    assert abs(found.av_difference) < 0.5 and abs(found.audio_start) < 1e-3
    assert told(inputs)["status"] == "running" and told(inputs)["probed"] is None
    nothing_else(inputs)
    assert run("repair", inputs / "out.mp4").code == 0
    with av.open(str(inputs / "out.mp4")) as container:
        assert container.streams.video[0].frames == frames_in(inputs / "out.mp4") == frames
    nothing_else(inputs)
    ran = generate(inputs, seconds=0.3)
    assert ran.code == 0 and told(inputs)["status"] == "complete" and frames_in(inputs / "out.mp4") == 8


def test_stopped_half_way_a_video_that_keeps_its_state_can_be_continued(inputs):
    process = start(inputs, "--steps", "1", "--save-state", "out.state")
    wait_until(process, begun(inputs))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in CANCELLED and "out.state continues it" in said, said
    info = VideoState(inputs / "out.state").info
    assert frames_in(inputs / "out.mp4") == 12 * info.block == told(inputs)["probed"]["frames"]
    going_on = {"continue": inputs / "out.state", "image": None, "out": inputs / "next.mp4"}
    assert generate(inputs, seconds=0.3, **going_on).code == 0
    for name in ("out.state", "next.mp4", "next.json"):
        (inputs / name).unlink()
    nothing_else(inputs)


def test_stopped_half_way_the_file_is_whole_up_to_there(inputs):
    children = seconds_of_children()
    process = start(inputs)
    wait_until(process, begun(inputs))
    until_asked = seconds_of(process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)  # people press it twice
    _, said = process.communicate(timeout=60)
    took = seconds_of_children() - children - until_asked
    assert process.returncode in CANCELLED, said
    assert took < until_asked, "no more work after it was told to stop than for the first blocks"
    receipt = told(inputs)
    frames = frames_in(inputs / "out.mp4")
    assert receipt["status"] == "cancelled" and receipt["probed"]["frames"] == frames >= 12
    assert abs(receipt["probed"]["av_difference"]) <= 0.08
    assert len(receipt["frames_sha256"]) == 64
    last = said.strip().splitlines()[-1]
    assert last == f"liveavatar: Cancelled; out.mp4 plays and holds {frames} of 1000 frames.", said
    assert "Traceback" not in said
    nothing_else(inputs)


def test_stopped_before_the_first_frame_there_is_no_video(inputs):
    (inputs / "out.mp4").write_bytes(b"an earlier video")
    process = start(inputs)
    wait_until(process, lambda: (inputs / "out.json").exists())
    process.send_signal(signal.SIGSTOP)  # so that no frame comes meanwhile
    ran = generate(inputs, receipt=inputs / "second.json")
    assert ran.code == 2 and "another run" in ran.err and (inputs / "out.mp4").read_bytes() == b"an earlier video"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in CANCELLED, said
    assert told(inputs)["status"] == "cancelled" and told(inputs)["probed"] is None
    assert "no video was written" in said and "Traceback" not in said
    assert (inputs / "out.mp4").read_bytes() == b"an earlier video"
    nothing_else(inputs)
