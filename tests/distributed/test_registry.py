"""Workers are known to other processes, which may show their logs and end them."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli.runs import run
from distributed.videos import Video

from liveavatar.codec import ExecConfig
from liveavatar.distributed import BackendStatus, RayBackend, WorkerError
from liveavatar.distributed.registry import drivers, process_start_time
from liveavatar.events import Event

PROJECT = Path(__file__).parents[2]
STAGES = "1x2"
pytestmark = pytest.mark.skipif(
    process_start_time(os.getpid()) is None, reason="this system does not tell who a process is"
)


def asked_elsewhere(*words: object) -> str:
    """What `liveavatar workers` says in a process of its own. Never `--stop` without a number here: this machine may
    have workers of others."""
    command = [sys.executable, "-m", "liveavatar", "workers", *map(str, words)]
    ran = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    return ran.stdout


def states() -> list[str]:
    """Of the listed workers of this process."""
    return [w.state for driver in drivers() if driver.pid == os.getpid() for w in driver.workers]


def test_another_process_lists_shows_and_stops_workers(backend: RayBackend) -> None:
    backend.release()  # other tests may have left encoders and VAE
    video = Video(6)
    video.engine(backend, STAGES).load()
    pids = backend.worker_pids
    told = json.loads(asked_elsewhere("--json"))
    seen = [w for driver in told if driver["pid"] == os.getpid() for w in driver["workers"]]
    assert [(w["pid"], w["stage"], w["device"], w["state"]) for w in seen] == [
        (pids[0], 0, "cpu", "alive"),
        (pids[1], 1, "cpu", "alive"),
    ]
    assert all(w["memory"] > 10e6 and time.time() - w["since"] < 600 for w in seen)
    log = asked_elsewhere("--log", pids[1])
    assert "layers 2-3 are loaded on cpu" in log and str(pids[0]) not in log

    backend.codec(video.components, ExecConfig("cpu", "float32", 1)).encode_prompts(["a calm man"])
    listed: list[str] = []
    stopped: list[str] = []

    def stop(report: Event) -> None:
        if report.done == 20:
            listed.append(asked_elsewhere())
            stopped.append(asked_elsewhere("--stop", pids[1]))

    with pytest.raises(WorkerError, match=r"Stage 2 of 2 .* was lost"):
        video.latents(backend, STAGES, stop)
    assert all(str(pid) in listed[0] for pid in (*pids, backend.codec_pid)) and "codec" in listed[0]
    assert f"{pids[1]} ended" in stopped[0]
    assert states() == ["alive", "dead", "alive"]
    backend.codec(video.components, ExecConfig("cpu", "float32", 1)).release()
    assert video.is_made_by(backend, STAGES) and backend.worker_pids[0] == pids[0]

    # In this process, where Ray may say on the same output that it has lost workers.
    assert "2 ended\n" in run("workers", "--stop", os.getpid()).out
    assert states() == ["dead", "dead"]
    assert video.is_made_by(backend, STAGES) and not set(backend.worker_pids) & set(pids)
    with ThreadPoolExecutor() as pool:
        released = pool.submit(backend.release)
        while not released.done():
            backend.status()  # answers also meanwhile
        released.result()
    assert backend.status() == BackendStatus("released", 0, (), None, 0) and states() == []
